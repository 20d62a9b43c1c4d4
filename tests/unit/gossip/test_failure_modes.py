"""The failure modes that gossip must survive, one test each, on real machines in virtual time."""

from __future__ import annotations

import dataclasses
import os
import random

import pytest

from gossip.database import Verifier
from gossip.frames import Aged, Chunk, Push, Record
from gossip.identity import IdentityError
from gossip.linkstate import (
    ClassLoad,
    Key,
    Kind,
    LinkState,
    LinkStatus,
    Load,
    NodeId,
    NodeInfo,
    Opaque,
    Urgency,
    Version,
)
from gossip.settings import GossipSettings
from gossip.status import EventKind
from gossip.wire import EPOCH_MAX, WireError, decode_record, encode_body
from smtp_edge.simulation import GossipWorld, Network
from smtp_edge.simulation.stub import certificate_of, member_of, sign_as
from smtpmesh.gossip.v1 import gossip_pb2 as pb

WALL = 1_780_000_000


def dead_for_all(world: GossipWorld, node: NodeId) -> bool:
    return all(world.knows_dead(other, node) for other in world.alive() if other != node)


def blamed(world: GossipWorld, *guilty: NodeId) -> list[tuple[float, NodeId, NodeId, str]]:
    """Losses of nodes that had done nothing."""
    return [loss for loss in world.losses if loss[2] not in guilty and loss[3] != "no longer neighbours"]


def status_of(world: GossipWorld, at: NodeId, of: NodeId) -> LinkStatus:
    record = world.database(at).get(Key(of, Kind.LINKS))
    assert record is not None
    return record.payload.links[0].status


def set_status(world: GossipWorld, node: NodeId, status: LinkStatus) -> None:
    links = world.by_id[node].links
    world.publish_links(node, [dataclasses.replace(links[0], status=status), *links[1:]])


def forge(origin: NodeId, kind: int, payload: object, *, version: Version, signer: NodeId | None = None) -> Record:
    body = encode_body(
        Key(origin, kind),
        version,
        "simulated",
        payload,  # type: ignore[arg-type]
        certificate=certificate_of(origin) if kind == Kind.NODE else b"",
        issued_at=WALL,
        lifetime_s=1000,
    )
    return decode_record(body, sign_as(signer or origin, body))


def hand(world: GossipWorld, at: NodeId, by: NodeId, *records: Record, age_s: float = 0.0) -> None:
    """One node gives another one records, whatever it holds itself."""
    stream = world.by_id[by].streams[at]
    world._send(stream, by, at, Push(tuple(Aged(record, age_s) for record in records)))


# -- crashes and silence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 10, 60])
def test_a_crash_is_known_to_all_within_half_a_second_and_nobody_else_is_blamed(count: int) -> None:
    world = GossipWorld.converged(count)
    world.run(3)
    victim = world.nodes[1]
    world.kill(victim)
    world.run(0.5)
    assert dead_for_all(world, victim)
    world.run(30)
    assert blamed(world, victim) == []
    assert len(world.roots()) == 1


@pytest.mark.parametrize("count", [3, 10, 60])
def test_a_black_hole_is_known_to_all_within_six_seconds_and_nobody_else_is_blamed(count: int) -> None:
    world = GossipWorld.converged(count)
    world.run(20)
    victim = world.nodes[1]
    world.vanish(victim)
    world.run(6)
    assert dead_for_all(world, victim)
    world.run(30)
    assert blamed(world, victim) == []


@pytest.mark.parametrize("pause_s", [2.0, 5.0, 12.0, 60.0])
def test_a_paused_process_accuses_nobody_and_comes_back(pause_s: float) -> None:
    world = GossipWorld.converged(12)
    world.run(10)
    victim = world.nodes[4]
    world.freeze(victim, pause_s)
    world.run(pause_s + 20)
    assert blamed(world, victim) == []
    assert not any(world.database(node).isolated(victim) for node in world.nodes)
    assert len(world.roots()) == 1


