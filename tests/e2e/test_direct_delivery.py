"""A relay delivers to exchangers that DNSSEC, DANE and MTA-STS speak for: Knot, Unbound, Postfix, an HTTPS policy host.

smtplib -> relay A ──MX──> Postfix (exchanger of all domains) -> a server that writes down what arrives
"""

from __future__ import annotations

import contextlib
import smtplib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan, find_port
from tests.e2e import nameservers, postfix
from tests.e2e.nameservers import Nameservers
from tests.e2e.postfix import Postfix
from tests.e2e.scene import events, records, wait_until
from tests.unit.smtp_edge.client.certificates import issue, row, tlsa

pytestmark = [
    pytest.mark.peer("postfix", "knotd", "unbound"),
    pytest.mark.skipif(bool(nameservers.missing()), reason=nameservers.missing() or "names"),
    pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing() or "postfix"),
]

HOSTS = ("mx.signed.test", "ta.signed.test", "bare.signed.test", "wrong.signed.test", "mx.plain.test")
SENDER = "sender@demo.test"
SETTINGS = """\
[[route]]
name = "direct"
domains = ["*.signed.test", "*.broken.test", "*.plain.test"]
via = ["mx"]
[dns]
servers = ["127.0.0.1:{dns}"]
trust_ad = true
[mx]
port = {smtp}
refuse_networks = []
[mta_sts]
port = {https}
ca = "{ca}"
[[tls]]
domains = ["*.plain.test"]
level = "opportunistic"
ca = "{ca}"
"""
POLICIES = {
    "mta-sts.sts.plain.test": "version: STSv1\nmode: enforce\nmx: mx.plain.test\nmax_age: 86400\n",
    "mta-sts.strange.plain.test": "version: STSv1\nmode: enforce\nmx: mx.plain.test\nmax_age: 86400\n",
    "mta-sts.foreign.plain.test": "version: STSv1\nmode: enforce\nmx: elsewhere.test\nmax_age: 86400\n",
}


