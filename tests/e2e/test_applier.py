"""A relay applies changes to a real PostgreSQL, each once: killed relays, a killed, stopped and mad database, poison.

smtplib -> relay A -> PostgreSQL, where a trigger writes down each effect on the table
"""

from __future__ import annotations

import contextlib
import json
import smtplib
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.applications.changes import build_message
from smtp_edge.demo.cluster import Cluster, Relay
from tests.e2e.keeper import Keeper
from tests.e2e.postgresql import PostgreSQL, postgresql
from tests.e2e.scene import FULL, admin_calls, wait_until
from tests.e2e.test_drain import smtpmesh

pytestmark = pytest.mark.peer("initdb")

TO = "apply@b.replication"
SECRET = b"0123456789abcdef"
KEYS = 20
COUNT = 2000 if FULL else 300
SETTINGS = """\
[queue]
retry_first_s = 0.5
retry_factor = 1
retry_max_s = 0.5
[[sink]]
name = "apply"
use = "applier"
[sink.with]
database = "{url}"
password_file = "{password}"
secret_file = "{secret}"
statement_timeout_s = 1
tables.parts = {{ key = "id", columns = {{ id = "integer", name = "text" }} }}
[[smart_host]]
name = "apply"
sink = "apply"
connections_max = 8
[[route]]
name = "apply"
domains = ["b.replication"]
via = ["apply"]
"""
TABLES = """
CREATE TABLE parts (id integer PRIMARY KEY, name text NOT NULL);
CREATE TABLE effects (number serial, id integer, name text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO effects (id, name) VALUES (NEW.id, NEW.name); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON parts FOR EACH ROW EXECUTE FUNCTION note();
"""


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[tuple[PostgreSQL, Cluster, Keeper]]:
    secret = folder / "secret"
    secret.write_bytes(SECRET)
    with postgresql() as database, Keeper() as keeper:
        database.query(TABLES)
        settings = SETTINGS.format(url=database.url(), password=database.password_file, secret=secret)
        with Cluster(folder / "c", relays=("A",), hosts=(), external={"k": keeper.port}, settings=settings) as cluster:
            cluster.start()
            yield database, cluster, keeper


def upsert(key: int, version: int, name: str) -> dict[str, Any]:
    return {"table": "parts", "key": key, "op": "upsert", "version": version, "row": {"name": name}}


def send(relay: Relay, *documents: Sequence[object]) -> None:
    """One message for each; one that gets no reply is sent again, as another message with the same changes."""
    left = list(documents)
    while left:
        with contextlib.suppress(OSError, smtplib.SMTPException), smtplib.SMTP(*relay.smtp, timeout=20) as client:
            while left:
                text = build_message([json.dumps(change) for change in left[0]], {"Subject": "changes"}, SECRET)
                client.sendmail("sue@demo.test", [TO], text)
                left.pop(0)


def held(relay: Relay) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(smtpmesh(relay, "queue", "--state", "held", "--json").stdout)["deliveries"]
    return found


def empty(cluster: Cluster) -> bool:
    return admin_calls(cluster).waiting("relay A") == 0