def test_starved_processes_on_a_lossy_network_cost_no_healthy_node_its_place() -> None:
    world = GossipWorld.converged(40, network=Network(random.Random(5), loss=0.05), seed=5)
    rng, starved = random.Random(5), set(GossipWorld.converged(40, seed=5).nodes[:4])

    def starve(node: NodeId) -> None:
        world.freeze(node, min(8.0, rng.expovariate(1.0)))
        world.at(rng.expovariate(0.5), starve, node)

    for node in starved:
        starve(node)
    world.run(120)
    assert blamed(world, *starved) == []


def test_a_restart_in_place_blames_nobody() -> None:
    world = GossipWorld.converged(20)
    world.run(5)
    victim = world.nodes[7]
    world.kill(victim)
    world.at(0.8, world.restart, victim)
    world.run(30)
    assert blamed(world, victim) == []
    assert len(world.roots()) == 1
    assert not any(world.database(node).isolated(victim) for node in world.nodes)


def test_a_connection_that_breaks_and_is_made_again_is_no_news_for_anybody() -> None:
    world = GossipWorld.converged(6)
    world.run(5)
    told: list[Record] = []
    world.on_stored = lambda node, record: told.append(record) if record.key.kind == Kind.SESSIONS else None
    for peer in world.nodes[1:]:
        world.reset(world.nodes[0], peer)
        world.run(3)
    assert len(world.by_id[world.nodes[0]].streams) == 5
    assert told == []
    assert world.losses == []


def test_a_session_that_is_no_longer_needed_is_taken_back_without_haste() -> None:
    """A newcomer takes places on the rings: those who were neighbours part, and nobody has lost anybody."""
    world = GossipWorld.converged(30)
    world.run(5)
    told: list[Record] = []
    world.on_stored = lambda node, record: told.append(record) if record.key.kind == Kind.SESSIONS else None
    for index in range(3):
        world.join(2000 + index)
    world.run(90)
    fewer = [record for record in told if record.key.origin in world.nodes[:30]]
    assert fewer
    assert all(record.urgency is not Urgency.WITHDRAW for record in fewer)


def test_a_session_that_follows_a_broken_one_and_stays_deaf_is_withdrawn() -> None:
    world = GossipWorld.converged(3)
    world.run(5)
    one, other = world.nodes[:2]
    world.reset(one, other)
    assert world.run_until(lambda: other in world.by_id[one].streams, 2)
    world.network.block(one, other)
    world.network.block(other, one)
    world.run(12)
    assert not any(other in world.database(node).sessions(one) for node in world.nodes)


# -- flapping and storms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period_s", [1.0, 5.0, 20.0])
def test_a_flapping_link_changes_routes_at_most_twice_a_minute(period_s: float) -> None:
    world = GossipWorld.converged(6)
    world.run(1)
    origin, observer = world.nodes[0], world.nodes[3]
    changes, last = 0, LinkStatus.UP
    for step in range(int(600 / period_s)):
        set_status(world, origin, LinkStatus.DOWN if step % 2 == 0 else LinkStatus.UP)
        world.run(period_s)
        found = status_of(world, observer, origin)
        changes, last = changes + (found != last), found
    assert changes <= 2 * 10
    set_status(world, origin, LinkStatus.UP)
    world.run(200)
    assert status_of(world, observer, origin) == LinkStatus.UP, "calm again: told as up"


@pytest.mark.parametrize("status", [LinkStatus.SUSPECT, LinkStatus.DRAINING])
def test_a_link_that_was_only_suspected_or_drained_is_not_damped(status: LinkStatus) -> None:
    world = GossipWorld.converged(6)
    world.run(1)
    origin, observer = world.nodes[0], world.nodes[3]
    for _ in range(20):
        set_status(world, origin, status)
        world.run(2)
        set_status(world, origin, LinkStatus.UP)
        world.run(30)
        assert status_of(world, observer, origin) == LinkStatus.UP


