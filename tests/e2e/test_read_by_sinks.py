"""Mail that others have collected, read and edited by sinks.

It passes a relay octet by octet though sinks have read all of it and edited none; what a disclaimer is added to has the
parts that it had, and all others as they were.
"""

from __future__ import annotations

import email
import re
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.applications.disclaimer import Disclaimer
from smtp_edge.demo.cluster import Cluster, find_port
from smtp_edge.sinks.testing import ask
from tests.e2e.keeper import Keeper
from tests.e2e.test_corpora import FOLDERS, SETTINGS, TAKEN, Scene, Sender, files_of, with_crlf

MESSAGES_MIN = 200
SINKS = """
[[sink]]
use = "exec"
with = { command = ["/bin/sh", "-c", "cat > /dev/null"] }

[[sink]]
use = "disclaimer"
rule = "header x-footer=*"
with = { text = ".Grüße" }
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    edge = find_port(set())
    settings = SETTINGS.format(edge=edge) + SINKS
    with Keeper() as keeper:
        ways = {"keeper": keeper.port}
        folder = tmp_path_factory.mktemp("read")
        with Cluster(folder, relays=("A",), hosts=(), external=ways, settings=settings) as cluster:
            cluster.start()
            yield Scene(edge, keeper)


def collected() -> list[Path]:
    """All of the corpora, or none is enough."""
    files = [path for corpus in FOLDERS for path in files_of(corpus)]
    if len(files) < MESSAGES_MIN:
        pytest.skip("needs the corpora (python3 deploy/run.py test unpacks them)")
    return files


def test_nothing_is_changed_where_nothing_was_asked(scene: Scene) -> None:
    files = collected()
    sent = {f"read{number}@out.test": with_crlf(path.read_bytes()) for number, path in enumerate(files)}
    with Sender(scene.edge) as sender:
        replies = {sender.send(who, data, "data") for who, data in sent.items()}
    assert [reply for reply in replies if not reply.startswith(TAKEN)] == []
    arrived = scene.arrived(set(sent))
    assert [files[int(who[4:].partition("@")[0])].name for who, data in sent.items() if arrived[who] != data] == []
    assert not any(re.search(rb"^X-smtpmesh-", data, re.MULTILINE) for data in arrived.values())


def test_a_new_body_goes_on_as_what_it_is(scene: Scene) -> None:
    header = b"X-Footer: yes\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    with smtplib.SMTP("127.0.0.1", scene.edge, timeout=30) as client:
        for who, body in (("seven@out.test", b".ascii\r\n"), ("large@out.test", b".line\r\n" * 50_000)):
            client.sendmail("sender@out.test", [who], header + body)
    arrived = scene.arrived({"seven@out.test", "large@out.test"})
    assert arrived["seven@out.test"] == header + b".ascii\r\n\r\n.Gr\xc3\xbc\xc3\x9fe\r\n"
    assert arrived["large@out.test"] == header + b".line\r\n" * 50_000 + b"\r\n.Gr\xc3\xbc\xc3\x9fe\r\n"
    kept = [message for message in scene.keeper.messages if message.data.endswith(b"\x9fe\r\n")]
    assert ["BODY=8BITMIME" in message.mail for message in kept] == [True, True]


async def test_a_disclaimer_leaves_everything_else_as_it_was() -> None:
    changed = 0
    for path in collected():
        mail = with_crlf(path.read_bytes())
        outcome = await ask(Disclaimer("Grüße, Example Ltd"), mail)
        assert outcome.reply == "", path
        changed += outcome.content != mail
        before, after = email.message_from_bytes(mail), email.message_from_bytes(outcome.content)
        pairs = list(zip(before.walk(), after.walk(), strict=True))
        assert [was.get_content_type() for was, _ in pairs] == [now.get_content_type() for _, now in pairs], path
        edited = [now for was, now in pairs if not was.is_multipart() and was.get_payload() != now.get_payload()]
        assert all(now.get_content_type() in ("text/plain", "text/html") for now in edited), path
        assert len(edited) <= 2, path
        for now in edited:
            text = bytes(now.get_payload(decode=True)).decode(now.get_content_charset() or "ascii", "replace")  # type: ignore[arg-type]
            assert "Grüße, Example Ltd" in text, path
    assert changed > MESSAGES_MIN // 2
