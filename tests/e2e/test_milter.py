"""The milter sink and the filters that others run: opendkim signs, clamav-milter scans, rspamd judges; three faults.

smtplib -> relay A (sink milter) -> smart host K, which keeps what comes;  each filter has a folder of its own
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import smtplib
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from smtp_edge.demo.cluster import Cluster, Relay, find_port
from smtp_edge.envelope import Client
from smtp_edge.sinks.testing import ask
from tests.conftest import find_command
from tests.e2e.keeper import Keeper
from tests.e2e.scene import wait_until
from tests.e2e.test_clamav import MALWARE, clamd, lie
from tests.e2e.test_drain import smtpmesh
from tests.unit.smtp_edge.applications.milter.test_sink import milter, packet
from tests.unit.smtp_edge.applications.test_dkim import verifies, write

OPENDKIM = """\
Mode s
Domain demo.test
Selector mesh
KeyFile {folder}/key.pem
RequireSafeKeys no
Canonicalization relaxed/simple
OversignHeaders From
Socket local:{folder}/filter.sock
"""
CLAMAV_MILTER = """\
MilterSocket unix:{folder}/filter.sock
ClamdSocket unix:{clamd}
Foreground yes
LogFile {folder}/log
User {user}
OnInfected Reject
RejectMsg infected with %v
AddHeader Replace
"""
RSPAMD = """\
options {{
  pidfile = "{folder}/pid";
  control_socket = "{folder}/control.sock mode=0600";
  hs_cache_dir = "{folder}";
  filters = "";
  url_tld = "{folder}/tld";
  dns {{ nameserver = ["127.0.0.1:1"]; timeout = 0.1s; retransmits = 1; }}
  enable_test_patterns = true;
  gtube_patterns = "all";
}}
lua = "{folder}/readdress.lua";
logging {{ type = "file"; filename = "{folder}/log"; }}
actions {{ reject = 15; rewrite_subject = 8; add_header = 6; subject = "[spam] %s"; }}
worker "rspamd_proxy" {{
  bind_socket = "127.0.0.1:{port}";
  count = 1;
  milter = yes;
  upstream "local" {{ default = yes; self_scan = yes; }}
}}
worker "rspamd_proxy" {{
  bind_socket = "127.0.0.1:{holding_port}";
  count = 1;
  milter = yes;
  quarantine_on_reject = yes;
  upstream "local" {{ default = yes; self_scan = yes; }}
}}
"""
READDRESS = """\
rspamd_config:register_symbol({
  name = "READDRESS",
  type = "postfilter",
  callback = function(task)
    if tostring(task:get_content()):find("readdress") then
      task:set_milter_reply({
        add_rcpt = {"<cat@demo.test>"},
        del_rcpt = {"<bob@demo.test>"},
        change_from = "bounces@demo.test",
        remove_headers = {["X-Virus-Status"] = 2},
        add_headers = {["X-Second"] = {value = "2", order = 2}},
      })
    end
  end,
})
rspamd_config:register_symbol({
  name = "REWRITE",
  type = "postfilter",
  callback = function(task)
    if tostring(task:get_content()):find("rewrite") then
      local text = task:get_rawbody():str():gsub("rewrite", "rewritten by a filter\\r\\n.and dots\\r\\n")
      task:set_message(tostring(task:get_raw_headers()) .. text)
    end
  end,
})
"""
GTUBE = b"JS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
"""Behind a letter it says what rspamd is to do with the mail."""
SINK = """
[[sink]]
use = "milter"
timeout = "{timeout}"
on_failure = "{policy}"
with = {{ address = "{address}", signs = {signs}, signed = "{signed}" }}
"""
HEADER = (
    b"From: Sue <sue@demo.test>\r\nTo: ann@demo.test,\r\n\tbob@demo.test\r\nSubject:  two\r\n blanks\r\n"
    b"X-Virus-Status: Clean (says who?)\r\nX-Virus-Status: no, really\r\n\r\n"
)


class Filter:
    """A daemon that was started for the test, and where it listens."""

    def __init__(self, command: Sequence[str], address: str) -> None:
        self.command, self.address = command, address
        self.start()

    def start(self) -> None:
        path = find_command(self.command[0])
        assert path is not None
        self.process = subprocess.Popen(
            [path, *self.command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
        )
        wait_until(self._listens, 60, f"{self.command[0]} at {self.address}")

    def _listens(self) -> bool:
        assert self.process.poll() is None, f"{self.command[0]} has ended"
        kind, _, where = self.address.partition(":")
        port, _, host = where.partition("@")
        with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as asked:
            return asked.connect_ex(where if kind == "unix" else (host, int(port))) == 0

    def kill(self) -> None:
        """And whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def running(command: Sequence[str], address: str) -> Iterator[Filter]:
    started = Filter(command, address)
    try:
        yield started
    finally:
        started.kill()


