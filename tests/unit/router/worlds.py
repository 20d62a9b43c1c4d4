"""A small world in virtual time: relays with real engines, smart hosts that serve one at a time, instant gossip.

Seeded and deterministic. Peers take 4 ms, hosts queue: their latency grows with what waits before them, as a real
rate-limited host's does.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gossip.linkstate import LinkState, LinkStatus, NodeId, NodeInfo, NodeRecord, Snapshot, Version
from router.decision import Changes, ExitHop, Hop, HopKind, Outcome, OutcomeKind, Query, Transition
from router.engine import RoutingEngine
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings

CLASS = "default"


def node_id(number: int) -> str:
    return f"{number:x}" * 32


def host(name: str) -> Hop:
    return Hop(HopKind.SMART_HOST, name)


def peer(number: int) -> Hop:
    return Hop(HopKind.PEER, node_id(number))


def build_engine(
    number: int,
    hosts: Sequence[str] = ("a",),
    *,
    via: Sequence[str] | None = None,
    direct: bool = False,
    settings: RouterSettings | None = None,
) -> RoutingEngine:
    routes = ("mx",) if direct else tuple(via if via is not None else hosts)
    return RoutingEngine(
        node_id=node_id(number),
        node_name=f"r{number}",
        table=RouteTable([RouteRule(CLASS, ("*",), routes)]),
        exits=[ExitHop(host(name), name) for name in hosts],
        settings=settings or RouterSettings(),
        rng=random.Random(number),
        now=0.0,
    )


def record(
    number: int,
    links: Sequence[LinkState] = (),
    *,
    no_transit: bool = False,
    direct_mx: bool = False,
    age_s: float = 0.1,
) -> NodeRecord:
    info = NodeInfo(f"r{number}", "g", "m", no_transit=no_transit, direct_mx=direct_mx)
    return NodeRecord(NodeId(node_id(number)), info, tuple(links), version=Version(1, 1), age_s=age_s)


def link(hop: Hop, status: LinkStatus = LinkStatus.UP, capacity_mmps: int = 50_000) -> LinkState:
    classes = (CLASS,) if hop.kind is HopKind.SMART_HOST else ()
    return LinkState(hop.id, status, 1000, 1000, capacity_mmps, 5000, 10, 0, classes)


@dataclass
class Mail:
    began: float
    trace: tuple[str, ...] = ()
    avoid: dict[Hop, float] = field(default_factory=dict)


class World:
    """Relays attached to named hosts of given rates (messages per second)."""

    def __init__(
        self, attached: Sequence[Sequence[str]], rates: dict[str, float], *, seed: int = 1, gossips: bool = True
    ) -> None:
        every = tuple(rates)
        self.engines = [build_engine(n + 1, hosts, via=every) for n, hosts in enumerate(attached)]
        self.rates, self.rng = dict(rates), random.Random(seed)
        self.free_at = dict.fromkeys(rates, 0.0)
        self.dead: set[str] = set()
        self.queues: list[deque[Mail]] = [deque() for _ in attached]
        self.inflight = [0] * len(attached)
        self.arrived = [0] * len(attached)
        """From clients, since the last tick."""
        self.delivered: list[tuple[float, str, float]] = []
        """(when, host, delay)"""
        self.attempts: list[tuple[float, int, Hop]] = []
        self.transitions: list[tuple[float, int, Transition]] = []
        self.errors: dict[str, float] = {}
        """Host -> share of its messages that end in a 421."""
        self.transfers = 0
        self.revisits = 0
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.gossips = True
        self._tick()
        self.gossips = gossips

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))

    def offer(self, relay: int, rate_mps: float, *, until: float, start: float = 0.0) -> None:
        """Poisson arrivals at a relay."""

        def arrive() -> None:
            self.queues[relay].append(Mail(self.now))
            self.arrived[relay] += 1
            self.pump(relay)
            following = self.now + self.rng.expovariate(rate_mps)
            if following < until:
                self.at(following, arrive)

        self.at(start + self.rng.expovariate(rate_mps), arrive)

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def shares(self, start: float, end: float) -> dict[str, float]:
        chosen = Counter(name for when, name, _ in self.delivered if start <= when < end)
        return {name: chosen[name] / max(1, chosen.total()) for name in self.rates}

    def throughput(self, start: float, end: float) -> float:
        return sum(start <= when < end for when, _, _ in self.delivered) / (end - start)

    def waiting(self) -> int:
        return sum(map(len, self.queues)) + sum(self.inflight)

    def slots_taken(self) -> int:
        """As the engines see it."""
        rows = [row for engine in self.engines for row in engine.rows(self.now)]
        return sum(candidate.inflight for row in rows for candidate in row.decision.candidates)

    # -- inner workings ------------------------------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            "view",
            tuple(
                NodeRecord(
                    NodeId(node_id(n + 1)),
                    NodeInfo(f"r{n + 1}", "g", "m"),
                    engine.links(self.now),
                    engine.load(self.now),
                    Version(1, 1),
                    0.1,
                )
                for n, engine in enumerate(self.engines)
            ),
        )

    def _tick(self) -> None:
        if self.gossips:
            snapshot = self._snapshot()
            for n, engine in enumerate(self.engines):
                self._act(n, engine.apply(snapshot, self.now))
        for n, engine in enumerate(self.engines):
            engine.note_arrivals({CLASS: self.arrived[n]}, self.now)
            self.arrived[n] = 0
            while engine.begin_plan(self.now):
                engine.plan_step(self.now)
            self._act(n, engine.on_timer(self.now))
            for hop in engine.probes_due(self.now):
                self._probe(n, hop)
        self.at(self.now + 0.25, self._tick)

    def _act(self, n: int, changes: Changes) -> None:
        """Held mail is asked for again only when the engine says that something changed, or a slot is free."""
        self.transitions += [(self.now, n, change) for change in changes.transitions]
        if changes:
            self.pump(n)

    def _probe(self, n: int, hop: Hop) -> None:
        kind = OutcomeKind.CONNECT_FAILED if hop.name in self.dead else OutcomeKind.ACCEPTED
        outcome = Outcome(hop, kind, self.now, 0.002, probe=True)
        self.at(self.now + 0.002, lambda: self._act(n, self.engines[n].record(outcome, "", self.now)))

    def pump(self, n: int) -> None:
        queue, engine = self.queues[n], self.engines[n]
        started = True
        while queue and started:
            started = False
            for mail in list(queue)[:8]:
                engine.set_backlog(CLASS, len(queue) + self.inflight[n])
                avoid = tuple(hop for hop, until in mail.avoid.items() if until > self.now)
                chosen = engine.pick(Query(CLASS, mail.trace, avoid), self.now)[0]
                if chosen is not None:
                    queue.remove(mail)
                    self._begin(n, mail, chosen)
                    started = True
                    break

    def _begin(self, n: int, mail: Mail, hop: Hop) -> None:
        self.engines[n].begin(hop, CLASS, self.now)
        self.inflight[n] += 1
        self.attempts.append((self.now, n, hop))
        began = self.now
        if hop.name in self.dead:
            self.at(began + 0.001, lambda: self._end(n, mail, hop, began, OutcomeKind.CONNECT_FAILED))
            return
        ready = began + 0.002
        if hop.kind is HopKind.SMART_HOST:
            ready = self.free_at[hop.name] = max(began, self.free_at[hop.name]) + 1 / self.rates[hop.name]
        failed = self.rng.random() < self.errors.get(hop.name, 0.0)
        kind = OutcomeKind.HOP_TEMPFAIL if failed else OutcomeKind.ACCEPTED
        self.at(ready + 0.002, lambda: self._end(n, mail, hop, began, kind))

    def _end(self, n: int, mail: Mail, hop: Hop, began: float, kind: OutcomeKind) -> None:
        self.inflight[n] -= 1
        if hop.name in self.dead and kind is OutcomeKind.ACCEPTED:
            kind = OutcomeKind.DISCONNECTED
        self._act(n, self.engines[n].record(Outcome(hop, kind, began, self.now - began), CLASS, self.now))
        if kind is not OutcomeKind.ACCEPTED:
            mail.avoid[hop] = self.now + 1
            self.queues[n].appendleft(mail)
            self.at(self.now + 1.001, lambda: self.pump(n))
        elif hop.kind is HopKind.PEER:
            self._transfer(n, mail, hop)
        else:
            self.delivered.append((self.now, hop.name, self.now - mail.began))
        self.pump(n)

    def _transfer(self, n: int, mail: Mail, hop: Hop) -> None:
        there = next(m for m in range(len(self.engines)) if node_id(m + 1) == hop.name)
        self.transfers += 1
        self.revisits += hop.name in mail.trace
        self.queues[there].append(Mail(mail.began, (*mail.trace, node_id(n + 1))))
        self.engines[n].hear_backlog(hop.name, {CLASS: len(self.queues[there]) + self.inflight[there]}, self.now)
        self.pump(there)
