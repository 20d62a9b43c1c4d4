"""Filters made for Sendmail and Postfix (opendkim, clamav-milter, rspamd): a `data` sink that speaks milter, version 6.

    [[sink]]
    use = "milter"
    rule = "listener=inbound"
    timeout = "60s"
    with = { address = "unix:/run/clamav/clamav-milter.ctl" }

`address`: `unix:/PATH`, `inet:PORT@HOST`, `inet6:PORT@HOST` or Postfix's `inet:HOST:PORT`. `signs = true`: nothing may
be changed after it (opendkim that signs), so its priority number is the highest. `owns = ["X-Virus-Status"]`: such
fields are removed from what comes from outside. `signed` says what becomes of a signature (S/MIME, PGP/MIME, DKIM, ARC)
over a body that the filter replaces: `refuse` (the default: the replacing is a failure), `strip`, `annotate` (kept, and
X-smtpmesh-Modified says why it no longer holds) or `resign` (DKIM; a sink that signs has to come later). The body of
encrypted mail is never replaced: that is a failure.

The filter is told of the whole session when the message is there, before its 250: client, HELO, envelope, header, body,
over a connection of its own. So rules may narrow the recipients, and a client that never gets to a message costs the
filter nothing. What follows from that:

- a filter that refuses the client or one recipient refuses the message: there is one reply, and nothing is lost;
- a filter may change header fields, body, recipients and sender, and hold mail (quarantine). A failure (it is down,
  hangs, answers nonsense or replaces what it may not) means the binding's `on_failure`, and nothing is changed;
- the sender hears nothing of recipients that it adds or removes; if it removes all, the message is discarded;
- the macro `i` is a name for this message and this filter (`milter_id` in our log): there is no queue id yet;
- the binding's `timeout` is for all of it, however often the filter asks for more time (PROGRESS).

ACCEPT of a filter speaks for that filter only; the other sinks are asked as well.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from functools import partial
from typing import IO

import structlog

from smtp_edge import __version__
from smtp_edge.applications.milter.connection import Connection, connect, parse_address
from smtp_edge.applications.milter.dialogue import Dialogue
from smtp_edge.applications.milter.edits import apply_body, apply_changes
from smtp_edge.applications.milter.telling import (
    client_name,
    known_macros,
    recipient_macros,
    sender_parameters,
    split_field,
)
from smtp_edge.applications.milter.wire import (
    BODY_BYTES_MAX,
    OFFERED,
    Command,
    Hold,
    ReplaceBody,
    build_connect,
    build_options,
    build_texts,
)
from smtp_edge.sinks.api import Message, Quarantine, Signed, Sink, Verdict, offload
from smtp_edge.sinks.fields import make_field

log = structlog.get_logger()

REFUSE = "refuse"
MEMORY_BYTES_MAX = 256 * 1024
"""Of a new body; a larger one is in a temporary file until the filter has ruled."""


class Milter(Sink):
    """See the module. ValueError for settings that mean nothing."""

    def __init__(self, address: str, signs: bool = False, owns: Sequence[str] = (), signed: str = REFUSE) -> None:
        choices = [REFUSE, *(choice.value for choice in Signed)]
        if signed not in choices:
            raise ValueError(f"signed = {signed!r} is none of: {', '.join(choices)}")
        if isinstance(owns, str):
            raise ValueError(f'owns = {owns!r} is no list; ["{owns}"] would be')
        for name in owns:
            make_field(name, "")
        self._address = parse_address(address)
        self.signs, self.owns = signs, tuple(owns)
        self._choice = None if signed == REFUSE else Signed(signed)

    async def data(self, message: Message) -> Verdict | None:
        """Ask the filter. MilterError; ProtectedError, StoreError, MailDataLost: its body cannot be had."""
        message_id = secrets.token_hex(6)
        with tempfile.SpooledTemporaryFile(MEMORY_BYTES_MAX) as new_body:
            async with connect(self._address) as filter_:
                session = Session(filter_, new_body)
                await session.negotiate()
                await session.tell(message, message_id, self.node.hostname)
            dialogue = session.dialogue
            apply_changes(message, dialogue.changes, leading_space=dialogue.leading_space)
            if dialogue.new_body_bytes is not None:
                new_body.seek(0)
                await apply_body(message, iter(partial(new_body.read, BODY_BYTES_MAX), b""), self._choice)
        verdict = dialogue.verdict or _hold(dialogue)
        word = type(verdict).__name__ if verdict else ""
        changes, new_body_bytes = len(dialogue.changes), dialogue.new_body_bytes
        log.info("milter.answered", milter_id=message_id, verdict=word, changes=changes, new_body_bytes=new_body_bytes)
        return verdict


def _hold(dialogue: Dialogue) -> Quarantine | None:
    reason = next((change.reason for change in dialogue.changes if isinstance(change, Hold)), None)
    if reason is None:
        return None
    return Quarantine(" ".join(reason.decode("utf-8", "replace").split()) or "held by a filter")


class Session:
    """One message told to a filter, until it has heard all of it or has ruled. `new_body`: for what it sends of one."""

    def __init__(self, connection: Connection, new_body: IO[bytes]) -> None:
        self._connection, self._new_body = connection, new_body
        self.dialogue = Dialogue(OFFERED)

    async def negotiate(self) -> None:
        """First of all. MilterError."""
        await self._connection.send(build_options(OFFERED))
        self.dialogue.agree(await self._connection.receive())

    async def tell(self, message: Message, message_id: str, hostname: str) -> None:
        """All of it. MilterError."""
        client, envelope = message.client, message.envelope
        macros = known_macros(client, envelope, message_id, hostname, f"smtpmesh {__version__}")
        await self._say(Command.CONNECT, build_connect(client_name(client), client.address, client.port), macros)
        await self._say(Command.HELO, build_texts(client.helo), macros)
        parameters = sender_parameters(envelope, message.size_bytes)
        await self._say(Command.MAIL, build_texts(f"<{envelope.sender}>", *parameters), macros)
        for recipient in envelope.recipients:
            await self._say(Command.RCPT, build_texts(f"<{recipient.address}>"), macros | recipient_macros(recipient))
        await self._say(Command.DATA, b"", macros)
        await self._tell_header(message, macros)
        await self._tell_body(message)
        await self._say(Command.END, b"", macros)

    async def _tell_header(self, message: Message, macros: Mapping[str, str]) -> None:
        for field in message.fields:
            name, value = split_field(field.raw, leading_space=self.dialogue.leading_space)
            await self._say(Command.HEADER, build_texts(name, value), {})
        await self._say(Command.EOH, b"", macros)

    async def _tell_body(self, message: Message) -> None:
        if not self.dialogue.wants(Command.BODY):
            return
        async for chunk in regroup(message.body(), BODY_BYTES_MAX):
            await self._say(Command.BODY, chunk, {})
            if not self.dialogue.wants(Command.BODY):
                return

    async def _say(self, command: Command, payload: bytes, macros: Mapping[str, str]) -> None:
        """One step, and what it says to that."""
        dialogue = self.dialogue
        if not dialogue.wants(command):
            return
        await self._connection.send(dialogue.build(command, payload, macros))
        if dialogue.answers(command):
            while not dialogue.hear(command, answer := await self._connection.receive()):
                if isinstance(answer, ReplaceBody):
                    await offload(self._new_body.write, answer.chunk)


async def regroup(chunks: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of this size, the last one shorter: each is a question and an answer."""
    kept = bytearray()
    async for chunk in chunks:
        kept += chunk
        while len(kept) >= size:
            yield bytes(kept[:size])
            del kept[:size]
    if kept:
        yield bytes(kept)
