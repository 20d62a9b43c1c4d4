"""The gossip protocol, played by real machines on a network in virtual time."""

from __future__ import annotations

import pytest

from gossip.exclusion import REFUSALS_MAX
from gossip.frames import Digest, Held, Hello, Push, Request
from gossip.linkstate import ClassLoad, Key, Kind, Links, Load, NodeId, NodeInfo, Version
from gossip.settings import GossipSettings
from tests.unit.gossip.worlds import IDENTITIES, WALL, World, info_of, link, new_identity, push_of, record_of


@pytest.fixture
def world() -> World:
    world = World(3)
    world.connect_all()
    world.run(1)
    return world


def test_all_nodes_hold_the_same_database_soon(world: World) -> None:
    a, b, c = world.nodes
    world.publish_links(a, [link("host:a"), link(f"peer:{b}")])
    world.run(0.1)
    assert len(world.roots()) == 1
    assert world.hops(c, a) == ["host:a", f"peer:{b}"]


def test_news_reach_a_node_through_another_one() -> None:
    world = World(3)
    a, b, c = world.nodes
    world.connect(a, b)
    world.connect(b, c)
    world.run(1)
    world.publish_links(a, [link()])
    world.run(0.1)
    assert world.hops(c, a) == ["host:a"]
    assert (c, info_of(world.identities[c]).gossip_address) in world.dialled[a]


def test_a_lost_push_is_repaired_by_a_digest(world: World) -> None:
    a, _, c = world.nodes
    world.loses = lambda here, there, frame: isinstance(frame, Push)
    world.publish_links(a, [link()])
    world.run(0.1)
    world.loses = lambda *_: False
    assert world.hops(c, a) == []
    world.run(4)
    assert world.hops(c, a) == ["host:a"]


def test_converges_under_heavy_loss_and_heals_a_partition() -> None:
    world = World(5, seed=3)
    world.loses = lambda *_: world.rng.random() < 0.3
    world.connect_all()
    for number, node in enumerate(world.nodes):
        world.publish_links(node, [link(f"host:h{number}")])
    world.run(30)
    assert len(world.roots()) == 1, "seed 3"
    left = set(world.nodes[:2])
    world.loses = lambda here, there, frame: (here in left) != (there in left)
    world.publish_links(world.nodes[0], [link("host:new")])
    world.run(20)
    assert len(world.roots()) == 2
    assert {(here in left) != (there in left) for here, there, _ in world.drops} == {True}
    world.loses = lambda *_: False
    world.connect_all()
    world.run(5)
    assert len(world.roots()) == 1


def test_a_forged_advertisement_is_refused_once_and_not_stored(world: World) -> None:
    a, b, c = world.nodes
    forged = record_of(
        world.identities[a], Kind.LINKS, _links("host:evil"), version=Version(9, 9), signer=world.identities[b]
    )
    world.send(b, c, push_of(forged))
    world.run(3)
    assert [(refusal.peer, refusal.origin) for refusal in world.refusals] == [(b, a)]
    assert "signature" in world.refusals[0].reason
    assert all("host:evil" not in world.hops(at, a) for at in world.nodes)


def test_a_forgery_in_the_receivers_own_name_is_refused(world: World) -> None:
    a, b, _ = world.nodes
    forged = record_of(
        world.identities[a], Kind.LINKS, _links("host:evil"), version=Version(9, 9), signer=IDENTITIES[4]
    )
    world.send(b, a, push_of(forged))
    world.run(1)
    assert [refusal.reason for refusal in world.refusals] == ["it claims to be ours and is not"]
    assert world.machines[a].epoch == 1


def test_a_member_that_forges_on_and_on_is_dropped(world: World) -> None:
    _, b, c = world.nodes
    for _ in range(REFUSALS_MAX):
        world.send(b, c, Push((), ("nonsense",)))
    world.run(0.1)
    assert world.drops == [(c, b, "too many refused advertisements")]


