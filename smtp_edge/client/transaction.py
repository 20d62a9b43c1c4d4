"""One mail transaction on an open connection (RFC 5321 section 3.3, pipelined by RFC 2920 where the remote offers it).

    sent                                      if the connection is lost here
    MAIL, RCPT...        (one group)          disconnected: nothing happened
    DATA                 (same group)         disconnected
    prefix, mail data                         disconnected
    the final dot                             in doubt: the remote may have the message

The instant of doubt is the write of the final dot, not its arrival: from then on only a reply can tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.decision import OutcomeKind
from smtp_edge.client.attempt import AttemptResult, Job
from smtp_edge.client.blame import blame
from smtp_edge.client.connecting import Connection
from smtp_edge.client.replies import ConnectionLost
from smtp_edge.envelope import BodyType, Envelope, Notify, Recipient
from smtp_edge.reply import Reply
from smtp_edge.transfer import build_parameters, parse_backlogs

CHUNK_BYTES = 256 * 1024
GROUP_RECIPIENTS_MAX = 500
"""RCPTs in flight without reading: replies of a larger group could fill both ends' buffers."""

TOO_LARGE = Reply(552, "message is larger than the next hop takes", "5.3.4")
NO_EIGHT_BIT = Reply(554, "the next hop does not take 8-bit mail", "5.6.3")
NO_UTF8 = Reply(553, "the next hop does not take internationalised addresses", "5.6.7")


class Stale(Exception):
    """The connection was dead before the remote answered anything: nothing happened, try a new one."""


@dataclass(slots=True)
class Progress:
    """How far a transaction came."""

    stage: str = "MAIL"
    began: float = field(default_factory=time.monotonic)
    replies: list[Reply | None] = field(default_factory=list)
    answered: bool = False
    dot_sent: bool = False
    broken_off: bool = False


@dataclass(slots=True, eq=False)
class Transaction:
    """One message on one connection."""

    connection: Connection
    job: Job
    progress: Progress = field(default_factory=Progress)

    @property
    def dot_sent(self) -> bool:
        """Only a reply can tell now whether the remote has the message."""
        return self.progress.dot_sent

    async def run(self, *, timeout_s: float) -> AttemptResult:
        """Send the message. Never raises for the remote's faults, except `Stale` (see there).

        Afterwards the connection is usable only if `connection.stream.usable`; it is aborted when in an unknown state.
        """
        connection, job, progress = self.connection, self.job, self.progress
        refusal = unable(connection, job)
        if refusal is not None:
            replies = (refusal,) * len(job.envelope.recipients)
            return AttemptResult(OutcomeKind.MESSAGE_REFUSED, replies, refusal, str(refusal), remote=connection.remote)
        try:
            async with asyncio.timeout(timeout_s):
                return await _transact(connection, job, progress)
        except (ConnectionLost, TimeoutError, OSError) as error:
            connection.stream.abort()
            if self._is_stale(error):
                raise Stale from error
            return _broken(connection, progress, error)
        except BaseException:
            connection.stream.abort()
            raise

    def break_off(self, reason: str) -> None:
        """End it from outside: `run` returns as if the connection were lost."""
        self.progress.broken_off = True
        self.connection.stream.break_off(reason)

    def _is_stale(self, error: Exception) -> bool:
        unused = isinstance(error, ConnectionLost) and not self.progress.answered and self.connection.used_count
        return bool(unused) and not self.progress.broken_off


def unable(connection: Connection, job: Job) -> Reply | None:
    """Why the remote cannot take this message whatever we say; None if it can."""
    envelope, extensions = job.envelope, connection.extensions
    limit = extensions.get("size", "").strip()
    if limit.isdigit() and 0 < int(limit) < _size(job):
        return TOO_LARGE
    if envelope.smtputf8 and "smtputf8" not in extensions and not _is_ascii(job):
        return NO_UTF8
    if envelope.body_type is BodyType.EIGHT_BIT_MIME and "8bitmime" not in extensions:
        return NO_EIGHT_BIT
    return None


