"""The disclaimer: a `data` sink that puts a text below that of each mail, in plain text and in HTML.

    [[sink]]
    use = "disclaimer"
    rule = "listener=submission; rcpt to!=*@example.org"
    with = { text = "Example Ltd, registered in Utopia, no. 12345", signed = "annotate" }

`html` is its form in HTML; without it the text is escaped. The charset and transfer encoding of a part are respected;
only where they cannot carry the text it becomes UTF-8 and quoted-printable. Attachments are left alone, and mail that
has no text to put it below (that is in the log), or more than `TEXT_BYTES_MAX` of it, or is encrypted, binary
(BINARYMIME) or a report.

`signed` says what becomes of mail that is signed (S/MIME, PGP/MIME, DKIM, ARC):

    skip        nothing, it goes on as it is (the default)
    strip       the signature is removed: what was signed is left, DKIM and ARC fields go
    annotate    it is kept: the text is a part of its own below a signed part, which still verifies; DKIM does not, and
                a header field X-smtpmesh-Modified says why
    resign      S/MIME is signed anew, by `certificate` and `key` (PEM); for DKIM a sink that signs has to come later,
                and to be one that signs for this author

A signature that cannot be made anew is a failure: the binding's `on_failure`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import structlog

from smtp_edge.applications.appending import TEXT_BYTES_MAX, Appender, Footer, Part, append, is_text
from smtp_edge.envelope import BodyType
from smtp_edge.sinks.api import Message, Sink
from smtp_edge.sinks.entities import Entity
from smtp_edge.sinks.fields import Field, join_header
from smtp_edge.sinks.mime import MediaType, media_type_of
from smtp_edge.sinks.protection import ProtectedError, Protection, Signed
from smtp_edge.sinks.smime import SmimeIdentity

log = structlog.get_logger()

SKIP = "skip"
LEFT_ALONE = ("multipart/report", "multipart/encrypted")


class NothingToAppendTo(Exception):
    """The mail has no text that the disclaimer could be put below, or is left alone; `str()` says why."""


class Disclaimer(Sink):
    """See the module. ValueError for settings that mean nothing, OSError for a key that cannot be read."""

    def __init__(self, text: str, html: str = "", signed: str = SKIP, certificate: str = "", key: str = "") -> None:
        if not text.strip():
            raise ValueError("text is empty: there is nothing to append")
        choices = [SKIP, *(choice.value for choice in Signed)]
        if signed not in choices:
            raise ValueError(f"signed = {signed!r} is none of: {', '.join(choices)}")
        if bool(certificate) != bool(key) or (key and signed != Signed.RESIGN.value):
            raise ValueError('certificate and key belong together, and to signed = "resign"')
        self._footer = Footer.build(text, html)
        self._choice = None if signed == SKIP else Signed(signed)
        self._key = SmimeIdentity.load(Path(certificate), Path(key)) if key else None

    async def data(self, message: Message) -> None:
        """Append. ProtectedError, StoreError, MailDataLost."""
        found = await message.inspect()
        try:
            if message.envelope.body_type is BodyType.BINARY_MIME:
                raise NothingToAppendTo("it is binary")
            if not message.is_well_formed:
                raise NothingToAppendTo("its header does not end with an empty line")
            if found.encrypted or (found.signed and self._choice is None):
                raise NothingToAppendTo(str(found))
            await self._append(message, found)
        except NothingToAppendTo as reason:
            log.info("disclaimer.left_alone", sender=message.envelope.sender, reason=str(reason))

    async def _append(self, message: Message, found: Protection) -> None:
        media_type = media_type_of(message.fields)
        if self._choice is Signed.ANNOTATE and (media_type.kind == "multipart/signed" or found.opaque):
            await self._put_beside(message)
            return
        try:
            entity = await message.entity()
        except ProtectedError as error:
            raise NothingToAppendTo(str(error)) from error
        media_type = media_type_of(entity.fields)
        if media_type.kind.startswith("multipart/"):
            if media_type.kind in LEFT_ALONE:
                raise NothingToAppendTo(media_type.kind)
            await self._replace(message, self._through(entity, media_type), found, entity.fields)
            return
        part = append(await _read_text(entity), self._footer)
        if part is None:
            raise NothingToAppendTo("its charset or transfer encoding is unknown, or not what it says")
        await self._replace(message, part.body, found, part.fields)

    async def _replace(
        self, message: Message, body: bytes | AsyncIterator[bytes], found: Protection, fields: tuple[Field, ...]
    ) -> None:
        content = None if fields == (await message.entity()).fields else {item.name: _value(item) for item in fields}
        choice = self._choice if found.signed else None
        await message.replace_body(body, signed=choice, key=self._key, content=content, reason="disclaimer added")

    async def _through(self, entity: Entity, media_type: MediaType) -> AsyncIterator[bytes]:
        """The parts with the text; NothingToAppendTo at the end, if nowhere."""
        appender = Appender(media_type, self._footer)
        async with aclosing(entity.body()) as chunks:
            async for chunk in chunks:
                yield appender.feed(chunk)
        yield appender.finish()
        if not appender.added:
            raise NothingToAppendTo("it has no text part")

    async def _put_beside(self, message: Message) -> None:
        """What is signed stays, byte by byte, as the first part of two."""
        boundary = f"smtpmesh-{secrets.token_hex(16)}"
        header = join_header(tuple(field for field in message.fields if field.name.lower().startswith("content-")))

        async def both() -> AsyncIterator[bytes]:
            yield f"--{boundary}\r\n".encode() + header
            async with aclosing(message.body()) as chunks:
                async for chunk in chunks:
                    yield chunk
            own = append(Part((Field(b"Content-Type: text/plain; charset=us-ascii\r\n"),), b""), self._footer)
            assert own is not None
            yield f"\r\n--{boundary}\r\n".encode() + join_header(own.fields) + own.body + f"--{boundary}--\r\n".encode()

        content = {"Content-Type": f'multipart/mixed; boundary="{boundary}"'}
        await message.replace_body(both(), signed=Signed.ANNOTATE, content=content, reason="disclaimer added")


async def _read_text(entity: Entity) -> Part:
    """A whole text. NothingToAppendTo if it is none, or too large."""
    if not is_text(entity.fields):
        raise NothingToAppendTo(f"it is {media_type_of(entity.fields).kind}")
    text = bytearray()
    async with aclosing(entity.body()) as chunks:
        async for chunk in chunks:
            text += chunk
            if len(text) > TEXT_BYTES_MAX:
                raise NothingToAppendTo(f"its text is larger than {TEXT_BYTES_MAX} bytes")
    return Part(entity.fields, bytes(text))


def _value(field: Field) -> str:
    """With its folds."""
    text = field.raw.partition(b":")[2].decode("utf-8", "surrogateescape")
    return text.removesuffix("\r\n").strip(" \t")
