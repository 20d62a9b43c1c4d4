"""The joint plan: how much mail of each class goes over each link, so that all of it together waits least. Pure.

A multi-commodity flow at minimum delay, found by gradient projection on paths (Bertsekas, Gallager: Data Networks,
section 5.7): each class in turn moves mail from its dearer paths to the one that is cheapest now, by as much as first
and second derivative say. (Flow deviation, which moves a whole class at once, ends further from the optimum: peak
utilisation 1.02 instead of 0.93 in the worst of 30 meshes, in the same time.) A link with flow f of its capacity c
costs

    delay x f  +  f / (c - f)        messages in flight and waiting (M/M/1); a parabola from 95 % of c on

so near its limit a link grows dear, and what is too much for all of them spreads instead of failing. The plan orders
links, nothing more: `router.forwarding` follows it where a slot is free and the backlogs agree.

Equal problems have equal plans: no clock is read. A step is one class; between steps whoever drives `solve` may do
something else.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from router.problem import SINK, TRIFLE_MPS, UNLIMITED, Commodity, Link, Problem

SWEEPS_MAX = 20
"""Times that new paths are looked for, for every class."""
SETTLED = 0.003
"""A sweep that moves less than this share of the mail is the last one."""
ROUNDS = 1
"""Times that mail is moved between the known paths after each search: cheaper than another search."""
KNEE = 0.95
"""Share of the capacity from which the cost goes on as a parabola."""
DUST_MPS = 0.0001
"""What a path is given up for while the plan is made: with more, paths would come and go for ever."""

Path = tuple[int, ...]
"""Numbers of links."""


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
