"""MIME entities inside protected mail: what a signature covers, what was encrypted, and a new one signed.

    entity = await first_part(open_body, media_type)      multipart/signed
    entity = await open_signed(fields, chunks)            S/MIME signed-data
    entity = await decrypt(fields, chunks, key)           S/MIME enveloped-data
    fields, body = await sign(entity, key, scratch)       multipart/signed anew

What is large is read and written as a stream; a signature is made of a file that is mapped, not read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import mmap
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from smtp_edge.envelope import MailData
from smtp_edge.sinks.bodies import NewBody, Scratch, unstuffed
from smtp_edge.sinks.cms import read_signed_content
from smtp_edge.sinks.fields import Field, join_header, split_header
from smtp_edge.sinks.mime import Kind, MediaType, Walker, content_of, find_value, with_content
from smtp_edge.sinks.protection import ProtectedError

BLOB_BYTES_MAX = 16 * 1024 * 1024
"""Of a message that is one blob of CMS, which is opened in memory."""
BASE64_LINE = 76
_NO_PART = "it is signed, but its first part cannot be told from the rest"


class Identity(Protocol):
    """A key of ours (`smtp_edge.sinks.smime.SmimeIdentity`)."""

    def sign(self, entity: bytes | memoryview) -> bytes:
        """A detached CMS signature, DER, SHA-256."""
        ...

    def decrypt(self, enveloped: bytes) -> bytes:
        """What is in enveloped-data. ProtectedError."""
        ...


@dataclass(frozen=True, slots=True)
class Entity:
    """A body with the fields that describe it."""

    fields: tuple[Field, ...]
    body: Callable[[], AsyncGenerator[bytes, None]]
    """Reads it, in chunks, as often as one wants; dots as the author wrote them."""


async def first_part(open_body: Callable[[], AsyncGenerator[bytes, None]], media_type: MediaType) -> Entity:
    """Of a multipart/signed: what its signature covers. ProtectedError."""

    async def body() -> AsyncGenerator[bytes, None]:
        walker = Walker(media_type, depth_max=1)
        async with aclosing(open_body()) as chunks:
            async for chunk in chunks:
                for token in walker.feed(chunk):
                    if token.kind is Kind.BODY:
                        yield token.raw
                    if token.kind is Kind.END:
                        return
        raise ProtectedError(_NO_PART)

    walker = Walker(media_type, depth_max=1)
    async with aclosing(open_body()) as chunks:
        async for chunk in chunks:
            for token in walker.feed(chunk):
                if token.kind is Kind.HEAD:
                    return Entity(content_of(token.fields), body)
    raise ProtectedError(_NO_PART)


async def open_signed(fields: Sequence[Field], chunks: AsyncIterable[bytes]) -> Entity:
    """What is in an opaque signed-data message. ProtectedError if it is too large, or damaged."""
    try:
        return _entity(read_signed_content(await _read_blob(fields, chunks)))
    except ValueError as error:
        raise ProtectedError(f"the signed message cannot be opened: {error}") from error


async def decrypt(fields: Sequence[Field], chunks: AsyncIterable[bytes], key: Identity) -> Entity:
    """What is in an enveloped-data message. ProtectedError if it is too large, damaged, or not for this key."""
    return _entity(await asyncio.to_thread(key.decrypt, await _read_blob(fields, chunks)))


async def _read_blob(fields: Sequence[Field], chunks: AsyncIterable[bytes]) -> bytes:
    text = bytearray()
    async for chunk in chunks:
        text += chunk
        if len(text) > BLOB_BYTES_MAX:
            raise ProtectedError(f"a CMS message of more than {BLOB_BYTES_MAX} bytes is not opened")
    if find_value(fields, "content-transfer-encoding").lower() != "base64":
        return bytes(text)
    try:
        return base64.b64decode(text)
    except binascii.Error as error:
        raise ProtectedError(f"the message is damaged: {error}") from error


def _entity(text: bytes) -> Entity:
    header = split_header(text)
    rest = text[header.length :]

    async def body() -> AsyncGenerator[bytes, None]:
        yield rest

    return Entity(content_of(header.fields), body)


async def sign(
    fields: tuple[Field, ...], body: NewBody, key: Identity, scratch: Scratch
) -> tuple[tuple[Field, ...], NewBody]:
    """A message's fields and body as multipart/signed with a detached signature (RFC 8551 section 3.5.3)."""
    header = join_header(content_of(fields))

    async def entity() -> AsyncIterator[bytes]:
        yield header
        async for chunk in unstuffed(body.stuffed()):
            yield chunk

    plain = await scratch.keep_raw(entity())
    try:
        signature = await asyncio.to_thread(_sign, plain, key)
    finally:
        await scratch.drop(plain)
    boundary = f"smtpmesh-{secrets.token_hex(16)}"

    async def wrapped() -> AsyncIterator[bytes]:
        yield f"--{boundary}\r\n".encode()
        async for chunk in entity():
            yield chunk
        yield f"\r\n--{boundary}\r\n".encode() + _signature_part(signature) + f"--{boundary}--\r\n".encode()

    value = (
        'Content-Type: multipart/signed; protocol="application/pkcs7-signature";\r\n'
        f' micalg=sha-256; boundary="{boundary}"\r\n'
    )
    signed = await scratch.keep(wrapped())
    await scratch.drop(body.data)
    return with_content(fields, [Field(value.encode())]), signed


def _sign(data: MailData, key: Identity) -> bytes:
    if data.path is None:
        return key.sign(data.inline or b"")
    with (
        data.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        return key.sign(view)


def _signature_part(signature: bytes) -> bytes:
    text = base64.b64encode(signature)
    lines = b"".join(text[at : at + BASE64_LINE] + b"\r\n" for at in range(0, len(text), BASE64_LINE))
    return (
        b"Content-Type: application/pkcs7-signature; name=smime.p7s\r\nContent-Transfer-Encoding: base64\r\n"
        b"Content-Disposition: attachment; filename=smime.p7s\r\n\r\n" + lines
    )