def build_mail(connection: Connection, job: Job) -> str:
    """The MAIL command with the parameters that the remote understands."""
    envelope, extensions = job.envelope, connection.extensions
    words = [f"MAIL FROM:<{envelope.sender}>"]
    if "size" in extensions:
        words.append(f"SIZE={_size(job)}")
    if "8bitmime" in extensions and envelope.body_type is BodyType.EIGHT_BIT_MIME:
        words.append("BODY=8BITMIME")
    if "smtputf8" in extensions and envelope.smtputf8:
        words.append("SMTPUTF8")
    if "dsn" in extensions:
        words += [f"RET={envelope.ret}"] if envelope.ret else []
        words += [f"ENVID={envelope.envid}"] if envelope.envid else []
    if job.transfer is not None and "xsmtpmesh" in extensions:
        words += build_parameters(job.transfer, extensions["xsmtpmesh"])
    return " ".join(words)


def build_rcpt(connection: Connection, recipient: Recipient) -> str:
    """The RCPT command."""
    words = [f"RCPT TO:<{recipient.address}>"]
    if "dsn" in connection.extensions:
        if recipient.notify != Notify.FAILURE | Notify.DELAY:
            words.append(f"NOTIFY={_notify_words(recipient.notify)}")
        if recipient.orcpt:
            words.append(f"ORCPT={recipient.orcpt}")
    return " ".join(words)


async def _transact(connection: Connection, job: Job, progress: Progress) -> AttemptResult:
    stream, recipients = connection.stream, job.envelope.recipients
    pipelining = "pipelining" in connection.extensions
    await _reset(connection, progress)
    stream.write(f"{build_mail(connection, job)}\r\n".encode())
    if not pipelining:
        refused = await _read_mail_reply(connection, progress)
        if refused is not None:
            return _end(connection, job, progress, refused)
    data_asked, mail_reply = await _send_recipients(connection, recipients, progress, pipelining=pipelining)
    if mail_reply is not None:
        await _withdraw(connection, data_asked=data_asked)
        return _end(connection, job, progress, mail_reply)
    if not any(reply is not None and reply.positive for reply in progress.replies):
        await _withdraw(connection, data_asked=data_asked)
        return _end(connection, job, progress, _worst(progress.replies))
    progress.stage = "DATA"
    if not data_asked:
        stream.write(b"DATA\r\n")
    go_ahead = await stream.read_reply()
    if go_ahead.code != 354:
        connection.needs_reset = True
        return _end(connection, job, progress, go_ahead)
    await _send_data(connection, job, progress)
    return _end(connection, job, progress, await stream.read_reply(), final=True)


async def _reset(connection: Connection, progress: Progress) -> None:
    if connection.needs_reset:
        connection.stream.write(b"RSET\r\n")
        await connection.stream.read_reply()
        progress.answered = True
        connection.needs_reset = False


async def _read_mail_reply(connection: Connection, progress: Progress) -> Reply | None:
    """The reply to MAIL if it is a refusal."""
    reply = await connection.stream.read_reply()
    progress.answered = True
    if not reply.positive:
        return reply
    progress.stage = "RCPT"
    return None


async def _send_recipients(
    connection: Connection, recipients: Sequence[Recipient], progress: Progress, *, pipelining: bool
) -> tuple[bool, Reply | None]:
    """Send RCPTs and collect their replies. Returns whether DATA was sent along, and the refusal of MAIL, if any."""
    stream, refused, data_asked = connection.stream, None, False
    size = GROUP_RECIPIENTS_MAX if pipelining else 1
    for start in range(0, len(recipients), size):
        group = recipients[start : start + size]
        lines = [f"{build_rcpt(connection, recipient)}\r\n" for recipient in group]
        if pipelining and start + size >= len(recipients):
            lines.append("DATA\r\n")
            data_asked = True
        stream.write("".join(lines).encode())
        if pipelining and start == 0:
            refused = await _read_mail_reply(connection, progress)
        for _ in group:
            progress.replies.append(await stream.read_reply())
            progress.answered = True
        if refused is not None:
            break
    return data_asked, refused


