"""Final delivery by a sink (`deliver`): a binding is asked like a next hop, and what it answers is an attempt's result.

answer                                    kind
2yz for somebody                          accepted: delivered
4yz for all, not about a mailbox (4.2.x)  hop-tempfail: the sink's peer is at fault, as with a smart host
other 4yz, 5yz, quarantine                message-refused: says nothing against the sink
an exception, or nonsense                 hop-tempfail; after `FAILURES_MAX` attempts the message is parked (HELD)
no answer in time                         in-doubt: it may have delivered, and knows by `Delivery.key` if it has
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import structlog

from router.decision import OutcomeKind
from smtp_edge.client.attempt import AttemptResult
from smtp_edge.envelope import Recipient
from smtp_edge.queue.entry import Claim
from smtp_edge.reply import Reply
from smtp_edge.sinks.answers import Answer, spread
from smtp_edge.sinks.api import Delivery, Quarantine
from smtp_edge.sinks.chain import Binding, SinkChain, SinkFailure, SinkTimeout
from smtp_edge.sinks.message import Content
from smtp_edge.sinks.rules import Facts

log = structlog.get_logger()

FAILURES_MAX = 10
"""Attempts that end in an exception of the sink, before a person has to look at it."""
ABSENT = "no such sink is bound to deliver"
LEFT_OUT = Reply(451, "the rule of the sink leaves this recipient out", "4.3.5")


@dataclass(slots=True)
class Answers:
    """One for each recipient of a delivery."""

    recipients: tuple[Recipient, ...]
    said: dict[Recipient, Answer] = field(default_factory=dict)

    def replies(self) -> tuple[Reply | None, ...]:
        """In the order of the recipients; None for those that are held."""
        found = (self.said[recipient] for recipient in self.recipients)
        return tuple(None if isinstance(answer, Quarantine) else answer for answer in found)

    def held(self) -> tuple[tuple[Recipient, str], ...]:
        """Who waits for an operator, and why."""
        pairs = ((recipient, self.said[recipient]) for recipient in self.recipients)
        return tuple((recipient, answer.reason) for recipient, answer in pairs if isinstance(answer, Quarantine))


async def deliver(chain: SinkChain, name: str, claim: Claim) -> AttemptResult:
    """Ask the binding `name` once. MailDataLost."""
    chain.hold()
    began = time.monotonic()
    try:
        binding = chain.find("deliver", name)
        if binding is None:
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason=f"{name}: {ABSENT}")
        return await _deliver(binding, claim, began)
    finally:
        chain.release()


async def _deliver(binding: Binding, claim: Claim, began: float) -> AttemptResult:
    delivery = _describe(claim, await Content.load(claim.entry.data))
    recipients = _select(binding, delivery)
    answers = Answers(claim.delivery.recipients, dict.fromkeys(claim.delivery.recipients, LEFT_OUT))
    if recipients:
        seen = replace(delivery, envelope=replace(delivery.envelope, recipients=recipients))
        try:
            answer = await binding.ask("deliver", binding.sink.deliver(seen), (Reply, Sequence))
            answers.said.update(_spread(binding, recipients, answer))
        except SinkTimeout as failure:
            return AttemptResult(OutcomeKind.IN_DOUBT, reason=str(failure), remote=binding.name)
        except SinkFailure as failure:
            return _failed(binding, claim, failure)
    return _sum_up(binding, answers, time.monotonic() - began)


def _describe(claim: Claim, content: Content) -> Delivery:
    entry, delivery = claim.entry, claim.delivery
    return Delivery(
        entry.queue_id,
        entry.origin or entry.queue_id,
        replace(entry.envelope, recipients=delivery.recipients),
        entry.received_at,
        delivery.attempts,
        entry.client,
        content,
        entry.received_field,
    )


def _select(binding: Binding, delivery: Delivery) -> tuple[Recipient, ...]:
    envelope = delivery.envelope
    facts = Facts(None, envelope.sender, envelope.recipients, delivery.size_bytes, delivery.headers.all)
    return binding.rule.select(facts) or ()


def _spread(
    binding: Binding, recipients: Sequence[Recipient], answer: Reply | Sequence[object] | None
) -> dict[Recipient, Answer]:
    """To each recipient. SinkFailure for what is no answer."""
    try:
        return spread(recipients, answer)
    except ValueError as error:
        log.error("sink.wrong_answer", sink=binding.name, event_name="deliver", reason=str(error))
        raise SinkFailure(f"sink {binding.name} answered nonsense") from error


def _failed(binding: Binding, claim: Claim, failure: SinkFailure) -> AttemptResult:
    reply = Reply(451, str(failure), "4.3.0")
    if claim.delivery.attempts + 1 < FAILURES_MAX:
        return AttemptResult(
            OutcomeKind.HOP_TEMPFAIL, reply=reply, reason=str(failure), remote=binding.name, own_reply=True
        )
    reason = f"{failure}, in {claim.delivery.attempts + 1} attempts"
    held = tuple((recipient, reason) for recipient in claim.delivery.recipients)
    return AttemptResult(
        OutcomeKind.MESSAGE_REFUSED,
        (None,) * len(held),
        reply=reply,
        reason=reason,
        remote=binding.name,
        own_reply=True,
        held=held,
    )


def _sum_up(binding: Binding, answers: Answers, took_s: float) -> AttemptResult:
    replies, held = answers.replies(), answers.held()
    told = [reply for reply in replies if reply is not None]
    worst = max(told, key=lambda reply: reply.code, default=None)
    best = min(told, key=lambda reply: reply.code, default=None)
    kind, reply = OutcomeKind.MESSAGE_REFUSED, worst
    if best is not None and best.positive:
        kind, reply = OutcomeKind.ACCEPTED, best
    elif not held and worst is not None and all(map(_blames_sink, told)):
        kind = OutcomeKind.HOP_TEMPFAIL
    reason = "" if kind is OutcomeKind.ACCEPTED else str(reply) if reply is not None else held[0][1]
    return AttemptResult(
        kind, replies, reply=reply, reason=reason, latency_s=took_s, remote=binding.name, delivered=True, held=held
    )


def _blames_sink(reply: Reply) -> bool:
    return reply.code // 100 == 4 and not reply.status.startswith(("4.1.", "4.2."))
