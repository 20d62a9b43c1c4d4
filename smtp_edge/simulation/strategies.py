"""What others do with the same mesh, for comparison: each takes the place of the mesh's own routing sink.

    least cost          the path with the fewest expected attempts, whatever its load (Exchange 2003's link state)
    ordered fallback    the first hop of a fixed list that is not down (Postfix's smtp_fallback_relay)
    random              any hop that leads nearer to an exit
    p2c                 of two random ones that with the smaller peak-EWMA latency x transactions in flight (Finagle)

All of them see what the engine sees (states, distances, traces), never send mail to where it was, and bind a message
late, as the dispatcher does it for everybody.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from router.decision import Candidate, HopKind, Verdict
from router.engine import RoutingEngine
from smtp_edge.simulation.relay import Strategy
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Sink, Unreachable
from smtp_edge.sinks.mesh import build_query

EXCLUDED = frozenset(
    {
        Verdict.EDGE_DOWN,
        Verdict.IN_TRACE,
        Verdict.BACKING_OFF,
        Verdict.POLICY,
        Verdict.NO_PATH,
        Verdict.NO_TRANSIT,
        Verdict.DRAINING,
    }
)
LATENCY_UNKNOWN_S = 0.001
"""A hop that nobody has tried looks fast, so that somebody tries it."""

Choose = Callable[[Sequence[Candidate], random.Random], Candidate]


class Other(Sink):
    """Routes by a choice among the hops that are not excluded and lead nearer to an exit."""

    def __init__(self, choose: Choose, engine: RoutingEngine, now: Callable[[], float], rng: random.Random) -> None:
        self._choose, self._engine, self._now, self._rng = choose, engine, now, rng

    async def route(self, delivery: RouteRequest) -> Route | Unreachable:
        """One hop, or hold until something changed."""
        decision = self._engine.decide(build_query(delivery), self._now())
        usable = [item for item in decision.candidates if item.verdict not in EXCLUDED and _is_nearer(item)]
        if not usable:
            return Unreachable("no path")
        return Route((NextHop(self._choose(sorted(usable, key=lambda item: item.hop.id), self._rng).hop.id),))


def _is_nearer(item: Candidate) -> bool:
    if item.hop.kind is not HopKind.PEER:
        return True
    here, there = item.rank_here, item.rank_there
    return there is not None and (here is None or there < here)


def _distance(item: Candidate) -> tuple[float, str]:
    """Expected attempts to an exit by this hop."""
    first = 1 / max(0.01, item.availability * item.reliability) + item.cost
    return first + (item.rank_there or 0.0), item.hop.id


def _least_cost(usable: Sequence[Candidate], _: random.Random) -> Candidate:
    return min(usable, key=_distance)


def _first_of_list(usable: Sequence[Candidate], _: random.Random) -> Candidate:
    return min(usable, key=lambda item: (item.hop.kind is HopKind.PEER, item.label))


def _any(usable: Sequence[Candidate], rng: random.Random) -> Candidate:
    return rng.choice(usable)


def _better_of_two(usable: Sequence[Candidate], rng: random.Random) -> Candidate:
    two = rng.sample(usable, min(2, len(usable)))
    return min(two, key=lambda item: (item.latency_s or LATENCY_UNKNOWN_S) * (item.inflight + 1))


def _strategy(choose: Choose) -> Strategy:
    return lambda engine, now, rng: Other(choose, engine, now, rng)


STRATEGIES: dict[str, Strategy | None] = {
    "smtpmesh": None,
    "least cost": _strategy(_least_cost),
    "ordered fallback": _strategy(_first_of_list),
    "random": _strategy(_any),
    "p2c": _strategy(_better_of_two),
}
