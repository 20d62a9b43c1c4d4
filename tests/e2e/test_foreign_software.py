"""Clients and servers that are not ours send through a relay, and the servers receive from it: nothing is changed.

    smtplib, curl, swaks, msmtp, nodemailer ──────────> relay A ──> a server that keeps every octet
    Postfix, Exim, OpenSMTPD (for out.test) ──────────> relay A ──> the same
    smtplib ──> relay A ──TLS, verified; AUTH──> Postfix, Exim, OpenSMTPD ──> the same

`SMTPMESH_E2E_FULL=1`: larger mail, more recipients, every letter by every client in every way.
"""

from __future__ import annotations

import contextlib
import json
import re
import smtplib
import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from smtp_edge.auth.users import hash_password
from smtp_edge.demo.cluster import Cluster, find_port
from tests.conftest import PEERS, find_command
from tests.e2e import postfix
from tests.e2e.foreign import PASSWORD, USER, Foreign, missing
from tests.e2e.keeper import Keeper, Kept
from tests.e2e.postfix import Postfix
from tests.e2e.scene import FULL, events, wait_until
from tests.unit.smtp_edge.client.certificates import issue

TIMEOUT_S = 120.0 if FULL else 30.0
LARGE_BYTES = 30_000_000 if FULL else 3_000_000
CROWD = 1000 if FULL else 150
SENDER = "sender@out.test"
SETTINGS = """\
[[listener]]
name = "edge"
listen = "127.0.0.1:{edge}"
tls = "starttls"
certificate = "{pem}"
allow_networks = ["127.0.0.0/8"]
auth_users = "{users}"
size_bytes_max = 200000000
[[listener]]
name = "smtps"
listen = "127.0.0.1:{smtps}"
tls = "implicit"
certificate = "{pem}"
auth_users = "{users}"
size_bytes_max = 200000000
"""
SMART_HOST = """\
[[smart_host]]
name = "{name}"
host = "localhost"
port = {port}
{more}
[[route]]
name = "{name}"
domains = ["{name}.test"]
via = ["{name}"]
"""
VERIFIED = 'tls = "starttls"\ntls_ca = "{ca}"\n'
LOGIN = 'user = "{user}"\npassword_file = "{file}"\n'
MORE = {"postfix": VERIFIED, "exim": VERIFIED + LOGIN, "opensmtpd": 'tls = "opportunistic"\n'}
"""OpenSMTPD of Debian 12 offers STARTTLS and then cannot sign (it is older than its OpenSSL): the handshake fails, and
what is left is a fresh connection in the clear. A version that can sign gets the mail under TLS."""
SERVERS = {"postfix": "postfix", "exim": "exim4", "opensmtpd": "smtpd"}
"""Names here, and commands."""


@dataclass(frozen=True)
class Letter:
    """What is sent."""

    name: str
    body: bytes
    recipients: tuple[str, ...] = ("reader@out.test",)
    sender: str = SENDER

    @property
    def utf8(self) -> bool:
        return not self.sender.isascii()


