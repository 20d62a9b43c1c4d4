"""Spooled mail data that is damaged on our own disk: no part of it ever counts as sent, and no hop is blamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.envelope import BodyType, MailData
from smtp_edge.queue.reading import MailDataLost
from tests.unit.smtp_edge.client.servers import KEYWORDS, Script, smtp_server
from tests.unit.smtp_edge.client.test_delivery import job, target

HEADER = b"Subject: large\r\n\r\n"
BODY = HEADER + b"x" * 600_000 + b"\r\n"
DATA = Script()
BDAT = Script(keywords=(*(word for word in KEYWORDS if word != "PIPELINING"), "CHUNKING"))
SEVEN_BIT = Script(keywords=("PIPELINING",))


@pytest.fixture
async def client() -> AsyncIterator[DeliveryClient]:
    made = DeliveryClient(hostname="relay.test", identity=None, connect_timeout_s=1, attempt_timeout_s=5)
    yield made
    await made.close()


@pytest.mark.parametrize("script", [DATA, BDAT], ids=["DATA", "BDAT"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "its mail data cannot be read: spooled: No such file or directory"),
        (BODY[:-1000], f"its mail data is damaged: spooled has not the {len(BODY)} bytes that were stored"),
        (BODY + b"more", f"its mail data is damaged: spooled has not the {len(BODY)} bytes that were stored"),
        (b"", f"its mail data is damaged: spooled has not the {len(BODY)} bytes that were stored"),
    ],
    ids=["gone", "short", "long", "empty"],
)
async def test_damaged_mail_data_is_never_completed(
    client: DeliveryClient, tmp_path: Path, script: Script, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "spooled"
    if content is not None:
        path.write_bytes(content)
    damaged = replace(job(), data=MailData(len(BODY), path=path, header=HEADER))
    async with smtp_server(script) as server:
        with pytest.raises(MailDataLost) as raised:
            await client.attempt(target(server), damaged)
        assert str(raised.value) == reason
        assert server.seen.bodies == []


async def test_a_file_that_is_gone_cannot_be_scanned_for_eight_bit_either(
    client: DeliveryClient, tmp_path: Path
) -> None:
    data = MailData(len(BODY), path=tmp_path / "gone", header=HEADER)
    gone = replace(job(), data=data)
    gone = replace(gone, envelope=replace(gone.envelope, body_type=BodyType.EIGHT_BIT_MIME))
    async with smtp_server(SEVEN_BIT) as server:
        with pytest.raises(MailDataLost):
            await client.attempt(target(server), gone)
        assert server.seen.said("MAIL") == []
