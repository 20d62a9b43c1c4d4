"""Why a message is still here: the reason, what happens next, and what each candidate would need. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from router.decision import Candidate, Decision, RouteRow, Verdict
from smtp_edge.admin import convert
from smtp_edge.dispatch.expanding import FAILURES_MAX
from smtp_edge.dispatch.lines import Standing
from smtp_edge.queue.entry import Claim, Delivery, DeliveryState, HistoryNote, MessageHistory
from smtp_edge.queue.survey import Damaged
from smtp_edge.sorting import EXPANSION
from smtpmesh.admin.v1 import admin_pb2 as pb

NEEDS = {
    Verdict.CHOSEN: "",
    Verdict.OUTRANKED: "to be furthest behind its share, or that what comes before it is full",
    Verdict.NO_GAIN: "a smaller backlog than here, or to be nearer to an exit",
    Verdict.NO_SLOT: "a transaction to end there",
    Verdict.EDGE_DOWN: "to answer its next trial",
    Verdict.IN_TRACE: "cannot take it: the message was there",
    Verdict.BACKING_OFF: "its pause for this message to end",
    Verdict.POLICY: "another route, or another policy of this one",
    Verdict.NO_PATH: "a way to an exit that does not lead back here",
    Verdict.NO_TRANSIT: "to take mail of other relays again",
    Verdict.DRAINING: "to be taken back into use (`smtpmesh host undrain`)",
    Verdict.PINNED_ELSEWHERE: "the pin to end (`smtpmesh unpin`)",
    Verdict.NOT_DUE: "the next attempt to be due",
}
"""What would let a candidate take the message."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known beside the message itself."""

    at: datetime
    standing: Standing | None
    """None: it is not in memory."""
    decision: Decision | None
    """For exactly this delivery, as if it were due; None: nothing is to be decided."""
    in_memory: int
    """Deliveries of its class."""
    expanders: tuple[str, ...] = ()
    """Sinks that are asked who gets it, of a delivery that is to be expanded."""

    @property
    def who(self) -> str:
        """Says who gets it; for people."""
        return f"sink {' or '.join(self.expanders)}" if self.expanders else "a sink that is no longer bound"


def explain_delivery(history: MessageHistory, delivery: Delivery, moment: Moment) -> pb.DeliveryReason:
    """One delivery of a message."""
    answer, following = _explain(history, delivery, moment)
    shown = convert.convert_delivery(Claim(history.entry, delivery, 0))
    if moment.standing is not None:
        shown.stage, shown.reason = moment.standing.stage, moment.standing.reason
    reason = pb.DeliveryReason(delivery=shown, answer=answer, next=following)
    if moment.decision is not None:
        row = RouteRow(delivery.class_id, (), moment.decision, 0)
        reason.route.CopyFrom(convert.convert_row(row))
        reason.needs.extend(_need(candidate) for candidate in moment.decision.candidates)
    return reason


def explain_damage(item: Damaged) -> pb.DeliveryReason:
    """One that cannot be read."""
    way_out = f"`smtpmesh queue retry {item.queue_id}`, or give it up: `smtpmesh queue remove {item.queue_id}`"
    return pb.DeliveryReason(
        delivery=pb.QueuedDelivery(
            queue_id=item.queue_id, copy=item.copy, class_id=item.class_id, state="damaged", reason=item.reason
        ),
        answer=f"it is damaged, and was set aside: {item.reason}",
        next=f"nothing by itself: put back what is missing and {way_out}",
    )


def _need(candidate: Candidate) -> pb.HopNeed:
    need = NEEDS[candidate.verdict]
    if need and candidate.reason:
        need = f"{need}: {candidate.reason}"
    return pb.HopNeed(hop=candidate.hop.id, label=candidate.label, need=need)


def _explain(history: MessageHistory, delivery: Delivery, moment: Moment) -> tuple[str, str]:
    if delivery.class_id == EXPANSION and not delivery.state.final:
        return _explain_expansion(history, delivery, moment)
    match delivery.state:
        case DeliveryState.HELD:
            return _explain_hold(history), f"nothing, until `smtpmesh queue release {delivery.queue_id}`"
        case DeliveryState.DEFERRED:
            return _explain_deferral(delivery), _explain_next(history, delivery, moment)
        case DeliveryState.QUEUED:
            text = f"it waits on disk for a place in memory, where {moment.in_memory} of its class are"
            return text, "it is taken when a place is free, the oldest of its class first"
        case DeliveryState.CLAIMED:
            return _explain_claim(moment)
        case DeliveryState.RELAYED | DeliveryState.FAILED | DeliveryState.EXPIRED:
            return _explain_end(history, delivery), "nothing: it is finished, and remembered for queue.history_s"


