"""What an operator's order makes of a delivery: a table, and what must not be lost by it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from smtp_edge.dispatch.settlement import Reporting
from smtp_edge.dsn import Reporter
from smtp_edge.envelope import Notify
from smtp_edge.queue.entry import Claim, DeliveryState, Settlement
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.rulings import Action, Ruling, decide
from tests.unit.smtp_edge.queue.builders import AT, IDS, build_new

REPORTING = Reporting(
    RetryPolicy(first_s=10, factor=2, max_s=3600, lifetime_s=432000, delay_notice_s=14400),
    Reporter(
        hostname="relay.test",
        node_id="node",
        new_queue_id=IDS.new,
        class_of=lambda recipient: recipient.domain,
        lifetime=timedelta(days=5),
    ),
)
Q, C, D, H = DeliveryState.QUEUED, DeliveryState.CLAIMED, DeliveryState.DEFERRED, DeliveryState.HELD


def build_claim(state: DeliveryState, **fields: object) -> Claim:
    new = build_new()
    fields = {"attempts": 3, "last_reply": "451 later", "in_doubt_hop": "peer:x", "delay_notified": True, **fields}
    return Claim(new.entry, new.deliveries[0].but(state=state, **fields), 7)


def rule(action: Action, claim: Claim, **fields: str) -> Settlement | None:
    decision = decide(Ruling(action, "sue", AT, **fields), claim, REPORTING)
    if decision is None:
        return None
    assert decision.before is claim.delivery.state
    return decision.settlement


@pytest.mark.parametrize(
    ("action", "ends"),
    [
        (Action.HOLD, {Q: H, C: H, D: H, H: None}),
        (Action.RELEASE, {Q: None, C: None, D: None, H: Q}),
        (Action.RETRY, {Q: None, C: D, D: D, H: None}),
        (Action.BOUNCE, dict.fromkeys((Q, C, D, H), DeliveryState.FAILED)),
        (Action.REMOVE, dict.fromkeys((Q, C, D, H), DeliveryState.FAILED)),
        (Action.MOVE, {Q: D, C: D, D: D, H: H}),
    ],
)
def test_each_order_has_its_end_for_each_state(action: Action, ends: dict[DeliveryState, DeliveryState | None]) -> None:
    found = {state: rule(action, build_claim(state), class_id="two" if action is Action.MOVE else "") for state in ends}
    assert {state: end.state if end is not None else None for state, end in found.items()} == ends


@pytest.mark.parametrize("state", [state for state in DeliveryState if state.final])
@pytest.mark.parametrize("action", Action)
def test_what_is_finished_is_not_changed(action: Action, state: DeliveryState) -> None:
    assert rule(action, build_claim(state)) is None


@pytest.mark.parametrize("action", [Action.HOLD, Action.RETRY, Action.MOVE])
def test_doubt_last_reply_and_the_told_delay_stay_and_no_attempt_is_counted(action: Action) -> None:
    end = rule(action, build_claim(D))
    assert end is not None
    assert (end.in_doubt_hop, end.reply, end.delay_notified, end.attempted) == ("peer:x", "451 later", True, False)
    assert end.token == 7


def test_what_is_retried_or_moved_is_due_now() -> None:
    for action in (Action.RETRY, Action.MOVE):
        end = rule(action, build_claim(D, next_attempt_at=AT + timedelta(hours=1)))
        assert end is not None
        assert end.next_attempt_at == AT


def test_history_says_who_ordered_what_and_why() -> None:
    notes = {}
    for action in Action:
        end = rule(action, build_claim(H if action is Action.RELEASE else D), reason="gone", class_id="")
        assert end is not None
        notes[action.value] = (end.notes[0].event, end.notes[0].detail)
    assert notes == {
        "hold": ("held", "by sue: gone"),
        "release": ("released", "by sue: gone"),
        "retry": ("retried", "by sue: gone"),
        "bounce": ("bounced", "by sue: gone"),
        "remove": ("removed", "by sue: gone"),
        "move": ("moved", "by sue: gone"),
    }
    moved = rule(Action.MOVE, build_claim(D), class_id="two")
    assert moved is not None
    assert (moved.class_id, moved.notes[0].detail) == ("two", "to two by sue")


def test_a_bounce_tells_the_sender_in_the_operators_words() -> None:
    end = rule(Action.BOUNCE, build_claim(H), reason="this address was closed")
    assert end is not None
    (report,) = end.reports
    content = report.entry.data.inline or b""
    assert report.entry.envelope.sender == ""
    assert report.entry.envelope.recipients[0].address == "a@sender.example"
    assert b"Status: 5.3.0" in content
    assert b"550 5.3.0 this address was closed" in content
    said_nothing = rule(Action.BOUNCE, build_claim(H))
    assert said_nothing is not None
    assert b"returned by the administrator of this relay" in (said_nothing.reports[0].entry.data.inline or b"")


def test_a_bounce_respects_what_the_sender_wished() -> None:
    claim = build_claim(D)
    quiet = tuple(replace(recipient, notify=Notify.NEVER) for recipient in claim.delivery.recipients)
    end = rule(Action.BOUNCE, replace(claim, delivery=claim.delivery.but(recipients=quiet)))
    assert end is not None
    assert end.reports == ()


def test_removed_mail_is_reported_to_nobody() -> None:
    end = rule(Action.REMOVE, build_claim(D))
    assert end is not None
    assert end.reports == ()
