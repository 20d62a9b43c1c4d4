"""From the end of an attempt to what becomes of the delivery. Pure: the dispatcher acts on what this decides.

recipient's reply          becomes
2yz                        relayed (LMTP: delivered), reported where the sender asks and the hop will not do it
held (a sink on deliver)   HELD, once nobody else of the delivery is asked again
5yz from a foreign host    failed, reported by a DSN in the same commit
5yz of our own, because    another hop is asked at once; after the second such answer of the same hop: failed
the hop lacks something
5yz from a peer            deferred: peers differ in configuration, mail is never bounced because of our own confusion
4yz, none                  tried elsewhere at once if only the hop was at fault, else deferred with back-off
none, lost after the dot   deferred briefly, and the same peer is asked first (it recognises the transfer)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from router.decision import Hop, HopKind, OutcomeKind
from smtp_edge.client.attempt import AttemptResult
from smtp_edge.dsn import Reporter, build_dsn
from smtp_edge.envelope import NOTIFY_DEFAULT, Recipient
from smtp_edge.queue.entry import Action, Claim, DeliveryState, HistoryNote, NewEntry, RecipientResult, Settlement
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.reply import Reply

IN_DOUBT_RETRY_S = 1.0
"""A lost final reply is cleared up soon: the peer knows, if it is there."""
MEMORY_ATTEMPTS_MAX = 5
"""So many hops are tried without a pause; then the delivery waits on disk like any other deferred mail."""

HOP_FAULTS = frozenset(
    {
        OutcomeKind.HOP_TEMPFAIL,
        OutcomeKind.CONNECT_FAILED,
        OutcomeKind.TLS_FAILED,
        OutcomeKind.TIMEOUT,
        OutcomeKind.DISCONNECTED,
        OutcomeKind.CANCELLED,
    }
)
"""Ends that say nothing about the message: another hop may take it at once."""

ANSWERED = frozenset({OutcomeKind.ACCEPTED, OutcomeKind.MESSAGE_REFUSED})
"""Ends that tell whether the hop has the message."""
LIFETIME_OVER = "lifetime in the queue is over"
EXCEPTIONS_MAX = 5
"""Recipients named in the history line of an attempt that others survived."""
UNTOLD = "dropped"
"""The event in the history of a message that failed without anybody being told."""


@dataclass(frozen=True, slots=True)
class Reporting:
    """What deciding needs to know of this node."""

    policy: RetryPolicy
    reporter: Reporter


def plan_settlement(
    claim: Claim,
    hop: Hop,
    result: AttemptResult,
    *,
    tries: int,
    notes: Sequence[HistoryNote],
    reporting: Reporting,
    at: datetime,
    rng: random.Random,
) -> Settlement | None:
    """The settlement of a claim after an attempt; None = keep the claim and ask for another hop at once.

    `tries` counts attempts of this claim including this one; `notes` are those of the earlier ones, oldest first.
    """
    if _goes_on_at_once(claim, hop, result, tries, notes, at):
        return None
    relayed, refused, remaining = _sort_recipients(claim, hop, result)
    told = [*refused, *_successes(hop, result, relayed)]
    state, left, next_at, delayed = _next_state(claim, result, relayed, remaining, reporting, at, rng)
    if state is DeliveryState.EXPIRED:
        last = result.reply or _lifetime_over(result.reason)
        told += [RecipientResult(recipient, Action.FAILED, last, _author(result)) for recipient in remaining]
    elif delayed:
        told += [RecipientResult(recipient, Action.DELAYED, result.reply, _author(result)) for recipient in remaining]
    reports, report_notes = _report(claim, told, reporting, at)
    return Settlement(
        queue_id=claim.delivery.queue_id,
        copy=claim.delivery.copy,
        token=claim.token,
        state=state,
        recipients=left,
        next_attempt_at=next_at,
        hop=hop.id,
        reply=_held_because(result) if state is DeliveryState.HELD else str(result.reply or result.reason),
        in_doubt_hop="" if state.final else _hop_in_doubt(claim, hop, result),
        delay_notified=claim.delivery.delay_notified or delayed,
        notes=(*notes, note_of_attempt(hop, result, at, claim.delivery.recipients), *report_notes),
        reports=reports,
    )


def _held_because(result: AttemptResult) -> str:
    return "; ".join(dict.fromkeys(reason for _, reason in result.held))


def _hop_in_doubt(claim: Claim, hop: Hop, result: AttemptResult) -> str:
    """Who may have it. A later attempt there that got no answer says nothing against that, nor does another hop's."""
    if result.kind is OutcomeKind.IN_DOUBT:
        return hop.id
    before = claim.delivery.in_doubt_hop
    return "" if hop.id == before and result.kind in ANSWERED else before


