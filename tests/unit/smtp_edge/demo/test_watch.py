"""Reading the relays' logs, and the time to reroute."""

import json
from pathlib import Path

import pytest

from smtp_edge.demo.ledger import Doubt
from smtp_edge.demo.watch import Attempt, LogReader, find_doubts, measure_reroute, read_attempts


def attempt(relay: str, began_at: float, *, hop: str = "host:c", outcome: str = "connect-failed") -> Attempt:
    return Attempt(relay, hop, outcome, "Q1", began_at, began_at + 0.01)


def test_attempts_begin_before_their_log_line(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    line = {
        "event": "attempt",
        "next_hop": "host:c",
        "outcome": "accepted",
        "queue_id": "Q1",
        "duration_s": 0.5,
        "timestamp": "1970-01-01T00:01:40.000000Z",
    }
    path.write_text(json.dumps({"event": "node.ready"}) + "\n" + json.dumps(line) + "\nnot json\n")
    assert read_attempts({"relay A": path}) == [Attempt("relay A", "host:c", "accepted", "Q1", 99.5, 100.0)]


def test_reader_goes_on_where_it_stopped_even_within_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    reader = LogReader("relay A", path)
    assert reader.read() == []
    path.write_text('{"n":1}\n{"n":')
    assert reader.read() == [{"n": 1}]
    with path.open("a") as file:
        file.write("2}\n")
    assert reader.read() == [{"n": 2}]


def test_last_use_ends_where_a_relay_saw_the_hop_down() -> None:
    attempts = [
        attempt("relay A", 99.9),
        attempt("relay A", 100.2),
        attempt("relay A", 101.5),
        attempt("relay B", 100.4),
    ]
    reroute = measure_reroute("smart host C", "host:c", 100.0, {"relay A": 100.3, "relay B": 100.5}, attempts)
    assert reroute.last_use_s == pytest.approx(0.4)
    assert reroute.everywhere_s == pytest.approx(0.5)


def test_attempts_to_other_hops_do_not_count() -> None:
    reroute = measure_reroute(
        "smart host C", "host:c", 100.0, {"relay A": 100.3}, [attempt("relay A", 100.1, hop="host:a")]
    )
    assert reroute.last_use_s is None


def test_a_relay_that_never_saw_it_uses_it_for_ever() -> None:
    reroute = measure_reroute("smart host C", "host:c", 100.0, {"relay A": None}, [attempt("relay A", 130.0)])
    assert reroute.last_use_s == pytest.approx(30.0)
    assert reroute.everywhere_s is None


def test_doubts_carry_the_names_for_people() -> None:
    attempts = [attempt("relay A", 10.0, outcome="in-doubt"), attempt("relay A", 11.0)]
    assert find_doubts(attempts, {"host:c": "smart host C"}) == [Doubt("relay A", "smart host C", 10.01)]