def test_the_last_way_of_a_class_is_never_damped() -> None:
    world = GossipWorld.converged(3)
    origin, observer = world.nodes[0], world.nodes[2]
    only = LinkState("host:only", LinkStatus.UP, 1000, 1000, 20_000, 5_000, 100, classes=("mail",))
    for _ in range(20):
        world.publish_links(origin, [dataclasses.replace(only, status=LinkStatus.DOWN)])
        world.run(40)
        world.publish_links(origin, [only])
        world.run(40)
    assert status_of(world, observer, origin) == LinkStatus.UP


def test_a_flapping_node_blames_nobody_and_ends_well() -> None:
    world = GossipWorld.converged(12)
    world.run(2)
    victim = world.nodes[3]
    for _ in range(12):
        world.kill(victim)
        world.run(2)
        world.restart(victim)
        world.run(3)
    world.run(700)
    assert blamed(world, victim) == []
    assert len(world.roots()) == 1
    assert not any(world.database(node).isolated(victim) for node in world.nodes)


def test_a_storm_of_good_news_does_not_delay_a_withdrawal() -> None:
    world = GossipWorld.converged(40)
    rng = random.Random(1)

    def better(node: NodeId) -> None:
        links = world.by_id[node].links
        world.publish_links(node, [dataclasses.replace(link, capacity_mmps=link.capacity_mmps * 2) for link in links])
        world.at(1.0, better, node)

    for node in world.nodes[1:]:
        world.at(rng.random(), better, node)
    world.run(5)
    set_status(world, world.nodes[0], LinkStatus.DOWN)
    world.run(0.1)
    assert {status_of(world, node, world.nodes[0]) for node in world.nodes} == {LinkStatus.DOWN}


def test_a_drain_is_told_in_a_storm() -> None:
    world = GossipWorld.converged(20)
    for node in world.nodes[1:]:
        set_status(world, node, LinkStatus.SUSPECT)
    origin = world.by_id[world.nodes[0]]
    info = origin.machine.database.info(origin.node_id)
    assert info is not None
    effects = origin.machine.publish(Kind.NODE, [dataclasses.replace(info, draining=True)], world.now, WALL)
    world._act(origin, effects)
    world._arm(origin)
    world.run(0.2)
    assert all(world.database(node).info(origin.node_id).draining for node in world.nodes)


# -- restarts, clocks, identities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wall_offset_s", [-3600, 3600, -31_536_000, 31_536_000])
def test_a_restart_without_state_and_with_another_clock_prevails_over_its_own_past(wall_offset_s: int) -> None:
    world = GossipWorld.converged(9)
    world.run(2)
    victim = world.nodes[4]
    world.kill(victim)
    world.run(2)
    world.restart(victim, keeps_state=False, wall_offset_s=wall_offset_s)
    set_status(world, victim, LinkStatus.SUSPECT)
    world.run(20)
    assert {status_of(world, node, victim) for node in world.nodes} == {LinkStatus.SUSPECT}
    assert len(world.roots()) == 1


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_mass_restart_ends_with_equal_databases(share: float) -> None:
    world = GossipWorld.converged(40)
    world.run(2)
    victims = world.nodes[: int(40 * share)]
    for node in victims:
        world.kill(node)
    world.run(1)
    for node in victims:
        world.restart(node)
    assert world.run_until(lambda: len(world.roots()) == 1 and not isolated(world), 60, every_s=0.2)


def isolated(world: GossipWorld) -> list[NodeId]:
    database = world.database(world.nodes[0])
    return [node for node in world.nodes if database.isolated(node) or not database.sessions(node)]


