"""The joint plan: how much mail of each class goes over each link, so that all of it together waits least. Pure.

A multi-commodity flow at minimum delay, found by gradient projection on paths (Bertsekas, Gallager: Data Networks,
section 5.7): each class in turn moves mail from its dearer paths to the one that is cheapest now, by as much as first
and second derivative say. (Flow deviation, which moves a whole class at once, ends further from the optimum: peak
utilisation 1.02 instead of 0.93 in the worst of 30 meshes, in the same time.) A link with flow f of its capacity c
costs

    delay x f  +  f / (c - f)        messages in flight and waiting (M/M/1); a parabola from 95 % of c on

so near its limit a link grows dear, and what is too much for all of them spreads instead of failing. The plan orders
links, nothing more: `router.forwarding` follows it where a slot is free and the backlogs agree.

Everybody computes the same plan from the same database: inputs are sorted and rounded, and no clock is read. A step is
one class; between steps whoever drives `solve` may do something else.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gossip.linkstate import ClassLoad, NodeRecord
from router.decision import HopKind
from router.topology import Arc

SWEEPS_MAX = 20
"""Times that new paths are looked for, for every class."""
SETTLED = 0.003
"""A sweep that moves less than this share of the mail is the last one."""
ROUNDS = 1
"""Times that mail is moved between the known paths after each search: cheaper than another search."""
KNEE = 0.95
"""Share of the capacity from which the cost goes on as a parabola."""
HOP_S = 0.05
"""Delay of a link with rank weight 1 and no load: a transaction and a durable write."""
CAPACITY_RATIO, DEMAND_RATIO = 1.1, 1.2
"""Inputs are rounded to powers of these: what changes by less makes no new plan."""
HEADROOM = 1.05
"""A plan for exactly what arrives would leave no room for more."""
DRAIN_S = 10.0
"""A backlog is planned to be gone after this time, and at most by as much again as arrives and `DRAIN_MPS`."""
DRAIN_MPS, DRAIN_FREE = 5.0, 5
TRIFLE_MPS = 0.01
"""What a plan leaves out."""
DUST_MPS = 0.0001
"""What a path is given up for while the plan is made: with more, paths would come and go for ever."""
UNLIMITED = math.inf
SINK = "*"
WORK_MAX = 2_000_000
"""Classes x arcs x sweeps; beyond it only the classes with the largest demand are planned."""

Path = tuple[int, ...]
"""Numbers of links."""


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


@dataclass(frozen=True, slots=True)
class Plan:
    """Flows by class: (tail, head) -> messages per second, without the arcs into `SINK`."""

    problem: Problem
    flows: Mapping[str, Mapping[tuple[str, str], float]]

    def shares(self, class_id: str, node_id: str) -> dict[str, float]:
        """What leaves a relay, by node id of a peer or hop id of an exit: parts of 1. Empty = not planned."""
        found = {head: mps for (tail, head), mps in self.flows.get(class_id, {}).items() if tail == node_id}
        total = sum(found.values())
        return {head: mps / total for head, mps in sorted(found.items())} if total >= TRIFLE_MPS else {}


# -- the problem -------------------------------------------------------------------------------------------------------


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


def _demands(nodes: Iterable[NodeRecord]) -> dict[str, dict[str, float]]:
    """Class -> node id -> messages per second."""
    found: dict[str, dict[str, float]] = {}
    for node in nodes:
        for load in node.load.classes:
            wanted = _round(_demand(load), DEMAND_RATIO)
            if wanted >= TRIFLE_MPS:
                found.setdefault(load.class_id, {})[node.node_id] = wanted
    return found


def _demand(load: ClassLoad) -> float:
    rate = load.ingress_mmps / 1000
    return HEADROOM * rate + min(rate + DRAIN_MPS, max(0, load.backlog_count - DRAIN_FREE) / DRAIN_S)


def _affordable(
    names: list[str], classes: Mapping[str, Sequence[Arc]], demands: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """Those with the largest demand, as many as may be planned."""
    chosen: list[str] = []
    work = 0
    for name in sorted(names, key=lambda name: (-sum(demands[name].values()), name)):
        work += SWEEPS_MAX * len(classes[name])
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


# -- the solution ------------------------------------------------------------------------------------------------------


def solve(problem: Problem, sweeps: int = SWEEPS_MAX) -> Generator[None, None, Plan]:
    """The plan, as the generator's return value; it yields after each class."""
    work = [_Flow(problem, commodity) for commodity in problem.commodities]
    load = [0.0] * len(problem.links)
    total = sum(mps for item in problem.commodities for _, mps in item.demand)
    for _ in range(sweeps):
        moved = 0.0
        for flow in work:
            moved += flow.improve(load)
            yield
        if moved < SETTLED * total:
            break
    flows = {}
    for flow in work:
        flows[flow.class_id] = flow.acyclic()
        yield
    return Plan(problem, flows)


def complete(problem: Problem, sweeps: int = SWEEPS_MAX) -> Plan:
    """The plan, without pauses."""
    steps = solve(problem, sweeps)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            plan: Plan = end.value
            return plan