def configure(folder: Path, text: str, **settings: object) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conf").write_text(text.format(folder=folder, **settings))
    return str(folder / "conf")


@contextlib.contextmanager
def opendkim(folder: Path) -> Iterator[tuple[Filter, rsa.RSAPrivateKey]]:
    conf, key = configure(folder, OPENDKIM), rsa.generate_private_key(65537, 2048)
    write(folder, key)
    with running(["opendkim", "-f", "-x", conf], f"unix:{folder}/filter.sock") as signer:
        yield signer, key


@contextlib.contextmanager
def clamav_milter(folder: Path) -> Iterator[Filter]:
    user = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
    with clamd(folder / "clamd") as scanner:
        conf = configure(folder / "milter", CLAMAV_MILTER, clamd=scanner.socket, user=user)
        with running(["clamav-milter", "-c", conf], f"unix:{folder}/milter/filter.sock") as filter_:
            yield filter_


@contextlib.contextmanager
def rspamd(folder: Path) -> Iterator[tuple[str, str]]:
    """Addresses of two workers; the second asks for quarantine where the first rejects."""
    with rspamd_daemon(folder) as (_, address, holding):
        yield address, holding


@contextlib.contextmanager
def rspamd_daemon(folder: Path) -> Iterator[tuple[Filter, str, str]]:
    """With the daemon itself."""
    port = find_port(set())
    holding_port = find_port({port})
    folder.mkdir()
    (folder / "readdress.lua").write_text(READDRESS)
    (folder / "tld").write_text("test\n")
    conf = configure(folder, RSPAMD, port=port, holding_port=holding_port)
    with running(["rspamd", "-f", "--insecure", "-c", conf], f"inet:{port}@127.0.0.1") as daemon:
        yield daemon, f"inet:127.0.0.1:{port}", f"inet:{holding_port}@127.0.0.1"


def sink(
    address: str, *, signs: bool = False, policy: str = "tempfail", timeout: str = "30s", signed: str = "refuse"
) -> str:
    return SINK.format(address=address, signs=str(signs).lower(), policy=policy, timeout=timeout, signed=signed)


@contextlib.contextmanager
def relay_with(folder: Path, sinks: str) -> Iterator[tuple[Relay, Keeper]]:
    with Keeper() as keeper, contextlib.ExitStack() as stack:
        cluster = Cluster(folder, relays=("A",), hosts=(), external={"k": keeper.port}, settings=sinks)
        stack.enter_context(cluster).start()
        yield cluster.relays["relay A"], keeper


def send(relay: Relay, body: bytes, *names: str) -> tuple[int, str]:
    """The reply to the final dot."""
    with smtplib.SMTP(*relay.smtp, timeout=60) as client:
        client.ehlo()
        client.mail("sender@demo.test")
        for name in names or ("ann",):
            assert client.rcpt(f"{name}@demo.test")[0] == 250
        code, reply = client.data(HEADER + body + b"\r\n")
        return code, reply.decode()


def held_by(relay: Relay) -> list[dict[str, object]]:
    """What waits for an operator."""
    found: list[dict[str, object]] = json.loads(smtpmesh(relay, "queue", "--state", "held", "--json").stdout)[
        "deliveries"
    ]
    return found


