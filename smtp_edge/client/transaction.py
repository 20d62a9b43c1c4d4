"""One mail transaction on an open connection (RFC 5321 section 3.3, RFC 2033 for LMTP; pipelined by RFC 2920).

    sent                                      if the connection is lost here
    MAIL, RCPT...        (one group)          disconnected: nothing happened
    DATA                 (same group)         disconnected
    prefix, mail data                         disconnected
    the final dot, or the last BDAT           in doubt: the remote may have the message

The instant of doubt is the write of the final dot, not its arrival: from then on only a reply can tell. LMTP gives a
reply for each recipient; when the connection is lost among them, those without one are in doubt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from smtp_edge.client import results
from smtp_edge.client.attempt import AttemptResult, Job
from smtp_edge.client.connecting import Connection
from smtp_edge.client.limits import NO_LIMITS, choose_recipients
from smtp_edge.client.replies import ConnectionLost, ReplyStream
from smtp_edge.client.results import Progress
from smtp_edge.client.sending import send_chunks, send_stuffed
from smtp_edge.client.wording import build_mail, build_rcpt, needs_scan, scan, unable, uses_bdat
from smtp_edge.envelope import Recipient
from smtp_edge.queue.reading import MailDataLost
from smtp_edge.reply import Reply
from smtp_edge.within import within

GROUP_RECIPIENTS_MAX = 500
"""RCPTs in flight without reading: replies of a larger group could fill both ends' buffers."""


class Stale(Exception):
    """The connection was dead before the remote answered anything: nothing happened, try a new one."""


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
        """Send the message. Never raises for the remote's faults, except `Stale` (see there); MailDataLost for ours.

        Afterwards the connection is usable only if `connection.stream.usable`; it is aborted when in an unknown state.
        """
        connection, job, progress = self.connection, self.job, self.progress
        refusal = unable(connection, job)
        if refusal is None and needs_scan(connection, job):
            refusal = await self._scan()
        if refusal is not None:
            return results.unable(connection, job, refusal)
        if connection.limits is not NO_LIMITS:
            progress.chosen = choose_recipients(connection.limits, connection.domains, job.envelope.recipients)
        try:
            async with within(timeout_s):
                return await _transact(connection, job, progress)
        except (ConnectionLost, TimeoutError, OSError) as error:
            connection.stream.abort()
            if self._is_stale(error):
                raise Stale from error
            decided = results.decided(job, progress)
            if decided is not None:
                return results.ended(connection, job, progress, decided)
            return results.broken(connection, job, progress, error)
        except BaseException:
            connection.stream.abort()
            raise

    async def _scan(self) -> Reply | None:
        try:
            return await asyncio.to_thread(scan, self.connection, self.job)
        except MailDataLost:
            self.connection.stream.abort()
            raise

    def break_off(self, reason: str) -> None:
        """End it from outside: `run` returns as if the connection were lost."""
        self.progress.broken_off = True
        self.connection.stream.break_off(reason)

    def _is_stale(self, error: Exception) -> bool:
        unused = isinstance(error, ConnectionLost) and not self.progress.answered and self.connection.used_count
        return bool(unused) and not self.progress.broken_off


async def _transact(connection: Connection, job: Job, progress: Progress) -> AttemptResult:
    stream, extensions = connection.stream, connection.extensions
    pipelining, bdat = "pipelining" in extensions, uses_bdat(connection, job)
    recipients = progress.asked(job)
    if connection.needs_reset:
        await _reset(connection, progress)
    mail = f"{build_mail(connection, job)}\r\n"
    if pipelining:
        refused, data_asked = await _send_group(connection, job, mail, recipients, progress, with_data=not bdat)
    else:
        stream.write(mail.encode())
        refused, data_asked = await _read_mail_reply(connection, progress), False
        if refused is None:
            await _send_one_by_one(connection, job, recipients, progress)
    if (closing := results.closing(progress.replies)) is not None:
        return results.ended(connection, job, progress, closing)
    if refused is not None or not any(reply.positive for reply in progress.replies):
        await _withdraw(connection, progress, data_asked=data_asked)
        return results.ended(connection, job, progress, refused or results.worst(progress.replies))
    refused = await (_send_by_bdat if bdat else _send_by_data)(connection, job, progress, data_asked)
    if refused is not None:
        return results.ended(connection, job, progress, refused)
    return await _read_final(connection, job, progress)


async def _reset(connection: Connection, progress: Progress) -> None:
    """Begin afresh after a transaction that ended early; a remote that will not is left."""
    connection.stream.write(b"RSET\r\n")
    reply = await connection.stream.read_reply()
    if not reply.positive:
        raise ConnectionLost(f"RSET: {reply}")
    progress.answered = True
    connection.needs_reset = False


