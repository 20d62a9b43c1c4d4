"""`health` as a monitoring plugin, and `status --wait`, against a real admin server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gossip.status import MemberState
from router.decision import Hop, Outcome, OutcomeKind
from smtp_edge.cli import waiting
from tests.unit.smtp_edge.operator import views
from tests.unit.smtp_edge.operator.test_commands import ask
from tests.unit.smtp_edge.operator.views import PEER, Served
from tests.unit.smtp_edge.queue.builders import build_new


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def well(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """All members are reachable."""
    members = [replace(member, state=MemberState.UP) for member in served.view.members()[1:]]
    monkeypatch.setattr(served.view, "members", lambda: (views.FakeView.members(served.view)[0], *members))
    served.run(served.view.room.measure())
    return served


def check(served: Served, *words: str) -> tuple[int, str]:
    result = ask(served, "health", *words)
    return result.exit_code, result.stdout.strip()


def fail(served: Served, hop: str) -> None:
    engine, now = served.view.engine, served.view.now()
    for number in range(6):
        outcome = Outcome(Hop.parse(hop), OutcomeKind.CONNECT_FAILED, now, message=f"m{number}")
        engine.record(outcome, "default", now)


def put(served: Served, age: timedelta = timedelta()) -> None:
    served.run(served.view.store.put(build_new(received_at=datetime.now(UTC) - age), claim=False))
    served.view.engine.set_backlog("default", 1)


def test_a_node_that_is_well_is_ok_with_performance_data(well: Served) -> None:
    code, line = check(well)
    assert code == 0
    text, _, data = line.partition(" | ")
    assert text == "SMTPMESH OK - relay-a: 0 waiting, nothing is amiss"
    assert data == ("waiting=0 deferred=0 held=0 damaged=0 oldest=0s headroom=100% accepted=7c relayed=1c members=3")


def test_an_exit_that_is_down_is_a_warning(well: Served) -> None:
    fail(well, "host:a")
    code, line = check(well)
    assert code == 1
    assert line.startswith("SMTPMESH WARNING - relay-a: down: a | ")


def test_mail_without_a_way_out_is_critical(well: Served) -> None:
    for hop in ("host:a", "host:b"):
        fail(well, hop)
    well.view.engine.peer_session(PEER, False, well.view.now())
    put(well)
    code, line = check(well)
    assert code == 2
    assert line.startswith("SMTPMESH CRITICAL - relay-a: class default: 1 wait and have no way out; down: a, b | ")


def test_members_that_cannot_be_reached_are_a_warning(served: Served) -> None:
    served.run(served.view.room.measure())
    code, line = check(served)
    assert code == 1
    assert "unreachable: relay-c" in line


def test_a_drain_is_a_warning(well: Served) -> None:
    well.run(well.view.operations.drain_node("sue"))
    code, line = check(well)
    assert (code, "draining, by sue" in line) == (1, True)


def test_a_disk_that_fails_is_critical(well: Served) -> None:
    well.view.trouble = "the queue's disk fails: disk I/O error"
    well.run(well.view.room.measure())
    code, line = check(well)
    assert code == 2
    assert line.startswith("SMTPMESH CRITICAL - relay-a: the queue's disk fails: disk I/O error | ")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--warn-waiting", "3"), 0, "nothing is amiss"),
        (("--warn-waiting", "2"), 1, "2 deliveries wait"),
        (("--warn-waiting", "1", "--crit-waiting", "2"), 2, "2 deliveries wait"),
        (("--warn-oldest", "3h"), 0, "nothing is amiss"),
        (("--warn-oldest", "2h"), 1, "the oldest delivery waits for 120 min"),
        (("--crit-oldest", "30m"), 2, "the oldest delivery waits for 120 min"),
    ],
)
def test_what_is_too_much_the_operator_says(well: Served, words: tuple[str, ...], code: int, text: str) -> None:
    put(well, timedelta(hours=2))
    put(well)
    found, line = check(well, *words)
    assert found == code
    assert text in line


def test_a_node_that_does_not_answer_is_critical_and_bad_configuration_unknown(well: Served, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from smtp_edge.cli import cli

    gone = CliRunner().invoke(cli, ["health", "--admin", f"unix:{tmp_path}/none.sock"])
    assert gone.exit_code == 2
    assert gone.stdout.startswith("SMTPMESH CRITICAL - no answer from unix:")
    lost = CliRunner().invoke(cli, ["health", "--config", str(tmp_path / "none.toml")])
    assert lost.exit_code == 3


def test_health_in_json_names_every_finding(well: Served) -> None:
    fail(well, "host:a")
    result = ask(well, "health", "--json")
    shown = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (shown["status"], shown["node"]) == ("WARNING", "relay-a")
    assert shown["findings"] == [{"level": "WARNING", "text": "down: a"}]
    assert shown["measured"]["headroom"] == 100


# -- status --wait -----------------------------------------------------------------------------------------------------


def test_waiting_ends_at_once_when_the_node_is_ready(well: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(well.view, "gossip_stats", lambda: replace(views.STATS, sessions=8))
    result = ask(well, "status", "--wait")
    assert result.exit_code == 0
    assert "node      relay-a" in result.stdout


def test_waiting_names_what_is_missing_when_it_is_not_in_time(well: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "POLL_S", 0.01)
    result = ask(well, "status", "--wait", "--timeout", "0.05s")
    assert result.exit_code == 75
    assert result.stderr == "smtpmesh: not ready after 0 s: 6 of 8 sessions with other nodes are up\n"
    assert result.stdout == ""