def test_a_ghost_does_not_come_back_after_it_has_expired() -> None:
    settings = GossipSettings(refresh_s=20, refresh_per_s=1000)
    world = GossipWorld.fresh(4, settings=settings)
    world.run(10)
    ghost = world.nodes[2]
    old = world.database(world.nodes[0]).get(Key(ghost, Kind.NODE))
    assert old is not None
    world.kill(ghost)
    world.run(100)
    assert all(ghost not in world.database(node).nodes() for node in world.alive())
    hand(world, world.nodes[0], world.nodes[1], old)
    world.run(10)
    assert all(ghost not in world.database(node).nodes() for node in world.alive())


def test_two_machines_with_one_key_are_told_and_slowed_down() -> None:
    world = GossipWorld.converged(5)
    world.run(2)
    victim = world.nodes[0]
    epoch = WALL
    for step in range(40):
        epoch = max(epoch, world.by_id[victim].machine.epoch) + 1
        twin = forge(victim, Kind.NODE, NodeInfo("twin", "10.9.9.9:1", "10.9.9.9:2"), version=Version(epoch, 1 + step))
        hand(world, victim, world.nodes[1], twin)
        world.run(0.5)
    kinds = [event.kind for _, node, event in world.events if node == victim]
    assert EventKind.DUPLICATE_IDENTITY in kinds
    assert world.by_id[victim].machine.epoch - WALL < 60, "each round begins one epoch, and rounds are rationed"


def test_an_epoch_that_could_never_be_topped_is_refused() -> None:
    origin = GossipWorld.converged(3).nodes[0]
    with pytest.raises(WireError, match="epoch"):
        forge(origin, Kind.LOAD, _load(), version=Version(2**64 - 1, 1))
    assert forge(origin, Kind.LOAD, _load(), version=Version(EPOCH_MAX, 1)).version.epoch == EPOCH_MAX


def _load() -> object:
    from gossip.linkstate import Load

    return Load()


# -- partitions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3])
def test_a_partition_heals_to_equal_databases(parts: int) -> None:
    world = GossipWorld.converged(18)
    world.run(2)
    groups = [world.nodes[number::parts] for number in range(parts)]
    for index, one in enumerate(groups):
        for other in groups[index + 1 :]:
            world.partition(one, other)
    for number, group in enumerate(groups):
        world.at(10 + number, set_status, world, group[0], LinkStatus.DOWN)
    world.run(30)
    assert len(world.roots()) == parts
    assert all(world.by_id[node].streams.keys() <= set(group) for group in groups for node in group)
    world.heal()
    assert world.run_until(lambda: len(world.roots()) == 1, 10, every_s=0.1)
    world.run(60)
    assert isolated(world) == []


def test_a_one_way_link_is_a_link_for_neither_end_and_both_stay_reachable() -> None:
    world = GossipWorld.converged(10)
    world.run(20)
    here = world.nodes[0]
    there = next(iter(world.by_id[here].streams))
    world.network.block(here, there)
    world.run(25)
    database = world.database(world.nodes[5])
    assert there not in database.sessions(here) or here not in database.sessions(there)
    assert not database.isolated(here)
    assert not database.isolated(there)
    assert {loss[1:3] for loss in world.losses if loss[3] != "no longer neighbours"} <= {(here, there), (there, here)}
    assert here in world.by_id[there].machine.reached()


# -- bad peers ---------------------------------------------------------------------------------------------------------


def test_a_forged_advertisement_of_another_node_is_stored_nowhere() -> None:
    world = GossipWorld.converged(5)
    world.run(2)
    liar, victim = world.nodes[1], world.nodes[2]
    forged = forge(victim, Kind.LOAD, _load(), version=Version(WALL + 9, 1), signer=liar)
    hand(world, world.nodes[0], liar, forged)
    world.run(5)
    assert all(world.database(node).get(forged.key) is None for node in world.nodes)


