"""A message at its destination, as `deliver` sinks see it: for whom, under which key, its header, its bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from smtp_edge.envelope import Envelope, Recipient
from smtp_edge.sinks.message import Content, Headers
from smtp_edge.stuffing import Unstuff


@dataclass(frozen=True, slots=True)
class Delivery:
    """See the module. Nothing of it may be changed: what the sink answers is all that it says."""

    queue_id: str
    key: str
    """Names the message wherever in the mesh it is and however often it is tried: the same key is the same message."""
    envelope: Envelope
    """With the recipients of this delivery."""
    received_at: datetime
    """Aware UTC, by the first relay."""
    attempts: int
    """Earlier ones."""
    client: str
    """Address, HELO name and user of who brought it, for people."""
    _content: Content
    _received: bytes
    """This relay's own trace field, dots doubled."""

    @property
    def size_bytes(self) -> int:
        """As it came."""
        return self._content.data.size_bytes

    @property
    def headers(self) -> Headers:
        """Its header, without this relay's trace field."""
        return Headers(self._content.header.fields)

    def key_of(self, recipient: Recipient) -> str:
        """Names the message for one recipient, who may be tried apart from the others."""
        return f"{self.key}/{recipient.address}"

    async def content(self) -> AsyncIterator[bytes]:
        """The whole message in chunks, this relay's trace field first; dots as the author wrote them.

        The Return-Path field is the sink's to add (RFC 5321 section 4.4). MailDataLost.
        """
        unstuff = Unstuff()
        yield unstuff.feed(self._received)
        async for chunk in self._content.all():
            yield unstuff.feed(chunk)
        yield unstuff.finish()

    async def read(self) -> bytes:
        """All of `content` at once: for sinks that take no large mail."""
        return b"".join([chunk async for chunk in self.content()])