LETTERS = {
    letter.name: letter
    for letter in (
        Letter(
            "text", b"..\r\n.\r\n.dot\r\n\r\nblanks  \r\n\ttab\r\nFrom here\r\n%FROM%\r\n" + b"x" * 900 + b"\r\n\r\n"
        ),
        Letter("eight", "Gr\u00fc\u00dfe, \u20ac\r\n".encode() + bytes(range(128, 256)) + b"\r\n.\xff\r\n"),
        Letter("large", (b"0123456789" * 7 + b"\r\n.\r\n") * (LARGE_BYTES // 75)),
        Letter("crowd", b"for many\r\n", tuple(f"reader-{number}@out.test" for number in range(CROWD))),
        Letter("utf8", "Gr\u00fc\u00dfe\r\n".encode(), ("b\u00fccher@out.test",), "j\u00f6rg@out.test"),
    )
}
SMALL = [name for name in LETTERS if FULL or name not in ("large", "crowd")]


@dataclass
class Scene:
    """All that runs."""

    folder: Path
    cluster: Cluster
    keeper: Keeper
    servers: dict[str, int]
    """Ports of those that are here."""
    edge: int
    smtps: int
    ca: Path
    sent: int = 0

    def write(self, letter: Letter) -> tuple[str, bytes]:
        """A word that no other message holds, and the message."""
        self.sent += 1
        word = f"letter-{self.sent}-{letter.name}."
        head = f"From: <{letter.sender}>\r\nSubject: {word}\r\nDate: Wed, 25 Nov 2026 12:00:00 +0000\r\n"
        head += f"Message-ID: <{word}@out.test>\r\nMIME-Version: 1.0\r\nX-Odd:  two  blanks \r\n\r\n"
        return word, head.encode() + letter.body

    def arrived(self, word: str, count: int) -> list[Kept]:
        """Messages with the word, once so many recipients have them."""

        def found() -> list[Kept]:
            return self.keeper.named(word.encode())

        wait_until(lambda: sum(len(kept.rcpts) for kept in found()) >= count, TIMEOUT_S, f"{word} at the end")
        return found()

    def file(self, data: bytes) -> Path:
        path = self.folder / f"letter-{self.sent}"
        path.write_bytes(data)
        return path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("foreign")
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o777 == 0o700 and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)  # the servers change users
    root = issue("root", ca=True)
    pem = issue("localhost", root, names=("localhost",)).write(folder / "localhost.pem", root)
    ca, users, password = folder / "ca.pem", folder / "users", folder / "password"
    ca.write_bytes(root.pem)
    users.write_text(f"{USER}:{hash_password(PASSWORD)}\n")
    password.write_text(PASSWORD)
    edge, smtps = find_port(set()), find_port(set())
    with contextlib.ExitStack() as stack:
        keeper = stack.enter_context(Keeper())
        servers = {}
        if not postfix.missing():
            more = f"smtp_tls_security_level = may\ntransport_maps = inline:{{out.test=smtp:[127.0.0.1]:{edge}}}\n"
            made = Postfix(folder / "postfix", hostname="postfix.test", relay_port=keeper.port, pem=pem, more=more)
            stack.enter_context(made)
            servers["postfix"] = made.port
        for name in ("exim", "opensmtpd"):
            if not missing(SERVERS[name]):
                foreign = Foreign(SERVERS[name], folder / name, pem=pem, out_port=edge, rest_port=keeper.port)
                stack.enter_context(foreign)
                servers[name] = foreign.port
        settings = SETTINGS.format(edge=edge, smtps=smtps, pem=pem, users=users)
        for name, port in servers.items():
            more = MORE[name].format(ca=ca, user=USER, file=password)
            settings += SMART_HOST.format(name=name, port=port, more=more)
        cluster = Cluster(folder / "c", relays=("A",), hosts=(), external={"keeper": keeper.port}, settings=settings)
        stack.enter_context(cluster)
        cluster.start()
        yield Scene(folder, cluster, keeper, servers, edge, smtps, ca)


# -- clients -----------------------------------------------------------------------------------------------------------

Send = Callable[[Scene, str, Letter, bytes], None]
PROTOCOLS = {"clear": "ESMTP", "starttls": "ESMTPSA", "implicit": "ESMTPSA"}
"""The ways, and how our Received field names them."""


def run(words: Sequence[str], stdin: bytes = b"") -> None:
    done = subprocess.run(words, input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])


def port_of(scene: Scene, way: str) -> int:
    return scene.smtps if way == "implicit" else scene.edge


def by_smtplib(scene: Scene, way: str, letter: Letter, data: bytes) -> None:
    context = ssl.create_default_context(cafile=str(scene.ca))
    implicit = way == "implicit"
    client = (
        smtplib.SMTP_SSL("localhost", scene.smtps, context=context)
        if implicit
        else smtplib.SMTP("localhost", scene.edge)
    )
    with client:
        if way == "starttls":
            client.starttls(context=context)
        if way != "clear":
            client.login(USER, PASSWORD)
        options = ["BODY=8BITMIME", *(["SMTPUTF8"] if letter.utf8 else [])]
        assert client.sendmail(letter.sender, letter.recipients, data, mail_options=options) == {}


