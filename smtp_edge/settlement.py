"""From the end of an attempt to what becomes of the delivery. Pure: the dispatcher acts on what this decides.

recipient's reply          becomes
2yz                        relayed
5yz from a foreign host    failed, reported by a DSN in the same commit
5yz from a peer            deferred: peers differ in configuration, mail is never bounced because of our own confusion
4yz, none                  tried elsewhere at once if only the hop was at fault, else deferred with back-off
none, lost after the dot   deferred briefly, and the same peer is asked first (it recognises the transfer)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from router.decision import Hop, HopKind, OutcomeKind
from smtp_edge.client.attempt import AttemptResult
from smtp_edge.dsn import build_dsn
from smtp_edge.envelope import Recipient
from smtp_edge.queue.entry import Claim, DeliveryState, HistoryNote, NewEntry, RecipientResult, Settlement
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

LIFETIME_OVER = Reply(451, "lifetime in the queue is over", "4.4.7")


@dataclass(frozen=True, slots=True)
class Reporting:
    """What building a DSN needs to know of this node."""

    hostname: str
    policy: RetryPolicy
    new_queue_id: Callable[[datetime], str]
    class_of: Callable[[str], str]
    """Class id of a recipient's domain; never fails (an unroutable sender's class simply never opens)."""
    lifetime: timedelta


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
    relayed, refused, remaining = _sort_recipients(claim, hop, result)
    untouched = len(remaining) == len(claim.delivery.recipients)
    if untouched and result.kind in HOP_FAULTS and tries < MEMORY_ATTEMPTS_MAX and at < claim.entry.expires_at:
        return None
    reports = _report(claim, refused, "failed", reporting, at)
    state, left, next_at, delayed = _next_state(claim, result, relayed, remaining, reporting, at, rng)
    if state is DeliveryState.EXPIRED:
        expired = [RecipientResult(recipient, result.reply or LIFETIME_OVER) for recipient in remaining]
        reports += _report(claim, expired, "failed", reporting, at)
    elif delayed:
        reports += _report(claim, [RecipientResult(r, result.reply) for r in remaining], "delayed", reporting, at)
    return Settlement(
        queue_id=claim.delivery.queue_id,
        copy=claim.delivery.copy,
        token=claim.token,
        state=state,
        recipients=left,
        next_attempt_at=next_at,
        hop=hop.id,
        reply=str(result.reply) if result.reply else result.reason,
        in_doubt_hop=hop.id if result.kind is OutcomeKind.IN_DOUBT else "",
        delay_notified=claim.delivery.delay_notified or delayed,
        notes=(*notes, note_of_attempt(hop, result, at), *_notes_of_reports(reports, at)),
        reports=reports,
    )


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
    state = DeliveryState.DEFERRED
    reports: tuple[NewEntry, ...] = ()
    delayed = False
    if for_good:
        state, reply = DeliveryState.FAILED, Reply(550, reason, for_good)
    elif at >= claim.entry.expires_at:
        state, reply = DeliveryState.EXPIRED, LIFETIME_OVER
    else:
        reply = Reply(451, reason, "4.4.1")
        delayed = _delay_due(claim, reporting, at)
    results = [RecipientResult(recipient, reply) for recipient in claim.delivery.recipients]
    if state is not DeliveryState.DEFERRED or delayed:
        reports = _report(claim, results, "delayed" if delayed else "failed", reporting, at)
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
        notes=(*notes, HistoryNote(at, event, reply=reason), *_notes_of_reports(reports, at)),
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


def note_of_attempt(hop: Hop, result: AttemptResult, at: datetime) -> HistoryNote:
    """The history line of an attempt."""
    event = "relayed" if result.kind is OutcomeKind.ACCEPTED else "attempt"
    words = [result.kind.value, result.remote, result.tls, f"{result.latency_s:.3f}s" if result.latency_s else ""]
    if result.reply is None or result.kind is not OutcomeKind.ACCEPTED:
        words.append(result.reason)
    detail = " ".join(word for word in words if word)
    return HistoryNote(at, event, hop.id, str(result.reply) if result.reply else "", detail)


def _sort_recipients(
    claim: Claim, hop: Hop, result: AttemptResult
) -> tuple[list[Recipient], list[RecipientResult], tuple[Recipient, ...]]:
    relayed: list[Recipient] = []
    refused: list[RecipientResult] = []
    remaining: list[Recipient] = []
    recipients = claim.delivery.recipients
    replies = result.replies or (None,) * len(recipients)
    for recipient, reply in zip(recipients, replies, strict=True):
        if reply is not None and reply.positive:
            relayed.append(recipient)
        elif reply is not None and reply.permanent and hop.kind is not HopKind.PEER:
            refused.append(RecipientResult(recipient, reply))
        else:
            remaining.append(recipient)
    return relayed, refused, tuple(remaining)


def _next_state(
    claim: Claim,
    result: AttemptResult,
    relayed: Sequence[Recipient],
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
    if result.kind is OutcomeKind.IN_DOUBT:
        return DeliveryState.DEFERRED, left, at + timedelta(seconds=IN_DOUBT_RETRY_S), False
    next_at = reporting.policy.next_attempt_at(claim.delivery.attempts + 1, at, rng)
    return DeliveryState.DEFERRED, left, next_at, _delay_due(claim, reporting, at)


def _delay_due(claim: Claim, reporting: Reporting, at: datetime) -> bool:
    age_s = (at - claim.entry.received_at).total_seconds()
    return not claim.delivery.delay_notified and 0 < reporting.policy.delay_notice_s <= age_s


def _report(
    claim: Claim, results: Sequence[RecipientResult], action: str, reporting: Reporting, at: datetime
) -> tuple[NewEntry, ...]:
    if not results:
        return ()
    queue_id = reporting.new_queue_id(at)
    report = build_dsn(
        claim.entry,
        results,
        action=action,
        hostname=reporting.hostname,
        queue_id=queue_id,
        at=at,
        boundary=f"={queue_id}/{reporting.hostname}",
        lifetime=reporting.lifetime,
        class_of=reporting.class_of,
    )
    return (report,) if report is not None else ()


def _notes_of_reports(reports: Sequence[NewEntry], at: datetime) -> tuple[HistoryNote, ...]:
    return tuple(HistoryNote(at, "bounced", detail=f"DSN {report.entry.queue_id}") for report in reports)