@pytest.mark.peer("opendkim", "dkimverify")
def test_what_opendkim_has_signed_verifies_where_it_arrives(folder: Path) -> None:
    with (
        opendkim(folder / "opendkim") as (signer, key),
        relay_with(folder / "c", sink(signer.address, signs=True)) as (relay, keeper),
    ):
        large = b"".join(b".%07d \xc3\xa4  \r\n" % number for number in range(20_000))
        for body in (b"Hello  \r\n.dot\r\n\r\n\tworld\t!\r\n\r\n", b"", large):
            assert send(relay, body)[0] == 250
        wait_until(lambda: len(keeper.messages) == 3, 20, "all messages")
        for kept in keeper.messages:
            assert kept.data.startswith(b"Received: ")
            assert kept.below(1).startswith(b"DKIM-Signature: ")
            assert verifies(kept.data, key)
            assert not verifies(kept.data.replace(b"Sue", b"Eve"), key)


@pytest.mark.peer("opendkim", "dkimverify")
async def test_opendkim_signs_for_whoever_has_logged_in_from_wherever(folder: Path) -> None:
    with opendkim(folder) as (signer, key):
        for address in ("2001:db8::1", "192.0.2.1"):
            stranger = await ask(milter(signer.address), HEADER, client=Client(address, 4711))
            user = await ask(milter(signer.address), HEADER, client=Client(address, 4711, user="sue"))
            assert stranger.content == HEADER
            assert user.content.startswith(b"DKIM-Signature: ")
            assert verifies(user.content, key)


@pytest.mark.peer("clamd", "clamav-milter")
def test_malware_is_refused_by_clamav_milter_and_the_rest_is_labelled(folder: Path) -> None:
    with (
        clamav_milter(folder) as scanner,
        relay_with(folder / "c", sink(scanner.address)) as (relay, keeper),
    ):
        refused = (550, "5.7.1 infected with Smtpmesh.Test.UNOFFICIAL")
        assert send(relay, MALWARE) == refused
        assert send(relay, MALWARE, "ann", "bob") == refused
        assert send(relay, b"x" * 78 + (b"\r\n" + b"x" * 78) * 5_000 + b"\r\n" + MALWARE) == refused
        assert send(relay, b"harmless", "ann", "bob")[0] == 250
        wait_until(lambda: len(keeper.messages) >= 1, 20, "the clean message")
        labels = [line for line in keeper.messages[0].data.split(b"\r\n") if line.startswith(b"X-Virus-Status")]
        assert labels == [b"X-Virus-Status: Clean"], "those that came along are gone"
        assert {name for kept in keeper.messages for name in kept.recipients} <= {"ann@demo.test", "bob@demo.test"}


@pytest.mark.peer("clamd", "clamav-milter", "opendkim", "dkimverify")
def test_one_filter_signs_what_the_other_has_labelled(folder: Path) -> None:
    with (
        clamav_milter(folder) as scanner,
        opendkim(folder / "opendkim") as (signer, key),
        relay_with(folder / "c", sink(scanner.address) + sink(signer.address, signs=True)) as (relay, keeper),
    ):
        assert send(relay, MALWARE)[0] == 550
        assert send(relay, b"harmless")[0] == 250
        wait_until(lambda: len(keeper.messages) == 1, 20, "the clean message")
        assert b"\r\nX-Virus-Status: Clean\r\n" in keeper.messages[0].data
        assert verifies(keeper.messages[0].data, key)


@pytest.mark.peer("rspamd")
def test_rspamd_rejects_marks_and_renames(folder: Path) -> None:
    with rspamd(folder / "rspamd") as (address, _), relay_with(folder / "c", sink(address)) as (relay, keeper):
        assert send(relay, b"X" + GTUBE) == (554, "5.7.1 Gtube pattern")
        assert send(relay, b"X" + GTUBE, "ann", "bob") == (554, "5.7.1 Gtube pattern")
        for body in (b"Y" + GTUBE, b"Z" + GTUBE, b"harmless"):
            assert send(relay, body)[0] == 250
        wait_until(lambda: len(keeper.messages) == 3, 20, "what was not rejected")
        marked, renamed, harmless = (keeper.named(word)[0].below(1) for word in (b"YJS*", b"ZJS*", b"harmless"))
        assert harmless == HEADER + b"harmless\r\n"
        assert marked == HEADER[:-2] + b"X-Spam: Yes\r\n\r\n" + b"Y" + GTUBE + b"\r\n"
        assert renamed == HEADER.replace(b" two\r\n blanks", b"[spam] two blanks") + b"Z" + GTUBE + b"\r\n"