async def _read_mail_reply(connection: Connection, progress: Progress) -> Reply | None:
    """The reply to MAIL if it is a refusal."""
    reply = await connection.stream.read_reply()
    progress.answered = True
    if not reply.positive:
        progress.refusal = reply
        return reply
    progress.stage = "RCPT"
    return None


async def _send_group(
    connection: Connection,
    job: Job,
    mail: str,
    recipients: Sequence[Recipient],
    progress: Progress,
    *,
    with_data: bool,
) -> tuple[Reply | None, bool]:
    """MAIL, RCPTs and DATA in few writes. The refusal of MAIL, if any, and whether DATA was sent along."""
    stream, utf8 = connection.stream, _says_utf8(connection, job)
    refused: Reply | None = None
    group_max = min(GROUP_RECIPIENTS_MAX, len(recipients))
    for start in range(0, len(recipients), group_max):
        group = recipients[start : start + group_max]
        last = with_data and start + group_max >= len(recipients)
        lines = [f"{build_rcpt(connection, recipient, utf8=utf8)}\r\n" for recipient in group]
        if last:
            lines.append("DATA\r\n")
        stream.write((mail + "".join(lines)).encode())
        if start == 0:
            refused, mail = await _read_mail_reply(connection, progress), ""
            if refused is not None and refused.code == 421:
                return refused, False
        for _ in group:
            progress.replies.append(stream.take_reply() or await stream.read_reply())
        if refused is not None:
            return refused, last
    return None, with_data


async def _send_one_by_one(
    connection: Connection, job: Job, recipients: Sequence[Recipient], progress: Progress
) -> None:
    stream, utf8 = connection.stream, _says_utf8(connection, job)
    for recipient in recipients:
        stream.write(f"{build_rcpt(connection, recipient, utf8=utf8)}\r\n".encode())
        reply = await stream.read_reply()
        progress.replies.append(reply)
        if reply.code == 421:
            return


def _says_utf8(connection: Connection, job: Job) -> bool:
    return job.envelope.smtputf8 and "smtputf8" in connection.extensions


async def _withdraw(connection: Connection, progress: Progress, *, data_asked: bool) -> None:
    """No recipient is left: end a DATA that was pipelined (RFC 2920 section 3.1), and begin afresh next time.

    A remote that refuses MAIL and takes recipients all the same would deliver the empty message: hang up instead.
    """
    connection.needs_reset = True
    if data_asked:
        reply = await connection.stream.read_reply()
        if reply.code != 354:
            return
        if any(rcpt.positive for rcpt in progress.replies):
            connection.stream.abort()
            return
        connection.stream.write(b".\r\n")
        await connection.stream.read_reply()


async def _send_by_data(connection: Connection, job: Job, progress: Progress, data_asked: bool) -> Reply | None:
    """DATA and all that belongs to it; a reply if it was refused."""
    progress.stage = "DATA"
    if not data_asked:
        connection.stream.write(b"DATA\r\n")
    go_ahead = connection.stream.take_reply() or await connection.stream.read_reply()
    if go_ahead.code < 400 and go_ahead.code != 354:
        raise ConnectionLost(f"no reply to DATA: {go_ahead}")
    if go_ahead.code != 354:
        connection.needs_reset = True
        return go_ahead
    progress.stage = "mail data"
    return await send_stuffed(connection.stream, job, progress.enter_doubt)


async def _send_by_bdat(connection: Connection, job: Job, progress: Progress, _data_asked: bool) -> Reply | None:
    progress.stage = "BDAT"
    refused = await send_chunks(connection.stream, job, progress.enter_doubt)
    connection.needs_reset = connection.needs_reset or refused is not None
    return refused


async def _read_final(connection: Connection, job: Job, progress: Progress) -> AttemptResult:
    """The reply to the dot; under LMTP one for each recipient that was accepted."""
    stream = connection.stream
    if connection.target.protocol != "lmtp":
        reply = await _read_verdict(stream)
        progress.took_s = time.monotonic() - progress.began
        return results.ended(connection, job, progress, reply, final=True)
    count = sum(reply.positive for reply in progress.replies)
    for _ in range(count):
        progress.finals.append(await _read_verdict(stream))
    progress.took_s = time.monotonic() - progress.began
    return results.ended(connection, job, progress, results.best(progress.finals), final=True)


async def _read_verdict(stream: ReplyStream) -> Reply:
    """A reply that says yes or no. ConnectionLost for 3yz, which is neither: then the message is in doubt."""
    reply = await stream.read_reply()
    if 300 <= reply.code < 400:
        raise ConnectionLost(f"no reply to mail data: {reply}")
    return reply
