"""A message before its 250, as `data` sinks see it: what it is, its header to read and to edit, its bytes as a stream.

    async def data(self, message: Message) -> Verdict | None:
        if "subject" not in message.headers:
            message.add_header("X-Note", "no subject")

Edits belong to one sink: they count for the next one only if this one neither failed nor refused the message. Nothing
is stored before all sinks have been asked. The body is never in memory twice: `content()` reads it as it is stored, and
`replace_body` takes a new one as a stream.

Signed and encrypted mail is guarded: its body is replaced only by who says what becomes of the signature (`Signed`), or
has the key. The header may be edited at any time; what that does to a DKIM-Signature is in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from smtp_edge.address import parse_mailbox
from smtp_edge.envelope import HEADER_KEPT_MAX, Client, Envelope, MailData, Notify, Recipient
from smtp_edge.queue.reading import read_spooled
from smtp_edge.sinks.bodies import NewBody, Scratch, Source
from smtp_edge.sinks.bodies import Writer as Writer
from smtp_edge.sinks.entities import Entity, Identity, decrypt, first_part, open_signed, sign
from smtp_edge.sinks.fields import Field, Header, join_header, make_field, split_header
from smtp_edge.sinks.mime import content_of, media_type_of, with_content
from smtp_edge.sinks.protection import (
    NONE,
    BodyScan,
    Mark,
    ProtectedError,
    Protection,
    Signed,
    detect,
    detect_type,
    drop_signatures,
)
from smtp_edge.stuffing import DotStuffing, Unstuff

CHUNK_BYTES = 64 * 1024
MODIFIED = "X-smtpmesh-Modified"
"""Header field that says why signatures do not hold (`Signed.ANNOTATE`)."""
_EMPTY_LINES = b"\r\n\r\n"


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


@dataclass(frozen=True, slots=True)
class Editing:
    """What it takes to replace a body, and what sinks that were asked earlier have made of it."""

    scratch: Scratch
    body: NewBody | None = None
    """None: as it came."""
    guarded: Protection = NONE
    """How the message was protected when it came, less what was removed by choice."""
    signer_follows: bool = False
    """A sink that signs will be asked after this one."""


class Message:
    """See the module. `envelope` has only the recipients that the binding's rule matched."""

    def __init__(
        self,
        client: Client,
        envelope: Envelope,
        content: Content,
        fields: tuple[Field, ...],
        editing: Editing | None = None,
        key: str = "",
    ) -> None:
        """Without `editing` the body stays as it is."""
        self.client, self.envelope = client, envelope
        self._content, self._fields, self._before = content, fields, envelope
        self.fields = fields
        """Raw, edits included."""
        self.editing = editing
        self._editing = editing
        self.key = key
        """At `expand`: names the message as it was accepted. Asked again after a crash it is the same; if a client has
        sent the same mail twice, the second one has another. Empty at `data`."""

    @property
    def size_bytes(self) -> int:
        """As it came, until the body is replaced; then of the header as it is now and the new body."""
        if self.editing is None or self.editing.body is None:
            return self._content.data.size_bytes
        return len(DotStuffing().feed(join_header(self.fields))) + self.editing.body.data.size_bytes

    @property
    def is_well_formed(self) -> bool:
        """An empty line ends its header, as it came. Else the body begins with what is none: a line of an mbox, say."""
        return bool(self._separator())

    @property
    def headers(self) -> Headers:
        """With the edits so far."""
        return Headers(self.fields)

    @property
    def edited(self) -> bool:
        """This sink has changed the header or the body."""
        return self.fields is not self._fields or self.editing is not self._editing

    @property
    def protected(self) -> Protection:
        """How it is signed or encrypted, by its header alone: as it came, less what was removed by choice."""
        return detect(self.fields) | (NONE if self.editing is None else self.editing.guarded)

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

    # -- the body, guarded ---------------------------------------------------------------------------------------------

    async def inspect(self) -> Protection:
        """As `protected`, with what the body says, which is read for that: OpenPGP in the text, signed parts."""
        scan = BodyScan()
        async for chunk in self.body():
            scan.feed(chunk)
        return self.protected | scan.finish()

    async def entity(self) -> Entity:
        """What a new body takes the place of, with STRIP and RESIGN: what is signed, else all."""
        media_type = media_type_of(self.fields)
        if media_type.kind == "multipart/signed":
            return await first_part(self.body, media_type)
        if detect_type(media_type).opaque:
            return await open_signed(self.fields, self.body())
        return Entity(content_of(self.fields), self.body)

    async def decrypt(self, key: Identity) -> None:
        """Put what an S/MIME message has inside in its place; `protected` then tells of that. ProtectedError."""
        found = self.protected
        if found.encryption != {Mark.SMIME}:
            raise ProtectedError(f"a key of S/MIME opens no message that is {found or 'not encrypted'}")
        entity = await decrypt(self.fields, self.body(), key)
        fields = with_content(self.fields, entity.fields)
        await self._put(fields, await self._scratch().keep(entity.body()), detect(fields))

    async def replace_body(
        self,
        body: Source,
        *,
        signed: Signed | None = None,
        key: Identity | None = None,
        content: Mapping[str, str] | None = None,
        reason: str = "body changed",
    ) -> None:
        """Another body: bytes, or an iterator of chunks, async or not, which may read `body()` or `entity()` meanwhile.

        Line ends become CRLF, also those within parts of BINARYMIME mail. `content`: fields that describe it
        (`Content-Type`, ...), in place of those there are.
        ProtectedError, and nothing is changed: of signed mail, without a choice, or if the choice cannot be had; of
        encrypted mail, without the `key` that opens it. RESIGN wants a key for S/MIME, and for DKIM and ARC a binding
        of a sink that signs to be asked later; whether that one signs this author's mail is its own matter. `reason` is
        for ANNOTATE. ValueError for a field that is none, StoreError, MailDataLost.
        """
        before = self.fields, self.editing
        try:
            await self._replace(body, signed, key, content, reason)
        except BaseException:
            self.fields, self.editing = before
            raise

    async def _replace(
        self, body: Source, signed: Signed | None, key: Identity | None, content: Mapping[str, str] | None, reason: str
    ) -> None:
        scratch = self._scratch()
        found = await self.inspect()
        if found.encrypted:
            if key is None:
                raise ProtectedError(f"the message is {found}: without its key the body stays")
            await self.decrypt(key)
            found = await self.inspect()
        new = None if content is None else [make_field(name, value) for name, value in content.items()]
        if found.signed:
            self._check_choice(found, signed, key)
        if new is None and signed in (Signed.STRIP, Signed.RESIGN):
            inner = (await self.entity()).fields
            new = None if inner == content_of(self.fields) else list(inner)
        written = await scratch.keep(body)
        fields = self.fields if new is None else with_content(self.fields, new)
        if not found.signed or signed is None:
            await self._put(fields, written, detect(fields))
        elif signed is Signed.ANNOTATE:
            marks = ", ".join(sorted(found.signatures))
            note = make_field(MODIFIED, f"{reason}; signed before: {marks}")
            await self._put((note, *fields), written, found)
        elif signed is Signed.STRIP:
            fields = drop_signatures(fields)
            await self._put(fields, written, detect(fields))
        else:
            if key is not None and Mark.SMIME in found.signatures:
                fields, written = await sign(fields, written, key, scratch)
            await self._put(fields, written, detect(fields))

    def _check_choice(self, found: Protection, signed: Signed | None, key: Identity | None) -> None:
        if signed is None:
            raise ProtectedError(f"the message is {found}: say what becomes of that (strip, annotate or resign)")
        if signed is not Signed.RESIGN:
            return
        others = found.signatures & {Mark.PGP, Mark.OTHER}
        if others:
            raise ProtectedError(f"nobody here signs anew what is {Protection(others)}")
        if Mark.SMIME in found.signatures and key is None:
            raise ProtectedError("S/MIME is signed anew with a certificate and a key, and there are none")
        if found.signatures & {Mark.DKIM, Mark.ARC} and self.editing is not None and not self.editing.signer_follows:
            raise ProtectedError("DKIM is signed anew by a sink that signs, and none is asked after this one")

    def _scratch(self) -> Scratch:
        if self.editing is None:
            raise RuntimeError("the body can be replaced at `data` alone")
        return self.editing.scratch

    async def _put(self, fields: tuple[Field, ...], body: NewBody, guarded: Protection) -> None:
        assert self.editing is not None
        self.fields, self.editing = fields, replace(self.editing, body=body, guarded=guarded)

    # -- reading -------------------------------------------------------------------------------------------------------

    async def content(self) -> AsyncIterator[bytes]:
        """The whole message as it stands now, in chunks; dots as the author wrote them."""
        if self._is_as_it_came:
            yield b"".join(field.raw for field in self.fields) + self._separator()
        else:
            yield join_header(self.fields)
        async for chunk in self.body():
            yield chunk

    async def body(self) -> AsyncGenerator[bytes, None]:
        """What follows the empty line, in chunks; the new one if it was replaced."""
        new = None if self.editing is None else self.editing.body
        unstuff = Unstuff()
        async with aclosing(self._content.body() if new is None else new.stuffed()) as chunks:
            async for chunk in chunks:
                yield unstuff.feed(chunk)
        yield unstuff.finish()

    @property
    def _is_as_it_came(self) -> bool:
        new = None if self.editing is None else self.editing.body
        return new is None and self.fields is self._content.header.fields

    def _separator(self) -> bytes:
        raw = sum(len(field.raw) for field in self._content.header.fields)
        return b"\r\n"[2 - (self._content.header.length - raw) :]


async def rewrite(
    content: Content, fields: tuple[Field, ...], begin_file: Callable[[], Writer], body: NewBody | None = None
) -> MailData:
    """The mail data with other fields, and another body if there is one: inline, or in a new file as what is large was.

    The old file is still there: it is the caller's to remove, when the new one is whose it should be. StoreError,
    MailDataLost.
    """
    header = DotStuffing().feed(join_header(fields))
    data = content.data
    rest = body.data.inline if body is not None else None if data.inline is None else data.inline[content.body_at :]
    if rest is not None:
        inline = header + rest
        return MailData(len(inline), inline=inline, header=header[:HEADER_KEPT_MAX])
    writer = begin_file()
    try:
        writer.write(header)
        async for chunk in content.body() if body is None else body.stuffed():
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