@pytest.mark.peer("rspamd")
def test_rspamd_readdresses_and_puts_fields_where_it_wants(folder: Path) -> None:
    with rspamd(folder / "rspamd") as (address, _), relay_with(folder / "c", sink(address)) as (relay, keeper):
        assert send(relay, b"readdress", "ann", "bob")[0] == 250
        wait_until(lambda: sum(len(kept.rcpts) for kept in keeper.messages) == 2, 20, "both copies")
        assert {name for kept in keeper.messages for name in kept.recipients} == {"ann@demo.test", "cat@demo.test"}
        assert {kept.sender for kept in keeper.messages} == {"bounces@demo.test"}
        header = HEADER.replace(b"X-Virus-Status: no, really\r\n", b"").replace(b"To:", b"X-Second: 2\r\nTo:")
        assert {kept.below(1) for kept in keeper.messages} == {header + b"readdress\r\n"}


@pytest.mark.peer("rspamd")
def test_rspamd_replaces_bodies_small_and_large_whole_byte_by_byte(folder: Path) -> None:
    with rspamd(folder / "rspamd") as (address, _), relay_with(folder / "c", sink(address)) as (relay, keeper):
        tail = b"".join(b".%07d \xc3\xa4  \r\n" % number for number in range(60_000))
        for rest in (b"", b"\r\n.\r\n..\r\nend", tail):
            assert send(relay, b"please rewrite" + rest)[0] == 250
        wait_until(lambda: len(keeper.messages) == 3, 30, "all messages")
        new = HEADER + b"please rewritten by a filter\r\n.and dots\r\n"
        for kept, rest in zip(keeper.messages, (b"", b"\r\n.\r\n..\r\nend", tail), strict=True):
            assert kept.below(1) == new + rest + b"\r\n"


@pytest.mark.peer("rspamd", "opendkim", "dkimverify")
@pytest.mark.parametrize("signed", ["refuse", "strip", "annotate", "resign"])
def test_a_body_that_is_signed_is_replaced_by_choice_alone(folder: Path, signed: str) -> None:
    """Signed by one relay with opendkim; at the next one rspamd wants to replace the body, and opendkim signs again."""
    with (
        opendkim(folder / "opendkim") as (signer, key),
        rspamd(folder / "rspamd") as (address, _),
        relay_with(folder / "s", sink(signer.address, signs=True)) as (first, outbox),
        relay_with(folder / "c", sink(address, signed=signed) + sink(signer.address, signs=True)) as (relay, keeper),
    ):
        assert send(first, b"please rewrite")[0] == 250
        wait_until(lambda: len(outbox.messages) == 1, 20, "the signed message")
        mail = outbox.messages[0].below(1)
        with smtplib.SMTP(*relay.smtp, timeout=60) as client:
            client.ehlo()
            client.mail("sender@demo.test")
            client.rcpt("ann@demo.test")
            reply = client.data(mail)
        if signed == "refuse":
            assert reply == (451, b"4.3.0 local error in processing")
            return
        assert reply[0] == 250
        wait_until(lambda: len(keeper.messages) == 1, 20, "the new body")
        (kept,) = keeper.messages
        assert kept.body.startswith(b"please rewritten by a filter\r\n")
        assert kept.data.count(b"DKIM-Signature: ") == (2 if signed == "annotate" else 1) + (signed == "resign")
        assert (b"X-smtpmesh-Modified: body changed by a filter; signed before: DKIM" in kept.data) is (
            signed == "annotate"
        )
        assert verifies(kept.data, key)


@pytest.mark.peer("rspamd")
def test_what_rspamd_wants_in_quarantine_waits_until_it_is_released(folder: Path) -> None:
    with rspamd(folder / "rspamd") as (_, address), relay_with(folder / "c", sink(address)) as (relay, keeper):
        assert send(relay, b"X" + GTUBE)[0] == 250
        (held,) = held_by(relay)
        assert "uarantined" in str(held), held
        assert smtpmesh(relay, "queue", "release", str(held["queue_id"])).returncode == 0
        wait_until(lambda: len(keeper.messages) == 1, 20, "the message that was released")