class _Flow:
    """The mail of one class on its paths, while the plan is made. `load` is the flow of all classes, by link."""

    def __init__(self, problem: Problem, commodity: Commodity) -> None:
        self.class_id = commodity.class_id
        self._links, self._demand = problem.links, commodity.demand
        self._paths: dict[str, dict[Path, float]] = {vertex: {} for vertex, _ in commodity.demand}
        """Relay where the mail enters -> path -> messages per second."""
        self._arriving: dict[str, list[tuple[str, int]]] = {}
        self._usable = [number for number in commodity.links if problem.links[number].capacity_mps > 0]
        for number in self._usable:
            link = problem.links[number]
            self._arriving.setdefault(link.head, []).append((link.tail, number))

    def improve(self, load: list[float]) -> float:
        """Find the paths that cost least at the margin now, and move mail there; how much, messages per second.

        What reaches no exit is left out.
        """
        onward, moved = self._cheapest(load), 0.0
        for vertex, mps in self._demand:
            if vertex in onward:
                best = self._follow(vertex, onward)
                if not self._paths[vertex]:
                    self._paths[vertex][best] = mps
                    moved += mps
                    for number in best:
                        load[number] += mps
                moved += self._level(self._paths[vertex], best, load)
        for _ in range(ROUNDS):
            for paths in self._paths.values():
                if len(paths) > 1:
                    self._level(paths, min(paths, key=lambda path: (self._price(path, load), path)), load)
        return moved

    def _level(self, paths: dict[Path, float], best: Path, load: list[float]) -> float:
        return sum(self._shift(paths, path, best, load) for path in [path for path in paths if path != best])

    def _price(self, path: Path, load: list[float]) -> float:
        return sum(_slope(self._links[number], load[number]) for number in path)

    def _cheapest(self, load: list[float]) -> dict[str, int]:
        """Dijkstra from the sink, over marginal costs: the link by which each vertex goes on."""
        links = self._links
        price = {number: _slope(links[number], load[number]) for number in self._usable}
        far, onward = {SINK: 0.0}, dict[str, int]()
        heap, settled = [(0.0, SINK)], set[str]()
        while heap:
            distance, vertex = heapq.heappop(heap)
            if vertex in settled:
                continue
            settled.add(vertex)
            for tail, number in self._arriving.get(vertex, ()):
                through = distance + price[number]
                if through < far.get(tail, math.inf):
                    far[tail], onward[tail] = through, number
                    heapq.heappush(heap, (through, tail))
        return onward

    def _follow(self, vertex: str, onward: Mapping[str, int]) -> Path:
        path: list[int] = []
        while vertex != SINK:
            path.append(onward[vertex])
            vertex = self._links[path[-1]].head
        return tuple(path)

    def _shift(self, paths: dict[Path, float], path: Path, best: Path, load: list[float]) -> float:
        """One step of Newton's method between two paths, kept within what they carry."""
        links = self._links
        left = [number for number in path if number not in best]
        taken = [number for number in best if number not in path]
        excess = sum(_slope(links[number], load[number]) for number in left)
        excess -= sum(_slope(links[number], load[number]) for number in taken)
        curve = sum(_curve(links[number], load[number]) for number in (*left, *taken))
        change = max(-paths.get(best, 0.0), min(paths[path], excess / curve if curve else paths[path]))
        if paths[path] - change < DUST_MPS:
            change = paths[path]
        paths[best] = paths.get(best, 0.0) + change
        paths[path] -= change
        if not paths[path]:
            del paths[path]
        for number in left:
            load[number] = max(0.0, load[number] - change)
        for number in taken:
            load[number] += change
        return abs(change)

    def acyclic(self) -> dict[tuple[str, str], float]:
        """The flow of all paths together without circles, which mixing them can make, and without trifles."""
        total: dict[int, float] = {}
        for paths in self._paths.values():
            for path, mps in paths.items():
                for number in path:
                    total[number] = total.get(number, 0.0) + mps
        leaving: dict[str, dict[str, float]] = {}
        for number, mps in sorted(total.items()):
            link = self._links[number]
            if mps >= TRIFLE_MPS and link.head != SINK:
                leaving.setdefault(link.tail, {})[link.head] = mps
        while (circle := _find_circle(leaving)) is not None:
            _cancel(circle, leaving)
        return {(tail, head): mps for tail, heads in leaving.items() for head, mps in heads.items()}


def _cancel(circle: Sequence[str], leaving: Mapping[str, dict[str, float]]) -> None:
    """Take the smallest flow of a circle out of all its links."""
    steps = list(zip(circle, [*circle[1:], circle[0]], strict=True))
    least = min(leaving[tail][head] for tail, head in steps)
    for tail, head in steps:
        leaving[tail][head] -= least
        if leaving[tail][head] < TRIFLE_MPS:
            del leaving[tail][head]


def _find_circle(leaving: Mapping[str, Mapping[str, float]]) -> list[str] | None:
    """Vertices of a circle in order, if there is one."""
    done: set[str] = set()
    for start in leaving:
        path: list[str] = []
        on_path: set[str] = set()
        stack = [(start, iter(leaving[start]))] if start not in done else []
        while stack:
            vertex, heads = stack[-1]
            if not path or path[-1] != vertex:
                path.append(vertex)
                on_path.add(vertex)
            for head in heads:
                if head in on_path:
                    return path[path.index(head) :]
                if head in leaving and head not in done:
                    stack.append((head, iter(leaving[head])))
                    break
            else:
                stack.pop()
                done.add(vertex)
                path.pop()
                on_path.discard(vertex)
    return None


def _slope(link: Link, flow: float) -> float:
    """Seconds that one more message per second costs."""
    capacity = link.capacity_mps
    if capacity == UNLIMITED:
        return link.delay_s
    knee = KNEE * capacity
    if flow < knee:
        return link.delay_s + capacity / (capacity - flow) ** 2
    gap = capacity - knee
    return link.delay_s + capacity / gap**2 + 2 * capacity / gap**3 * (flow - knee)


def _curve(link: Link, flow: float) -> float:
    """How fast the slope grows."""
    if link.capacity_mps == UNLIMITED:
        return 0.0
    gap = link.capacity_mps - min(flow, KNEE * link.capacity_mps)
    return 2 * link.capacity_mps / gap**3