def test_a_forger_is_shut_out_for_a_while() -> None:
    world = GossipWorld.converged(5)
    world.run(2)
    judge, liar = world.nodes[0], world.nodes[1]
    for number in range(25):
        hand(
            world,
            judge,
            liar,
            forge(world.nodes[2], Kind.LOAD, _load(), version=Version(WALL + 9, number), signer=liar),
        )
    world.run(5)
    assert world.by_id[judge].machine.shut_out(liar, world.now)
    assert liar not in world.by_id[judge].streams
    world.run(70)
    assert not world.by_id[judge].machine.shut_out(liar, world.now)


def test_records_of_a_member_that_expired_are_refused_and_whoever_passes_them_on_is_not_blamed() -> None:
    world = GossipWorld.converged(5)
    world.run(2)
    judge, honest, expired = world.nodes[:3]

    def refuse(certificate: bytes) -> Verifier:
        if certificate == certificate_of(expired):
            raise IdentityError("it has expired")
        return member_of(certificate)

    world.database(judge).member_of = refuse
    for number in range(40):
        hand(world, judge, honest, forge(expired, Kind.NODE, _info(), version=Version(WALL + 9, number)))
    world.run(5)
    held = world.database(judge).get(Key(expired, Kind.NODE))
    assert held is not None
    assert held.version < Version(WALL + 9, 0)
    assert honest in world.by_id[judge].streams
    assert world.losses == []


def _info() -> NodeInfo:
    return NodeInfo("n", "10.0.0.3:7420", "10.0.0.3:2525")


def test_replayed_old_advertisements_change_nothing() -> None:
    world = GossipWorld.converged(5)
    world.run(2)
    origin, at, by = world.nodes[0], world.nodes[1], world.nodes[2]
    old = world.database(at).get(Key(origin, Kind.LINKS))
    assert old is not None
    set_status(world, origin, LinkStatus.DOWN)
    world.run(1)
    for _ in range(50):
        hand(world, at, by, old)
    world.run(5)
    assert status_of(world, at, origin) == LinkStatus.DOWN
    assert len(world.roots()) == 1


def test_a_record_with_a_flipped_bit_is_refused() -> None:
    world = GossipWorld.converged(4)
    world.run(2)
    record = world.database(world.nodes[0]).get(Key(world.nodes[2], Kind.LINKS))
    assert record is not None
    body = pb.Body.FromString(record.body)
    body.sequence += 1
    hand(world, world.nodes[0], world.nodes[1], decode_record(body.SerializeToString(), record.signature))
    world.run(3)
    assert world.database(world.nodes[0]).get(record.key) == record


def test_a_peer_that_reads_slowly_costs_one_record_for_each_key_and_gets_the_newest() -> None:
    world = GossipWorld.converged(5)
    world.run(2)
    node, slow, most = world.by_id[world.nodes[0]], world.nodes[1], 0
    world.read_slowly(slow, 0.9)
    for number in range(200):
        for other in world.nodes[2:]:
            set_status(world, other, LinkStatus.DOWN if number % 2 else LinkStatus.UP)
        load = Load(classes=(ClassLoad("default", number, 0),))
        world._act(node, node.machine.publish(Kind.LOAD, [load], world.now, WALL))
        world.run(1)
        session = node.machine.session(slow)
        assert session is not None
        most = max(most, session.queued())
        assert len(node.streams[slow].unread[slow]) < 200, "hellos only"
    assert 0 < most <= len(node.machine.database)
    assert world.losses == []
    world.read_slowly(slow, 0)
    assert world.run_until(lambda: len(world.roots()) == 1, 10, every_s=1)


def test_a_peer_that_stops_reading_is_dropped_and_equal_again_when_it_reads() -> None:
    world = GossipWorld.converged(5)
    world.run(2)
    slow = world.nodes[1]
    world.read_slowly(slow, float("inf"))
    world.run(60)
    assert {loss[2] for loss in world.losses if loss[1] != slow} <= {slow}
    set_status(world, world.nodes[0], LinkStatus.DOWN)
    world.read_slowly(slow, 0)
    assert world.run_until(lambda: len(world.roots()) == 1, 120, every_s=1)
    assert world.run_until(lambda: not any(world.knows_dead(node, slow) for node in world.nodes), 60, every_s=1)


