"""Walks of messages through random meshes whose relays all believe something else.

    python -m tests.unit.router.loops --graphs 10000 [--seed 1]

Each relay has its own engine and its own picture: links that others know as down, members that it never heard of,
backlogs from long ago, edges that it found dead itself, and a plan made of all that. A message goes where the relay
that has it sends it; exits fail at random, and while it is held time passes: pictures change, and not for the better.
What has to hold all the same:

    a relay is entered once, but for a step back to the relay that first sent the message here
    no relay sends the same message to the same relay twice
    a walk ends within the transfers that a message may make
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gossip.linkstate import ClassLoad, LinkState, LinkStatus, Load, NodeId, Snapshot
from router.decision import Decision, Hop, HopKind, Outcome, OutcomeKind, Query
from router.engine import RoutingEngine
from router.forwarding import STEP_BACK
from tests.unit.router.worlds import CLASS, build_engine, host, link, node_id, peer, record

RELAYS = (3, 9)
WALKS = 4
HOLDS_MAX = 6
STATUSES = (LinkStatus.UP, LinkStatus.UP, LinkStatus.UNKNOWN, LinkStatus.SUSPECT, LinkStatus.HALF_OPEN, LinkStatus.DOWN)


@dataclass
class Tally:
    """Of all walks."""

    graphs: int = 0
    walks: int = 0
    delivered: int = 0
    transfers: int = 0
    steps_back: int = 0
    revisits: int = 0
    """Transfers to a relay of the trace that were no step back to the first sender."""
    repeats: int = 0
    """Transfers between the same two relays, in the same direction, of the same message."""
    longest: int = 0
    faults: list[str] = field(default_factory=list)


class DivergentMesh:
    """Relays 1..n, each with an engine that believes what it likes."""

    def __init__(self, rng: random.Random, on_decision: Callable[[Decision], None] | None = None) -> None:
        """`on_decision`: is told every decision, with all its terms."""
        self.on_decision = on_decision
        self.rng, self.now = rng, 10.0
        self.count = rng.randint(*RELAYS)
        hosts = [f"h{number}" for number in range(rng.randint(1, 3))]
        self.attached = [[name for name in hosts if rng.random() < 0.35] for _ in range(self.count)]
        self.engines = [build_engine(n + 1, names, via=hosts) for n, names in enumerate(self.attached)]
        for relay in range(self.count):
            self.imagine(relay)

    def imagine(self, relay: int) -> None:
        """A new picture for one relay."""
        rng, engine = self.rng, self.engines[relay]
        heard = [n for n in range(self.count) if n == relay or rng.random() < 0.9]
        records = [record(n + 1, self._links(n), no_transit=rng.random() < 0.05) for n in heard]
        loads = [Load(classes=(ClassLoad(CLASS, 0, 0, rng.choice((0, 3_000, 90_000))),)) for _ in heard]
        pictured = [replace(node, load=load) for node, load in zip(records, loads, strict=True)]
        engine.apply(Snapshot(str(rng.random()), tuple(pictured)), self.now)
        while engine.begin_plan(self.now):
            engine.plan_step(self.now)
        engine.set_backlog(CLASS, rng.choice((1, 5, 50, 500)))
        for other in range(self.count):
            if other != relay:
                engine.hear_backlog(node_id(other + 1), {CLASS: rng.choice((0, 0, 3, 40, 400))}, self.now)
                engine.peer_session(NodeId(node_id(other + 1)), rng.random() < 0.8, self.now)
                self._feel(engine, peer(other + 1), 0.15)
        for name in self.attached[relay]:
            self._feel(engine, host(name), 0.5)

    def _links(self, relay: int) -> list[LinkState]:
        rng = self.rng
        hops = [peer(n + 1) for n in range(self.count) if n != relay] + [host(name) for name in self.attached[relay]]
        return [link(hop, rng.choice(STATUSES), rng.choice((0, 4_000, 60_000))) for hop in hops if rng.random() < 0.9]

    def _feel(self, engine: RoutingEngine, hop: Hop, dead: float) -> None:
        kind = OutcomeKind.CONNECT_FAILED if self.rng.random() < dead else OutcomeKind.ACCEPTED
        if engine.state_of(hop) is not None:
            engine.record(Outcome(hop, kind, self.now, 0.01, probe=True), CLASS, self.now)

    def walk(self, tally: Tally) -> None:
        """One message, from a random relay to where it ends."""
        rng = self.rng
        here, trace, sent = rng.randrange(self.count), (), set[tuple[int, int]]()
        avoid: tuple[Hop, ...] = ()
        holds = 0
        while holds < HOLDS_MAX:
            prefer = rng.choice(avoid) if avoid and rng.random() < 0.2 else None
            query = Query(CLASS, trace, avoid, prefer)
            if self.on_decision is not None:
                self.on_decision(self.engines[here].decide(query, self.now))
            hop, rule = self.engines[here].pick(query, self.now)
            if hop is None:
                holds += 1
                self.now += 1.0
                avoid = ()
                self.imagine(here)
            elif hop.kind is not HopKind.PEER:
                if rng.random() < 0.5:
                    tally.delivered += 1
                    break
                avoid = (*avoid, hop)
            else:
                there = next(n for n in range(self.count) if node_id(n + 1) == hop.name)
                self._judge(tally, here, there, trace, rule, sent)
                trace, here, avoid = (*trace, node_id(here + 1)), there, ()
        tally.walks += 1
        tally.longest = max(tally.longest, len(trace))
        if len(trace) > 2 * (self.count - 1):
            tally.faults.append(f"{len(trace)} transfers among {self.count} relays")

    def _judge(
        self, tally: Tally, here: int, there: int, trace: tuple[str, ...], rule: str, sent: set[tuple[int, int]]
    ) -> None:
        tally.transfers += 1
        own = node_id(here + 1)
        if node_id(there + 1) in trace or there == here:
            first = trace[trace.index(own) - 1] if own in trace else trace[-1]
            if rule == STEP_BACK and first == node_id(there + 1):
                tally.steps_back += 1
            else:
                tally.revisits += 1
                tally.faults.append(f"{rule}: relay {there + 1} again after {[name[0] for name in trace]}")
        if (here, there) in sent:
            tally.repeats += 1
            tally.faults.append(f"{here + 1} -> {there + 1} twice")
        sent.add((here, there))


def walk_graphs(graphs: int, seed: int) -> Tally:
    """So many meshes, a few walks through each."""
    tally = Tally(graphs)
    for number in range(graphs):
        mesh = DivergentMesh(random.Random(seed * 1_000_003 + number))
        for _ in range(WALKS):
            mesh.walk(tally)
            for relay in range(mesh.count):
                if mesh.rng.random() < 0.3:
                    mesh.imagine(relay)
    return tally


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    tally = walk_graphs(arguments.graphs, arguments.seed)
    print(
        f"{tally.graphs} graphs, {tally.walks} walks, {tally.delivered} delivered, {tally.transfers} transfers, "
        f"the longest walk {tally.longest}; {tally.steps_back} steps back, revisits {tally.revisits}, "
        f"repeats {tally.repeats}; {time.monotonic() - began:.0f} s"
    )
    for fault in tally.faults[:10]:
        print(fault)
    if tally.faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
