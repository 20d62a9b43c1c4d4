"""Mail in a real PostgreSQL: the contract of stores, its faults, and a node whose database dies, stops and talks
nonsense while mail comes in."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import socketserver
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from smtp_edge.applications.sql import Sql
from smtp_edge.demo.cluster import Cluster, Relay, find_port
from tests.e2e.postgresql import PostgreSQL, postgresql
from tests.e2e.scene import admin_calls, wait_until
from tests.unit.smtp_edge.applications.sql_killed import KILL_STEPS, check_kills
from tests.unit.smtp_edge.applications.store_contract import ANN, BOB, Shelf, StoreContract, codes, delivery_of

pytestmark = [pytest.mark.peer("initdb", "postgres", "psql")]

SETTINGS = """\
[[sink]]
name = "box"
use = "sql"
rule = "rcpt to=*@box.test"
with = {{ url = "{url}", password_file = "{password}", mailboxes = "any", timeout_s = 2 }}
[[smart_host]]
name = "box"
sink = "box"
[[route]]
name = "box"
domains = ["box.test"]
via = ["box"]
[queue]
retry_first_s = 1
retry_max_s = 2
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as running:
        yield running


def sink_of(server: PostgreSQL, **settings: object) -> Sql:
    url = server.url().replace("postgresql://", "postgresql+asyncpg://")
    return Sql(url, str(server.password_file), **settings)  # type: ignore[arg-type]


class PostgreSQLShelf:
    def __init__(self, server: PostgreSQL) -> None:
        self.server, self.sink = server, sink_of(server, timeout_s=20)

    async def mails(self, address: str) -> list[bytes]:
        return await asyncio.to_thread(self._mails, address)

    def _mails(self, address: str) -> list[bytes]:
        query = "SELECT m.id, c.number, encode(c.content, 'hex') FROM smtpmesh_message m JOIN smtpmesh_chunk c"
        rows = self.server.query(f"{query} ON c.message_id = m.id WHERE recipient = '{address}' ORDER BY m.id, number")
        found: dict[str, bytes] = {}
        for identity, _, content in rows:
            found[identity] = found.get(identity, b"") + bytes.fromhex(content)
        return list(found.values())


@pytest.fixture
async def shelf(server: PostgreSQL) -> AsyncIterator[Shelf]:
    opened = PostgreSQLShelf(server)
    await opened.sink.start()
    server.query("DELETE FROM smtpmesh_message")
    server.query(f"INSERT INTO smtpmesh_mailbox VALUES ('{ANN}'), ('{BOB}') ON CONFLICT DO NOTHING")
    yield opened
    await opened.sink.stop()


class TestPostgreSQL(StoreContract):
    """The contract."""


class Babble(socketserver.BaseRequestHandler):
    """What is no PostgreSQL."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.request.recv(1000)
            self.request.sendall(b"220 hello, this is something else\r\n" * 20)


@contextlib.contextmanager
def babbler(port: int) -> Iterator[None]:
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Server(("127.0.0.1", port), Babble) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield
        server.shutdown()


async def test_garbage_is_a_database_that_is_not_there() -> None:
    port = find_port(set())
    with babbler(port):
        sink = Sql(f"postgresql+asyncpg://u@127.0.0.1:{port}/db", mailboxes="any", timeout_s=3)
        await sink.start()
        assert await codes(sink, await delivery_of(ANN)) == [451]
        await sink.stop()


async def test_a_password_or_a_database_that_is_wrong_lets_mail_wait(server: PostgreSQL, tmp_path: Path) -> None:
    url = server.url().replace("postgresql://", "postgresql+asyncpg://")
    (tmp_path / "wrong").write_text("wrong")
    for where, password in ((url, tmp_path / "wrong"), (f"{url}2", server.password_file)):
        sink = Sql(where, str(password), mailboxes="any", timeout_s=20)
        await sink.start()
        assert await codes(sink, await delivery_of(ANN)) == [451]
        await sink.stop()


def test_a_kill_at_any_step_leaves_exactly_one_copy_when_it_is_asked_again(server: PostgreSQL, tmp_path: Path) -> None:
    url = server.url().replace("postgresql://", "postgresql+asyncpg://")
    assert check_kills(PostgreSQLShelf(server), url, str(server.password_file), tmp_path) == KILL_STEPS


def test_a_node_keeps_the_mail_of_a_database_that_dies_stands_still_and_talks_nonsense(folder: Path) -> None:
    with postgresql() as server:
        url = server.url().replace("postgresql://", "postgresql+asyncpg://")
        settings = SETTINGS.format(url=url, password=server.password_file)
        with Cluster(folder / "c", relays=("A",), hosts=(), external={"dead": 1}, settings=settings) as cluster:
            cluster.start()
            relay, calls = cluster.relays["relay A"], admin_calls(cluster)
            count = 0

            def submit() -> None:
                nonlocal count
                with smtplib.SMTP(*relay.smtp, timeout=20) as client:
                    for _ in range(5):
                        count += 1
                        client.sendmail("sue@demo.test", ["ann@box.test"], f"Subject: {count}\r\n\r\nhello\r\n")

            def submit_in_vain() -> None:
                before = failures(relay)
                submit()
                wait_until(lambda: failures(relay) > before, 30, "an attempt that failed")
                assert calls.waiting("relay A") == 5

            def check_all_are_there_once() -> None:
                wait_until(lambda: calls.waiting("relay A") == 0, 60, "an empty queue")
                assert stored_subjects(server) == Counter(str(number) for number in range(1, count + 1))

            submit()
            check_all_are_there_once()
            server.kill()
            submit_in_vain()
            server.start()
            check_all_are_there_once()
            server.pause()
            submit_in_vain()
            server.resume()
            check_all_are_there_once()
            server.kill()
            with babbler(server.port):
                submit_in_vain()
            server.start()
            check_all_are_there_once()


def failures(relay: Relay) -> int:
    """Attempts that the sink could not carry out."""
    return relay.server.log.read_bytes().count(b"sql.failed")


def stored_subjects(server: PostgreSQL) -> Counter[str]:
    """Of all messages; each of these is one chunk."""
    subject = "substring(encode(content, 'escape') from 'Subject: ([0-9]+)')"
    return Counter(row[0] for row in server.query(f"SELECT {subject} FROM smtpmesh_chunk"))
