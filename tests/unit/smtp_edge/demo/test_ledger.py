"""The account: lost, changed, doubled and why."""

import json
from pathlib import Path

from smtp_edge.demo.ledger import (
    Arrival,
    Doubt,
    Kill,
    Ledger,
    Reroute,
    Submission,
    build_ledger,
    parse_arrival,
    read_arrivals,
    to_json,
    to_text,
)

RELAYS = {"relay-a.demo.test": "relay A", "relay-b.demo.test": "relay B"}


def sent(name: str, *, accepted: bool = True, doubts: tuple[str, ...] = ()) -> Submission:
    return Submission(name, "sha", 100.0, 100.1 if accepted else None, "relay A" if accepted else "", doubts)


def came(
    name: str, host: str = "smart host A", at: float = 101.0, *, relay: str = "relay A", entered: str = "relay A Q1"
) -> Arrival:
    return Arrival(name, host, at, "sha", relay, entered)


def only_reason(ledger: Ledger) -> tuple[str, str]:
    (double,) = ledger.doubled
    return double.kind, double.reason


def test_everything_that_arrived_once_balances() -> None:
    ledger = build_ledger([sent("m1"), sent("m2")], [came("m1"), came("m2", "smart host B")])
    assert ledger.balanced
    assert (ledger.submitted, ledger.accepted, ledger.delivered) == (2, 2, 2)
    assert ledger.hosts == {"smart host A": 1, "smart host B": 1}


def test_an_accepted_message_that_did_not_arrive_is_lost() -> None:
    ledger = build_ledger([sent("m1"), sent("m2")], [came("m1")])
    assert ledger.lost == ("m2",)
    assert not ledger.balanced


def test_mail_that_relays_say_still_waits_is_named_but_excuses_nothing() -> None:
    ledger = build_ledger([sent("m1")], [], waiting=1)
    assert not ledger.balanced
    assert "1 still wait, say the relays" in to_text(ledger)


def test_a_message_without_250_is_neither_lost_nor_required() -> None:
    ledger = build_ledger([sent("m1", accepted=False), sent("m2", accepted=False)], [came("m1")])
    assert (ledger.lost, ledger.unanswered, ledger.delivered) == ((), 2, 0)
    assert ledger.balanced


def test_another_body_does_not_balance() -> None:
    ledger = build_ledger([sent("m1")], [Arrival("m1", "smart host A", 101.0, "other", "relay A")])
    assert ledger.changed == ("m1",)
    assert not ledger.balanced


def test_a_message_that_nobody_submitted_does_not_balance() -> None:
    ledger = build_ledger([sent("m1")], [came("m1"), came("m9")])
    assert ledger.strangers == ("m9",)
    assert not ledger.balanced


def test_a_second_copy_without_a_reason_is_our_fault() -> None:
    ledger = build_ledger([sent("m1")], [came("m1"), came("m1", "smart host B", 102.0)])
    assert only_reason(ledger) == ("mesh", "")
    assert ledger.doubled_in_mesh == 1
    assert not ledger.balanced
    assert "UNEXPLAINED" in to_text(ledger)


def test_a_relay_killed_before_it_recorded_the_250_explains_a_copy() -> None:
    copies = [came("m1", at=101.0, relay="relay B"), came("m1", "smart host B", 106.0, relay="relay B")]
    ledger = build_ledger([sent("m1")], copies, kills=[Kill("relay B", 101.12, 105.0)])
    reason = "relay B was killed 0.12 s after smart host A wrote the message: the 250 was not yet recorded"
    assert only_reason(ledger) == ("exit", reason)
    assert ledger.balanced


def test_a_smart_host_that_wrote_and_died_explains_a_copy() -> None:
    copies = [came("m1", "smart host C", 101.0), came("m1", "smart host A", 101.5)]
    ledger = build_ledger([sent("m1")], copies, kills=[Kill("smart host C", 101.01)])
    reason = "smart host C was killed 0.01 s after it wrote the message: its 250 never arrived"
    assert only_reason(ledger) == ("exit", reason)


def test_a_kill_of_another_relay_explains_nothing() -> None:
    copies = [came("m1", at=101.0), came("m1", at=106.0)]
    ledger = build_ledger([sent("m1")], copies, kills=[Kill("relay B", 101.1)])
    assert not ledger.balanced


def test_a_kill_long_after_or_after_both_copies_explains_nothing() -> None:
    long_after = build_ledger([sent("m1")], [came("m1"), came("m1", at=200.0)], kills=[Kill("relay A", 150.0)])
    after_both = build_ledger([sent("m1")], [came("m1"), came("m1", at=101.2)], kills=[Kill("relay A", 101.5)])
    next_life = build_ledger(
        [sent("m1")], [came("m1", at=101.6), came("m1", at=101.9)], kills=[Kill("relay A", 101.1, 101.5)]
    )
    assert not next_life.balanced
    assert not long_after.balanced
    assert not after_both.balanced


