"""What-if against reality: predict, make it happen, measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from router.decision import Hop, HopKind
from router.whatif import Answer, Hypothesis
from smtp_edge.simulation import Mesh

LOAD = {"a": 50.0, "b": 40.0, "c": 40.0}
BUSY_S, SETTLED_S, END_S = 30.0, 40.0, 70.0


def host(name: str) -> Hop:
    return Hop(HopKind.SMART_HOST, name)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """Busy enough for every host to have been seen at its limit: 150 a second are offered, 140 can be delivered."""
    with Mesh(seed=3) as made:
        for name, mps in (("s1", 20), ("s2", 40), ("s3", 80)):
            made.host(name, mps)
        made.relay("a", exits=["s1", "s2", "s3"])
        made.relay("b", exits=["s2", "s3"])
        made.relay("c", exits=["s3"])
        for relay, mps in LOAD.items():
            made.load(relay, mps + 20 / 3, until=BUSY_S)
            made.load(relay, mps, since=BUSY_S)
        yield made


def ask(mesh: Mesh, hypothesis: Hypothesis) -> Answer:
    asked = mesh.relays["a"]
    (answer,) = asked.engine.what_if(hypothesis, asked.now(), load_mps=sum(LOAD.values()))
    return answer


@pytest.mark.parametrize(
    ("hypothesis", "happen"),
    [
        (Hypothesis(exits_down=frozenset({host("s3")})), lambda mesh: mesh.kill("s3")),
        (Hypothesis(exits_down=frozenset({host("s2")})), lambda mesh: mesh.kill("s2")),
        (Hypothesis(factors={host("s3"): 0.5}), lambda mesh: mesh.degrade("s3", speed=0.5, error_rate=0.0)),
    ],
    ids=["the largest host dies", "the second host dies", "the largest host at half its speed"],
)
def test_predicted_throughput_and_shares_are_what_happens(
    mesh: Mesh, hypothesis: Hypothesis, happen: Callable[[Mesh], None]
) -> None:
    mesh.run(BUSY_S)
    answer = ask(mesh, hypothesis)
    happen(mesh)
    mesh.run(END_S - mesh.now)
    seen = mesh.throughput_mps(SETTLED_S, END_S)
    assert answer.then.delivered_mps == pytest.approx(seen, rel=0.1)
    assert answer.then.delivered_mps <= answer.then.bound_mps * 1.001
    shares = mesh.shares(since=SETTLED_S)
    for name in ("s1", "s2", "s3"):
        assert answer.then.share(host(name)) == pytest.approx(shares[name], abs=0.1 * max(shares.values())), name


def test_a_relay_that_dies_takes_its_clients_along_but_not_the_hosts(mesh: Mesh) -> None:
    mesh.run(BUSY_S)
    relay = mesh.relays["b"].node_id
    answer = ask(mesh, Hypothesis(relays_down=frozenset({relay})))
    mesh.kill("b")
    mesh.run(END_S - mesh.now)
    assert answer.then.offered_mps == pytest.approx(130 * 2 / 3)
    assert answer.then.delivered_mps == pytest.approx(min(140, 130 * 2 / 3), rel=0.1)
    shares = mesh.shares(since=60)
    for name in ("s1", "s2", "s3"):
        assert answer.then.share(host(name)) == pytest.approx(shares[name], abs=0.1), name
