"""Deliveries for tests of sinks on `deliver`."""

from __future__ import annotations

from datetime import UTC, datetime

from smtp_edge.envelope import Envelope, MailData, Recipient
from smtp_edge.sinks.api import Delivery
from smtp_edge.sinks.message import Content
from smtp_edge.stuffing import DotStuffing

RECEIVED = b"Received: from client.test by relay.test; Wed, 25 Nov 2026 12:00:00 +0000\r\n"


async def build_delivery(
    message: bytes, *recipients: str, key: str = "node/Q1/0", sender: str = "sender@example.net"
) -> Delivery:
    """As the node makes one of a message in memory."""
    stuffed = DotStuffing().feed(message)
    header = stuffed[: stuffed.find(b"\r\n\r\n") + 4]
    return Delivery(
        "Q1",
        key,
        Envelope(sender, tuple(map(Recipient, recipients or ("apply@b.replication",)))),
        datetime(2026, 11, 25, 12, 0, tzinfo=UTC),
        0,
        "192.0.2.1 client.test",
        await Content.load(MailData(len(stuffed), inline=stuffed, header=header)),
        RECEIVED,
    )
