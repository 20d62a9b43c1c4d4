"""What an operator's order makes of a delivery. Pure.

order     of                             becomes
hold      queued, deferred, waiting      held, until it is released
release   held                           queued
retry     deferred, waiting              due now; attempts and times go on from where they are
bounce    anything not under way         failed, and reported to the sender as the sender wishes
remove    anything not under way         failed, reported to nobody: the operator takes the responsibility
move      anything not under way         the same in another class, due now (held stays held)

Every one leaves a line of history with who ordered it. What is in doubt stays so: an order does not know more.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime

from smtp_edge.dispatch.settlement import Reporting, plan_parking
from smtp_edge.queue.entry import Claim, Decision, DeliveryState, HistoryNote, Settlement

RETURNED = "returned by the administrator of this relay"
RETURNED_STATUS = "5.3.0"
"""Other or undefined mail system status (RFC 3463)."""
NOTES = {
    "hold": "held",
    "release": "released",
    "retry": "retried",
    "bounce": "bounced",
    "remove": "removed",
    "move": "moved",
}


class Action(enum.StrEnum):
    """See the module."""

    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    BOUNCE = "bounce"
    REMOVE = "remove"
    MOVE = "move"


_WAITS = frozenset({DeliveryState.QUEUED, DeliveryState.DEFERRED, DeliveryState.CLAIMED})
_HELD = frozenset({DeliveryState.HELD})
APPLIES_TO = {
    Action.HOLD: _WAITS,
    Action.RELEASE: _HELD,
    Action.RETRY: _WAITS - {DeliveryState.QUEUED},
    Action.BOUNCE: _WAITS | _HELD,
    Action.REMOVE: _WAITS | _HELD,
    Action.MOVE: _WAITS | _HELD,
}
"""CLAIMED: it waits in memory, and was taken out of its line."""


@dataclass(frozen=True, slots=True)
class Ruling:
    """An order with everything that it says."""

    action: Action
    by: str
    at: datetime
    reason: str = ""
    """For people; in a bounce, the sender reads it."""
    class_id: str = ""
    """Of a move."""

    @property
    def note(self) -> HistoryNote:
        """The line of history."""
        detail = f"by {self.by}{f': {self.reason}' if self.reason else ''}"
        if self.class_id:
            detail = f"to {self.class_id} {detail}"
        return HistoryNote(self.at, NOTES[self.action.value], detail=detail)


def decide(ruling: Ruling, claim: Claim, reporting: Reporting) -> Decision | None:
    """What becomes of a delivery as it was found; None if the order is not for one in this state."""
    before = claim.delivery.state
    if before not in APPLIES_TO[ruling.action]:
        return None
    return Decision(before, _settle(ruling, claim, reporting))


def _settle(ruling: Ruling, claim: Claim, reporting: Reporting) -> Settlement:
    match ruling.action:
        case Action.HOLD:
            return _end(ruling, claim, DeliveryState.HELD)
        case Action.RELEASE:
            return _end(ruling, claim, DeliveryState.QUEUED)
        case Action.RETRY:
            return _end(ruling, claim, DeliveryState.DEFERRED, next_attempt_at=ruling.at)
        case Action.BOUNCE:
            return _bounce(ruling, claim, reporting)
        case Action.REMOVE:
            return _end(ruling, claim, DeliveryState.FAILED)
        case Action.MOVE:
            held = claim.delivery.state is DeliveryState.HELD
            state = DeliveryState.HELD if held else DeliveryState.DEFERRED
            moved = _end(ruling, claim, state, next_attempt_at=None if held else ruling.at)
            return replace(moved, class_id=ruling.class_id)


def _end(ruling: Ruling, claim: Claim, state: DeliveryState, *, next_attempt_at: datetime | None = None) -> Settlement:
    delivery = claim.delivery
    return Settlement(
        delivery.queue_id,
        delivery.copy,
        claim.token,
        state,
        next_attempt_at=next_attempt_at,
        reply=delivery.last_reply,
        attempted=False,
        in_doubt_hop=delivery.in_doubt_hop,
        delay_notified=delivery.delay_notified,
        notes=(ruling.note,),
    )


def _bounce(ruling: Ruling, claim: Claim, reporting: Reporting) -> Settlement:
    """As a next hop's refusal for good, said by us."""
    return plan_parking(
        claim,
        ruling.reason or RETURNED,
        for_good=RETURNED_STATUS,
        notes=(ruling.note,),
        next_attempt_at=ruling.at,
        reporting=reporting,
        at=ruling.at,
    )
