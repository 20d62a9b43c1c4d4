"""Commands that concern the machine: every worker is asked, and what each says or does not say is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from smtp_edge.cli import cli
from tests.unit.smtp_edge.operator.views import FakeView, Served, make_identity
from tests.unit.smtp_edge.queue.builders import build_new

CONFIG = """
[node]
name = "mx1"
data_dir = "."
workers = 2
[[listener]]
allow_networks = ["127.0.0.0/8"]
[[smart_host]]
name = "up"
host = "127.0.0.1"
[[route]]
via = ["up"]
"""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture
def workers(folder: Path) -> Iterator[list[Served]]:
    """Two served views, where a configuration of two workers looks for them."""
    (folder / "node.toml").write_text(CONFIG)
    served = []
    for place in (folder, folder / "worker-2"):
        served.append(Served(FakeView(place, make_identity(place)), "unix:admin.sock"))
        assert served[-1].address == f"unix:{place / 'admin.sock'}"
    for kind in ("crt", "key"):
        shutil.copy(folder / "worker-2" / f"node.{kind}", folder / f"node-2.{kind}")
    yield served
    for one in served:
        one.close()


def ask(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--config", str(folder / "node.toml")])


def stop(served: Served) -> None:
    """The worker is away; its view can still be closed."""
    served.run(served._server.stop())


def test_tables_stand_one_after_another_under_the_names_of_the_workers(folder: Path, workers: list[Served]) -> None:
    result = ask(folder, "queue")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line.startswith("mx1")] == ["mx1-1:", "mx1-2:"]
    shown = json.loads(ask(folder, "queue", "--json").stdout)
    assert list(shown["workers"]) == ["mx1-1", "mx1-2"]
    one = json.loads(ask(folder, "queue", "--json", "--worker", "2").stdout)
    assert one == shown["workers"]["mx1-2"]


def test_a_worker_that_is_away_is_named_and_the_others_are_shown(folder: Path, workers: list[Served]) -> None:
    stop(workers[1])
    result = ask(folder, "queue")
    assert result.exit_code == 3
    assert result.stdout.startswith("mx1-1:\n")
    assert result.stderr.startswith(f"smtpmesh: mx1-2: no answer from unix:{folder}/worker-2/admin.sock")
    assert ask(folder, "queue", "--worker", "1").exit_code == 0
    assert ask(folder, "status", "--wait", "--timeout", "1s", "--worker", "2").exit_code == 75


def test_health_is_that_of_the_worst_and_its_numbers_are_those_of_all(folder: Path, workers: list[Served]) -> None:
    for one in workers:
        one.run(one.view.room.measure())
    line = ask(folder, "health").stdout
    assert "mx1-2: unreachable: " in line
    assert "accepted=14c relayed=2c members=3" in line  # members are of the cluster
    stop(workers[1])
    result = ask(folder, "health")
    assert result.exit_code == 2
    assert result.stdout.startswith("SMTPMESH CRITICAL - relay-a: mx1-2: no answer from unix:")
    assert "accepted=7c" in result.stdout


def test_a_message_is_looked_for_until_it_is_found(folder: Path, workers: list[Served]) -> None:
    new = build_new()
    workers[1].run(workers[1].view.store.put(new, claim=False))
    name = new.entry.queue_id
    assert ask(folder, "queue", "show", name).exit_code == 0
    assert ask(folder, "why", name).exit_code == 0
    assert ask(folder, "queue", "show", name, "--worker", "1").exit_code == 1
    lost = ask(folder, "queue", "show", "nonesuch")
    assert (lost.exit_code, lost.stderr) == (
        1,
        "smtpmesh: no message 'nonesuch' here: unknown, or finished longer ago than queue.history_s\n",
    )
    stop(workers[0])
    assert ask(folder, "queue", "show", name).exit_code == 0
    elsewhere = ask(folder, "queue", "show", "nonesuch")  # it may be in the one that does not answer
    assert elsewhere.exit_code == 3
    assert "mx1-1: no answer" in elsewhere.stderr


def test_an_order_for_one_message_is_done_where_it_is(folder: Path, workers: list[Served]) -> None:
    new = build_new()
    workers[1].run(workers[1].view.store.put(new, claim=False))
    held = ask(folder, "queue", "hold", new.entry.queue_id)
    assert (held.exit_code, held.stdout) == (0, "relay-a: 1 delivery held\n")
    assert ask(folder, "queue", "hold", "nonesuch").exit_code == 1
    assert ask(folder, "queue", "release", "--all").stdout == "relay-a: 1 delivery released\n"  # the other had none
    for one in workers:
        one.run(one.view.store.put(build_new(queue_id="b"), claim=False))
    assert ask(folder, "queue", "hold", "--all").stdout.splitlines() == [
        "relay-a: 1 delivery held",
        "relay-a: 2 deliveries held",
    ]


def test_drains_and_pins_are_for_all_workers_or_for_the_one_that_is_named(folder: Path, workers: list[Served]) -> None:
    assert len(ask(folder, "node", "drain").stdout.splitlines()) == 2
    assert [one.view.operations.draining for one in workers] == [True, True]
    assert len(ask(folder, "node", "undrain", "--worker", "2").stdout.splitlines()) == 1
    assert [one.view.operations.draining for one in workers] == [True, False]
    assert ask(folder, "host", "drain", "a").exit_code == 0
    assert [list(one.view.operations.orders.hosts) for one in workers] == [["a"], ["a"]]


def test_a_process_is_named_in_one_way(folder: Path, workers: list[Served]) -> None:
    result = ask(folder, "status", "--worker", "2", "--admin", workers[0].address)
    assert result.exit_code == 2
    assert "leave one out" in result.stderr


def test_other_questions_go_to_the_first_worker(folder: Path, workers: list[Served]) -> None:
    stop(workers[1])
    assert ask(folder, "routes").exit_code == 0
    assert ask(folder, "routes", "--worker", "2").exit_code == 3


def test_workers_belong_to_one_cluster(folder: Path) -> None:
    """The certificate of a stranger is a mistake of the configuration."""
    (folder / "node.toml").write_text(CONFIG)
    make_identity(folder)
    make_identity(folder / "strange")
    for kind in ("crt", "key"):
        shutil.copy(folder / "strange" / f"node.{kind}", folder / f"node-2.{kind}")
    result = ask(folder, "check-config")
    assert result.exit_code == 78
    assert "node-2.crt" in result.stderr
