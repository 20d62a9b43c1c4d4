"""What others do with the same mesh, for comparison: each takes the place of the mesh's own routing sink.

    least cost          the path with the fewest expected attempts, whatever its load (Exchange 2003's link state)
    ordered fallback    the first hop of a fixed list that is not down (Postfix's smtp_fallback_relay)
    random              any hop that leads nearer to an exit
    p2c                 of two random ones that with the smaller peak-EWMA latency x transactions in flight (Finagle)
    backpressure        the hop whose queue is the most shorter than ours, wherever it is (Tassiulas & Ephremides 1992)

All of them see what the engine sees (states, distances, backlogs, traces) and bind a message late, as the dispatcher
does it for everybody. None but backpressure sends mail to where it was, or farther from the exits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from router.decision import Hop, Query
from router.edge import Edge
from router.engine import RoutingEngine
from smtp_edge.simulation.relay import SLOTS, Strategy
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Sink, Unreachable
from smtp_edge.sinks.mesh import build_query

LATENCY_UNKNOWN_S = 0.001
"""A hop that nobody has tried looks fast, so that somebody tries it."""


@dataclass(frozen=True, slots=True)
class Option:
    """A hop that a message may take."""

    edge: Edge
    rank: float
    """There: 0 at an exit."""


Choose = Callable[[Sequence[Option], random.Random], Option]


class Other(Sink):
    """A rule on the same engine. `choose` says which."""

    def __init__(self, engine: RoutingEngine, now: Callable[[], float], rng: random.Random) -> None:
        self._engine, self._now, self._rng = engine, now, rng

    async def route(self, delivery: RouteRequest) -> Route | Unreachable:
        """One hop, or hold until something changed."""
        hop = self.choose(build_query(delivery), self._now())
        return Unreachable("no path") if hop is None else Route((NextHop(hop.id),))

    def choose(self, query: Query, now: float) -> Hop | None:
        """Where it goes now."""
        raise NotImplementedError

    def open_options(self, query: Query, now: float) -> Iterator[Option]:
        """Every hop that is not down and not avoided, in the order of their ids, exits first."""
        view = self._engine.view(query.class_id, now)
        for edge in view.exits:
            if edge.open and edge.hop not in query.avoid:
                yield Option(edge, 0.0)
        for edge, rank in view.peers:
            if edge.open and edge.hop not in query.avoid:
                yield Option(edge, rank)


class Nearer(Other):
    """A choice among the hops that lead nearer to an exit and that the message has not seen."""

    def __init__(self, pick: Choose, engine: RoutingEngine, now: Callable[[], float], rng: random.Random) -> None:
        super().__init__(engine, now, rng)
        self._pick = pick

    def choose(self, query: Query, now: float) -> Hop | None:
        """See Other."""
        here = self._engine.view(query.class_id, now).here
        usable = [
            option
            for option in self.open_options(query, now)
            if option.edge.exit or (option.edge.hop.name not in query.trace and (here is None or option.rank < here))
        ]
        return self._pick(usable, self._rng).edge.hop if usable else None


class Backpressure(Other):
    """Mail flows down the gradient of backlogs. Nothing else: neither distances nor traces."""

    def choose(self, query: Query, now: float) -> Hop | None:
        """See Other."""
        backlogs, best, best_gain = self._engine.backlogs, None, 0.0
        here = backlogs.here(query.class_id)
        for option in self.open_options(query, now):
            edge = option.edge
            there = 0 if edge.exit else backlogs.there(edge.hop.name, query.class_id, now).count
            gain = edge.reliability.value * (here - there)
            if gain > best_gain and edge.inflight < SLOTS:
                best, best_gain = edge.hop, gain
        return best


def _distance(option: Option, now: float) -> tuple[float, str]:
    """Expected attempts to an exit by this hop."""
    edge = option.edge
    return 1 / max(0.01, edge.availability.at(now) * edge.reliability.value) + edge.cost + option.rank, edge.hop.id


class LeastCost(Nearer):
    """The nearest."""

    def __init__(self, engine: RoutingEngine, now: Callable[[], float], rng: random.Random) -> None:
        super().__init__(lambda usable, _: min(usable, key=lambda item: _distance(item, now())), engine, now, rng)


def _first_of_list(usable: Sequence[Option], _: random.Random) -> Option:
    return min(usable, key=lambda item: (not item.edge.exit, item.edge.label))


def _any(usable: Sequence[Option], rng: random.Random) -> Option:
    return rng.choice(usable)


def _better_of_two(usable: Sequence[Option], rng: random.Random) -> Option:
    two = rng.sample(usable, min(2, len(usable)))
    return min(two, key=lambda item: (item.edge.latency.peak or LATENCY_UNKNOWN_S) * (item.edge.inflight + 1))


def _strategy(pick: Choose) -> Strategy:
    return lambda engine, now, rng: Nearer(pick, engine, now, rng)


STRATEGIES: dict[str, Strategy | None] = {
    "smtpmesh": None,
    "least cost": LeastCost,
    "ordered fallback": _strategy(_first_of_list),
    "random": _strategy(_any),
    "p2c": _strategy(_better_of_two),
    "backpressure": Backpressure,
}
