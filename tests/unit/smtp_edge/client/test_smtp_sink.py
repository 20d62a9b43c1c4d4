"""Postfix's smtp-sink as next hop: somebody else's idea of a server that refuses, hangs up, or knows little."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import Target
from smtp_edge.client.delivery import DeliveryClient
from tests.conftest import find_command
from tests.unit.smtp_edge.client.test_delivery import ANN, BOB, codes, job

pytestmark = pytest.mark.peer("smtp-sink")
TIMEOUT_S = 10.0


@asynccontextmanager
async def smtp_sink(*switches: str) -> AsyncIterator[int]:
    """Its port."""
    command = find_command("smtp-sink")
    assert command is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        command, *switches, "-u", "nobody", f"127.0.0.1:{port}", "10", stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not await _listens(port):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        yield port
    finally:
        process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize(
    ("switches", "kind", "replies"),
    [
        ((), OutcomeKind.ACCEPTED, [250, 250]),
        (("-e",), OutcomeKind.ACCEPTED, [250, 250]),
        (("-p",), OutcomeKind.ACCEPTED, [250, 250]),
        (("-L",), OutcomeKind.ACCEPTED, [250, 250]),
        (("-f", "mail"), OutcomeKind.MESSAGE_REFUSED, [500, 500]),
        (("-f", "rcpt"), OutcomeKind.MESSAGE_REFUSED, [500, 500]),
        (("-f", "data"), OutcomeKind.MESSAGE_REFUSED, [500, 500]),
        (("-f", "."), OutcomeKind.MESSAGE_REFUSED, [500, 500]),
        (("-r", "mail"), OutcomeKind.HOP_TEMPFAIL, [450, 450]),
        (("-r", "rcpt"), OutcomeKind.HOP_TEMPFAIL, [450, 450]),
        (("-r", "data"), OutcomeKind.HOP_TEMPFAIL, [450, 450]),
        (("-r", "."), OutcomeKind.HOP_TEMPFAIL, [450, 450]),
        (("-q", "connect"), OutcomeKind.CONNECT_FAILED, []),
        (("-q", "ehlo"), OutcomeKind.CONNECT_FAILED, []),
        (("-q", "mail"), OutcomeKind.DISCONNECTED, []),
        (("-q", "rcpt"), OutcomeKind.DISCONNECTED, []),
        (("-q", "data"), OutcomeKind.DISCONNECTED, []),
        (("-q", "."), OutcomeKind.IN_DOUBT, []),
        (("-Q", "connect"), OutcomeKind.HOP_TEMPFAIL, []),
        (("-Q", "mail"), OutcomeKind.HOP_TEMPFAIL, [421, 421]),
        (("-Q", "."), OutcomeKind.HOP_TEMPFAIL, [421, 421]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_smtp_sink(switches: tuple[str, ...], kind: OutcomeKind, replies: list[int]) -> None:
    client = DeliveryClient(
        hostname="relay.test", identity=None, connect_timeout_s=2, attempt_timeout_s=2, rng=random.Random(1)
    )
    async with smtp_sink(*switches) as port:
        protocol = "lmtp" if "-L" in switches else "smtp"
        target = Target(Hop.parse("host:sink"), "127.0.0.1", port, protocol=protocol)  # type: ignore[arg-type]
        result = await client.attempt(target, job(ANN, BOB))
        assert (result.kind, codes(result)) == (kind, replies)
    await client.close()
