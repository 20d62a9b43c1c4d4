"""SIGHUP: a revoked relay is shut out by all, and a renewed certificate is shown on every door, without a restart."""

import signal
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import certificate_der, node_id_of, replace_file
from gossip.revocation import build_text
from smtp_edge.demo.cluster import Cluster, HostPlan, Relay
from tests.e2e.scene import admin_calls, events, wait_members, wait_until


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder, relays=("A", "B", "C"), hosts=(HostPlan("S"),)) as cluster:
        cluster.start()
        yield cluster


def hang_up(relay: Relay) -> None:
    assert relay.server.process is not None
    relay.server.process.send_signal(signal.SIGHUP)


def test_a_relay_revoked_at_one_node_is_gone_at_all(cluster: Cluster) -> None:
    calls = admin_calls(cluster)
    wait_members(cluster, calls)
    first, gone = cluster.relays["relay A"], cluster.relays["relay C"]
    node_id = node_id_of(certificate_der((gone.folder / "node.crt").read_bytes()))
    revocation = cluster.authority.revoke(node_id, at=datetime.now(UTC), reason="test")
    (first.folder / "revocations").mkdir()
    text = build_text(revocation.encode(), cluster.authority.sign_revocation(revocation))
    (first.folder / "revocations" / f"{node_id}.revoked").write_text(text)
    hang_up(first)
    others = ("relay A", "relay B")
    wait_until(
        lambda: all(
            {node.node_id for node in calls.call(name, "ListNodes").nodes} & {node_id} == set() for name in others
        ),
        10.0,
        "nobody knows the revoked relay",
    )
    assert [calls.members(name) for name in others] == [2, 2]
    wait_until(lambda: events(gone.server.log, "gossip.revoked") or calls.members("relay C") == 1, 10.0, "it is alone")


def test_a_renewed_certificate_is_on_both_doors_after_a_signal(cluster: Cluster) -> None:
    calls = admin_calls(cluster)
    wait_members(cluster, calls)
    relay = cluster.relays["relay B"]
    path = relay.folder / "node.crt"
    renewed = cluster.authority.renew(certificate_der(path.read_bytes()), at=datetime.now(UTC), days=30)
    replace_file(path, renewed, mode=0o644)
    hang_up(relay)
    wait_until(lambda: events(relay.server.log, "node.reloaded"), 10.0, "the node says that it has read its files")
    for door in ("gossip", "mesh"):
        shown = ssl.get_server_certificate(("127.0.0.1", relay.ports[door]), timeout=5.0)
        assert ssl.PEM_cert_to_DER_cert(shown) == certificate_der(renewed), door
    assert [calls.members(name) for name in cluster.relays] == [3, 3, 3]
    assert events(relay.server.log, "gossip.session") == [
        line for line in events(relay.server.log, "gossip.session") if line["up"]
    ]


def test_a_damaged_certificate_is_refused_and_the_old_one_stays(cluster: Cluster) -> None:
    relay = cluster.relays["relay B"]
    (relay.folder / "node.crt").write_text("no certificate")
    hang_up(relay)
    wait_until(lambda: events(relay.server.log, "node.reload_refused"), 10.0, "the refusal")
    assert "node.crt" in events(relay.server.log, "node.reload_refused")[0]["reason"]
    assert relay.server.alive
