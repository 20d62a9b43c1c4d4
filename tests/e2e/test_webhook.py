"""A relay hands mail to an HTTP endpoint, a process of its own: signed, whole, and later if it is down, stopped or mad.

smtplib -> relay A ──POST──> endpoint;  ──SMTP──> keeper, which must not notice any of it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import smtplib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smtp_edge.demo.cluster import SOURCE_ROOT, Cluster, Relay, find_port
from tests.e2e.keeper import Keeper
from tests.e2e.scene import admin_calls, records, wait_until
from tests.e2e.test_drain import smtpmesh

SETTINGS = """\
[queue]
retry_first_s = 0.5
retry_factor = 1
retry_max_s = 0.5
[[sink]]
name = "hook"
use = "webhook"
with = {{ url = "http://127.0.0.1:{port}/{path}", secret_file = "{secret}", timeout_s = 1 }}
[[smart_host]]
name = "hook"
sink = "hook"
connections_max = 2
[[route]]
name = "hook"
domains = ["hook.test"]
via = ["hook"]
"""


class Endpoint:
    """The process, on a port that stays its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.ledger, self.secret = find_port(set()), folder / "ledger", folder / "secret"
        self.secret.write_text("0123456789abcdef")
        self.start()

    def start(self) -> None:
        words = ["--port", str(self.port), "--ledger", str(self.ledger), "--secret", str(self.secret)]
        self.process = subprocess.Popen([sys.executable, "-m", "tests.e2e.endpoint", *words], cwd=SOURCE_ROOT)
        wait_until(self._listens, 30, "the endpoint")

    def _listens(self) -> bool:
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def lines(self) -> list[dict[str, Any]]:
        return records(self.ledger) if self.ledger.exists() else []


@contextlib.contextmanager
def scene(folder: Path, path: str = "ok") -> Iterator[tuple[Endpoint, Relay, Keeper, Cluster]]:
    endpoint = Endpoint(folder)
    settings = SETTINGS.format(port=endpoint.port, path=path, secret=endpoint.secret)
    try:
        with (
            Keeper() as keeper,
            Cluster(folder / "c", relays=("A",), hosts=(), external={"k": keeper.port}, settings=settings) as cluster,
        ):
            cluster.start()
            yield endpoint, cluster.relays["relay A"], keeper, cluster
    finally:
        endpoint.kill()


def send(relay: Relay, *subjects: str, to: str = "ann@hook.test", body: str = "hello\r\n.dot\r\n") -> None:
    with smtplib.SMTP(*relay.smtp, timeout=30) as client:
        for subject in subjects:
            client.sendmail("sue@demo.test", to.split(","), f"Subject: {subject}\r\n\r\n{body}")


def held(relay: Relay) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(smtpmesh(relay, "queue", "--state", "held", "--json").stdout)["deliveries"]
    return found


def test_an_endpoint_gets_signed_mail_for_each_recipient_once_small_and_large(folder: Path) -> None:
    with scene(folder) as (endpoint, relay, _, _):
        send(relay, "small", to="ann@hook.test,bob@hook.test")
        large_body = "0123456789abcdef\r\n" * 500_000
        send(relay, "large", body=large_body)
        wait_until(lambda: len(endpoint.lines()) == 3, 30, "three posts")
        lines = endpoint.lines()
    assert all(line["genuine"] and line["type"] == "message/rfc822" for line in lines)
    assert len({line["key"] for line in lines}) == 3
    small = sorted(line["envelope"]["recipient"] for line in lines if line["subject"] == "small")
    assert small == ["ann@hook.test", "bob@hook.test"]
    assert {line["envelope"]["sender"] for line in lines} == {"sue@demo.test"}
    (large,) = [line for line in lines if line["subject"] == "large"]
    assert large["body_sha256"] == hashlib.sha256(large_body.encode()).hexdigest()


def test_what_an_endpoint_refuses_for_good_waits_for_an_operator(folder: Path) -> None:
    with scene(folder, "422") as (endpoint, relay, keeper, _):
        send(relay, "bad")
        wait_until(lambda: held(relay), 20, "the message on hold")
        (found,) = held(relay)
        assert "the endpoint answered 422 because" in json.dumps(found)
        send(relay, "other", to="ann@elsewhere.test")
        wait_until(lambda: len(keeper.messages) == 1, 20, "other mail")
        assert len(endpoint.lines()) == 1


def test_one_that_wants_a_pause_is_asked_again_after_it(folder: Path) -> None:
    with scene(folder, "wait") as (endpoint, relay, _, cluster):
        calls = admin_calls(cluster)
        send(relay, "first")
        wait_until(lambda: len(endpoint.lines()) == 2, 30, "the second try")
        wait_until(lambda: calls.waiting("relay A") == 0, 30, "an empty queue")
        first, second = endpoint.lines()
    assert first["key"] == second["key"]
    assert first["sha256"] == second["sha256"], "the same message, not another trace field"
    assert second["at"] > first["at"]


def lie(listening: socket.socket) -> None:
    """What is no HTTP to whoever asks."""
    with contextlib.suppress(OSError):
        while True:
            asked, _ = listening.accept()
            with asked, contextlib.suppress(OSError):
                asked.recv(65536)
                asked.sendall(b"\xff\0 220 OK\r\n" * 50)


def test_an_endpoint_that_is_stopped_down_or_mad_slows_only_itself_and_loses_nothing(folder: Path) -> None:
    with scene(folder) as (endpoint, relay, keeper, cluster):
        calls = admin_calls(cluster)

        def others_arrive(name: str) -> None:
            """While its mail waits."""
            before = len(keeper.messages)
            send(relay, *(f"{name} {number}" for number in range(20)), to="ann@elsewhere.test")
            wait_until(lambda: len(keeper.messages) == before + 20, 20, "mail to others")
            assert (calls.waiting("relay A") or 0) >= 10

        endpoint.process.send_signal(signal.SIGSTOP)
        send(relay, *(f"stopped-{number}" for number in range(10)))
        others_arrive("stopped")
        endpoint.process.send_signal(signal.SIGCONT)
        endpoint.kill()
        send(relay, *(f"down-{number}" for number in range(10)))
        others_arrive("down")
        with socket.socket() as liar:
            liar.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            liar.bind(("127.0.0.1", endpoint.port))
            liar.listen()
            threading.Thread(target=lie, args=(liar,), daemon=True).start()
            send(relay, *(f"mad-{number}" for number in range(10)))
            others_arrive("mad")
            liar.shutdown(socket.SHUT_RDWR)
        endpoint.start()
        wait_until(lambda: calls.waiting("relay A") == 0, 60, "an empty queue")
        lines = endpoint.lines()
    wanted = {f"{name}-{number}" for name in ("stopped", "down", "mad") for number in range(10)}
    assert {line["subject"] for line in lines} == wanted
    assert len({line["key"] for line in lines}) == 30, "a message that comes twice has the key that it had"
    assert all(line["genuine"] for line in lines)