def _explain_expansion(history: MessageHistory, delivery: Delivery, moment: Moment) -> tuple[str, str]:
    """A list, an alias: the sink that knows its members has not answered yet."""
    asked = f"{moment.who} is to say who gets it (a list, an alias)"
    match delivery.state:
        case DeliveryState.HELD:
            way_out = f"when the sink is well, `smtpmesh queue release {delivery.queue_id}`"
            return f"{asked}; {_explain_hold(history, ':')}", f"nothing by itself: {way_out}"
        case DeliveryState.DEFERRED if delivery.attempts:
            when = f"it is asked again {_when(delivery, moment.at)}"
            left = f"once it has failed {FAILURES_MAX} times the message is held until somebody has looked at it"
            times = "once" if delivery.attempts == 1 else f"{delivery.attempts} times"
            return f"{asked}; it was asked {times}: {delivery.last_reply or 'no answer'}", f"{when}; {left}"
        case DeliveryState.DEFERRED:
            return asked, f"it is asked {_when(delivery, moment.at)}"
        case DeliveryState.CLAIMED if moment.standing is not None and moment.standing.stage == "resting":
            return f"{asked}, and is being asked, for {moment.standing.for_s:.0f} s", "its answer decides"
        case DeliveryState.CLAIMED if moment.standing is not None:
            return f"{asked}; {moment.standing.reason}", "it is asked when those before it have been expanded"
        case _:
            return f"{asked}; it waits on disk for a place in memory", "it is taken when a place is free"


def _explain_hold(history: MessageHistory, then: str = "") -> str:
    note = next((note for note in reversed(history.notes) if note.event == "held" and note.detail), None)
    if note is None:
        return "it is held"
    return f"it is held since {convert.convert_time(note.at)}{then} {note.detail}"


def _explain_deferral(delivery: Delivery) -> str:
    last = delivery.last_reply or "no reply"
    if not delivery.attempts:
        return f"no next hop took it: {last}"
    where = f" at {delivery.last_hop}" if delivery.last_hop else ""
    doubt = f"; {delivery.in_doubt_hop} may have it already" if delivery.in_doubt_hop else ""
    return f"attempt {delivery.attempts}{where} ended with: {last}{doubt}"


def _explain_next(history: MessageHistory, delivery: Delivery, moment: Moment) -> str:
    when = _when(delivery, moment.at)
    over_s = (history.entry.expires_at - moment.at).total_seconds()
    after = f"; after {_duration(over_s)} it is returned" if over_s > 0 else "; then it is returned: its time is over"
    sooner = ", or as soon as a hop of its class comes back" if moment.decision is not None else ""
    return f"attempt {delivery.attempts + 1} {when}{sooner}{after}"


def _when(delivery: Delivery, at: datetime) -> str:
    due_at = delivery.next_attempt_at
    return "now" if due_at is None or due_at <= at else f"in {_duration((due_at - at).total_seconds())}"


def _explain_claim(moment: Moment) -> tuple[str, str]:
    standing = moment.standing
    if standing is None:
        return "its attempt has just ended, or began", "ask again"
    match standing.stage:
        case "attempted":
            return f"{standing.reason}, for {standing.for_s:.1f} s", "its reply decides"
        case "resting":
            return standing.reason, "it is asked for again when that is over"
        case _:
            return standing.reason, "it goes when a hop below takes it; after some seconds it waits on disk instead"


def _explain_end(history: MessageHistory, delivery: Delivery) -> str:
    note = _last(history.notes, delivery)
    where = f" to {delivery.last_hop}" if delivery.last_hop and delivery.state is DeliveryState.RELAYED else ""
    when = f" at {convert.convert_time(note.at)}" if note is not None else ""
    return f"{delivery.state.value}{where}{when}: {delivery.last_reply or 'no reply'}"


def _last(notes: tuple[HistoryNote, ...], delivery: Delivery) -> HistoryNote | None:
    hops = [note for note in notes if not delivery.last_hop or note.hop == delivery.last_hop]
    return hops[-1] if hops else None


def _duration(seconds: float) -> str:
    for unit_s, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:.0f} s"
