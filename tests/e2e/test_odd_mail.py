"""Odd mail passes a relay to the byte, or is refused by a rule that can be named: by DATA, by BDAT, as binary data.

raw client -> relay A (a listener with its usual limits, and one with wide ones) -> a server that keeps what it gets
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from smtp_edge.demo.cluster import Cluster, find_port
from tests.unit.smtp_edge.client.servers import Script, SmtpServer, smtp_server
from tests.unit.smtp_edge.server.doors import RawClient

WIDE = """\
[[listener]]
name = "wide"
listen = "127.0.0.1:{port}"
allow_networks = ["127.0.0.0/8"]
limits = {{ header_bytes_max = 16777216, header_fields_max = 1000000, hops_max = 500 }}
"""
KEYWORDS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "ENHANCEDSTATUSCODES")
TIMEOUT_S = 30.0
ANY_BYTE = bytes(byte for byte in range(256) if byte not in b"\r\n")
RECEIVED = re.compile(rb"Received: from [^\r\n]+\r\n(?:\t[^\r\n]+\r\n)*")
BARE = "550 5.6.0"
EQUAL = "250 2.0.0"


def nested(depth: int) -> bytes:
    """multipart/mixed in multipart/mixed, and so on; never closed."""
    parts = (b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(depth))
    return b"MIME-Version: 1.0\r\n" + b"".join(parts) + b"Content-Type: text/plain\r\n\r\ninside\r\n"


@dataclass(frozen=True, slots=True)
class Odd:
    """Mail data as its author has it (no dots stuffed), and the answer of both listeners."""

    data: bytes
    usual: str = EQUAL
    wide: str = EQUAL


ODD = {
    "nothing": Odd(b""),
    "an empty line": Odd(b"\r\n"),
    "many empty lines": Odd(b"\r\n" * 1000),
    "no header": Odd(b"just text\r\n"),
    "a header and no empty line": Odd(b"Subject: x\r\nTo: y\r\n"),
    "an empty line first": Odd(b"\r\nSubject: body\r\n\r\nx\r\n"),
    "a continuation first": Odd(b" folded onto nothing\r\nSubject: x\r\n\r\nx\r\n"),
    "a mailbox's From line": Odd(b"From sue Mon Jan  1 00:00:00 2024\r\nSubject: x\r\n\r\nFrom the body\r\n"),
    "fields without colon": Odd(b"Subject x\r\n: nothing\r\n:\r\n\r\nx\r\n"),
    "a byte order mark": Odd(b"\xef\xbb\xbfSubject: x\r\n\r\nx\r\n"),
    "one dot": Odd(b".\r\n"),
    "dots only": Odd(b".\r\n..\r\n...\r\n....\r\n" * 200),
    "dots around line ends": Odd(b"a.\r\n.\r\n\r\n.\r\n.b\r\n..\r\n"),
    "a session": Odd(b"x\r\n.\r\nMAIL FROM:<evil@x.test>\r\nRCPT TO:<x@y.test>\r\nDATA\r\ny\r\n.\r\nQUIT\r\n"),
    "eight bits in the header": Odd(b"Subject: gr\xfc\xdfe\r\nX-\xe4: \xff\r\n\r\nx\r\n"),
    "every byte in the body": Odd(b"Subject: x\r\n\r\n" + ANY_BYTE * 40 + b"\r\n"),
    "every byte in the header": Odd(b"Subject: " + ANY_BYTE + b"\r\n\r\nx\r\n"),
    "NUL": Odd(b"Sub\0ject: \0\r\n\r\n\0\r\n\0.\r\n.\0\r\n"),
    "blanks at line ends": Odd(b"Subject: x \t\r\n \t\r\n\r\n \t \r\n\t\r\n"),
    "a line of a megabyte": Odd(b"Subject: x\r\n\r\n" + b"x" * 1024 * 1024 + b"\r\n"),
    "a field of a megabyte": Odd(b"Subject: " + b"x" * 1024 * 1024 + b"\r\n\r\nx\r\n", usual="552 5.3.4"),
    "a field folded 5,000 times": Odd(b"Subject: x\r\n" + b" y\r\n" * 5000 + b"\r\nx\r\n"),
    "100,000 fields": Odd(b"X: 1\r\n" * 100_000 + b"\r\nx\r\n", usual="552 5.3.4"),
    "2,001 fields": Odd(b"X: 1\r\n" * 2001 + b"\r\nx\r\n", usual="552 5.3.4"),
    "2,000 fields": Odd(b"X: 1\r\n" * 2000 + b"\r\nx\r\n"),
    "60 hops": Odd(b"Received: by x.test; Mon, 1 Jan 2024 00:00:00 +0000\r\n" * 60 + b"\r\nx\r\n", usual="554 5.4.6"),
    "MIME in MIME": Odd(nested(100)),
    "MIME in MIME, deep": Odd(nested(20_000)),
    "LF": Odd(b"Subject: x\n\nx\n", usual=BARE, wide=BARE),
    "CR": Odd(b"Subject: x\r\n\r\nold\rMac\r\n", usual=BARE, wide=BARE),
    "CR CR LF": Odd(b"Subject: x\r\n\r\nx\r\r\n", usual=BARE, wide=BARE),
}
BINARY = {
    "every byte and bare line ends": Odd(b"Subject: x\r\n\r\n\r\n.\r\n\n.\n\r.\r" + bytes(range(256)) * 50 + b"\n."),
    "no line end at its end": Odd(b"Subject: x\r\n\r\nx"),
    "a large one": Odd(b"Subject: x\r\n\r\n" + random.Random(1).randbytes(300_000)),
}


@asynccontextmanager
async def relay_and_sink(folder: Path) -> AsyncIterator[tuple[dict[str, int], SmtpServer]]:
    """The ports of the listeners, and the server behind the relay."""
    wide = find_port(set())
    async with smtp_server(Script(keywords=KEYWORDS)) as sink:
        settings = WIDE.format(port=wide)
        with Cluster(folder, relays=("A",), hosts=(), external={"sink": sink.port}, settings=settings) as cluster:
            await asyncio.to_thread(cluster.start)
            yield {"usual": cluster.relays["relay A"].smtp[1], "wide": wide}, sink


async def connect(port: int) -> RawClient:
    client = RawClient(*await asyncio.open_connection("127.0.0.1", port))
    return await client.hello()


async def submit(client: RawClient, data: bytes, way: str) -> str:
    """The answer to a message. Chunks are cut anywhere, the same places each time."""
    body = {"binary": " BODY=BINARYMIME"}.get(way, " BODY=8BITMIME")
    assert (await client.say(f"MAIL FROM:<>{body}")).startswith("250")
    assert (await client.say("RCPT TO:<ann@example.test>")).startswith("250")
    if way == "DATA":
        stuffed = (b"\r\n" + data).replace(b"\r\n.", b"\r\n..")[2:]
        return await client.send(stuffed if stuffed.endswith(b"\r\n") or not stuffed else stuffed + b"\r\n")
    rng = random.Random(len(data))
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(5))
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        last = " LAST" if end == len(data) else ""
        client.write(f"BDAT {end - start}{last}\r\n".encode() + data[start:end])
        answer = await client.reply()
        if last or not answer.startswith("250"):
            return answer
    raise AssertionError("no last chunk")


async def arrival(sink: SmtpServer, count: int, *, stuffed: bool) -> bytes:
    """The message that is the sink's number `count`, without the stuffing of DATA."""
    async with asyncio.timeout(TIMEOUT_S):
        while len(sink.seen.bodies) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    got = sink.seen.bodies[count - 1]
    return (b"\r\n" + got).replace(b"\r\n.", b"\r\n")[2:] if stuffed else got


async def test_odd_mail_passes_to_the_byte_or_is_refused_by_a_rule(folder: Path) -> None:
    cases = [(which, way, odd) for way in ("DATA", "BDAT") for which, odd in ODD.items()]
    cases += [(which, "binary", odd) for which, odd in (ODD | BINARY).items()]
    wrong: list[str] = []
    async with relay_and_sink(folder) as (ports, sink):
        count = 0
        for listener, port in ports.items():
            client = await connect(port)
            for which, way, odd in cases:
                expected = odd.usual if listener == "usual" else odd.wide
                if way == "binary" and expected == BARE:
                    expected = EQUAL
                answer = await submit(client, odd.data, way)
                if answer[:9] != expected:
                    wrong.append(f"{which} by {way} at {listener}: {answer}")
                if not answer.startswith("250"):
                    continue
                count += 1
                got = await arrival(sink, count, stuffed=way != "binary")
                if not got.endswith(odd.data) or not RECEIVED.fullmatch(got[: len(got) - len(odd.data)]):
                    wrong.append(f"{which} by {way} at {listener} is {got[:300]!r}")
            assert await client.say("QUIT") == "221 2.0.0 Bye"
            client.close()
        assert wrong == []
        assert len(sink.seen.bodies) == count
