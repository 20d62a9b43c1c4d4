"""What becomes of a delivery after an attempt: the table at the head of `smtp_edge.dispatch.settlement`."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import AttemptResult
from smtp_edge.dispatch.settlement import MEMORY_ATTEMPTS_MAX, Reporting, plan_parking, plan_settlement
from smtp_edge.dsn import Reporter
from smtp_edge.envelope import Envelope, MailData, Notify, Recipient
from smtp_edge.queue.entry import Claim, Delivery, DeliveryState, Entry, HistoryNote, Settlement
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.reply import Reply
from smtp_edge.transfer import parse_transfer

AT = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
HOST = Hop.parse("host:a")
PEER = Hop.parse("peer:00ff")
ANN, BOB = Recipient("ann@example.org"), Recipient("bob@example.org")
OK, GONE, LATER = Reply(250, "ok", "2.0.0"), Reply(550, "no such user", "5.1.1"), Reply(450, "greylisted", "4.7.1")

POLICY = RetryPolicy(first_s=10, factor=2, max_s=3600, lifetime_s=432000, delay_notice_s=14400)
REPORTING = Reporting(
    policy=POLICY,
    reporter=Reporter(
        hostname="relay.test",
        node_id="a" * 32,
        new_queue_id=lambda at: "DSN000000001",
        class_of=lambda recipient: f"class-of-{recipient.domain}",
        lifetime=timedelta(days=5),
    ),
)


def claim(*recipients: Recipient, sender: str = "sue@example.net", received_at: datetime = AT) -> Claim:
    body = b"Subject: x\r\n\r\nhello\r\n"
    data = MailData(len(body), inline=body, header=b"Subject: x\r\n\r\n")
    members = recipients or (ANN,)
    entry = Entry("Q00000000001", received_at, received_at + timedelta(days=5), Envelope(sender, members), data)
    return Claim(entry, Delivery("Q00000000001", 0, "default", members), token=3)


def settle(
    what: Claim, result: AttemptResult, *, hop: Hop = HOST, tries: int = 1, at: datetime = AT
) -> Settlement | None:
    return plan_settlement(what, hop, result, tries=tries, notes=(), reporting=REPORTING, at=at, rng=random.Random(1))


def test_accepted_for_all_is_relayed_without_a_report() -> None:
    done = settle(claim(), AttemptResult(OutcomeKind.ACCEPTED, (OK,), OK))
    assert done is not None
    assert (done.state, done.token, done.reports, done.hop) == (DeliveryState.RELAYED, 3, (), "host:a")
    assert [note.event for note in done.notes] == ["relayed"]


@pytest.mark.rfc("3461 5.2.6a", "5321 6.1b")
def test_permanent_refusal_by_a_foreign_host_is_reported_to_the_sender() -> None:
    done = settle(claim(), AttemptResult(OutcomeKind.MESSAGE_REFUSED, (GONE,), GONE))
    assert done is not None
    assert done.state is DeliveryState.FAILED
    (report,) = done.reports
    assert report.entry.envelope.sender == ""
    assert [recipient.address for recipient in report.entry.envelope.recipients] == ["sue@example.net"]
    assert report.deliveries[0].class_id == "class-of-example.net"
    assert [note.event for note in done.notes] == ["attempt", "bounced"]


@pytest.mark.rfc("5321 4.5.5b")
def test_null_reverse_path_is_never_reported_to() -> None:
    done = settle(claim(sender=""), AttemptResult(OutcomeKind.MESSAGE_REFUSED, (GONE,), GONE))
    assert done is not None
    assert (done.state, done.reports) == (DeliveryState.FAILED, ())


@pytest.mark.rfc("3461 5.2.6c")
def test_notify_never_is_respected() -> None:
    silent = replace(ANN, notify=Notify.NEVER)
    done = settle(claim(silent), AttemptResult(OutcomeKind.MESSAGE_REFUSED, (GONE,), GONE))
    assert done is not None
    assert (done.state, done.reports) == (DeliveryState.FAILED, ())


@pytest.mark.rfc("3461 5.2.6b")
def test_permanent_refusal_by_a_peer_never_bounces() -> None:
    done = settle(claim(), AttemptResult(OutcomeKind.MESSAGE_REFUSED, (GONE,), GONE), hop=PEER)
    assert done is not None
    assert (done.state, done.reports) == (DeliveryState.DEFERRED, ())


@pytest.mark.rfc("5321 4.5.4.1a")
def test_only_the_deferred_recipient_remains() -> None:
    done = settle(claim(ANN, BOB), AttemptResult(OutcomeKind.ACCEPTED, (OK, LATER), OK))
    assert done is not None
    assert (done.state, done.recipients) == (DeliveryState.DEFERRED, (BOB,))
    assert done.next_attempt_at is not None
    assert done.next_attempt_at > AT


def test_accepted_and_refused_recipients_end_relayed_with_one_report_for_the_refused() -> None:
    done = settle(claim(ANN, BOB), AttemptResult(OutcomeKind.ACCEPTED, (OK, GONE), OK))
    assert done is not None
    assert (done.state, len(done.reports)) == (DeliveryState.RELAYED, 1)
    body = done.reports[0].entry.data.inline or b""
    assert b"bob@example.org" in body
    assert b"Final-Recipient: rfc822; ann@example.org" not in body


@pytest.mark.parametrize(
    "kind", [OutcomeKind.CONNECT_FAILED, OutcomeKind.TIMEOUT, OutcomeKind.HOP_TEMPFAIL, OutcomeKind.DISCONNECTED]
)
def test_fault_of_the_hop_alone_is_tried_elsewhere_at_once(kind: OutcomeKind) -> None:
    assert settle(claim(), AttemptResult(kind, reason="x")) is None


def test_too_many_tries_in_memory_wait_on_disk() -> None:
    done = settle(claim(), AttemptResult(OutcomeKind.CONNECT_FAILED, reason="refused"), tries=MEMORY_ATTEMPTS_MAX)
    assert done is not None
    assert (done.state, done.reply) == (DeliveryState.DEFERRED, "refused")


def test_lost_final_reply_is_cleared_up_within_seconds_and_names_the_hop() -> None:
    done = settle(claim(), AttemptResult(OutcomeKind.IN_DOUBT, reason="lost"), hop=PEER)
    assert done is not None
    assert (done.state, done.in_doubt_hop) == (DeliveryState.DEFERRED, "peer:00ff")
    assert done.next_attempt_at == AT + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("hop", "kind", "doubted"),
    [
        (PEER, OutcomeKind.CONNECT_FAILED, "peer:00ff"),
        (PEER, OutcomeKind.DISCONNECTED, "peer:00ff"),
        (PEER, OutcomeKind.HOP_TEMPFAIL, "peer:00ff"),
        (PEER, OutcomeKind.MESSAGE_REFUSED, ""),
        (PEER, OutcomeKind.ACCEPTED, ""),
        (HOST, OutcomeKind.MESSAGE_REFUSED, "peer:00ff"),
        (HOST, OutcomeKind.IN_DOUBT, "host:a"),
    ],
)
def test_a_doubt_stands_until_the_hop_itself_answers_for_the_message(hop: Hop, kind: OutcomeKind, doubted: str) -> None:
    doubtful = claim(ANN, BOB)
    doubtful = replace(doubtful, delivery=replace(doubtful.delivery, in_doubt_hop="peer:00ff"))
    replies = (OK, LATER) if kind is OutcomeKind.ACCEPTED else (LATER, LATER)
    done = settle(doubtful, AttemptResult(kind, replies, replies[0]), hop=hop, tries=MEMORY_ATTEMPTS_MAX)
    assert done is not None
    assert (done.state, done.in_doubt_hop) == (DeliveryState.DEFERRED, doubted)


@pytest.mark.rfc("5321 4.5.4.1c", "5321 6.1b")
def test_lifetime_over_expires_with_a_report() -> None:
    old = claim(received_at=AT - timedelta(days=6))
    done = settle(old, AttemptResult(OutcomeKind.CONNECT_FAILED, reason="refused"))
    assert done is not None
    assert (done.state, len(done.reports)) == (DeliveryState.EXPIRED, 1)


@pytest.mark.rfc("3461 4.1b", "3461 5.2.5")
def test_delay_is_reported_once() -> None:
    late = claim(received_at=AT - timedelta(hours=5))
    refused = AttemptResult(OutcomeKind.MESSAGE_REFUSED, (LATER,), LATER)
    first = settle(late, refused)
    assert first is not None
    assert (first.state, first.delay_notified, len(first.reports)) == (DeliveryState.DEFERRED, True, 1)
    told = replace(late, delivery=replace(late.delivery, delay_notified=True))
    second = settle(told, refused)
    assert second is not None
    assert second.reports == ()


def park(what: Claim, *, for_good: str = "", at: datetime = AT) -> Settlement:
    return plan_parking(
        what,
        "hold: no path",
        for_good=for_good,
        notes=(),
        next_attempt_at=at + timedelta(seconds=10),
        reporting=REPORTING,
        at=at,
    )


def test_parking_counts_no_attempt() -> None:
    done = park(claim())
    assert (done.state, done.attempted) == (DeliveryState.DEFERRED, False)
    assert done.next_attempt_at == AT + timedelta(seconds=10)
    assert done.reports == ()


def test_unreachable_for_good_bounces() -> None:
    done = park(claim(), for_good="5.4.4")
    assert (done.state, len(done.reports)) == (DeliveryState.FAILED, 1)


def test_parked_beyond_its_lifetime_expires() -> None:
    done = park(claim(received_at=AT - timedelta(days=6)))
    assert (done.state, len(done.reports)) == (DeliveryState.EXPIRED, 1)


@pytest.mark.rfc("3461 5.2.5")
def test_parked_for_long_reports_the_delay() -> None:
    done = park(claim(received_at=AT - timedelta(hours=5)))
    assert (done.state, done.delay_notified, len(done.reports)) == (DeliveryState.DEFERRED, True, 1)


KEEN = replace(ANN, notify=Notify.SUCCESS | Notify.FAILURE)


@pytest.mark.parametrize(
    ("hop", "changes", "told"),
    [
        (HOST, {}, b"Action: relayed"),
        (HOST, {"delivered": True}, b"Action: delivered"),
        (HOST, {"takes_reports": True}, None),
        (PEER, {}, None),
    ],
)
@pytest.mark.rfc("3461 5.2.2a")
def test_success_is_told_by_the_last_that_can(hop: Hop, changes: dict[str, bool], told: bytes | None) -> None:
    accepted = replace(AttemptResult(OutcomeKind.ACCEPTED, (OK, OK), OK, remote="mx[192.0.2.1]:25"), **changes)  # type: ignore[arg-type]
    done = settle(claim(KEEN, BOB), accepted, hop=hop)
    assert done is not None
    assert done.state is DeliveryState.RELAYED
    if told is None:
        assert done.reports == ()
        return
    (report,) = done.reports
    body = report.entry.data.inline or b""
    assert told in body
    assert b"Remote-MTA: dns; mx\r\n" in body
    assert b"bob@example.org" not in body


@pytest.mark.rfc("3461 5.2.6b")
def test_a_refusal_and_a_success_of_one_attempt_are_one_report() -> None:
    done = settle(claim(KEEN, BOB), AttemptResult(OutcomeKind.ACCEPTED, (OK, GONE), OK))
    assert done is not None
    (report,) = done.reports
    body = report.entry.data.inline or b""
    assert body.count(b"Action: ") == 2
    assert [note.event for note in done.notes] == ["relayed", "bounced"]


UNABLE = AttemptResult(OutcomeKind.MESSAGE_REFUSED, (GONE,), GONE, unable=True, own_reply=True)


def test_the_history_names_who_fared_worse_than_others() -> None:
    done = settle(claim(ANN, BOB, KEEN), AttemptResult(OutcomeKind.ACCEPTED, (OK, GONE, None), OK))
    assert done is not None
    assert done.notes[0].detail == "accepted ; bob@example.org: 550 5.1.1 no such user ; ann@example.org: no reply"


def test_what_one_hop_cannot_take_is_offered_to_another_before_it_bounces() -> None:
    first = settle(claim(), UNABLE)
    assert first is None
    other = HistoryNote(AT, "attempt", "host:b")
    same = HistoryNote(AT, "attempt", HOST.id)
    for notes, bounced in (((other,), False), ((same,), True)):
        done = plan_settlement(
            claim(), HOST, UNABLE, tries=2, notes=notes, reporting=REPORTING, at=AT, rng=random.Random(1)
        )
        assert (done is not None and done.state is DeliveryState.FAILED and len(done.reports) == 1) is bounced
    exchangers = settle(claim(), UNABLE, hop=Hop.parse("mx:example.org"))
    assert exchangers is not None, "all of them were asked within the attempt"
    assert exchangers.state is DeliveryState.FAILED


def test_what_a_peer_cannot_take_waits() -> None:
    notes = (HistoryNote(AT, "attempt", PEER.id),)
    done = plan_settlement(
        claim(), PEER, UNABLE, tries=2, notes=notes, reporting=REPORTING, at=AT, rng=random.Random(1)
    )
    assert done is not None
    assert (done.state, done.reports) == (DeliveryState.DEFERRED, ())


def test_an_expired_message_is_reported_with_what_kept_it() -> None:
    old = claim(received_at=AT - timedelta(days=6))
    done = settle(old, AttemptResult(OutcomeKind.CONNECT_FAILED, reason="connect: Connection refused"))
    assert done is not None
    assert b"x-smtpmesh; 451 4.4.7 lifetime in the queue is over; last: connect: Connection refused" in (
        done.reports[0].entry.data.inline or b""
    )
    parked = park(replace(old, delivery=replace(old.delivery, last_reply="450 4.7.1 greylisted")))
    assert b"last: 450 4.7.1 greylisted" in (parked.reports[0].entry.data.inline or b"")


def test_a_report_that_nobody_can_be_told_about_is_in_the_history() -> None:
    done = settle(claim(sender=""), AttemptResult(OutcomeKind.MESSAGE_REFUSED, (GONE,), GONE))
    assert done is not None
    assert [note.event for note in done.notes] == ["attempt", "dropped"]


def test_a_report_may_pass_through_peers() -> None:
    done = settle(claim(), AttemptResult(OutcomeKind.MESSAGE_REFUSED, (GONE,), GONE))
    assert done is not None
    token = done.reports[0].deliveries[0].transfer_token
    assert parse_transfer({"XTOKEN": token}) is not None
