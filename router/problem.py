"""What the joint plan is a function of: links with their capacities, and the mail of each class. Pure.

It comes from the database alone, sorted and rounded: relays with equal databases pose the same problem, and so come to
the same plan (`router.plan`). What changes by less than a rounding step makes no new problem.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gossip.linkstate import ClassLoad, NodeRecord
from router.decision import HopKind
from router.topology import Arc

HOP_S = 0.05
"""Delay of a link with rank weight 1 and no load: a transaction and a durable write."""
CAPACITY_RATIO, DEMAND_RATIO = 1.1, 1.2
"""Inputs are rounded to powers of these."""
HEADROOM = 1.05
"""A plan for exactly what arrives would leave no room for more."""
DRAIN_S = 10.0
"""A backlog is planned to be gone after this time, and at most by as much again as arrives and `DRAIN_MPS`."""
DRAIN_MPS, DRAIN_FREE, DRAIN_FREE_S = 5.0, 20, 2.0
"""So many messages, and what comes in so many seconds, are no backlog: a queue breathes."""
DEMAND_MIN_MPS = 0.5
"""What a relay has of a class below this is not worth a plan: the forwarding rule finds its way, and a quiet cluster
works out nothing."""
TRIFLE_MPS = 0.01
"""What a plan leaves out."""
UNLIMITED = math.inf
SINK = "*"
"""Behind all exits."""
WORK_MAX = 100_000
"""Classes x arcs; beyond it only the classes with the largest demand are planned."""


@dataclass(frozen=True, slots=True)
class Link:
    """An arc of the problem. Vertices are node ids, hop ids of exits, and `SINK`."""

    tail: str
    head: str
    capacity_mps: float
    delay_s: float


@dataclass(frozen=True, slots=True)
class Commodity:
    """The mail of one class."""

    class_id: str
    links: tuple[int, ...]
    """Numbers of the links that it may use, ascending."""
    demand: tuple[tuple[str, float], ...]
    """(node id, messages per second), ascending."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a plan is a function of."""

    links: tuple[Link, ...] = ()
    commodities: tuple[Commodity, ...] = ()

    @property
    def digest(self) -> str:
        """Equal for equal problems, so for equal plans; 16 hexadecimal digits."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def build_problem(classes: Mapping[str, Sequence[Arc]], nodes: Iterable[NodeRecord]) -> Problem:
    """The problem of a database. `classes`: the arcs that each class may use, all as advertised by their origins.

    An exit takes from all relays together the sum of what they measured there: when one gives it less, the others'
    part grows. So mail waits at the exit, and not on the way of one relay to it. Classes without demand are left out.
    """
    demands = _demands(nodes)
    wanted = [class_id for class_id in sorted(classes) if demands.get(class_id) and classes[class_id]]
    wanted = _affordable(wanted, classes, demands)
    arcs = sorted({(arc.origin, arc.hop): arc for name in wanted for arc in classes[name]}.items())
    exits: dict[str, float] = {}
    for (_, hop), arc in arcs:
        if hop.kind is not HopKind.PEER:
            exits[hop.id] = exits.get(hop.id, 0.0) + arc.capacity_mmps / 1000
    links: list[Link] = []
    number: dict[tuple[str, str], int] = {}
    for (origin, hop), arc in arcs:
        exit_ = hop.kind is not HopKind.PEER
        head, capacity = (hop.id, UNLIMITED) if exit_ else (hop.name, _round(arc.capacity_mmps / 1000, CAPACITY_RATIO))
        number[origin, head] = len(links)
        links.append(Link(origin, head, capacity, HOP_S * arc.weight))
    for hop_id, capacity in sorted(exits.items()):
        number[hop_id, SINK] = len(links)
        links.append(Link(hop_id, SINK, _round(capacity, CAPACITY_RATIO), 0.0))
    return Problem(tuple(links), tuple(_commodity(name, classes[name], demands[name], number) for name in wanted))


def has_demand(nodes: Iterable[NodeRecord]) -> bool:
    """Somebody has something worth a plan."""
    return any(_wanted(load) >= DEMAND_MIN_MPS for node in nodes for load in node.load.classes)


def _demands(nodes: Iterable[NodeRecord]) -> dict[str, dict[str, float]]:
    """Class -> node id -> messages per second."""
    found: dict[str, dict[str, float]] = {}
    for node in nodes:
        for load in node.load.classes:
            wanted = _wanted(load)
            if wanted >= DEMAND_MIN_MPS:
                found.setdefault(load.class_id, {})[node.node_id] = wanted
    return found


def _wanted(load: ClassLoad) -> float:
    rate = load.ingress_mmps / 1000
    backlog = max(0.0, load.backlog_count - DRAIN_FREE - DRAIN_FREE_S * rate)
    demand = HEADROOM * rate + min(rate + DRAIN_MPS, backlog / DRAIN_S)
    return _round(demand, DEMAND_RATIO)


def _affordable(
    names: list[str], classes: Mapping[str, Sequence[Arc]], demands: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Those with the largest demand, as many as may be planned."""
    chosen: list[str] = []
    work = 0
    for name in sorted(names, key=lambda name: (-sum(demands[name].values()), name)):
        work += len(classes[name])
        if work > WORK_MAX:
            break
        chosen.append(name)
    return sorted(chosen)


def _commodity(
    name: str, arcs: Sequence[Arc], demand: Mapping[str, float], number: Mapping[tuple[str, str], int]
) -> Commodity:
    used = set()
    for arc in arcs:
        if arc.hop.kind is HopKind.PEER:
            used.add(number[arc.origin, arc.hop.name])
        else:
            used |= {number[arc.origin, arc.hop.id], number[arc.hop.id, SINK]}
    return Commodity(name, tuple(sorted(used)), tuple(sorted(demand.items())))


def _round(value: float, ratio: float) -> float:
    """The nearest power of the ratio; 0 for next to nothing."""
    return float(ratio ** round(math.log(value) / math.log(ratio))) if value >= TRIFLE_MPS else 0.0
