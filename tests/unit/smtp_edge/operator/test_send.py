"""`send` against servers that answer as they are told: every reply is shown, and the exit code says how it went."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtp_edge.cli import cli
from smtp_edge.queue.entry import DeliveryState
from tests.unit.smtp_edge.client.servers import Script, SmtpServer, smtp_server
from tests.unit.smtp_edge.operator.views import Served
from tests.unit.smtp_edge.queue.builders import build_end, build_new
from tests.unit.smtp_edge.server.doors import write_certificate


@contextmanager
def serving(script: Script | None = None, *, implicit: ssl.SSLContext | None = None) -> Iterator[SmtpServer]:
    """On a loop of its own thread, as the command blocks."""
    loop, started, over = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    found: list[SmtpServer] = []

    async def serve() -> None:
        async with smtp_server(script, implicit=implicit) as server:
            found.append(server)
            started.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def send(server: SmtpServer | None, *words: str) -> Result:
    where = ["--server", f"127.0.0.1:{server.port}"] if server is not None else []
    return CliRunner().invoke(cli, ["send", *words, *where])


def test_a_test_mail_is_submitted_and_every_reply_is_shown() -> None:
    with serving() as server:
        result = send(server, "ann@example.org", "--from", "sue@example.net", "--subject", "hello")
        assert result.exit_code == 0, result.output
        lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
        assert lines == [
            "MAIL FROM:<sue@example.net> 250 2.1.0 Ok",
            "RCPT TO:<ann@example.org> 250 2.1.5 Ok",
            "the final dot 250 2.0.0 Ok: queued as X1",
        ]
        (body,) = server.seen.bodies
        assert b"Subject: hello\r\n" in body
        assert b"Message-ID: <" in body


def test_a_null_reverse_path_a_size_and_a_file_are_possible(tmp_path: Path) -> None:
    (tmp_path / "mail").write_bytes(b"Subject: mine\n\nmine\n")  # as files are here
    with serving() as server:
        assert send(server, "ann@example.org", "--from", "<>", "--size", "5000").exit_code == 0
        assert send(server, "ann@example.org", "--file", str(tmp_path / "mail")).exit_code == 0
        assert server.seen.said("MAIL")[0].upper().startswith("MAIL FROM:<>")
        assert 4900 < len(server.seen.bodies[0]) <= 5000
        assert server.seen.bodies[1] == b"Subject: mine\r\n\r\nmine\r\n"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (Script(rcpt=lambda line: "550 5.1.1 nobody"), 1),
        (Script(rcpt=lambda line: "451 4.7.1 later"), 75),
        (Script(mail="452 4.3.1 insufficient system storage"), 75),
        (Script(final="554 5.6.0 no"), 1),
        (Script(final="451 4.3.0 later"), 75),
        (Script(rcpt=lambda line: "550 5.1.1 no" if "bob" in line else "250 2.1.5 Ok"), 1),
    ],
)
def test_a_refusal_is_shown_and_decides_the_exit_code(script: Script, code: int) -> None:
    with serving(script) as server:
        result = send(server, "ann@example.org", "bob@example.org")
        assert result.exit_code == code
        assert str(result.stdout.split()[-1])


def test_nobody_there_is_told_apart() -> None:
    with serving() as server:
        port = server.port
    result = CliRunner().invoke(cli, ["send", "ann@example.org", "--server", f"127.0.0.1:{port}"])
    assert result.exit_code == 3
    assert f"127.0.0.1:{port}: connection refused: is the node running, is this its listener?" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--server", "nonsense"), "'nonsense' is not HOST:PORT"),
        (("--server", "127.0.0.1:25", "--user", "sue"), "a password never travels in the clear"),
    ],
)
def test_what_cannot_be_is_a_usage_error(words: tuple[str, ...], sentence: str) -> None:
    result = CliRunner().invoke(cli, ["send", "ann@example.org", *words])
    assert result.exit_code == 2
    assert sentence in result.stderr


@pytest.fixture
def configure(tmp_path: Path) -> Callable[[int, str], Path]:
    """A configuration with a listener that has a certificate of nobody's authority."""

    def write(port: int, tls: str) -> Path:
        config = tmp_path / "node.toml"
        config.write_text(
            f'[node]\nname = "n"\nhostname = "n.example"\n[[listener]]\nlisten = "127.0.0.1:{port}"\ntls = "{tls}"\n'
            'certificate = "tls.pem"\n[[smart_host]]\nname = "a"\nhost = "a.example"\n'
            '[[route]]\nname = "default"\nvia = ["a"]\n'
        )
        return config

    return write


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_the_own_listener_is_believed_by_the_certificate_that_the_configuration_names(
    tmp_path: Path, configure: Callable[[int, str], Path], tls: str
) -> None:
    certificate, key, _ = write_certificate(tmp_path)
    (tmp_path / "tls.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    script = Script(keywords=("STARTTLS",), context=context)
    with serving(script, implicit=context if tls == "implicit" else None) as server:
        config = configure(server.port, tls)
        result = CliRunner().invoke(cli, ["send", "ann@example.org", "--config", str(config)])
        assert result.exit_code == 0, result.output
        assert server.seen.said("MAIL")[0].endswith("FROM:<postmaster@n.example>")


def test_json_has_every_reply_and_the_queue_id() -> None:
    with serving() as server:
        shown = json.loads(send(server, "ann@example.org", "--json").stdout)
        assert shown["queue_id"] == "X1"
        assert [reply["code"] for reply in shown["replies"]] == [250, 250, 250]


@pytest.mark.parametrize(
    ("end", "code", "text"),
    [
        (DeliveryState.RELAYED, 0, "relayed to host:a"),
        (DeliveryState.FAILED, 1, "failed"),
        (None, 75, "it waits on disk for a place in memory"),
    ],
)
def test_waiting_says_what_became_of_it(served: Served, end: DeliveryState | None, code: int, text: str) -> None:
    stored = served.run(served.view.store.put(build_new(queue_id="Q1"), claim=end is not None))
    if end is not None:
        ended = build_end(stored.claims[0], end, hop="host:a" if end is DeliveryState.RELAYED else "", reply="250 ok")
        served.run(served.view.store.settle([ended]))
    with serving(Script(final="250 2.0.0 Ok: queued as Q1")) as server:
        result = send(server, "ann@example.org", "--wait", "--timeout", "0.1s", "--admin", served.address)
        assert result.exit_code == code
        assert text in result.stdout.splitlines()[-1]