def test_another_cluster_is_refused(world: World) -> None:
    a, b, _ = world.nodes
    stranger = new_identity("stranger")
    world.send(b, a, push_of(record_of(stranger, Kind.NODE, info_of(stranger), cluster="other")))
    world.run(0.1)
    assert [refusal.reason for refusal in world.refusals] == ["it is of another cluster"]
    assert stranger.node_id not in world.machines[a].database.nodes()


def test_a_node_that_lost_its_state_fights_back(world: World) -> None:
    a, b, c = world.nodes
    world.publish_links(a, [link("host:old")])
    world.run(1)
    world.disconnect(a, b)
    world.disconnect(a, c)
    world.machines[a] = world.machine(a, epoch=0)
    world.publish(a, Kind.NODE, [info_of(world.identities[a])])
    world.publish_links(a, [link("host:new")])
    world.connect(a, b)
    world.connect(a, c)
    world.run(5)
    assert [world.hops(at, a) for at in world.nodes] == [["host:new"]] * 3
    assert world.machines[a].epoch == WALL
    assert len(world.roots()) == 1


def test_shards_from_before_a_restart_are_emptied(world: World) -> None:
    a, b, c = world.nodes
    world.publish_links(a, [link(f"host:h{number}") for number in range(200)])
    world.run(1)
    assert len(world.hops(c, a)) == 200
    world.disconnect(a, b)
    world.disconnect(a, c)
    world.machines[a] = world.machine(a, epoch=2)
    world.publish(a, Kind.NODE, [info_of(world.identities[a])])
    world.publish_links(a, [link("host:new")])
    world.connect(a, b)
    world.connect(a, c)
    world.run(5)
    assert world.hops(c, a) == ["host:new"]


def test_fewer_shards_than_before_leave_no_links_behind(world: World) -> None:
    a, _, c = world.nodes
    world.publish_links(a, [link(f"host:h{number}") for number in range(300)])
    world.run(1)
    assert len(world.hops(c, a)) == 300
    world.publish_links(a, [link("host:one")])
    world.run(1)
    assert world.hops(c, a) == ["host:one"]
    world.publish_links(a, [])
    world.run(1)
    assert world.hops(c, a) == []


def test_a_paused_node_accuses_nobody(world: World) -> None:
    a = world.nodes[0]
    world.run(20)
    world.paused.add(a)
    world.run(9)
    world.paused.clear()
    world.drops.clear()
    for peer in world.nodes[1:]:
        world.machines[peer].on_session(a, world.now, WALL)
    world.run(2.5)
    assert [drop for drop in world.drops if drop[0] == a] == []


def test_a_silent_peer_is_dropped_and_its_records_stay(world: World) -> None:
    a, b, c = world.nodes
    world.run(20)
    world.paused.add(a)
    world.run(11)
    assert sorted((here, there) for here, there, _ in world.drops) == [(b, a), (c, a)]
    assert a in world.machines[b].database.nodes()
    assert world.machines[b].session(a) is None


def test_unheard_records_expire_and_their_stone_keeps_older_ones_out() -> None:
    world = World(2, settings=GossipSettings(refresh_s=40))
    a, b = world.nodes
    world.connect(a, b)
    world.run(1)
    node = world.machines[b].database.get(Key(a, Kind.NODE))
    assert node is not None
    world.disconnect(a, b)
    world.run(150)
    assert a not in world.machines[b].database.nodes()
    world.machines[b].on_session(a, world.now, WALL)
    world.send(a, b, push_of(node))
    world.run(1)
    assert a not in world.machines[b].database.nodes()


def test_own_records_are_refreshed_before_they_expire() -> None:
    world = World(2, settings=GossipSettings(refresh_s=40))
    a, b = world.nodes
    world.connect(a, b)
    world.run(500)
    assert world.machines[b].database.nodes() == sorted([a, b])


