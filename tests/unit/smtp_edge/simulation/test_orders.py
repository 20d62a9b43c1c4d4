"""Drains, pins and policies of a whole mesh in virtual time: nothing is lost, doubled, or sent where it may not go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from router.recording import replay
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.simulation import Mesh
from smtp_edge.simulation.scenario import build, load_mesh, load_scenario


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh(seed=1) as made:
        yield made


def three(mesh: Mesh, **host: float) -> None:
    """Relays a and b with exits, c without; hosts s1 and s2."""
    mesh.host("s1", capacity_mps=40, **host)  # type: ignore[arg-type]
    mesh.host("s2", capacity_mps=80, **host)  # type: ignore[arg-type]
    mesh.relay("a", exits=["s1", "s2"])
    mesh.relay("b", exits=["s2"])
    mesh.relay("c")


def assert_sound(mesh: Mesh) -> None:
    assert (mesh.lost, mesh.doubled, mesh.ledger.revisits) == (0, 0, 0)


def arrivals(mesh: Mesh, host: str, since: float, until: float) -> int:
    return round(mesh.rates(since, until)[host] * (until - since))


# -- relays ------------------------------------------------------------------------------------------------------------


def test_a_drained_relay_is_empty_soon_and_works_again_afterwards(mesh: Mesh) -> None:
    three(mesh)
    mesh.load("a", rate_mps=150, until=5)  # more than the hosts take: it has a queue
    mesh.load("a", rate_mps=30, since=20)
    mesh.load("c", rate_mps=10)
    mesh.drain("a", at=5)
    mesh.undrain("a", at=20)
    mesh.run(5)
    assert mesh.relays["a"].backlog() > 50
    assert mesh.run_until(lambda: mesh.relays["a"].backlog() == 0, 5)
    mesh.run(20 - mesh.now)
    before = mesh.ledger.transfers
    mesh.run(20)
    assert_sound(mesh)
    assert mesh.shares(since=25)["s1"] > 0.15, "only a reaches s1, and is used again"
    assert before > 50


def test_a_relay_that_drains_takes_nothing_from_clients_and_peers(mesh: Mesh) -> None:
    three(mesh)
    mesh.load("a", rate_mps=20)
    mesh.load("c", rate_mps=20)
    mesh.drain("a", at=5)
    mesh.run(6)
    refused = mesh.ledger.refused
    accepted = mesh.relays["a"].counters.accepted
    mesh.run(10)
    assert mesh.ledger.refused > refused + 100
    assert mesh.relays["a"].counters.accepted == accepted
    assert mesh.run_until(lambda: mesh.queued < 20, 5), "c's mail leaves through b"
    assert_sound(mesh)


def test_greylisted_mail_moves_with_its_time_and_its_attempts(mesh: Mesh) -> None:
    three(mesh, greylist_s=25)
    mesh.load("a", rate_mps=5, until=4)
    mesh.run(6)
    relay = mesh.relays["a"]
    before = {claim.entry.origin: claim.delivery for claim in relay.store.unfinished()}
    assert {delivery.state for delivery in before.values()} == {DeliveryState.DEFERRED}
    mesh.drain("a")
    assert mesh.run_until(lambda: relay.backlog() == 0, 5)
    after = {claim.entry.origin: claim.delivery for name in "bc" for claim in mesh.relays[name].store.unfinished()}
    assert set(after) == set(before)
    for origin, delivery in after.items():
        was = before[origin]
        assert (delivery.attempts, delivery.delay_notified) == (was.attempts, was.delay_notified)
        assert delivery.next_attempt_at is not None
        assert was.next_attempt_at is not None
        assert abs((delivery.next_attempt_at - was.next_attempt_at).total_seconds()) <= 1.1
    attempts = mesh.ledger.attempts
    mesh.run(0.5)
    assert mesh.ledger.attempts == attempts, "nobody tries before the time"
    assert mesh.run_until(lambda: mesh.queued == 0, 200)
    assert mesh.delivered == mesh.accepted
    assert_sound(mesh)


def test_a_kill_in_the_middle_of_a_drain_loses_and_doubles_nothing(mesh: Mesh) -> None:
    three(mesh, greylist_s=5)
    mesh.load("a", rate_mps=200, until=4)
    mesh.drain("a", at=4)
    mesh.kill("a", at=4.05)
    mesh.restart("a", at=6)
    mesh.run(4.5)
    assert mesh.relays["a"].backlog() > 100, "killed in the middle"
    mesh.run(20)
    assert mesh.relays["a"].draining, "the order outlives the process"
    assert mesh.relays["a"].backlog() == 0
    assert mesh.run_until(lambda: mesh.queued == 0, 200)
    assert_sound(mesh)


def test_where_all_relays_drain_they_use_their_exits(mesh: Mesh) -> None:
    mesh.host("s1", capacity_mps=40)
    mesh.host("s2", capacity_mps=80)
    mesh.relay("a", exits=["s1", "s2"])
    mesh.relay("b", exits=["s2"])
    mesh.load("a", rate_mps=100, until=5)
    mesh.load("b", rate_mps=60, until=5)
    for name in "ab":
        mesh.drain(name, at=5)
    mesh.run(5)
    assert mesh.queued > 50
    mesh.run(10)
    assert mesh.queued == 0
    assert_sound(mesh)


def test_what_nobody_else_can_deliver_waits_here_for_its_time(mesh: Mesh) -> None:
    mesh.host("s1", capacity_mps=50, greylist_s=40)
    mesh.relay("a", exits=["s1"])
    mesh.relay("b")
    mesh.load("b", rate_mps=5, until=3)
    mesh.run(5)
    assert mesh.relays["a"].backlog() > 5
    mesh.drain("a")
    mesh.run(20)
    assert mesh.relays["a"].backlog() > 5, "b has no way out: deferred mail waits for its time, and leaves by the exit"
    assert mesh.run_until(lambda: mesh.relays["a"].backlog() == 0, 200)
    assert_sound(mesh)


# -- hosts and pins ----------------------------------------------------------------------------------------------------


def test_a_drained_host_gets_nothing_new_from_anybody_until_the_order_is_taken_back(mesh: Mesh) -> None:
    three(mesh)
    mesh.load("a", rate_mps=30)
    mesh.load("b", rate_mps=5)
    mesh.drain("s2", at=5)
    mesh.kill("a", at=8)
    mesh.restart("a", at=9)
    mesh.undrain("s2", at=12)
    mesh.run(20)
    assert arrivals(mesh, "s2", 2, 5) > 30
    assert arrivals(mesh, "s2", 5.2, 12) == 0
    assert arrivals(mesh, "s2", 13, 20) > 60
    assert mesh.run_until(lambda: mesh.queued < 10, 10), "b's mail left by a's other host"
    assert_sound(mesh)


def test_pinned_mail_goes_one_way_and_waits_for_it(mesh: Mesh) -> None:
    three(mesh)
    mesh.load("a", rate_mps=20)
    mesh.pin("a", "default", "s1", for_s=15, at=5)
    mesh.kill("s1", at=10)
    mesh.run(10)
    assert arrivals(mesh, "s2", 5.5, 10) == 0
    mesh.run(5)
    assert arrivals(mesh, "s2", 10, 15) == 0
    assert mesh.relays["a"].backlog() > 70
    mesh.run(15)
    assert arrivals(mesh, "s2", 20, 30) > 150
    assert mesh.relays["a"].backlog() < 10
    assert_sound(mesh)


# -- policies ----------------------------------------------------------------------------------------------------------


def test_mail_with_a_region_passes_no_relay_and_no_exit_outside_of_it(mesh: Mesh) -> None:
    mesh.host("eu1", capacity_mps=30, tags=["eu"])
    mesh.host("us1", capacity_mps=100, tags=["us"])
    mesh.relay("e", exits=["eu1", "us1"], tags=["eu"])
    mesh.relay("u", exits=["us1"], tags=["us"])
    mesh.relay("x", tags=["eu"])
    mesh.route("secret", domains=["secret.test"], via=["eu1", "us1"], require_tags=["eu"])
    mesh.route("rest", via=["eu1", "us1"])
    mesh.load("u", rate_mps=10, domain="secret.test", until=20)
    mesh.load("x", rate_mps=10, domain="secret.test", until=20)
    mesh.load("x", rate_mps=60, domain="other.test", until=20)
    mesh.run(40)
    assert (mesh.queued, mesh.delivered) == (0, mesh.accepted)
    assert_sound(mesh)
    secret = [name for name in mesh.ledger.deliveries if "secret.test" in name]
    assert len(secret) > 300
    histories = [mesh.relays["u"].store._connection.execute("SELECT document FROM entry").fetchall()]
    taken = [document for rows in histories for (document,) in rows if "secret.test" in document]
    assert all('"trace":[]' in document for document in taken), "u took secret mail from clients alone"
    attempts = (
        mesh.relays["e"]
        .store._connection.execute(
            "SELECT count(*) FROM note n JOIN delivery d USING (queue_id)"
            " WHERE d.class_id = 'secret' AND n.hop = 'host:us1'"
        )
        .fetchone()
    )
    assert attempts == (0,)


def test_mail_without_transit_waits_for_the_own_exit(mesh: Mesh) -> None:
    three(mesh)
    mesh.route("own", via=["s1", "s2"], transit=False)
    mesh.load("b", rate_mps=10, until=20)
    mesh.kill("s2", at=5)
    mesh.run(15)
    assert mesh.ledger.transfers == 0
    assert mesh.relays["b"].backlog() > 80
    mesh.restart("s2")
    assert mesh.run_until(lambda: mesh.now > 21 and mesh.queued == 0, 30)
    assert_sound(mesh)


def test_large_mail_leaves_where_it_fits(mesh: Mesh) -> None:
    mesh.host("small", capacity_mps=60, size_bytes_max=65_536)
    mesh.host("large", capacity_mps=20)
    mesh.relay("a", exits=["small"])
    mesh.relay("b", exits=["large"])
    mesh.load("a", rate_mps=10, until=10, size_bytes=70_000)
    mesh.load("a", rate_mps=20, until=10)
    mesh.run(20)
    assert (mesh.queued, mesh.delivered) == (0, mesh.accepted)
    assert_sound(mesh)
    assert mesh.ledger.transfers >= arrivals(mesh, "large", 0, 20) > 70
    assert mesh.ledger.transfers < 150


# -- files and recordings ----------------------------------------------------------------------------------------------


def test_orders_are_part_of_a_recording(mesh: Mesh) -> None:
    mesh = Mesh(seed=2, records=True)
    with mesh:
        three(mesh, greylist_s=3)
        mesh.load("a", rate_mps=60, until=6)
        mesh.drain("a", at=3)
        mesh.drain("s2", at=4)
        mesh.pin("a", "default", "s1", for_s=2, at=4)
        mesh.undrain("s2", at=6)
        mesh.undrain("a", at=7)
        mesh.run(12)
        calls = 0
        for relay in mesh.relays.values():
            for recorder in relay.recordings:
                count, differences = replay(recorder.lines())
                assert differences == []
                calls += count
        methods = {call.method for call in mesh.relays["a"].recordings[0].calls}
        assert {"draining", "drain_hop", "undrain_hop", "pin", "pick"} <= methods
        assert calls > 500


def test_orders_and_policies_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text(
        """
        host = [{ name = "s1", tags = ["eu"], size_bytes_max = 65536 }, { name = "s2", greylist_s = 1 }]
        relay = [{ name = "a", exits = ["s1", "s2"], tags = ["eu"] }, { name = "b" }]
        route = [{ name = "r", via = ["s1", "s2"], require_tags = ["eu"], forbid_tags = ["us"], transit = true }]
        load = [{ relay = "a", rate_mps = 10, until = 5, size_bytes = 2000 }]
        """
    )
    (tmp_path / "events.toml").write_text(
        """
        event = [{ at = 2, do = "drain", what = "s1" }, { at = 3, do = "undrain", what = "s1" },
                 { at = 4, do = "drain", what = "a" }]
        """
    )
    with build(load_mesh(tmp_path / "mesh.toml"), load_scenario(tmp_path / "events.toml")) as mesh:
        mesh.run(15)
        assert [text for _, text in mesh.events] == ["drain s1", "undrain s1", "drain a"]
        assert arrivals(mesh, "s2", 0, 15) == 0
        assert arrivals(mesh, "s1", 2.1, 3) == 0
        assert (mesh.lost, mesh.queued) == (0, 0)
        assert mesh.ledger.refused > 0
