"""Ten gossip processes, each in a network namespace of its own: the network parts and heals, or drops one way only.

The long form (`SMTPMESH_E2E_FULL=1`) parts for 30 s instead of 12 s.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossip.settings import GossipSettings
from tests.bench.lab.cluster import GossipCluster, Process
from tests.bench.lab.namespaces import Halves, unavailable
from tests.e2e.scene import FULL, wait_until

pytestmark = pytest.mark.peer("ip")
COUNT = 10
PARTED_S = 30.0 if FULL else 12.0
HEAL_MAX_S = 15.0
"""Three times the bar of 5 s: this machine does other things too."""
ONE_WAY_MAX_S = 15.0
TOLD_S = GossipSettings().hold_sessions_max_s + 1
"""Sessions that are new since the heal are told by then: a node is not known by the one that is blocked alone."""
STABLE_S = 3.0
"""Redials are due within this time, and must not bring half a session."""


@pytest.fixture(scope="module")
def halves() -> Iterator[Halves]:
    reason = unavailable()
    if reason:
        pytest.skip(reason)
    with Halves([f"m{number}" for number in range(1, COUNT + 1)]) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(halves: Halves) -> Iterator[GossipCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="sm-e2e-") as folder,
        GossipCluster(Path(folder), COUNT, inside=halves.inside, host_of=halves.host) as made,
    ):
        made.start()
        made.wait_equal(30)
        yield made


def test_after_a_partition_all_ten_are_equal_again_with_what_changed_on_both_sides(
    halves: Halves, cluster: GossipCluster
) -> None:
    west, east = cluster.names[: COUNT // 2], cluster.names[COUNT // 2 :]
    halves.part()
    parted = time.monotonic()
    cluster.processes[west[0]].tell("publish of-the-west")
    cluster.processes[east[0]].tell("publish of-the-east")
    wait_until(lambda: all(lost(cluster, name) >= set(east) for name in west), PARTED_S, "west lost the whole east")
    wait_until(lambda: all(lost(cluster, name) >= set(west) for name in east), PARTED_S, "east lost the whole west")
    print(f"both halves lost each other within {time.monotonic() - parted:.1f} s")
    time.sleep(max(0.0, parted + PARTED_S - time.monotonic()))
    assert not any(lost(cluster, name) & set(west) for name in west), cluster.missing()
    assert not any(lost(cluster, name) & set(east) for name in east), cluster.missing()
    assert all(marks(cluster.processes[name]) == {"of-the-west"} for name in west)
    assert all(marks(cluster.processes[name]) == {"of-the-east"} for name in east)

    halves.heal()
    healed = time.monotonic()
    equal_s = cluster.wait_equal(HEAL_MAX_S) - healed
    whole_s = cluster.wait_whole(HEAL_MAX_S) - healed
    print(f"equal {equal_s:.1f} s and whole {whole_s:.1f} s after the heal")
    assert all(marks(process) == {"of-the-west", "of-the-east"} for process in cluster.running())


def test_a_link_that_drops_one_way_is_lost_to_both_and_the_two_still_hear_of_each_other(
    halves: Halves, cluster: GossipCluster
) -> None:
    cluster.wait_whole(HEAL_MAX_S)
    time.sleep(TOLD_S)
    sender, receiver = a_session(cluster)
    halves.block(sender.name, receiver.name)
    blocked = time.monotonic()
    try:
        wait_until(lambda: not in_session(cluster, sender, receiver), ONE_WAY_MAX_S, "the sender lost the session")
        wait_until(lambda: not in_session(cluster, receiver, sender), ONE_WAY_MAX_S, "the receiver lost the session")
        print(f"{sender.name} -> {receiver.name}: lost to both within {time.monotonic() - blocked:.1f} s")
        sender.tell("publish around")
        wait_until(lambda: "around" in marks(receiver), 5, "a change of the sender comes through others")
        time.sleep(STABLE_S)
        assert not in_session(cluster, sender, receiver)
        assert not in_session(cluster, receiver, sender)
        assert cluster.losses(blocked) == [], cluster.missing()
    finally:
        halves.unblock(sender.name, receiver.name)


def a_session(cluster: GossipCluster) -> tuple[Process, Process]:
    """Two nodes that have one, on the same bridge."""
    first, *others = cluster.processes.values()
    return first, next(other for other in others if in_session(cluster, first, other))


def in_session(cluster: GossipCluster, one: Process, other: Process) -> bool:
    """True while the one has a session with the other."""
    return cluster.identifier(other.name) in one.ask("status")["sessions"]


def lost(cluster: GossipCluster, name: str) -> set[str]:
    """Whom a node has out of reach."""
    reached = set(cluster.processes[name].reached)
    return {other for other in cluster.names if other != name and cluster.identifier(other) not in reached}


def marks(process: Process) -> set[str]:
    """Changes that arrived here."""
    return {event["mark"] for event in list(process.events) if event["event"] == "stored"}