@pytest.mark.peer("opendkim", "dkimverify")
@pytest.mark.parametrize("policy", ["tempfail", "accept", "quarantine"])
def test_a_filter_that_is_down_stopped_or_mad_means_what_the_binding_says(folder: Path, policy: str) -> None:
    with (
        opendkim(folder / "opendkim") as (signer, key),
        relay_with(folder / "c", sink(signer.address, policy=policy, timeout="2s")) as (relay, keeper),
    ):
        path = signer.address.removeprefix("unix:")
        os.killpg(signer.process.pid, signal.SIGSTOP)
        replies = [send(relay, b"while it is stopped")]
        signer.kill()
        replies.append(send(relay, b"while it is down"))
        Path(path).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as liar:
            liar.bind(path)
            liar.listen()
            threading.Thread(target=lie, args=(liar,), daemon=True).start()
            replies.append(send(relay, b"while it is mad"))
            liar.shutdown(socket.SHUT_RDWR)
        Path(path).unlink(missing_ok=True)
        signer.start()
        assert send(relay, b"when it is well")[0] == 250
        if policy == "tempfail":
            assert replies == [(451, "4.3.0 local error in processing")] * 3
        else:
            assert [code for code, _ in replies] == [250] * 3
        wait_until(lambda: len(keeper.messages) >= (4 if policy == "accept" else 1), 20, "what may go on")
        held = held_by(relay)
        assert len(held) == (3 if policy == "quarantine" else 0)
        signed = [kept for kept in keeper.messages if b"DKIM-Signature" in kept.data]
        assert [b"when it is well" in kept.data for kept in signed] == [True]
        assert verifies(signed[0].data, key)
        for delivery in held:
            assert smtpmesh(relay, "queue", "release", str(delivery["queue_id"])).returncode == 0
        wait_until(lambda: len(keeper.messages) == (1 if policy == "tempfail" else 4), 20, "every message once")


@pytest.mark.peer("rspamd")
@pytest.mark.parametrize("policy", ["tempfail", "accept", "quarantine"])
def test_a_filter_that_fails_while_it_replaces_a_body_has_changed_nothing(folder: Path, policy: str) -> None:
    with (
        rspamd_daemon(folder / "rspamd") as (filter_, address, _),
        relay_with(folder / "c", sink(address, policy=policy, timeout="2s")) as (relay, keeper),
    ):
        os.killpg(filter_.process.pid, signal.SIGSTOP)
        replies = [send(relay, b"rewrite, stopped")]
        filter_.kill()
        replies.append(send(relay, b"rewrite, down"))
        host, _, port = address.removeprefix("inet:").rpartition(":")
        with half_a_body((host, int(port))):
            replies.append(send(relay, b"rewrite, mad"))
        filter_.start()
        assert send(relay, b"rewrite, well")[0] == 250
        expected = (451, "4.3.0 local error in processing") if policy == "tempfail" else None
        assert [reply if expected else reply[0] for reply in replies] == [expected or 250] * 3
        held = held_by(relay)
        assert len(held) == (3 if policy == "quarantine" else 0)
        for delivery in held:
            assert smtpmesh(relay, "queue", "release", str(delivery["queue_id"])).returncode == 0
        failed = set() if policy == "tempfail" else {b"rewrite, stopped", b"rewrite, down", b"rewrite, mad"}
        wait_until(lambda: len(keeper.messages) == 1 + len(failed), 20, "every message once")
        bodies = {kept.below(1).removeprefix(HEADER).removesuffix(b"\r\n") for kept in keeper.messages}
        assert bodies == {*failed, b"rewritten by a filter\r\n.and dots\r\n, well"}


@contextlib.contextmanager
def half_a_body(address: tuple[str, int]) -> Iterator[None]:
    """A filter that agrees to everything, begins a new body at the end of a message, and goes mad."""

    class Mad(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while prefix := self.rfile.read(4):
                told = self.rfile.read(int.from_bytes(prefix, "big"))[:1]
                if told == b"O":
                    self.wfile.write(packet(b"O", b"\0\0\0\6" + b"\0\0\1\xff" + b"\0\0\0\0"))
                elif told == b"E":
                    self.wfile.write(packet(b"b", b"half a bo") + b"\xff\xff\xff\xffdy")
                elif told != b"D":
                    self.wfile.write(packet(b"c"))

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with Server(address, Mad) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield
        server.shutdown()