def test_ten_thousand_next_hops_of_one_node_reach_all() -> None:
    world = GossipWorld.converged(5)
    world.run(1)
    links = [LinkState(f"host:h{number}", LinkStatus.UP, 1000, 1000, 20_000, 5_000) for number in range(10_000)]
    world.publish_links(world.nodes[0], links)
    world.run(10)
    assert len(world.roots()) == 1
    snapshot = world.by_id[world.nodes[3]].machine.snapshot(world.now)
    assert sum(len(node.links) for node in snapshot.nodes if node.node_id == world.nodes[0]) == 10_000


# -- growing and changing ----------------------------------------------------------------------------------------------


def test_joins_by_the_hundred_in_five_seconds() -> None:
    joins = 500 if os.environ.get("SMTPMESH_E2E_FULL") else 100  # the cost is the square: 500 take two minutes
    world = GossipWorld.converged(8, settings=GossipSettings(track_reach=False))
    rng = random.Random(2)
    for number in range(joins):
        world.at(rng.random() * 5, world.join, 1000 + number)
    world.run(6)
    assert len(world.nodes) == joins + 8
    assert world.run_until(
        lambda: len(world.roots()) == 1 and len(world.database(world.nodes[0]).nodes()) == joins + 8, 60, every_s=0.5
    )
    world.run(60)
    assert max(len(world.by_id[node].streams) for node in world.nodes) < 40


@pytest.mark.parametrize("deaf", [False, True])
def test_a_newcomer_fetches_everything_once_and_waits_for_no_silent_source(deaf: bool) -> None:
    world = GossipWorld.converged(150)
    world.run(3)
    fetched: list[tuple[NodeId, int]] = []
    newcomer = world.join(3000)
    deliver = world._deliver

    def watch(stream: object, here: NodeId, there: NodeId, frame: object) -> None:
        if isinstance(frame, Chunk):
            fetched.append((here, len(frame.items)))
            if deaf and here == fetched[0][0]:
                return
        deliver(stream, here, there, frame)  # type: ignore[arg-type]

    world._deliver = watch  # type: ignore[method-assign, assignment]
    assert world.run_until(lambda: len(world.database(newcomer).nodes()) == 151, 30, every_s=0.1)
    assert fetched
    assert sum(count for _, count in fetched) < 2 * 450


def test_records_of_kinds_to_come_are_kept_and_passed_on_untouched() -> None:
    """A rolling upgrade: N does not know what N+1 says, and carries it."""
    world = GossipWorld.converged(9)
    world.run(2)
    origin = world.nodes[0]
    body = pb.Body(cluster="simulated", epoch=WALL, sequence=99, issued_at=WALL, lifetime_s=900)
    body.key.origin, body.key.kind = origin, 77
    raw = body.SerializeToString() + b"\xfa\x3e\x03new"  # a field that this version has no name for
    record = decode_record(raw, sign_as(origin, raw))
    assert record.payload == Opaque()
    hand(world, world.nodes[1], next(iter(world.by_id[world.nodes[1]].streams)), record)
    world.run(5)
    bodies = {found.body for node in world.nodes[1:] if (found := world.database(node).get(record.key)) is not None}
    assert bodies == {raw}
    assert sum(world.database(node).get(record.key) is not None for node in world.nodes) >= 8


def test_nothing_is_passed_on_for_ever() -> None:
    world = GossipWorld.converged(30)
    world.run(5)
    set_status(world, world.nodes[0], LinkStatus.DOWN)
    world.run(5)
    pushes: list[NodeId] = []
    world.on_stored = lambda node, record: pushes.append(node) if record.key.kind == Kind.LINKS else None
    world.run(20)
    assert len(pushes) < 200, "refreshes only"
