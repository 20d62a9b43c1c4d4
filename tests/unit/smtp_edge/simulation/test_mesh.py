"""The simulated mesh: mail is accounted for through every failure, and the same calls are the same run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from smtp_edge.simulation import Mesh, MeshError


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """Three relays, of which one has no exit of its own; two smart hosts."""
    with Mesh(seed=1) as made:
        made.host("s1", capacity_mps=40)
        made.host("s2", capacity_mps=80)
        made.relay("a", exits=["s1", "s2"])
        made.relay("b", exits=["s2"])
        made.relay("c")
        yield made


def test_mail_leaves_by_all_hosts_in_proportion_to_what_they_carry(mesh: Mesh) -> None:
    mesh.load("a", rate_mps=110)
    mesh.run(20)
    assert mesh.throughput_mps(5, 20) == pytest.approx(110, rel=0.08)
    assert mesh.shares(since=5)["s2"] == pytest.approx(2 / 3, abs=0.05)


def test_mail_of_a_relay_without_exits_leaves_through_the_others(mesh: Mesh) -> None:
    mesh.load("c", rate_mps=50, until=10)
    mesh.run(15)
    assert mesh.delivered == mesh.accepted > 400
    assert (mesh.lost, mesh.doubled, mesh.queued) == (0, 0, 0)


def test_a_dead_host_is_left_within_a_second_and_used_again_when_it_is_back(mesh: Mesh) -> None:
    mesh.load("a", rate_mps=60)
    mesh.load("c", rate_mps=10)
    mesh.kill("s2", at=5)
    mesh.restart("s2", at=15)
    mesh.run(30)
    assert mesh.reroute_s < 1
    assert {item.relay for item in mesh.rerouted} == {"a", "b"}
    assert mesh.throughput_mps(7, 15) == pytest.approx(40, rel=0.05)
    assert mesh.throughput_mps(16, 22) > 100, "what piled up leaves at the speed of both"
    assert mesh.lost == 0


def test_a_killed_relay_loses_nothing_and_goes_on_where_it_was(mesh: Mesh) -> None:
    mesh.load("b", rate_mps=100, until=10)  # more than s2 takes: b has a queue when it dies
    mesh.kill("b", at=8)
    mesh.run(12)
    assert mesh.ledger.refused > 0, "a dead relay takes no mail"
    assert mesh.relays["b"].backlog() > 0
    assert mesh.lost == 0
    mesh.restart("b")
    mesh.run(30)
    assert mesh.queued == 0
    assert (mesh.delivered, mesh.lost) == (mesh.accepted, 0)


def test_a_silent_host_is_left_and_nothing_is_lost(mesh: Mesh) -> None:
    mesh.load("a", rate_mps=30, until=60)
    mesh.silence("s2", at=5)
    mesh.run(60)
    assert mesh.lost == 0
    assert mesh.throughput_mps(20, 60) == pytest.approx(30, rel=0.1)


def test_a_partition_holds_mail_and_heals(mesh: Mesh) -> None:
    mesh.load("c", rate_mps=20, until=30)
    mesh.partition(["c"], ["a", "b"], at=5)
    mesh.heal(at=20)
    mesh.run(19)
    held = mesh.relays["c"].backlog()
    assert held > 200
    mesh.run(30)
    assert mesh.queued == 0
    assert (mesh.lost, mesh.doubled) == (0, 0)


def test_lost_final_replies_between_relays_double_nothing() -> None:
    with Mesh(seed=3) as mesh:
        mesh.host("s1", capacity_mps=100)
        mesh.relay("a", exits=["s1"])
        mesh.relay("c")
        mesh.way("c", "a", lost_replies=0.3)
        mesh.load("c", rate_mps=20, until=10)
        mesh.run(60)
        assert mesh.delivered == mesh.accepted > 150
        assert mesh.doubled == 0
        assert sum(relay.counters.duplicates_dropped for relay in mesh.relays.values()) > 10


def test_lost_final_replies_of_a_host_double_mail_and_are_counted() -> None:
    with Mesh(seed=3) as mesh:
        mesh.host("s1", capacity_mps=100)
        mesh.relay("a", exits=["s1"])
        mesh.way("a", "s1", lost_replies=0.2)
        mesh.load("a", rate_mps=20, until=10)
        mesh.run(120)
        assert mesh.doubled > 5
        assert mesh.lost == 0


def test_what_a_short_break_of_a_way_holds_up_goes_on_after_it() -> None:
    with Mesh(seed=4) as mesh:
        mesh.host("s1", capacity_mps=100)
        mesh.relay("a", exits=["s1"])
        mesh.way("a", "s1", latency_s=0.05)
        mesh.load("a", rate_mps=40, until=10)
        mesh.block("a", "s1", at=5.0)
        mesh.unblock("a", "s1", at=5.4)
        mesh.run(12)
        assert mesh.inflight("a", "s1") == 0
        assert (mesh.lost, mesh.doubled, mesh.queued) == (0, 0, 0)
        assert 0.4 < max(mesh.ledger.delays_s) < 2, (
            "segments come again; nobody waits for the time-out of half a minute"
        )


def test_relays_that_are_apart_stay_so_when_all_is_healed(mesh: Mesh) -> None:
    mesh.apart("c", "a")
    mesh.load("c", rate_mps=10, until=10)
    mesh.partition(["c"], ["a", "b"], at=2)
    mesh.heal(at=6)
    mesh.run(30)
    assert (mesh.taken("c", "a"), mesh.taken("c", "b")) == (0, mesh.accepted)


def test_a_relay_that_dies_with_messages_on_their_way_out_sends_them_again_and_no_others() -> None:
    with Mesh(seed=5) as mesh:
        mesh.host("s1", capacity_mps=100)
        mesh.relay("a", exits=["s1"])
        mesh.relay("b")
        mesh.way("a", "s1", latency_s=0.05)  # of what is in flight a quarter is taken and not yet answered
        mesh.way("b", "a", latency_s=0.05)
        mesh.load("b", rate_mps=40, until=25)
        flying = 0
        for turn in range(6):
            mesh.run(3 + turn / 30)
            flying += mesh.inflight("a", "s1")
            mesh.kill("a")
            mesh.run(1)
            mesh.restart("a")
        assert mesh.run_until(lambda: mesh.queued == 0, 240)
        assert mesh.lost == 0
        assert 0 < mesh.doubled <= flying
        assert mesh.doubled_inside == 0


def test_clients_may_come_evenly_and_in_waves(mesh: Mesh) -> None:
    mesh.load("a", rate_mps=10, even=True, until=20)
    mesh.load("b", rate_mps=lambda now: 5 if now < 10 else 15, even=True, until=20)
    mesh.run(20)
    came = {relay: [at for name, at in mesh.ledger.accepted.items() if name.startswith(f"{relay}-")] for relay in "ab"}
    assert len(came["a"]) == pytest.approx(200, abs=1)
    assert sum(at < 10 for at in came["b"]) == pytest.approx(50, abs=1)
    assert sum(at >= 10 for at in came["b"]) == pytest.approx(150, abs=3)


def test_what_has_not_arrived_counts_among_the_delays_as_late_as_it_is_old(mesh: Mesh) -> None:
    mesh.load("c", rate_mps=10, until=2)
    mesh.partition(["c"], ["a", "b"], at=0)
    mesh.run(10)
    assert not mesh.ledger.delays_s
    assert min(mesh.ledger.delays(0, 2, mesh.now)) > 7
    assert len(mesh.ledger.delays(0, 2, mesh.now)) == mesh.accepted


def test_a_host_that_answers_half_with_errors_is_used_less_and_loses_nothing(mesh: Mesh) -> None:
    mesh.load("a", rate_mps=30, until=40)
    mesh.degrade("s2", speed=0.2, error_rate=0.5, at=10)
    mesh.run(60)
    assert mesh.lost == 0
    assert mesh.shares(since=15)["s1"] > 0.6


def test_the_same_calls_are_the_same_run() -> None:
    def play(seed: int) -> tuple[object, ...]:
        with Mesh(seed=seed) as mesh:
            mesh.host("s1", capacity_mps=30)
            mesh.relay("a", exits=["s1"])
            mesh.relay("b")
            mesh.load("b", rate_mps=20)
            mesh.kill("a", at=3)
            mesh.restart("a", at=4)
            mesh.run(10)
            return mesh.accepted, mesh.ledger.attempts, tuple(mesh.ledger.delays_s), mesh.ledger.by_host

    assert play(5) == play(5)
    assert play(5) != play(6)


def test_runs_go_on_where_they_stopped_and_failures_may_come_between() -> None:
    with Mesh() as mesh:
        mesh.host("s1")
        mesh.relay("a", exits=["s1"])
        mesh.load("a", rate_mps=10)
        mesh.run(5)
        mesh.kill("s1")
        assert mesh.run_until(lambda: mesh.queued > 20, 10)
        mesh.restart("s1")
        assert mesh.run_until(lambda: mesh.queued <= 1, 10)
        assert [what for _, what in mesh.events] == ["kill s1", "restart s1"]


def test_mistakes_are_named() -> None:
    with Mesh() as mesh:
        mesh.host("s1")
        with pytest.raises(MeshError, match="there is a 's1' already"):
            mesh.relay("s1")
        with pytest.raises(MeshError, match="no relay or host 'x'; there are: s1"):
            mesh.degrade("x")
        with pytest.raises(MeshError, match="no relay or host 'y'"):
            mesh.kill("y", at=3)
        mesh.relay("a", exits=["s9"])
        with pytest.raises(MeshError, match="a has the exits s9, which are no hosts"):
            mesh.run(1)
    with Mesh() as empty, pytest.raises(MeshError, match="there is no relay"):
        empty.run(1)


def test_a_host_that_falls_silent_is_left_and_what_hung_there_goes_elsewhere(mesh: Mesh) -> None:
    mesh.load("a", rate_mps=30, until=10)
    mesh.silence("s2", at=5)
    mesh.run(15)
    assert mesh.reroute_s < 2.5, "a second of silence, and a probe that gets no session in a second"
    assert (mesh.lost, mesh.doubled, mesh.queued) == (0, 0, 0)
    assert max(mesh.ledger.delays_s) < 4
