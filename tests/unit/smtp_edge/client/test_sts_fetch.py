"""Fetching a policy: from a host that is verified, without redirects, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smtp_edge.client.sts_fetch import FetchFailed, HttpsFetcher
from tests.unit.smtp_edge.client.certificates import DAY, NOW, issue, server_context
from tests.unit.smtp_edge.client.names import SERVFAIL, Table, names

BODY = b"version: STSv1\nmode: none\nmax_age: 86400\n"
RECORDS = {"mta-sts.example.test A": ["127.0.0.1"], "elsewhere.test A": ["127.0.0.1"]}
HANG = b"hang"


def answer(status: str = "200 OK", *fields: str, body: bytes = BODY, kind: str = "text/plain; charset=utf-8") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *fields]
    return "\r\n".join([*head, "", ""]).encode() + body


@asynccontextmanager
async def web(tmp_path: Path, reply: bytes, **certificate: object) -> AsyncIterator[tuple[int, Path, list[bytes]]]:
    """Port, authority and requests of an HTTPS server that says one thing."""
    root = issue("root", ca=True)
    leaf = issue("web", root, **{"names": ("mta-sts.example.test",), **certificate})  # type: ignore[arg-type]
    ca = tmp_path / "ca.pem"
    ca.write_bytes(root.pem)
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        if reply == HANG:
            await asyncio.sleep(30)
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(leaf.write(tmp_path / "web.pem")))
    yield server.sockets[0].getsockname()[1], ca, requests
    server.close()


@pytest.mark.rfc("8461 3.3a")
async def test_a_policy_is_fetched_from_its_host(tmp_path: Path) -> None:
    async with web(tmp_path, answer()) as (port, ca, requests), names(Table(RECORDS)) as resolver:
        assert await HttpsFetcher(resolver, timeout_s=5, ca=ca, port=port).fetch("example.test") == BODY
        assert requests[0].startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\n")
        assert f"Host: mta-sts.example.test:{port}\r\n".encode() in requests[0]


@pytest.mark.parametrize(
    ("reply", "certificate", "why"),
    [
        (answer("404 Not Found"), {}, "answered 404"),
        (answer("301 Moved", "Location: https://elsewhere.test/"), {}, "answered 301"),
        (answer("500 Oops"), {}, "answered 500"),
        (answer(kind="text/html"), {}, "not text/plain"),
        (answer(body=b"x" * 70_000), {}, "too large"),
        (HANG, {}, "Timeout"),
        (b"gibberish\r\n\r\n", {}, "."),
        (answer(), {"names": ("elsewhere.test",)}, "ertificate"),
        (answer(), {"begins": NOW - 3 * DAY, "ends": NOW - DAY}, "expired"),
    ],
)
@pytest.mark.rfc("8461 3.3a", "8461 3.3b")
async def test_what_is_no_policy_host(tmp_path: Path, reply: bytes, certificate: dict[str, object], why: str) -> None:
    async with web(tmp_path, reply, **certificate) as (port, ca, _), names(Table(RECORDS)) as resolver:
        with pytest.raises(FetchFailed, match=why):
            await HttpsFetcher(resolver, timeout_s=0.5, ca=ca, port=port).fetch("example.test")


@pytest.mark.rfc("8461 3.3a")
async def test_an_authority_that_nobody_knows(tmp_path: Path) -> None:
    async with web(tmp_path, answer()) as (port, _, _), names(Table(RECORDS)) as resolver:
        with pytest.raises(FetchFailed):
            await HttpsFetcher(resolver, timeout_s=5, port=port).fetch("example.test")


@pytest.mark.parametrize("records", [{}, {"mta-sts.example.test": SERVFAIL}, {"mta-sts.example.test TXT": ['"x"']}])
async def test_a_host_without_an_address(records: dict[str, list[str]]) -> None:
    async with names(Table(records)) as resolver:
        with pytest.raises(FetchFailed):
            await HttpsFetcher(resolver, timeout_s=5).fetch("example.test")


async def test_nothing_is_unpacked(tmp_path: Path) -> None:
    reply = answer("200 OK", "Content-Encoding: gzip", body=b"\x1f\x8b")
    async with web(tmp_path, reply) as (port, ca, _), names(Table(RECORDS)) as resolver:
        assert await HttpsFetcher(resolver, timeout_s=5, ca=ca, port=port).fetch("example.test") == b"\x1f\x8b"