def by_curl(scene: Scene, way: str, letter: Letter, data: bytes) -> None:
    scheme = "smtps" if way == "implicit" else "smtp"
    words = ["curl", "-sS", f"{scheme}://localhost:{port_of(scene, way)}/curl.test", "--cacert", str(scene.ca)]
    words += ["--mail-from", letter.sender, *(word for who in letter.recipients for word in ("--mail-rcpt", who))]
    words += ["--upload-file", str(scene.file(data))]
    run(words if way == "clear" else [*words, "--ssl-reqd", "--user", f"{USER}:{PASSWORD}"])


def by_swaks(scene: Scene, way: str, letter: Letter, data: bytes) -> None:
    words = ["swaks", "--server", "localhost", "--port", str(port_of(scene, way)), "--helo", "swaks.test", "--pipeline"]
    words += ["--from", letter.sender, "--to", ",".join(letter.recipients), "--suppress-data", "--no-data-fixup"]
    words += ["--data", f"@{scene.file(re.sub(rb'(?m)^[.]', b'..', data) + b'.')}"]
    tls = {"clear": [], "starttls": ["--tls"], "implicit": ["--tls-on-connect"]}[way]
    login = ["--auth", "LOGIN", "--auth-user", USER, "--auth-password", PASSWORD]
    run([*words, *tls, *(login if way != "clear" else [])])


def by_msmtp(scene: Scene, way: str, letter: Letter, data: bytes) -> None:
    words = [
        "msmtp",
        "--host=localhost",
        f"--port={port_of(scene, way)}",
        f"--from={letter.sender}",
        "--domain=msmtp.test",
    ]
    if way != "clear":
        words += ["--tls=on", f"--tls-starttls={'on' if way == 'starttls' else 'off'}", f"--tls-trust-file={scene.ca}"]
        words += ["--auth=plain", f"--user={USER}", f"--passwordeval=echo '{PASSWORD}'"]
    run([*words, "--", *letter.recipients], data.replace(b"\r\n", b"\n"))


NODEMAILER = """\
const [options, envelope, path] = JSON.parse(process.argv[1]);
const transport = require('nodemailer').createTransport(options);
transport.sendMail({envelope, raw: {path}}).then(() => transport.close());
"""


def by_nodemailer(scene: Scene, way: str, letter: Letter, data: bytes) -> None:
    options = {"host": "localhost", "port": port_of(scene, way), "name": "node.test", "secure": way == "implicit"}
    if way == "clear":
        options["ignoreTLS"] = True
    else:
        options |= {"requireTLS": True, "auth": {"user": USER, "pass": PASSWORD}, "tls": {"ca": scene.ca.read_text()}}
    envelope = {"from": letter.sender, "to": list(letter.recipients), "use8BitMime": True}
    words = json.dumps([options, envelope, str(scene.file(data))])
    with_path = ["env", f"NODE_PATH={PEERS}/npm/node_modules"]
    run([*with_path, "node", "-e", NODEMAILER, words])


CLIENTS: dict[str, Send] = {
    "smtplib": by_smtplib,
    "curl": by_curl,
    "swaks": by_swaks,
    "msmtp": by_msmtp,
    "nodemailer": by_nodemailer,
}
NO_UTF8 = {"msmtp": "msmtp knows no SMTPUTF8", "swaks": "swaks knows no SMTPUTF8"}
"""Clients of 2023; what they cannot is not ours to test."""


def absent(client: str) -> str:
    if client == "nodemailer":
        there = find_command("node") and (PEERS / "npm" / "node_modules" / "nodemailer").exists()
        return "" if there else "needs node and nodemailer (python3 deploy/run.py test installs it, where npm is)"
    return "" if client == "smtplib" or find_command(client) else f"needs {client}"


def plan() -> list[tuple[str, str, str]]:
    """Client, way, letter: every client in every way, and every letter in one."""
    if FULL:
        return [(client, way, letter) for client in CLIENTS for way in PROTOCOLS for letter in LETTERS]
    ways = [(client, way, "text") for client in CLIENTS for way in PROTOCOLS]
    return ways + [(client, "clear", letter) for client in CLIENTS for letter in LETTERS if letter != "text"]


