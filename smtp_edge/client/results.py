"""From the replies of a transaction to its result: who was answered what, and whose fault the end was. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from router.decision import OutcomeKind
from smtp_edge.client.attempt import AttemptResult, Job
from smtp_edge.client.blame import blame
from smtp_edge.client.connecting import Connection
from smtp_edge.envelope import Recipient
from smtp_edge.reply import Reply
from smtp_edge.transfer import parse_backlogs

TOO_MANY_RECIPIENTS = {(452, "4.5.3"), (552, "5.5.3"), (552, "")}
"""What it says to those that it takes in another transaction. 552 is RFC 821's, and "rather temporary" (RFC 5321
section 4.5.3.1.10); without a status it may mean a full mailbox, which says so again when it is asked alone."""


@dataclass(slots=True)
class Progress:
    """How far a transaction came."""

    stage: str = "MAIL"
    began: float = field(default_factory=time.monotonic)
    chosen: list[int] | None = None
    """Recipients (by index) that are named; None = all."""
    refusal: Reply | None = None
    """To MAIL."""
    replies: list[Reply] = field(default_factory=list)
    """To the RCPTs, in order."""
    finals: list[Reply] = field(default_factory=list)
    """LMTP: after the dot, for each recipient that was accepted."""
    answered: bool = False
    dot_sent: bool = False
    broken_off: bool = False
    took_s: float = 0.0

    def asked(self, job: Job) -> Sequence[Recipient]:
        """The recipients that are named."""
        recipients = job.envelope.recipients
        return recipients if self.chosen is None else [recipients[index] for index in self.chosen]

    def enter_doubt(self) -> None:
        """The final dot is written."""
        self.stage, self.dot_sent = "final dot", True


def unable(connection: Connection, job: Job, refusal: Reply) -> AttemptResult:
    """Nothing was sent: the remote does not offer what the message needs."""
    return AttemptResult(
        OutcomeKind.MESSAGE_REFUSED,
        (refusal,) * len(job.envelope.recipients),
        refusal,
        str(refusal),
        remote=connection.remote,
        tls=connection.tls,
        own_reply=True,
        unable=True,
    )


def ended(connection: Connection, job: Job, progress: Progress, reply: Reply, *, final: bool = False) -> AttemptResult:
    """The result of a transaction that ended with a reply."""
    connection.used_count += 1
    if reply.code == 421:
        connection.stream.close()
    lmtp = connection.target.protocol == "lmtp"
    replies, left_out = _spread(job, progress, _answers(job, progress, reply, final=final))
    kind = OutcomeKind.ACCEPTED if final and reply.positive else blame(reply, progress.stage)
    return AttemptResult(
        kind=kind,
        replies=replies,
        reply=reply,
        reason="" if final and reply.positive else f"{progress.stage}: {reply}",
        latency_s=progress.took_s,
        remote=connection.remote,
        tls=connection.tls,
        new_connection=connection.used_count == 1,
        peer_backlogs=parse_backlogs(reply.text) if final and job.transfer is not None else {},
        left_out=left_out,
        takes_reports="dsn" in connection.extensions and not lmtp,
        delivered=lmtp,
    )


def broken(connection: Connection, job: Job, progress: Progress, error: BaseException) -> AttemptResult:
    """The result of a transaction whose connection was lost."""
    timed_out = isinstance(error, TimeoutError)
    kind = OutcomeKind.TIMEOUT if timed_out else OutcomeKind.DISCONNECTED
    if progress.dot_sent:
        kind = OutcomeKind.IN_DOUBT
    replies: tuple[Reply | None, ...] = ()
    if progress.finals:
        replies, _ = _spread(job, progress, _final_answers(progress))
    return AttemptResult(
        kind,
        replies,
        reason=f"{progress.stage}: {'timeout' if timed_out else error}",
        remote=connection.remote,
        tls=connection.tls,
        new_connection=not connection.used_count,
        delivered=connection.target.protocol == "lmtp",
    )


def merge(first: AttemptResult, second: AttemptResult, indexes: Sequence[int]) -> AttemptResult:
    """Two transactions for one message: the second was for the recipients that the first had left out."""
    replies = list(first.replies)
    second_replies = second.replies or (None,) * len(indexes)
    for index, reply in zip(indexes, second_replies, strict=True):
        replies[index] = reply
    accepted = OutcomeKind.ACCEPTED in (first.kind, second.kind) and second.kind is not OutcomeKind.IN_DOUBT
    return replace(
        second,
        kind=OutcomeKind.ACCEPTED if accepted else second.kind,
        replies=tuple(replies),
        reply=second.reply if second.reply is not None or not accepted else first.reply,
        latency_s=first.latency_s or second.latency_s,
        new_connection=first.new_connection or second.new_connection,
        peer_backlogs=second.peer_backlogs or first.peer_backlogs,
        left_out=tuple(indexes[index] for index in second.left_out),
        takes_reports=first.takes_reports and second.takes_reports,
        unable=False,
    )


def decided(job: Job, progress: Progress) -> Reply | None:
    """The reply by which a transaction was over before its connection was: MAIL, or every RCPT, was refused."""
    if progress.refusal is not None:
        return progress.refusal
    if len(progress.replies) < len(progress.asked(job)) or any(reply.positive for reply in progress.replies):
        return None
    return worst(progress.replies)


def closing(replies: Sequence[Reply]) -> Reply | None:
    """A 421 among the replies: the remote hangs up, whatever it said before."""
    return next((reply for reply in replies if reply.code == 421), None)


def worst(replies: Sequence[Reply]) -> Reply:
    """The reply that stands for a group in which nobody was accepted: a transient one, if any."""
    return closing(replies) or next((reply for reply in replies if reply.transient), replies[-1])


def best(replies: Sequence[Reply]) -> Reply:
    """The reply that stands for a group in which somebody may have been accepted."""
    return next((reply for reply in replies if reply.positive), None) or worst(replies)


def _answers(job: Job, progress: Progress, reply: Reply, *, final: bool) -> list[Reply | None]:
    """One for each recipient that was named."""
    if final and progress.finals:
        return _final_answers(progress)
    named = len(progress.asked(job))
    rcpts: list[Reply | None] = [
        *progress.replies,
        *([reply if reply.code == 421 else None] * (named - len(progress.replies))),
    ]
    if final or progress.stage in ("DATA", "mail data", "BDAT"):
        return [reply if rcpt is not None and rcpt.positive else rcpt for rcpt in rcpts]
    if progress.stage == "RCPT" and progress.replies:  # nobody was accepted: there was no mail data
        return [None if rcpt is not None and rcpt.positive else rcpt for rcpt in rcpts]
    return [reply] * named


def _final_answers(progress: Progress) -> list[Reply | None]:
    finals = iter(progress.finals)
    return [next(finals, None) if rcpt.positive else rcpt for rcpt in progress.replies]


def _spread(
    job: Job, progress: Progress, answers: Sequence[Reply | None]
) -> tuple[tuple[Reply | None, ...], tuple[int, ...]]:
    """Answers of those named as answers of all; and who is left for another transaction.

    Besides those that the remote's limits left out these are the ones for whom it said "too many" (RFC 5321 section
    4.5.3.1.10), if it took anybody: otherwise saying it again would change nothing.
    """
    count = len(job.envelope.recipients)
    if progress.chosen is None and len(answers) == count:
        if all(answer is not None and answer.positive for answer in answers):
            return tuple(answers), ()
        chosen: Sequence[int] = range(count)
    else:
        chosen = progress.chosen if progress.chosen is not None else range(count)
    spread: list[Reply | None] = [None] * count
    for index, answer in zip(chosen, answers, strict=False):
        spread[index] = answer
    left = set(range(count)).difference(chosen)
    if any(answer is not None and answer.positive for answer in answers):
        left |= {
            index for index, answer in zip(chosen, answers, strict=False) if answer is not None and _is_too_many(answer)
        }
    return tuple(spread), tuple(sorted(left))


def _is_too_many(reply: Reply) -> bool:
    return (reply.code, reply.status) in TOO_MANY_RECIPIENTS
