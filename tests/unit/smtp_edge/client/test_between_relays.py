"""What the sender asked for survives from relay to relay: the real client speaks to the real peers' listener."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority
from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import Target
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.envelope import BodyType, Envelope, Notify, Recipient, Transfer
from tests.unit.smtp_edge.client.test_delivery import PREFIX, job
from tests.unit.smtp_edge.server.doors import build_identity, open_mesh_door

NOTIFY = [
    Notify.NEVER,
    Notify.FAILURE | Notify.DELAY,
    Notify.SUCCESS,
    Notify.SUCCESS | Notify.FAILURE,
    Notify.DELAY,
    Notify.SUCCESS | Notify.FAILURE | Notify.DELAY,
    Notify.FAILURE | Notify.DELAY | Notify.STATED,
]
ANN = Recipient("ann@example.org", "rfc822;Ann+2BList@example.org", Notify.SUCCESS | Notify.FAILURE)
UTF8 = Recipient("j\xf6rg@ex\xe4mple.org", "utf-8;j\xf6rg@ex\xe4mple.org", Notify.NEVER)


async def transfer(tmp_path: Path, envelope: Envelope, body: bytes) -> tuple[Envelope, bytes]:
    """Envelope and mail data as the next relay has them."""
    authority = Authority.create("test", at=datetime.now(UTC))
    us, them = build_identity(authority, "us"), build_identity(authority, "them")
    client = DeliveryClient(hostname="relay.test", identity=us, connect_timeout_s=5, attempt_timeout_s=5)
    async with open_mesh_door(tmp_path, them) as door:
        target = Target(Hop.parse(f"peer:{them.node_id}"), door.host, door.port, tls="mesh")
        what = replace(
            job(body=body),
            envelope=envelope,
            transfer=Transfer(f"{us.node_id}/Q1/0", (us.node_id,), 3),
        )
        result = await client.attempt(target, what)
        assert result.kind is OutcomeKind.ACCEPTED, result
        (message,) = door.acceptor.messages
        (arrived,) = door.acceptor.bodies()
    await client.close()
    return message.envelope, arrived


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope("sue@example.net", (ANN, replace(ANN, address="bob@example.org", notify=Notify.NEVER))),
        Envelope("sue@example.net", (ANN,), envid="QQ+2B314", ret="FULL"),
        Envelope("sue@example.net", (ANN,), BodyType.EIGHT_BIT_MIME, ret="HDRS", requiretls=True),
        Envelope("s\xfcsie@example.net", (UTF8,), BodyType.EIGHT_BIT_MIME, smtputf8=True),
        Envelope("", (replace(ANN, notify=Notify.NEVER),), requiretls=True),
    ],
)
@pytest.mark.rfc("3461 5.2.1a", "5321 3.6.1", "5321 4.1.2b", "8689 2b")
async def test_the_envelope_arrives_as_it_was(tmp_path: Path, envelope: Envelope) -> None:
    arrived, body = await transfer(tmp_path, envelope, b"Subject: gr\xfc\xdfe\r\n\r\n..text\r\n")
    assert arrived == envelope
    assert body == PREFIX + b"Subject: gr\xfc\xdfe\r\n\r\n..text\r\n"


@pytest.mark.rfc("3030 3c")
async def test_binary_mail_arrives_as_it_was(tmp_path: Path) -> None:
    body = b"Subject: x\r\n\r\n\x00\r\n..dots\r\n\n.\n\r.\r end without a line end"
    envelope = Envelope("sue@example.net", (ANN,), BodyType.BINARY_MIME)
    assert await transfer(tmp_path, envelope, body) == (envelope, PREFIX + body)


@pytest.mark.parametrize("notify", NOTIFY)
@pytest.mark.rfc("3461 5.2.1a")
async def test_no_wish_is_lost(tmp_path: Path, notify: Notify) -> None:
    envelope = Envelope("sue@example.net", (replace(ANN, notify=notify), Recipient("bob@example.org")), envid="E1")
    arrived, _ = await transfer(tmp_path, envelope, b"Subject: x\r\n\r\nx\r\n")
    assert arrived == envelope
