"""The smart host as its clients see it, over real sockets."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.demo.smart_host import SmartHost, Wire
from smtp_edge.demo.submit import build_message, stuff

DEADLINE_S = 10.0


class Client:
    """A raw SMTP client: sends what it is told, in the pieces it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> str:
        lines = []
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), DEADLINE_S)).decode().rstrip()
            lines.append(line)
            if line[3:4] != "-":
                return "\n".join(lines)

    async def ask(self, text: str) -> str:
        self.writer.write(text.encode() + b"\r\n")
        return await self.reply()


class Bench:
    def __init__(self, host: SmartHost, ledger: Path) -> None:
        self.host, self.ledger = host, ledger
        self.port = 0
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        assert (await client.reply()).startswith("220 ")
        return client

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ledger.read_text().splitlines()]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ledger = tmp_path / "ledger"
    bench = Bench(
        SmartHost(ledger, rate_mps=0, workers=2, refuse=["nobody"], greylist=["later"], greylist_s=0.05), ledger
    )
    server = await asyncio.start_server(bench.host.serve, "127.0.0.1", 0)
    bench.port = server.sockets[0].getsockname()[1]
    yield bench
    for client in bench.clients:
        client.writer.close()
    server.close()


async def begin(client: Client) -> None:
    await client.ask("EHLO client.test")
    assert (await client.ask("MAIL FROM:<a@x.test> BODY=8BITMIME SIZE=10")).startswith("250")
    assert (await client.ask("RCPT TO:<b@y.test>")).startswith("250")
    assert (await client.ask("DATA")).startswith("354")


async def test_it_offers_what_relays_need(bench: Bench) -> None:
    client = await bench.connect()
    answer = await client.ask("EHLO client.test")
    words = {line[4:].split()[0] for line in answer.splitlines()}
    assert words >= {"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"}


async def test_the_line_is_written_before_the_250(bench: Bench) -> None:
    client = await bench.connect()
    await begin(client)
    message = build_message("m-1")
    client.writer.write(stuff(message))
    assert (await client.reply()).startswith("250")
    (record,) = bench.records()
    body = message.partition(b"\r\n\r\n")[2]
    assert record["id"] == "m-1"
    assert record["body_sha256"] == hashlib.sha256(body).hexdigest()
    assert (record["client"], record["sender"], record["recipients"]) == ("client.test", "a@x.test", ["b@y.test"])


async def test_a_pipelined_transaction_in_one_write(bench: Bench) -> None:
    client = await bench.connect()
    await client.ask("EHLO client.test")
    client.writer.write(b"MAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nRCPT TO:<nobody@y.test>\r\nDATA\r\n")
    assert [(await client.reply())[:9] for _ in range(4)] == ["250 2.1.0", "250 2.1.5", "550 5.1.1", "354 Go on"]
    client.writer.write(b"Subject: one\r\n\r\nbody\r\n.\r\nQUIT\r\n")
    assert [(await client.reply())[:3] for _ in range(2)] == ["250", "221"]


async def test_a_client_that_left_after_its_final_dot_has_delivered(bench: Bench) -> None:
    client = await bench.connect()
    await begin(client)
    client.writer.write(stuff(build_message("m-2")))
    await client.writer.drain()
    client.writer.close()
    async with asyncio.timeout(DEADLINE_S):
        while not bench.records():  # noqa: ASYNC110 the other side is the file
            await asyncio.sleep(0)
    assert bench.records()[0]["id"] == "m-2"


async def test_a_client_that_left_before_its_final_dot_has_not(bench: Bench) -> None:
    client = await bench.connect()
    await begin(client)
    client.writer.write(b"Subject: half\r\n\r\nbod")
    client.writer.close()
    other = await bench.connect()
    await begin(other)
    other.writer.write(stuff(build_message("m-3")))
    assert (await other.reply()).startswith("250")
    assert [record["id"] for record in bench.records()] == ["m-3"]


async def test_data_without_recipients_is_out_of_order(bench: Bench) -> None:
    client = await bench.connect()
    await client.ask("EHLO client.test")
    assert (await client.ask("DATA")).startswith("503")
    assert (await client.ask("MAIL nonsense")).startswith("501")
    assert (await client.ask("MAIL FROM:<a@x> SIZE=999999999")).startswith("552")


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 7, 1000])
async def test_mail_data_survives_any_cut(cut: int) -> None:
    data = b".dot first\r\n\r\n..two dots\r\nlast\r\n"
    wire_bytes = stuff(data) + b"NOOP\r\n"
    reader = asyncio.StreamReader()
    for start in range(0, len(wire_bytes), cut):
        reader.feed_data(wire_bytes[start : start + cut])
    wire = Wire(reader)
    assert await wire.data() == data
    assert await wire.line() == b"NOOP"


async def test_empty_mail_data() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b".\r\n")
    assert await Wire(reader).data() == b""


async def test_a_greylisted_recipient_is_taken_later(bench: Bench) -> None:
    client = await bench.connect()
    await client.ask("EHLO x")
    await client.ask("MAIL FROM:<a@b>")
    assert await client.ask("RCPT TO:<later@x.test>") == "451 4.7.1 Greylisted, come back later"
    async with asyncio.timeout(DEADLINE_S):
        while (await client.ask("RCPT TO:<later@x.test>")).startswith("451"):  # noqa: ASYNC110  (a client may poll)
            await asyncio.sleep(0.01)
    assert await client.ask("RCPT TO:<other@x.test>") == "250 2.1.5 Ok"