def test_each_change_takes_effect_once_however_relay_and_database_are_killed(folder: Path) -> None:
    documents = [[upsert(number % KEYS, number + 1, f"v{number + 1}")] for number in range(COUNT)]
    with scene(folder) as (database, cluster, _):
        relay = cluster.relays["relay A"]
        client = threading.Thread(target=send, args=(relay, *documents, *documents[::3]), daemon=True)
        client.start()

        def applied() -> int:
            with contextlib.suppress(AssertionError):
                return int(database.query("SELECT count(*) FROM smtpmesh_applied")[0][0])
            return 0

        for part in (1, 2, 3):
            wait_until(lambda part=part: applied() >= COUNT * part // 5, 60, "a part of it")  # type: ignore[misc]
            if part == 2:
                database.kill()
                database.start()
            else:
                cluster.kill("relay A")
                cluster.restart("relay A")
        client.join(120)
        assert not client.is_alive()
        wait_until(lambda: empty(cluster), 120, "an empty queue")
        assert database.query("SELECT id, name FROM parts ORDER BY id") == [
            (str(key), f"v{COUNT - KEYS + key + 1}") for key in range(KEYS)
        ]
        effects = [
            (int(key), int(name[1:])) for key, name in database.query("SELECT id, name FROM effects ORDER BY number")
        ]
        counted = database.query("SELECT sum(changes), sum(stale), count(*) FROM smtpmesh_applied")
    assert len(effects) == len(set(effects)), "no change took effect twice"
    for key in range(KEYS):
        versions = [version for number, version in effects if number == key]
        assert versions == sorted(versions), "no older version after a newer one"
    changes, stale, messages = map(int, counted[0])
    assert changes == len(effects)
    assert changes + stale == messages >= COUNT + len(documents[::3])


def test_poison_is_parked_and_seen_while_the_rest_goes_on(folder: Path) -> None:
    with scene(folder) as (database, cluster, _):
        relay = cluster.relays["relay A"]
        with smtplib.SMTP(*relay.smtp, timeout=20) as client:
            client.sendmail(
                "eve@demo.test", [TO], "Subject: not signed\r\nContent-Type: application/json\r\n\r\n{}\r\n"
            )
        send(relay, [upsert(1, 1, "good")], ["garbage"], [upsert(2, 1, "good") | {"table": "users"}])
        send(relay, [upsert(3, 1, "good"), {**upsert(4, 1, ""), "row": {"name": None}}])
        wait_until(lambda: len(held(relay)) == 4, 30, "four on hold")
        wait_until(lambda: database.query("SELECT id FROM parts") == [("1",)], 30, "the good one")
        text = json.dumps(held(relay))
    for reason in (
        "its signature is missing or wrong",
        "change 0: it is no object",
        "change 0: unknown table 'users'",
        'PostgreSQL: null value in column \\"name\\"',
    ):
        assert reason in text


def lie(listening: socket.socket) -> None:
    """What is no PostgreSQL to whoever asks."""
    with contextlib.suppress(OSError):
        while True:
            asked, _ = listening.accept()
            with asked, contextlib.suppress(OSError):
                asked.recv(65536)
                asked.sendall(b"R\0\0\0\x08\xff\xff\0\x07garbage" * 50)


def test_a_database_that_is_stopped_down_or_mad_is_waited_for_and_nothing_is_lost(folder: Path) -> None:
    with scene(folder) as (database, cluster, keeper):
        relay, calls = cluster.relays["relay A"], admin_calls(cluster)
        send(relay, [upsert(0, 1, "before")])
        wait_until(lambda: empty(cluster), 30, "the first change")

        def others_arrive() -> None:
            """While its mail waits."""
            before = len(keeper.messages)
            with smtplib.SMTP(*relay.smtp, timeout=20) as client:
                client.sendmail("sue@demo.test", ["ann@elsewhere.test"], "Subject: other\r\n\r\n")
            wait_until(lambda: len(keeper.messages) == before + 1, 20, "other mail")
            assert (calls.waiting("relay A") or 0) > 0

        database.pause()
        send(relay, *([upsert(key, 2, "stopped")] for key in range(5)))
        others_arrive()
        wait_until(lambda: b"does not answer in time" in relay.server.log.read_bytes(), 30, "the time limit")
        database.resume()
        wait_until(lambda: empty(cluster), 60, "what waited for it to go on")
        database.kill()
        send(relay, *([upsert(key, 3, "down")] for key in range(5)))
        others_arrive()
        wait_until(lambda: b"cannot be asked" in relay.server.log.read_bytes(), 30, "a refused connection")
        with socket.socket() as liar:
            liar.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            liar.bind(("127.0.0.1", database.port))
            liar.listen()
            threading.Thread(target=lie, args=(liar,), daemon=True).start()
            send(relay, *([upsert(key, 4, "mad")] for key in range(5, 10)))
            others_arrive()
            liar.shutdown(socket.SHUT_RDWR)
        database.start()
        wait_until(lambda: empty(cluster), 60, "an empty queue")
        rows = database.query("SELECT id, name FROM parts ORDER BY id")
        assert held(relay) == []
    assert rows == [(str(key), "down" if key < 5 else "mad") for key in range(10)]