def test_a_record_passed_on_does_not_become_younger() -> None:
    world = World(3, settings=GossipSettings(refresh_s=90, refresh_jitter=0, lifetime_factor=1))
    a, b, c = world.nodes
    world.connect(a, b)
    world.run(1)
    world.disconnect(a, b)
    world.run(59)
    world.connect(b, c)
    world.run(1)
    assert world.machines[c].database.age_s(Key(a, Kind.NODE), world.now) == pytest.approx(61, abs=0.5)
    world.run(45)
    assert [world.machines[at].database.get(Key(a, Kind.NODE)) for at in (b, c)] == [None, None]


def test_keys_that_a_peer_invents_are_not_remembered(world: World) -> None:
    a, b, _ = world.nodes
    held = [Held(Key(NodeId(f"{number:032x}"), Kind.LINKS), Version(1, 1), 0) for number in range(500)]
    world.send(b, a, Digest(frozenset(range(256)), tuple(held)))
    world.run(0.1)
    assert len(world.machines[a]._sessions[b].known) <= 12


def test_a_key_asked_for_many_times_is_sent_once(world: World) -> None:
    a, b, _ = world.nodes
    world.sent.clear()
    world.send(b, a, Request((Key(a, Kind.NODE),) * 100 + (Key(NodeId("0" * 32), Kind.NODE),)))
    world.run(0.05)
    sent = [frame for here, there, frame in world.sent if (here, there) == (a, b) and isinstance(frame, Push)]
    keys = [item.record.key for frame in sent for item in frame.items if item.record.key.kind == Kind.NODE]
    assert keys == [Key(a, Kind.NODE)]


def test_load_of_an_unknown_origin_waits_for_its_certificate(world: World) -> None:
    a, b, _ = world.nodes
    late = new_identity("late")
    node = record_of(late, Kind.NODE, info_of(late))
    load = record_of(late, Kind.LOAD, Load(headroom_permille=5))
    world.send(b, a, push_of(load))
    world.run(0.1)
    assert world.machines[a].database.get(load.key) is None
    assert world.refusals == []
    world.send(b, a, push_of(node, load))
    world.run(0.1)
    assert world.machines[a].database.get(load.key) == load


def test_two_nodes_with_one_key_are_reported(world: World) -> None:
    a, b, _ = world.nodes
    late = new_identity("late")
    one = record_of(late, Kind.NODE, NodeInfo("one", "", ""))
    two = record_of(late, Kind.NODE, NodeInfo("two", "", ""))
    world.send(b, a, push_of(one, two))
    world.run(4)
    assert any("same version, other content" in refusal.reason for refusal in world.refusals)
    assert len(world.roots()) == 1
    assert len({world.machines[node].database.info(late.node_id) for node in world.nodes}) == 1


def test_what_does_not_fit_the_wire_is_a_complaint_and_no_crash(world: World) -> None:
    a, _, c = world.nodes
    effects = world.publish(a, Kind.LOAD, [Load(classes=(ClassLoad("fine", 1, 1), ClassLoad("bad\n", 1, 1)))])
    world.run(1)
    assert len(effects.complaints) == 1
    seen = {record.node_id: record.load for record in world.machines[c].snapshot(world.now).nodes}
    assert [item.class_id for item in seen[a].classes] == ["fine"]


def test_fast_changes_are_held_back_and_the_last_one_wins(world: World) -> None:
    a, _, c = world.nodes
    world.sent.clear()
    for number in range(100):
        world.publish(a, Kind.LOAD, [Load(headroom_permille=number)])
        world.run(0.01)
    world.run(1)
    pushes = [frame for here, there, frame in world.sent if (here, there) == (a, c) and isinstance(frame, Push)]
    assert 3 <= len(pushes) <= 6
    seen = {record.node_id: record.load for record in world.machines[c].snapshot(world.now).nodes}
    assert seen[a].headroom_permille == 99


def test_frames_without_a_session_are_ignored(world: World) -> None:
    a, b, _ = world.nodes
    world.machines[a].on_session_lost(b, world.now, WALL)
    assert world.machines[a].on_frame(b, Hello(1, 0, 0), world.now, WALL).frames == []


def _links(*hops: str) -> Links:
    return Links(tuple(link(hop) for hop in hops))
