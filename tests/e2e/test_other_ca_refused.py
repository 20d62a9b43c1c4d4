"""A node whose certificate comes from another authority stays outside, with one log line for each try."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority
from smtp_edge.demo.cluster import CLUSTER_NAME, Cluster, HostPlan, Relay
from tests.e2e.scene import admin_calls, events, wait_members, wait_until
from tests.e2e.strangers import call

REFUSALS = ("gossip.handshake_refused", "gossip.peer_refused")
REFUSED_WITHIN_S = 15.0


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder, relays=("A", "B"), hosts=(HostPlan("S"),)) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def other() -> Authority:
    """Same cluster name, another key."""
    return Authority.create(CLUSTER_NAME, at=datetime.now(UTC))


def test_one_gossip_connection_with_a_foreign_certificate_is_one_line(cluster: Cluster, other: Authority) -> None:
    relay = cluster.relays["relay A"]
    call(relay.ports["gossip"], authority=other)
    wait_until(lambda: events(relay.server.log, *REFUSALS), REFUSED_WITHIN_S, "a log line")
    assert len(events(relay.server.log, *REFUSALS)) == 1


def test_one_mesh_connection_with_a_foreign_certificate_is_one_line(cluster: Cluster, other: Authority) -> None:
    relay = cluster.relays["relay A"]
    assert b"220" not in call(relay.ports["mesh"], authority=other, protocol="smtp")
    wait_until(lambda: events(relay.server.log, "mesh.peer_refused"), REFUSED_WITHIN_S, "a log line")
    assert len(events(relay.server.log, "mesh.peer_refused")) == 1


def test_a_whole_node_of_another_authority_does_not_become_a_member(cluster: Cluster, other: Authority) -> None:
    intruder: Relay = cluster.add_relay("X", authority=other)
    intruder.server.spawn()
    cluster.wait_relay(intruder)
    calls = admin_calls(cluster)
    logs = [cluster.relays[relay].server.log for relay in ("relay A", "relay B")]
    wait_until(lambda: all(events(log, *REFUSALS) for log in logs), REFUSED_WITHIN_S, "a refusal by both members")
    assert [calls.members(relay) for relay in ("relay A", "relay B", "relay X")] == [2, 2, 1]
    nodes = calls.call("relay A", "ListNodes")
    assert nodes is not None
    assert sorted(node.name for node in nodes.nodes) == ["relay-a", "relay-b"]


def test_the_members_find_each_other_all_the_same(cluster: Cluster) -> None:
    wait_members(cluster, admin_calls(cluster))
