"""A DNS of our own on loopback: Knot with signed zones, and Unbound, which validates them and says so (AD).

    signed.test    signed, the resolver has its key
    broken.test    signed, the resolver has another key: whatever it says is bogus
    plain.test     not signed

Neither touches what the machine itself uses; both run as whoever runs the tests, on free ports.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType

import dns.exception
import dns.message
import dns.query
import dns.rcode

from smtp_edge.demo.cluster import find_port
from tests.conftest import find_command
from tests.e2e.scene import wait_until

ZONES = ("signed.test", "broken.test", "plain.test")
START_TIMEOUT_S = 15.0
WRONG_KEY = "257 3 13 " + "A" * 86 + "=="
HEAD = """\
$ORIGIN {zone}.
$TTL 60
@ SOA ns.{zone}. mail.{zone}. {serial} 3600 600 86400 60
@ NS ns
ns A 127.0.0.1
"""
KNOT = """\
server:
    rundir: "{folder}"
    listen: 127.0.0.1@{port}
log:
  - target: "{folder}/knot.log"
    any: info
database:
    storage: "{folder}/db"
policy:
  - id: now
    algorithm: ecdsap256sha256
    single-type-signing: on
template:
  - id: default
    storage: "{folder}"
    file: "%s.zone"
    journal-content: none
    zonefile-load: whole
    zonefile-sync: -1
zone:
  - domain: signed.test
    dnssec-signing: on
    dnssec-policy: now
  - domain: broken.test
    dnssec-signing: on
    dnssec-policy: now
  - domain: plain.test
"""
UNBOUND = """\
server:
    directory: "{folder}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    logfile: "{folder}/unbound.log"
    interface: 127.0.0.1@{port}
    port: {port}
    do-ip6: no
    do-daemonize: no
    do-not-query-localhost: no
    module-config: "validator iterator"
    harden-below-nxdomain: yes
    cache-max-ttl: 0
    cache-max-negative-ttl: 0
    local-zone: "test." nodefault
    domain-insecure: "plain.test"
    trust-anchor: "signed.test. DNSKEY {key}"
    trust-anchor: "broken.test. DNSKEY {wrong}"
remote-control:
    control-enable: no
"""
STUB = """\
stub-zone:
    name: "{zone}"
    stub-addr: 127.0.0.1@{knot_port}
"""


def missing() -> str:
    """Which program is missing; empty if none is."""
    gone = [command for command in ("knotd", "unbound") if find_command(command) is None]
    return f"needs {', '.join(gone)}" if gone else ""


class Nameservers:
    """Both servers; `port` is the resolver's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self._knot_port = find_port(set()), 0
        self._records: dict[str, list[str]] = {zone: [] for zone in ZONES}
        self._serial = 1
        self._knot: subprocess.Popen[bytes] | None = None
        self._unbound: subprocess.Popen[bytes] | None = None

    def add(self, zone: str, *records: str) -> None:
        """Rows of a zone, as `@ MX 10 mx`; before `start`."""
        self._records[zone] += records

    def start(self) -> None:
        """Start both, the resolver with the key that the other has just made."""
        self._knot_port = find_port({self.port})
        (self.folder / "db").mkdir(parents=True)
        (self.folder / "knot.conf").write_text(KNOT.format(folder=self.folder, port=self._knot_port))
        for zone, records in self._records.items():
            text = HEAD.format(zone=zone, serial=self._serial) + "\n".join(records) + "\n"
            (self.folder / f"{zone}.zone").write_text(text)
        self._knot = self._run("knotd", "knot.conf")
        wait_until(lambda: self._key(), START_TIMEOUT_S, f"a signed zone; see {self.folder}/knot.log")
        text = UNBOUND.format(folder=self.folder, port=self.port, key=self._key(), wrong=WRONG_KEY)
        text += "".join(STUB.format(zone=zone, knot_port=self._knot_port) for zone in ZONES)
        (self.folder / "unbound.conf").write_text(text)
        self._unbound = self._run("unbound", "unbound.conf", "-d")
        wait_until(self._resolves, START_TIMEOUT_S, f"a resolver; see {self.folder}/unbound.log")

    def stop_zones(self) -> None:
        """No authority answers any more: the resolver says SERVFAIL."""
        _end(self._knot)
        self._knot = None

    def stop(self) -> None:
        """End both."""
        for process in (self._knot, self._unbound):
            _end(process)

    def _run(self, command: str, configuration: str, *more: str) -> subprocess.Popen[bytes]:
        path = find_command(command)
        assert path is not None
        words = [path, "-c", str(self.folder / configuration), *more]
        with (self.folder / f"{command}.out").open("wb") as out:
            return subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)

    def _key(self) -> str:
        answer = self._ask("signed.test", "DNSKEY", self._knot_port)
        found = [rrset for rrset in answer.answer if rrset.rdtype == 48] if answer is not None else []
        return found[0][0].to_text() if found else ""

    def _resolves(self) -> bool:
        answer = self._ask("signed.test", "SOA", self.port)
        return answer is not None and answer.rcode() == dns.rcode.NOERROR and bool(answer.answer)

    def _ask(self, name: str, kind: str, port: int) -> dns.message.Message | None:
        query = dns.message.make_query(name, kind, want_dnssec=True)
        try:
            return dns.query.udp(query, "127.0.0.1", timeout=0.5, port=port)
        except (dns.exception.DNSException, OSError):
            time.sleep(0.02)
            return None

    def __enter__(self) -> Nameservers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait(10)