def plan_parking(
    claim: Claim,
    reason: str,
    *,
    for_good: str,
    notes: Sequence[HistoryNote],
    next_attempt_at: datetime,
    reporting: Reporting,
    at: datetime,
) -> Settlement:
    """Put a delivery that finds no hop back to disk; expire it when its lifetime is over.

    `for_good`: bounce it with this status instead; empty = do not.
    """
    state, action, delayed = DeliveryState.DEFERRED, Action.FAILED, False
    if for_good:
        state, reply = DeliveryState.FAILED, Reply(550, reason, for_good)
    elif at >= claim.entry.expires_at:
        state, reply = DeliveryState.EXPIRED, _lifetime_over(claim.delivery.last_reply or reason)
    else:
        reply, action = Reply(451, reason, "4.4.1"), Action.DELAYED
        delayed = _delay_due(claim, reporting, at)
    reports: tuple[NewEntry, ...] = ()
    report_notes: tuple[HistoryNote, ...] = ()
    if state is not DeliveryState.DEFERRED or delayed:
        told = [RecipientResult(recipient, action, reply) for recipient in claim.delivery.recipients]
        reports, report_notes = _report(claim, told, reporting, at)
    event = "held" if state is DeliveryState.DEFERRED else state.value
    return Settlement(
        queue_id=claim.delivery.queue_id,
        copy=claim.delivery.copy,
        token=claim.token,
        state=state,
        next_attempt_at=next_attempt_at if state is DeliveryState.DEFERRED else None,
        reply=reason,
        attempted=False,
        in_doubt_hop=claim.delivery.in_doubt_hop,
        delay_notified=claim.delivery.delay_notified or delayed,
        notes=(*notes, HistoryNote(at, event, reply=reason), *report_notes),
        reports=reports,
    )


def keep_schedule(claim: Claim, settlement: Settlement) -> Settlement:
    """A hand-over before the next attempt was due: what did not go keeps its time, its count and its last reply."""
    if settlement.state is not DeliveryState.DEFERRED:
        return settlement
    delivery = claim.delivery
    return replace(
        settlement, next_attempt_at=delivery.next_attempt_at, attempted=False, hop="", reply=delivery.last_reply
    )


def note_of_attempt(hop: Hop, result: AttemptResult, at: datetime, recipients: Sequence[Recipient] = ()) -> HistoryNote:
    """The history line of an attempt. Recipients that fared worse than others are named."""
    event = "relayed" if result.kind is OutcomeKind.ACCEPTED else "attempt"
    words: list[str] = [result.kind, result.remote, result.tls, f"{result.latency_s:.3f}s" if result.latency_s else ""]
    if result.reply is None or result.kind is not OutcomeKind.ACCEPTED:
        words.append(result.reason)
    elif not all(reply is not None and reply.positive for reply in result.replies):
        words += _exceptions(recipients, result)
    detail = " ".join(filter(None, words))
    return HistoryNote(at, event, hop.id, str(result.reply) if result.reply else "", detail)


def _exceptions(recipients: Sequence[Recipient], result: AttemptResult) -> list[str]:
    """Who was not accepted, when others were."""
    pairs = zip(recipients, result.replies, strict=False)
    others = [(who, reply) for who, reply in pairs if reply is None or not reply.positive]
    named = [f"; {who.address}: {reply or 'no reply'}" for who, reply in others[:EXCEPTIONS_MAX]]
    rest = len(others) - len(named)
    return [*named, f"; {rest} more"] if rest > 0 else named


def _goes_on_at_once(
    claim: Claim, hop: Hop, result: AttemptResult, tries: int, notes: Sequence[HistoryNote], at: datetime
) -> bool:
    """True if only the hop was at fault, or only this hop cannot take such a message, and others may be tried now."""
    if tries >= MEMORY_ATTEMPTS_MAX or at >= claim.entry.expires_at:
        return False
    if result.unable and hop.kind is not HopKind.MX:  # all exchangers were asked already
        return all(note.hop != hop.id for note in notes)
    return result.kind in HOP_FAULTS and not any(
        reply is not None and (reply.positive or _is_refusal(hop, reply)) for reply in result.replies
    )