@pytest.mark.parametrize(("client", "way", "letter"), plan())
@pytest.mark.rfc("4954 7", "5321 3.6.3", "5321 4.4b", "5321 4.5.2a", "6152 3a", "6531 3.7.3")
def test_what_a_client_sends_arrives_octet_by_octet(scene: Scene, client: str, way: str, letter: str) -> None:
    if absent(client):
        pytest.skip(absent(client))
    if letter == "utf8" and client in NO_UTF8:
        pytest.skip(NO_UTF8[client])
    what = LETTERS[letter]
    word, data = scene.write(what)
    CLIENTS[client](scene, way, what, data)
    kept = scene.arrived(word, len(what.recipients))
    assert sorted(who for message in kept for who in message.recipients) == sorted(what.recipients)
    assert {message.sender for message in kept} == {what.sender}
    assert {message.below(1) for message in kept} == {data}
    protocol = PROTOCOLS[way] if letter != "utf8" else PROTOCOLS[way].replace("ESMTP", "UTF8SMTP")
    assert all(f" with {protocol} id ".encode() in message.data.partition(b";")[0] for message in kept)


# -- servers -----------------------------------------------------------------------------------------------------------


def submit(port: int, letter: Letter, data: bytes, recipients: Sequence[str]) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=TIMEOUT_S) as client:
        options = ["BODY=8BITMIME", *(["SMTPUTF8"] if letter.utf8 else [])]
        assert client.sendmail(letter.sender, recipients, data, mail_options=options) == {}


def check_server(scene: Scene, server: str, letter: str) -> None:
    if server not in scene.servers:
        pytest.skip(postfix.missing() if server == "postfix" else missing(SERVERS[server]))
    if server == "opensmtpd" and letter == "utf8":
        pytest.skip("OpenSMTPD knows no SMTPUTF8; what then becomes of the mail has a test of its own")


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("server", SERVERS)
def test_what_a_server_sends_on_to_us_keeps_its_body(scene: Scene, server: str, letter: str) -> None:
    check_server(scene, server, letter)
    what = LETTERS[letter]
    word, data = scene.write(what)
    submit(scene.servers[server], what, data, what.recipients)
    kept = scene.arrived(word, len(what.recipients))
    assert sorted(who for message in kept for who in message.recipients) == sorted(what.recipients)
    assert {message.sender for message in kept} == {what.sender}
    assert {message.body for message in kept} == {what.body}
    protocol = ("UTF8SMTP" if what.utf8 else "ESMTP") + ("S" if server == "postfix" else "SA")
    assert all(f" with {protocol} id ".encode() in message.data.partition(b";")[0] for message in kept)


@pytest.mark.parametrize("letter", LETTERS)
@pytest.mark.parametrize("server", SERVERS)
def test_what_we_send_to_a_server_keeps_its_body(scene: Scene, server: str, letter: str) -> None:
    check_server(scene, server, letter)
    what = LETTERS[letter]
    word, data = scene.write(what)
    recipients = [who.replace("out.test", f"{server}.test") for who in what.recipients]
    submit(scene.edge, what, data, recipients)
    kept = scene.arrived(word, len(recipients))
    assert sorted(who for message in kept for who in message.recipients) == sorted(recipients)
    assert {message.body for message in kept} == {what.body}
    attempts = events(scene.cluster.relays["relay A"].server.log, "attempt")
    used = {line["tls"].rpartition(" ")[2] for line in attempts if line["next_hop"] == f"host:{server}"}
    assert used == {"verified"} or (server == "opensmtpd" and used <= {"", "unverified"})


@pytest.mark.rfc("6531 3.2a")
def test_mail_that_a_server_cannot_take_comes_back_with_the_reason(scene: Scene) -> None:
    if "opensmtpd" not in scene.servers:
        pytest.skip(missing("smtpd"))
    what = LETTERS["utf8"]
    word, data = scene.write(what)
    submit(scene.edge, what, data, ["b\u00fccher@opensmtpd.test"])
    (report,) = scene.arrived(word, 1)
    assert (report.sender, report.recipients) == ("", [what.sender])
    assert b"\r\nAction: failed\r\nStatus: 5.6.7\r\n" in report.data