class PolicyHost(BaseHTTPRequestHandler):
    """Policies by the name in the request."""

    def do_GET(self) -> None:
        body = POLICIES.get(self.headers["Host"].partition(":")[0], "").encode()
        self.send_response(200 if body and self.path == "/.well-known/mta-sts.txt" else 404)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def policy_host(pem: Path) -> Iterator[int]:
    """Its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), PolicyHost)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join(5)


@dataclass
class Scene:
    """All that runs."""

    cluster: Cluster
    names: Nameservers

    def send(self, recipient: str, subject: str = "hello") -> None:
        text = f"Subject: {subject}\r\nFrom: x@demo.test\r\nX-Demo-Id: {recipient}\r\n\r\ntext\r\n"
        with smtplib.SMTP(*self.cluster.relays["relay A"].smtp, timeout=20) as client:
            assert client.sendmail(SENDER, [recipient], text) == {}

    def attempts(self, domain: str) -> list[dict[str, Any]]:
        log = self.cluster.relays["relay A"].server.log
        return [line for line in events(log, "attempt") if line["next_hop"] == f"mx:{domain}"]

    def attempt(self, domain: str) -> dict[str, Any]:
        """The first one to a domain."""
        wait_until(lambda: self.attempts(domain), 30, f"an attempt to {domain}")
        return self.attempts(domain)[0]

    def arrivals(self) -> list[dict[str, Any]]:
        return records(self.cluster.hosts["smart host S"].ledger)

    def arrived(self, recipient: str) -> None:
        wait_until(
            lambda: any(recipient in line["recipients"] for line in self.arrivals()), 30, f"mail for {recipient}"
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("direct")
    for parent in (folder, *folder.parents):
        if parent.stat().st_mode & 0o777 == 0o700 and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)  # Postfix changes users
    root = issue("root", ca=True)
    leaf = issue("mx", root, names=HOSTS[:-2] + HOSTS[-1:])
    pem = leaf.write(folder / "mx.pem", root)
    web = issue("web", root, names=tuple(POLICIES)).write(folder / "web.pem")
    ca = folder / "ca.pem"
    ca.write_bytes(root.pem)
    port = find_port(set())
    names = Nameservers(folder / "dns")
    for host in HOSTS:
        label, _, zone = host.partition(".")
        names.add(zone, f"{label} A 127.0.0.1")
    names.add(
        "signed.test",
        "good MX 10 mx",
        f"_{port}._tcp.mx TLSA {row(tlsa(leaf, 3))}",
        "chain MX 10 ta",
        f"_{port}._tcp.ta TLSA {row(tlsa(root, 2))}",
        "tlsless MX 10 bare",
        "forged MX 10 wrong",
        f"_{port}._tcp.wrong TLSA {row(tlsa(issue('other'), 3))}",
        "second MX 10 wrong",
        "second MX 20 mx",
        "null MX 0 .",
    )
    names.add("broken.test", "any MX 10 mx", "mx A 127.0.0.1")
    for label in ("sts", "foreign", "strange"):
        names.add("plain.test", f'_mta-sts.{label} TXT "v=STSv1; id=a1"', f"mta-sts.{label} A 127.0.0.1")
    names.add("plain.test", "open MX 10 mx", "sts MX 10 mx", "foreign MX 10 mx", "strange MX 10 odd", "odd A 127.0.0.1")
    with contextlib.ExitStack() as stack:
        stack.enter_context(names)
        https = stack.enter_context(policy_host(web))
        settings = SETTINGS.format(dns=names.port, smtp=port, https=https, ca=ca)
        cluster = Cluster(folder / "c", relays=("A",), hosts=(HostPlan("S"),), settings=settings)
        stack.enter_context(cluster)
        cluster.start()
        exchanger = Postfix(
            folder / "mx",
            hostname="mx.signed.test",
            port=port,
            relay_port=cluster.hosts["smart host S"].port,
            pem=pem,
        )
        stack.enter_context(exchanger)
        yield Scene(cluster, names)


@pytest.mark.parametrize(
    ("domain", "checked"),
    [
        ("good.signed.test", "dane-ee"),
        ("chain.signed.test", "dane-ta"),
        ("second.signed.test", "dane-ee"),  # the preferred exchanger shows another certificate than its record says
        ("tlsless.signed.test", ""),
        ("open.plain.test", ""),
        ("sts.plain.test", "verified mta-sts"),
    ],
)
def test_mail_arrives_over_tls_as_the_domain_asks(scene: Scene, domain: str, checked: str) -> None:
    scene.send(f"reader@{domain}")
    scene.arrived(f"reader@{domain}")
    line = scene.attempt(domain)
    assert (line["outcome"], line["tls"].partition(" ")[2].partition(" ")[2]) == ("accepted", checked)
    assert line["tls"].startswith("TLSv1.3 ")


@pytest.mark.parametrize(
    ("domain", "outcome", "reason"),
    [
        ("forged.signed.test", "tls-failed", "454 4.7.5 STARTTLS: DANE: the certificate matches no TLSA record"),
        ("foreign.plain.test", "tls-failed", "454 4.7.5 mx.plain.test is not in the MTA-STS policy of the domain"),
        ("strange.plain.test", "tls-failed", "454 4.7.5 odd.plain.test is not in the MTA-STS policy of the domain"),
        (
            "any.broken.test",
            "connect-failed",
            "DNS: the resolver could not find out (SERVFAIL) for MX of any.broken.test",
        ),
    ],
)
@pytest.mark.rfc("8461 5.1b")
def test_mail_waits_with_a_precise_reason_where_something_is_wrong(
    scene: Scene, domain: str, outcome: str, reason: str
) -> None:
    scene.send(f"reader@{domain}")
    line = scene.attempt(domain)
    assert (line["outcome"], line["reply"]) == (outcome, reason)
    assert not any(f"reader@{domain}" in arrival["recipients"] for arrival in scene.arrivals())


@pytest.mark.parametrize(("domain", "status"), [("null.signed.test", "5.1.10"), ("gone.signed.test", "5.1.2")])
def test_where_no_mail_can_go_the_sender_is_told_once(scene: Scene, domain: str, status: str) -> None:
    before = sum(line["sender"] == "" for line in scene.arrivals())
    scene.send(f"reader@{domain}")
    assert status in scene.attempt(domain)["reply"]
    wait_until(lambda: sum(line["sender"] == "" for line in scene.arrivals()) > before, 30, "the report")
    assert sum(line["sender"] == "" for line in scene.arrivals()) == before + 1
    assert len(scene.attempts(domain)) == 1