def _sort_recipients(
    claim: Claim, hop: Hop, result: AttemptResult
) -> tuple[list[RecipientResult], list[RecipientResult], tuple[Recipient, ...]]:
    """Who was relayed, who is refused for good, who remains."""
    relayed: list[RecipientResult] = []
    refused: list[RecipientResult] = []
    remaining: list[Recipient] = []
    recipients, author = claim.delivery.recipients, _author(result)
    accepted = Action.DELIVERED if result.delivered else Action.RELAYED
    replies = result.replies or (None,) * len(recipients)
    for recipient, reply in zip(recipients, replies, strict=True):
        if reply is not None and reply.positive:
            relayed.append(RecipientResult(recipient, accepted, reply, author))
        elif reply is not None and _is_refusal(hop, reply):
            refused.append(RecipientResult(recipient, Action.FAILED, reply, author))
        else:
            remaining.append(recipient)
    return relayed, refused, tuple(remaining)


def _is_refusal(hop: Hop, reply: Reply) -> bool:
    return reply.permanent and hop.kind is not HopKind.PEER


def _author(result: AttemptResult) -> str:
    """Who has said the replies; empty if it was us."""
    return "" if result.own_reply or result.reply is None else result.remote


def _successes(hop: Hop, result: AttemptResult, relayed: Sequence[RecipientResult]) -> Sequence[RecipientResult]:
    """Successes that are ours to tell: the hop, if it knows DSN, does it itself."""
    if result.takes_reports or hop.kind is HopKind.PEER:
        return ()
    return [done for done in relayed if done.recipient.notify is not NOTIFY_DEFAULT]


def _lifetime_over(last: str) -> Reply:
    return Reply(451, f"lifetime in the queue is over; last: {last}" if last else LIFETIME_OVER, "4.4.7")


def _next_state(
    claim: Claim,
    result: AttemptResult,
    relayed: Sequence[RecipientResult],
    remaining: tuple[Recipient, ...],
    reporting: Reporting,
    at: datetime,
    rng: random.Random,
) -> tuple[DeliveryState, tuple[Recipient, ...] | None, datetime | None, bool]:
    """State, recipients that remain (None = unchanged), next attempt, whether a delay DSN is due."""
    if not remaining:
        return (DeliveryState.RELAYED if relayed else DeliveryState.FAILED), None, None, False
    if at >= claim.entry.expires_at:
        return DeliveryState.EXPIRED, None, None, False
    left = None if len(remaining) == len(claim.delivery.recipients) else remaining
    if result.held and {recipient for recipient, _ in result.held} >= set(remaining):
        return DeliveryState.HELD, left, None, False
    if result.kind is OutcomeKind.IN_DOUBT:
        return DeliveryState.DEFERRED, left, at + timedelta(seconds=IN_DOUBT_RETRY_S), False
    next_at = reporting.policy.next_attempt_at(claim.delivery.attempts + 1, at, rng)
    return DeliveryState.DEFERRED, left, next_at, _delay_due(claim, reporting, at)


def _delay_due(claim: Claim, reporting: Reporting, at: datetime) -> bool:
    age_s = (at - claim.entry.received_at).total_seconds()
    return not claim.delivery.delay_notified and 0 < reporting.policy.delay_notice_s <= age_s


def _report(
    claim: Claim, results: Sequence[RecipientResult], reporting: Reporting, at: datetime
) -> tuple[tuple[NewEntry, ...], tuple[HistoryNote, ...]]:
    """One report for all that this decides, and the history's lines about it."""
    report = build_dsn(reporting.reporter, claim.entry, results, at=at) if results else None
    if report is not None:
        actions = dict.fromkeys(result.action.value for result in results)
        return (report,), (HistoryNote(at, "bounced", detail=f"DSN {report.entry.queue_id} {' '.join(actions)}"),)
    if not claim.entry.envelope.sender and any(result.action is Action.FAILED for result in results):
        return (), (HistoryNote(at, UNTOLD, detail="the reverse-path is null: nobody is told"),)
    return (), ()