def test_a_submitter_that_sent_again_explains_a_copy_that_entered_elsewhere() -> None:
    copies = [came("m1", entered="relay B Q7", at=105.0), came("m1", entered="relay A Q9", at=101.0)]
    ledger = build_ledger([sent("m1", doubts=("relay B",))], copies)
    reason = "relay B died before answering the submitter, who sent it again by relay A"
    assert only_reason(ledger) == ("submission", reason)
    assert ledger.balanced


def test_a_submitter_that_sent_again_does_not_explain_two_copies_of_one_entry() -> None:
    ledger = build_ledger([sent("m1", doubts=("relay B",))], [came("m1"), came("m1", at=102.0)])
    assert not ledger.balanced


def test_one_unexplained_copy_of_three_makes_the_message_unexplained() -> None:
    copies = [came("m1", at=101.0), came("m1", at=104.0), came("m1", at=120.0)]
    ledger = build_ledger([sent("m1")], copies, kills=[Kill("relay A", 101.1)])
    assert ledger.doubled_in_mesh == 1


def test_a_lost_final_reply_in_the_relays_log_explains_a_copy() -> None:
    copies = [came("m1", at=101.0), came("m1", "smart host B", 102.0)]
    ledger = build_ledger([sent("m1")], copies, doubts=[Doubt("relay A", "smart host A", 101.3)])
    reason = "relay A lost the connection to smart host A between the final dot and the reply"
    assert only_reason(ledger) == ("exit", reason)


def test_shares_count_the_window_only() -> None:
    copies = [came("m1", "smart host A", 10.0), came("m2", "smart host B", 11.0), came("m3", "smart host B", 99.0)]
    ledger = build_ledger([sent("m1"), sent("m2"), sent("m3")], copies, window=(9.0, 12.0))
    assert ledger.shares == {"smart host A": 0.5, "smart host B": 0.5}


def test_the_oldest_received_field_of_a_relay_names_the_entry() -> None:
    record = {
        "id": "m1",
        "at": 5.0,
        "body_sha256": "sha",
        "client": "relay-b.demo.test",
        "received": [
            "from relay-a.demo.test by relay-b.demo.test with ESMTPS id Q2; Tue, 24 Nov 2026 02:00:00 +0000",
            "from client.demo.test by relay-a.demo.test with ESMTP id Q1; Tue, 24 Nov 2026 02:00:00 +0000",
            "from elsewhere by other.example with ESMTP id Q0; Tue, 24 Nov 2026 01:59:59 +0000",
        ],
    }
    arrival = parse_arrival(json.dumps(record), "smart host A", RELAYS)
    assert (arrival.relay, arrival.entered) == ("relay B", "relay A Q1")


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    line = {"id": "m1", "at": 5.0, "body_sha256": "sha", "client": "relay-a.demo.test", "received": []}
    path = tmp_path / "host.ledger"
    path.write_text(json.dumps(line) + '\n{"id":"m2","at"')
    assert [arrival.message_id for arrival in read_arrivals(path, "smart host A", RELAYS)] == ["m1"]


def test_reroute_is_unknown_if_one_relay_never_saw_it() -> None:
    assert Reroute("smart host C", 10.0, 0.2, {"relay A": 0.1, "relay B": None}).everywhere_s is None
    assert Reroute("smart host C", 10.0, 0.2, {"relay A": 0.1, "relay B": 0.4}).everywhere_s == 0.4


def test_json_keeps_its_keys() -> None:
    ledger = build_ledger(
        [sent("m1")],
        [came("m1")],
        kills=[Kill("relay B", 1.0, 2.0)],
        reroutes=[Reroute("smart host C", 10.0, 0.2, {"relay A": 0.1234})],
        rates={"smart host A": 20.0},
    )
    assert to_json(ledger) == {
        "format": 1,
        "balanced": True,
        "submitted": 1,
        "accepted": 1,
        "delivered": 1,
        "unanswered": 0,
        "waiting": 0,
        "lost": [],
        "changed": [],
        "strangers": [],
        "doubled_in_mesh": 0,
        "doubled": [],
        "hosts": {"smart host A": {"copies": 1, "rate_mps": 20.0, "share": 1.0}},
        "reroutes": [
            {"hop": "smart host C", "last_use_s": 0.2, "everywhere_s": 0.123, "seen_s": {"relay A": 0.123}},
        ],
        "kills": [{"name": "relay B", "at": 1.0, "back_at": 2.0}],
    }
    assert json.dumps(to_json(ledger))
