"""A node's plan, kept current: when it is due, how it is made off the message path, and how mail follows it. Pure.

All relays plan with the same database, so they agree without a word; while their databases differ for a moment so do
their plans, and backlogs and traces keep that harmless. A cluster that is too large to plan goes without: ranks, shares
of exits and backlogs find the way, with a few hops more.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from gossip.linkstate import Snapshot
from router.decision import HopKind
from router.plan import Plan, solve
from router.policy import DIRECT_PREFIX, DestinationClass
from router.problem import Problem, build_problem, has_demand
from router.topology import Arc, Digests, build_topology

PLAN_S = 1.0
"""A new plan at most this often."""
RELAYS_MAX = 200
FADE = 0.8
"""Of what was sent, kept each second: the past must not weigh for ever."""
FADES_MAX = 30
SOLVED_MAX = 64
CHURN_MIN = 0.1
"""Change of a share between two plans that counts as one."""


@dataclass(slots=True)
class ClassPlan:
    """What leaves this relay of one class: a part by its own exits, the rest by some peers."""

    exits: float
    """Part of 1; among exits their capacities decide (`Edge.stride`)."""
    peers: dict[str, float]
    """Node id -> part of 1."""
    sent_exits: float = 0.0
    sent: dict[str, float] = field(default_factory=dict)
    faded_at: float = 0.0

    def note(self, peer: str | None, now: float) -> None:
        """A message went to a peer, or (None) to an exit."""
        turns = int(now - self.faded_at)
        if turns > 0:
            factor = FADE ** min(turns, FADES_MAX)
            self.sent_exits *= factor
            self.sent = {name: count * factor for name, count in self.sent.items()}
            self.faded_at += turns
        if peer is None:
            self.sent_exits += 1
        else:
            self.sent[peer] = self.sent.get(peer, 0.0) + 1

    def stride_of_exits(self) -> float:
        """The smaller, the further behind its share; infinite if the plan sends nothing that way."""
        return (self.sent_exits + 1) / self.exits if self.exits else float("inf")

    def stride_of(self, peer: str) -> float:
        """The same for a peer."""
        share = self.peers.get(peer)
        return (self.sent.get(peer, 0.0) + 1) / share if share else float("inf")


class Planning:
    """See the module."""

    def __init__(self, node_id: str, digests: Digests | None = None) -> None:
        self._node_id, self._digests = node_id, digests or Digests()
        self.relays_max = RELAYS_MAX
        """0 = there is no plan, for rules that do not look at it."""
        self.plan: Plan | None = None
        self.made_at = float("-inf")
        self.made = 0
        """Plans, since the start."""
        self.churn = 0
        """Shares of this node that changed by a tenth or more from one plan to the next."""
        self.solved: dict[Problem, Plan] | None = None
        """What others who share this process found: a simulation solves once what all its relays ask."""
        self._classes: dict[str, ClassPlan] = {}
        self._steps: Generator[None, None, Plan] | None = None
        self._began = float("-inf")
        self._seen: Snapshot | None = None

    def of_class(self, class_id: str) -> ClassPlan | None:
        """What is planned for a class here; None = nothing."""
        return self._classes.get(class_id)

    def begin(self, snapshot: Snapshot, classes: Mapping[str, DestinationClass], now: float) -> bool:
        """Begin a new plan if one is due; True if there is something to do (`step`)."""
        if self._steps is not None:
            return True
        if snapshot is self._seen or now - self._began < PLAN_S:
            return False
        self._seen, self._began = snapshot, now
        if not 2 <= len(snapshot.nodes) <= self.relays_max:
            self.plan, self._classes = None, {}
            return False
        self._steps = self._make(snapshot, classes)
        return True

    def step(self, now: float) -> bool:
        """A little work; True if there is more."""
        if self._steps is None:
            return False
        try:
            next(self._steps)
        except StopIteration as end:
            self._steps = None
            self._take(end.value, now)
            return False
        return True

    def _make(self, snapshot: Snapshot, classes: Mapping[str, DestinationClass]) -> Generator[None, None, Plan]:
        """From the database alone, own links included as they were advertised: so all come to the same."""
        if not has_demand(snapshot.nodes):
            return self.plan if self.plan is not None and not self.plan.flows else Plan(Problem(), {})
        topology = build_topology("", snapshot, (), 0.0, self._digests)
        yield
        wanted = {load.class_id for node in snapshot.nodes for load in node.load.classes}
        arcs: dict[str, list[Arc]] = {}
        for class_id in sorted(wanted & classes.keys()):
            if class_id.startswith(DIRECT_PREFIX):  # single domains: every relay reaches them by itself
                continue
            wanted_class = classes[class_id]
            closed = topology.closed_to(wanted_class.policy)
            arcs[class_id] = [
                arc
                for arc in topology.of_class(wanted_class)
                if arc.hop.kind is not HopKind.PEER or arc.hop.name not in closed
            ]
            yield
        problem = build_problem(arcs, snapshot.nodes)
        if self.plan is not None and problem == self.plan.problem:
            return self.plan
        known = self.solved.get(problem) if self.solved is not None else None
        if known is not None:
            return known
        yield
        plan = yield from solve(problem)
        if self.solved is not None:
            if len(self.solved) >= SOLVED_MAX:
                self.solved.clear()
            self.solved[problem] = plan
        return plan

    def _take(self, plan: Plan, now: float) -> None:
        if plan is self.plan:
            return
        self.plan, self.made_at, self.made = plan, now, self.made + 1
        before, self._classes = self._classes, {}
        for class_id in plan.flows:
            shares = plan.shares(class_id, self._node_id)
            if not shares:
                continue
            exits = sum(share for head, share in shares.items() if ":" in head)
            peers = {head: share for head, share in shares.items() if ":" not in head}
            old = before.get(class_id)
            new = self._classes[class_id] = ClassPlan(exits, peers, faded_at=now)
            if old is not None:
                new.sent_exits, new.sent, new.faded_at = old.sent_exits, old.sent, old.faded_at
                self.churn += _changes(old, new)


def _changes(old: ClassPlan, new: ClassPlan) -> int:
    moved = [abs(new.peers.get(peer, 0.0) - old.peers.get(peer, 0.0)) for peer in {*old.peers, *new.peers}]
    return sum(change >= CHURN_MIN for change in (*moved, abs(new.exits - old.exits)))
