"""A message before its 250, as `data` sinks see it: what it is, its header to read and to edit, its bytes as a stream.

    async def data(self, message: Message) -> Verdict | None:
        if "subject" not in message.headers:
            message.add_header("X-Note", "no subject")

Edits belong to one sink: they count for the next one only if this one neither failed nor refused the message. Nothing
is written before all sinks have been asked. The body is never in memory twice: `content()` reads it as it is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from smtp_edge.address import parse_mailbox
from smtp_edge.envelope import Client, Envelope, MailData, Notify, Recipient
from smtp_edge.queue.reading import read_spooled
from smtp_edge.sinks.fields import Field, Header, join_header, make_field, split_header
from smtp_edge.stuffing import DotStuffing, Unstuff

CHUNK_BYTES = 64 * 1024
_EMPTY_LINES = b"\r\n\r\n"


class Writer(Protocol):
    """A spool file that is being written (`smtp_edge.queue.spool.SpoolWriter`)."""

    def write(self, chunk: bytes) -> None:
        """Append."""
        ...

    async def commit(self, header: bytes) -> MailData:
        """Make it durable."""
        ...

    async def abort(self) -> None:
        """Remove it."""
        ...


class Headers:
    """The fields of a message, in order. Names are compared without case."""

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self._fields = fields

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(field.is_named(name) for field in self._fields)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(name, value) of every field, the uppermost first."""
        return ((field.name, field.value) for field in self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def get(self, name: str, default: str = "") -> str:
        """The value of the first such field."""
        return next((field.value for field in self._fields if field.is_named(name)), default)

    def all(self, name: str) -> list[str]:
        """The values of all such fields."""
        return [field.value for field in self._fields if field.is_named(name)]


@dataclass(frozen=True, slots=True)
class Content:
    """Mail data with its header told apart."""

    data: MailData
    header: Header
    body_at: int
    """Where the body begins in the stored bytes, whose dots are doubled."""

    @classmethod
    async def load(cls, data: MailData) -> Content:
        """Find the header; of a file no more is read than that."""
        kept = data.header
        if not (kept.endswith(_EMPTY_LINES) or kept == b"\r\n"):  # longer than what is kept of it, or none at all
            kept = data.inline if data.inline is not None else await asyncio.to_thread(_read_header, data)
        return cls(data, *parse_header(kept))

    async def all(self) -> AsyncGenerator[bytes, None]:
        """The stored bytes, dots doubled."""
        if self.data.inline is not None:
            yield self.data.inline
            return
        assert self.data.path is not None
        async for chunk in read_spooled(self.data, self.data.path, CHUNK_BYTES):
            yield chunk

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The stored bytes behind the header, dots doubled."""
        if self.data.inline is not None:
            yield self.data.inline[self.body_at :]
            return
        assert self.data.path is not None
        skip = self.body_at
        async for chunk in read_spooled(self.data, self.data.path, CHUNK_BYTES):
            if skip < len(chunk):
                yield chunk[skip:]
            skip = max(0, skip - len(chunk))


def read(data: MailData, name: str) -> list[str]:
    """The values of a field of mail data, as far as its header is kept."""
    return Headers(parse_header(data.header)[0].fields).all(name)


def parse_header(stored: bytes) -> tuple[Header, int]:
    """The header at the beginning of stored mail data, and where the body begins there."""
    unstuff = Unstuff()
    text = unstuff.feed(stored) + unstuff.finish()
    header = split_header(text)
    return header, len(DotStuffing().feed(text[: header.length]))


def _read_header(data: MailData) -> bytes:
    """From a file: up to and with the first empty line, or all of it."""
    assert data.path is not None
    found = bytearray()
    with data.path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            searched = max(0, len(found) - 3)
            found += chunk
            end = found.find(_EMPTY_LINES, searched)
            if end >= 0:
                return bytes(found[: end + 4])
    return bytes(found)


class Message:
    """See the module. `envelope` has only the recipients that the binding's rule matched."""

    def __init__(self, client: Client, envelope: Envelope, content: Content, fields: tuple[Field, ...]) -> None:
        self.client, self.envelope = client, envelope
        self._content, self._fields, self._before = content, fields, envelope
        self.fields = fields
        """Raw, edits included."""

    @property
    def size_bytes(self) -> int:
        """As it came."""
        return self._content.data.size_bytes

    @property
    def headers(self) -> Headers:
        """With the edits so far."""
        return Headers(self.fields)

    @property
    def edited(self) -> bool:
        """Something was changed."""
        return self.fields is not self._fields

    # -- editing -------------------------------------------------------------------------------------------------------

    def add_header(self, name: str, value: str, *, last: bool = False) -> None:
        """A field above all others (as trace fields are), or below them. ValueError for what is no field."""
        field = make_field(name, value)
        self.fields = (*self.fields, field) if last else (field, *self.fields)

    def set_header(self, name: str, value: str) -> None:
        """Replace the first such field where it stands and remove the others; add it below if there is none."""
        field = make_field(name, value)
        at = next((number for number, found in enumerate(self.fields) if found.is_named(name)), len(self.fields))
        others = tuple(found for found in self.fields[at + 1 :] if not found.is_named(name))
        self.fields = (*self.fields[:at], field, *others)

    def remove_header(self, name: str) -> int:
        """Remove all such fields; how many."""
        left = tuple(field for field in self.fields if not field.is_named(name))
        removed = len(self.fields) - len(left)
        if removed:
            self.fields = left
        return removed

    def set_sender(self, address: str) -> None:
        """Another reverse-path; empty for the null reverse-path. ValueError for what is no address."""
        self.envelope = replace(self.envelope, sender=parse_mailbox(address) if address else "")

    def add_recipient(self, address: str, *, notify: Notify = Notify.NEVER) -> None:
        """One more gets it. Who sent it hears nothing of that, unless `notify` says so. ValueError as above."""
        recipient = Recipient(parse_mailbox(address), notify=notify)
        if all(_fold_domain(known.address) != _fold_domain(recipient.address) for known in self.envelope.recipients):
            self.envelope = replace(self.envelope, recipients=(*self.envelope.recipients, recipient))

    def remove_recipient(self, address: str) -> bool:
        """They do not get it, and nobody hears of that. False if it was not to go to them."""
        wanted = _fold_domain(address)
        left = tuple(known for known in self.envelope.recipients if _fold_domain(known.address) != wanted)
        found = len(left) < len(self.envelope.recipients)
        self.envelope = replace(self.envelope, recipients=left)
        return found

    def readdress(self, envelope: Envelope) -> Envelope:
        """The envelope of the whole message, of which a sink has seen a part, with its edits."""
        if self.envelope is self._before:
            return envelope
        gone = [known for known in self._before.recipients if known not in self.envelope.recipients]
        new = [known for known in self.envelope.recipients if known not in self._before.recipients]
        there = {known.address for known in envelope.recipients}
        new = [known for known in new if known.address not in there]
        kept = (*(known for known in envelope.recipients if known not in gone), *new)
        sender = self.envelope.sender
        smtputf8 = envelope.smtputf8 or not all(map(str.isascii, (sender, *(item.address for item in new))))
        return replace(envelope, sender=sender, recipients=kept, smtputf8=smtputf8)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def content(self) -> AsyncIterator[bytes]:
        """The whole message as it stands now, in chunks; dots as the author wrote them."""
        if self.edited:
            yield join_header(self.fields)
        else:
            yield b"".join(field.raw for field in self.fields) + self._separator()
        async for chunk in self.body():
            yield chunk

    async def body(self) -> AsyncIterator[bytes]:
        """What follows the empty line, in chunks."""
        unstuff = Unstuff()
        async for chunk in self._content.body():
            yield unstuff.feed(chunk)
        yield unstuff.finish()

    def _separator(self) -> bytes:
        raw = sum(len(field.raw) for field in self._content.header.fields)
        return b"\r\n"[2 - (self._content.header.length - raw) :]


async def rewrite(content: Content, fields: tuple[Field, ...], begin_file: Callable[[], Writer]) -> MailData:
    """The mail data with other fields: inline as it was, or in a new file. StoreError, MailDataLost.

    The old file is still there: it is the caller's to remove, when the new one is whose it should be.
    """
    header = DotStuffing().feed(join_header(fields))
    data = content.data
    if data.inline is not None:
        inline = header + data.inline[content.body_at :]
        return replace(data, size_bytes=len(inline), inline=inline, header=header)
    writer = begin_file()
    try:
        writer.write(header)
        async for chunk in content.body():
            writer.write(chunk)
    except BaseException:
        await writer.abort()
        raise
    return await writer.commit(header)


def _fold_domain(address: str) -> str:
    """Case matters in the local part alone (RFC 5321 section 2.4)."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}"


def narrowed(envelope: Envelope, recipients: tuple[Recipient, ...]) -> Envelope:
    """The envelope as a sink sees it that is asked about some of the recipients."""
    return envelope if recipients == envelope.recipients else replace(envelope, recipients=recipients)


async def remove(data: MailData) -> None:
    """Remove the file of mail data that nobody will store."""
    if data.path is not None:
        await asyncio.to_thread(data.path.unlink, missing_ok=True)
