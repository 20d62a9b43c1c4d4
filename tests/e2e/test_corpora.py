"""Mail that others have collected, because it broke somebody: through a relay octet by octet, or refused by a rule.

    bounces   reports of many kinds of mail servers (flufl.bounce)
    mime      what MIME parsers stumble over (enmime)
    email     the same, of Python itself
    samples   SpamAssassin's two

Each is sent by DATA and by BDAT with its lines ended by CRLF, and once as it lies there, where bare LF is what the rule
refuses. `deploy/run.py test` unpacks the packages that bring them.
"""

from __future__ import annotations

import re
import socket
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from smtp_edge.demo.cluster import Cluster, find_port
from tests.conftest import PEERS
from tests.e2e.keeper import Keeper
from tests.e2e.scene import wait_until

TIMEOUT_S = 60.0
ENMIME = "golang-github-jhillyerd-enmime-dev/usr/share/gocode/src/github.com/jhillyerd/enmime"
FOLDERS = {
    "bounces": [PEERS / "python3-flufl.bounce" / "usr/lib/python3/dist-packages/flufl/bounce/tests/data"],
    "mime": [
        *(PEERS / ENMIME / "testdata" / name for name in ("mail", "low-quality", "parts", "attach", "encode")),
        PEERS / ENMIME / "internal/test/testdata",
    ],
    "email": [
        Path(sysconfig.get_path("stdlib")) / "test/test_email/data",
        PEERS / "libpython3.11-testsuite/usr/lib/python3.11/test/test_email/data",
    ],
    "samples": [PEERS / "spamassassin" / "usr/share/doc/spamassassin/examples"],
}
MAIL = re.compile(r".*\.(txt|raw|golden)|sample-.*")
SETTINGS = """\
[[listener]]
name = "edge"
listen = "127.0.0.1:{edge}"
allow_networks = ["127.0.0.0/8"]
"""
BARE, TAKEN = b"550 5.6.0 bare CR or LF in mail data\r\n", b"250 2.0.0 Ok: queued as "


def files_of(corpus: str) -> list[Path]:
    """Of the first folders that are here; Python brings its own or Debian does."""
    folders = [folder for folder in FOLDERS[corpus] if folder.is_dir()]
    chosen = folders[:1] if corpus == "email" else folders
    return sorted(path for folder in chosen for path in folder.iterdir() if MAIL.fullmatch(path.name))


@dataclass
class Scene:
    """One relay, and who keeps what it sends on."""

    edge: int
    keeper: Keeper

    def arrived(self, recipients: set[str]) -> dict[str, bytes]:
        """Recipient -> message, without our Received field, once all are there."""

        def found() -> dict[str, bytes]:
            return {
                who: message.below(1)
                for message in list(self.keeper.messages)
                for who in message.recipients
                if who in recipients
            }

        wait_until(lambda: len(found()) == len(recipients), TIMEOUT_S, f"{len(recipients)} messages at the end")
        return found()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    edge = find_port(set())
    folder = tmp_path_factory.mktemp("corpora")
    with Keeper() as keeper:
        ways = {"keeper": keeper.port}
        with Cluster(folder, relays=("A",), hosts=(), external=ways, settings=SETTINGS.format(edge=edge)) as cluster:
            cluster.start()
            yield Scene(edge, keeper)


class Sender:
    """A session that sends octets as they are, which libraries do not."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._replies: IO[bytes] = self._socket.makefile("rb")
        self._hear()
        self._say(b"EHLO corpus.test")

    def _hear(self) -> bytes:
        while (line := self._replies.readline())[3:4] == b"-":
            pass
        return line

    def _say(self, line: bytes) -> bytes:
        self._socket.sendall(line + b"\r\n")
        return self._hear()

    def send(self, recipient: str, data: bytes, way: str) -> bytes:
        """The reply to the mail data."""
        assert self._say(b"MAIL FROM:<sender@out.test> BODY=8BITMIME").startswith(b"250")
        assert self._say(f"RCPT TO:<{recipient}>".encode()).startswith(b"250")
        if way == "bdat":
            self._socket.sendall(b"BDAT %d LAST\r\n" % len(data) + data)
            return self._hear()
        assert self._say(b"DATA").startswith(b"354")
        stuffed = re.sub(rb"(?:\A|(?<=\n))\.", b"..", data)
        return self._say(stuffed + (b"." if stuffed.endswith(b"\r\n") or not stuffed else b"\r\n."))

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._replies.close()
        self._socket.close()


def with_crlf(data: bytes) -> bytes:
    """As a mail program hands it over."""
    return re.sub(rb"\r\n|\r|\n", b"\r\n", data.rstrip(b"\r\n")) + b"\r\n"


@pytest.fixture(params=FOLDERS)
def corpus(request: pytest.FixtureRequest) -> tuple[str, list[Path]]:
    name = str(request.param)
    if not files_of(name):
        pytest.skip(f"needs the corpus {name} (python3 deploy/run.py test unpacks it)")
    return name, files_of(name)


@pytest.mark.rfc("5321 3.6.3", "5321 4.4b", "5321 6.4")
@pytest.mark.parametrize("way", ["data", "bdat"])
def test_each_message_arrives_octet_by_octet(scene: Scene, corpus: tuple[str, list[Path]], way: str) -> None:
    name, files = corpus
    sent = {
        f"{name}.{way}.{number}@out.test": (path, with_crlf(path.read_bytes())) for number, path in enumerate(files)
    }
    with Sender(scene.edge) as sender:
        replies = {who: sender.send(who, data, way) for who, (_, data) in sent.items()}
    assert {reply for reply in replies.values() if not reply.startswith(TAKEN)} == set()
    arrived = scene.arrived(set(sent))
    assert [path.name for who, (path, data) in sent.items() if arrived[who] != data] == []


@pytest.mark.parametrize("way", ["data", "bdat"])
def test_as_it_lies_there_it_is_refused_for_its_line_ends_or_arrives(
    scene: Scene, corpus: tuple[str, list[Path]], way: str
) -> None:
    name, files = corpus
    taken: dict[str, bytes] = {}
    with Sender(scene.edge) as sender:
        for number, path in enumerate(files):
            who, data = f"{name}.{way}.raw{number}@out.test", path.read_bytes()
            reply = sender.send(who, data, way)
            if re.search(rb"\r(?!\n)|(?<!\r)\n", data):
                assert reply == BARE, path
            else:
                assert reply.startswith(TAKEN), path
                taken[who] = data if data.endswith(b"\r\n") or not data else data + b"\r\n"
    assert scene.arrived(set(taken)) == taken