async def _withdraw(connection: Connection, *, data_asked: bool) -> None:
    """No recipient is left: end a DATA that was pipelined (RFC 2920 section 3.1), and begin afresh next time."""
    connection.needs_reset = True
    if data_asked:
        reply = await connection.stream.read_reply()
        if reply.code == 354:
            connection.stream.write(b".\r\n")
            await connection.stream.read_reply()


async def _send_data(connection: Connection, job: Job, progress: Progress) -> None:
    stream, data = connection.stream, job.data
    progress.stage = "mail data"
    if data.path is None:
        progress.stage, progress.dot_sent = "final dot", True
        stream.write(job.prefix, data.inline or b"", b".\r\n")
        await stream.drain()
        return
    stream.write(job.prefix)
    with data.path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            stream.write(chunk)
            await stream.drain()
            if stream.waiting:  # a remote that answers before the end is giving up: read why
                break
    progress.stage, progress.dot_sent = "final dot", True
    stream.write(b".\r\n")
    await stream.drain()


def _end(connection: Connection, job: Job, progress: Progress, reply: Reply, *, final: bool = False) -> AttemptResult:
    """The result of a transaction that ended with a reply."""
    connection.used_count += 1
    if reply.code == 421:
        connection.stream.close()
    missing = len(job.envelope.recipients) - len(progress.replies)
    rcpts = [*progress.replies, *([None] * missing)]
    if final or progress.stage == "DATA":
        replies = tuple(reply if rcpt is not None and rcpt.positive else rcpt for rcpt in rcpts)
    elif progress.replies and progress.stage == "RCPT":
        replies = tuple(rcpts)
    else:
        replies = (reply,) * len(rcpts)
    return AttemptResult(
        kind=_kind(reply, progress, final=final),
        replies=replies,
        reply=reply,
        reason="" if final and reply.positive else f"{progress.stage}: {reply}",
        latency_s=time.monotonic() - progress.began if final else 0.0,
        remote=connection.remote,
        tls=connection.tls,
        new_connection=connection.used_count == 1,
        peer_backlogs=parse_backlogs(reply.text) if final and job.transfer is not None else {},
    )


def _kind(reply: Reply, progress: Progress, *, final: bool) -> OutcomeKind:
    if final and reply.positive:
        return OutcomeKind.ACCEPTED
    return blame(reply, progress.stage)


def _broken(connection: Connection, progress: Progress, error: BaseException) -> AttemptResult:
    timed_out = isinstance(error, TimeoutError)
    kind = OutcomeKind.TIMEOUT if timed_out else OutcomeKind.DISCONNECTED
    if progress.dot_sent:
        kind = OutcomeKind.IN_DOUBT
    text = "timeout" if timed_out else str(error)
    return AttemptResult(
        kind,
        reason=f"{progress.stage}: {text}",
        remote=connection.remote,
        tls=connection.tls,
        new_connection=not connection.used_count,
    )


def _worst(replies: Sequence[Reply | None]) -> Reply:
    """The reply that stands for a group in which nobody was accepted: a transient one, if any."""
    given = [reply for reply in replies if reply is not None]
    return next((reply for reply in given if reply.code == 421), None) or next(
        (reply for reply in given if reply.transient), given[-1]
    )


def _size(job: Job) -> int:
    return len(job.prefix) + job.data.size_bytes


def _is_ascii(job: Job) -> bool:
    envelope: Envelope = job.envelope
    addresses = [envelope.sender, *(recipient.address for recipient in envelope.recipients)]
    return all(address.isascii() for address in addresses) and job.data.header.isascii()


def _notify_words(notify: Notify) -> str:
    words = [flag.name or "" for flag in (Notify.SUCCESS, Notify.FAILURE, Notify.DELAY) if flag in notify]
    return ",".join(words) or "NEVER"
