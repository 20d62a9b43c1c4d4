"""Hosts that the cluster does not know: no gossip, no transfer between peers, no relaying. One log line each."""

import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan, Relay, find_port
from smtp_edge.demo.watch import AdminCalls
from tests.e2e.scene import events, wait_until
from tests.e2e.strangers import call

REFUSED_WITHIN_S = 10.0


@pytest.fixture
def public_port() -> int:
    return find_port(set())


@pytest.fixture
def relay(folder: Path, public_port: int) -> Iterator[Relay]:
    public = f'[[listener]]\nname = "public"\nlisten = "127.0.0.1:{public_port}"\nrelay_domains = ["ours.test"]\n'
    with Cluster(folder, relays=("A",), hosts=(HostPlan("S"),), settings=public) as cluster:
        cluster.start()
        yield cluster.relays["relay A"]


def test_a_caller_without_a_certificate_does_not_gossip(relay: Relay) -> None:
    call(relay.ports["gossip"])
    log = relay.server.log
    wait_until(lambda: events(log, "gossip.handshake_refused"), REFUSED_WITHIN_S, "a log line")
    assert len(events(log, "gossip.handshake_refused", "gossip.peer_refused")) == 1


def test_a_caller_without_a_certificate_does_not_transfer_mail(relay: Relay) -> None:
    assert b"220" not in call(relay.ports["mesh"], protocol="smtp")
    log = relay.server.log
    wait_until(lambda: events(log, "mesh.peer_refused"), REFUSED_WITHIN_S, "a log line")
    assert len(events(log, "mesh.peer_refused")) == 1


def test_a_client_that_may_not_relay_is_refused_and_nothing_is_queued(relay: Relay, public_port: int) -> None:
    with smtplib.SMTP("127.0.0.1", public_port, timeout=20) as client:
        client.ehlo("stranger.test")
        assert client.mail("a@stranger.test")[0] == 250
        code, text = client.rcpt("b@elsewhere.test")
        assert (code, text[:5]) in {(550, b"5.7.1"), (554, b"5.7.1")}
        assert client.rcpt("b@ours.test")[0] == 250
        client.rset()
    assert AdminCalls({"relay A": relay.admin}).waiting("relay A") == 0
