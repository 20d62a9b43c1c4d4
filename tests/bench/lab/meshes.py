"""Random meshes as numbers, what they can carry at most, and how a simulated mesh is made of them.

A mesh has relays on a sparse random graph whose ways carry 4 to 60 messages a second and lose some connections, smart
hosts of unequal speed at some of the relays, and three relays where clients submit. Each destination class has hosts of
its own. The capacity is the largest load, in the clients' proportions, that a linear program over all classes carries
whole; what a way carries is its speed less what it loses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import highspy

from smtp_edge.simulation import Mesh
from tests.bench.lab.linear import new_model

HOSTS = 4
INGRESS = 3
DEGREE, EVIDENCE_DEGREE = 3.3, 4.0
HOSTS_PER_CLASS = 3
LATENCY_S = 0.01
LOSSES = (0.0, 0.0, 0.02, 0.05, 0.15)
"""Of ways, one as likely as another."""
SINK = "*"

Way = tuple[str, str]


@dataclass
class Plan:
    """A random mesh, as numbers."""

    seed: int
    names: list[str]
    ways: dict[Way, float] = field(default_factory=dict)
    """Between relays: messages a second."""
    losses: dict[Way, float] = field(default_factory=dict)
    """Of ways that lose connections: which share."""
    hosts: dict[str, float] = field(default_factory=dict)
    exits: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    """Class -> its hosts."""
    demands: dict[tuple[str, str], float] = field(default_factory=dict)
    """(relay, class) -> share of the load."""

    @property
    def demand(self) -> dict[str, float]:
        """Shares of the load by relay."""
        found: dict[str, float] = {}
        for (relay, _), share in self.demands.items():
            found[relay] = found.get(relay, 0.0) + share
        return found

    def carries(self, load_mps: float, factors: Mapping[Way, float] | None = None) -> float:
        """Messages a second of a load that can be delivered at most, while ways have a share of their capacity."""
        return Flows(self, factors or {}).carried(load_mps)

    def capacity_mps(self) -> float:
        """The largest load that is carried whole."""
        return Flows(self, {}).largest_load()

    def busiest(self, load_mps: float) -> Way:
        """The way between relays that carries most when all is delivered over as few hops as possible."""
        used = Flows(self, {}).use_of_ways(load_mps)
        return max(self.ways, key=lambda way: (used[way], way))


class Flows:
    """The linear program: flows of each class over ways, exits and hosts."""

    def __init__(self, plan: Plan, factors: Mapping[Way, float]) -> None:
        self._plan = plan
        self._model = new_model()
        self._flows: dict[tuple[str, Way], highspy.highs_var] = {}
        self._taken = {key: self._model.addVariable(lb=0) for key in plan.demands}
        for name, hosts in plan.classes.items():
            self._add_class(name, set(hosts))
        for way, mps in plan.ways.items():
            room = mps * (1 - plan.losses.get(way, 0.0)) * factors.get(way, 1.0)
            self._model.addConstr(sum(self._flows[name, way] for name in plan.classes) <= room)

    def _add_class(self, name: str, hosts: set[str]) -> None:
        plan, model = self._plan, self._model
        exits = [(relay, host) for relay, known in plan.exits.items() for host in known if host in hosts]
        for way in [*plan.ways, *exits]:
            self._flows[name, way] = model.addVariable(lb=0)
        for relay in plan.names:
            left = sum(self._flows[name, way] for way in [*plan.ways, *exits] if way[0] == relay)
            came = sum(self._flows[name, way] for way in plan.ways if way[1] == relay)
            model.addConstr(left - came - self._taken.get((relay, name), 0.0) == 0)
        for host in sorted(hosts):
            model.addConstr(sum(self._flows[name, way] for way in exits if way[1] == host) <= plan.hosts[host])

    def carried(self, load_mps: float) -> float:
        """Delivered at most of a load."""
        for key, share in self._plan.demands.items():
            self._model.addConstr(self._taken[key] <= share * load_mps)
        self._model.maximize(sum(self._taken.values()))
        return sum(float(self._model.val(taken)) for taken in self._taken.values())

    def largest_load(self) -> float:
        """That is delivered whole."""
        load = self._model.addVariable(lb=0)
        for key, share in self._plan.demands.items():
            self._model.addConstr(self._taken[key] - share * load == 0)
        self._model.maximize(load)
        return float(self._model.val(load))

    def use_of_ways(self, load_mps: float) -> dict[Way, float]:
        """Messages a second between relays, when a load is delivered over as few hops as possible."""
        for key, share in self._plan.demands.items():
            self._model.addConstr(self._taken[key] == share * load_mps)
        self._model.minimize(sum(self._flows.values()))
        return {
            way: sum(float(self._model.val(self._flows[name, way])) for name in self._plan.classes)
            for way in self._plan.ways
        }


def random_plan(seed: int, relays: int) -> Plan:
    """A connected mesh with one class of mail, four hosts that one or two relays reach, and sound ways."""
    rng = random.Random(seed)
    plan = random_graph(rng, seed, relays, DEGREE)
    for number in range(HOSTS):
        host = f"h{number}"
        plan.hosts[host] = 10 * math.exp(rng.random() * math.log(6))
        plan.classes.setdefault("default", []).append(host)
        for relay in rng.sample(plan.names[INGRESS:], rng.randint(1, 2)):
            plan.exits.setdefault(relay, []).append(host)
    _demand(rng, plan)
    return plan


def evidence_plan(seed: int, relays: int, classes: int = 3) -> Plan:
    """A mesh as the design measured them: for each class three hosts, each at a relay of its own, and lossy ways."""
    rng = random.Random(seed)
    plan = random_graph(rng, seed, relays, EVIDENCE_DEGREE)
    for number in range(classes):
        for index, relay in enumerate(rng.sample(plan.names[INGRESS:], HOSTS_PER_CLASS)):
            host = f"h{number}{index}"
            plan.hosts[host] = 8 * math.exp(rng.random() * math.log(8))
            plan.classes.setdefault(f"c{number}", []).append(host)
            plan.exits.setdefault(relay, []).append(host)
    _demand(rng, plan)
    plan.losses = {way: loss for way in plan.ways if (loss := rng.choice(LOSSES))}
    return plan


def random_graph(rng: random.Random, seed: int, relays: int, degree: float) -> Plan:
    """Relays and the ways between them; no hosts, no mail."""
    plan = Plan(seed, [f"r{number}" for number in range(relays)])
    for one, other in random_pairs(rng, relays, degree):
        for way in ((f"r{one}", f"r{other}"), (f"r{other}", f"r{one}")):
            plan.ways[way] = 4 * math.exp(rng.random() * math.log(15))
    return plan


def _demand(rng: random.Random, plan: Plan) -> None:
    keys = [(relay, class_id) for relay in plan.names[:INGRESS] for class_id in plan.classes]
    shares = [rng.uniform(0.5, 1.5) for _ in keys]
    plan.demands = {key: share / sum(shares) for key, share in zip(keys, shares, strict=True)}


def random_pairs(rng: random.Random, relays: int, degree: float = DEGREE) -> list[tuple[int, int]]:
    """A connected random graph."""
    pairs = {(number, rng.randrange(number)) for number in range(1, relays)}
    while len(pairs) < relays * degree / 2:
        one, other = sorted(rng.sample(range(relays), 2), reverse=True)
        pairs.add((one, other))
    return sorted(pairs)


def build_mesh(
    mesh: Mesh,
    plan: Plan,
    offered_mps: float,
    *,
    until: float = math.inf,
    even: bool = False,
    wave: Callable[[float], float] | None = None,
) -> None:
    """Hosts, relays, ways, routes and clients of a plan. `wave`: factor of the load by time."""
    for host, mps in plan.hosts.items():
        mesh.host(host, mps)
    for name in plan.names:
        exits = plan.exits.get(name, [])
        mesh.relay(name, exits)
        for host in exits:
            mesh.way(name, host, latency_s=LATENCY_S)
    for class_id, hosts in plan.classes.items():
        mesh.route(class_id, (domain_of(class_id),), hosts)
    for one in plan.names:
        for other in plan.names:
            way = one, other
            if way in plan.ways:
                mesh.way(one, other, capacity_mps=plan.ways[way], latency_s=LATENCY_S, loss=plan.losses.get(way, 0.0))
            elif one != other:
                mesh.apart(one, other)
    for (relay, class_id), share in plan.demands.items():
        rate_mps = share * offered_mps
        rate = rate_mps if wave is None else _scaled(rate_mps, wave)
        mesh.load(relay, rate, domain=domain_of(class_id), until=until, even=even)


def _scaled(rate_mps: float, wave: Callable[[float], float]) -> Callable[[float], float]:
    return lambda now: rate_mps * wave(now)


def domain_of(class_id: str) -> str:
    """Whose mail is of a class."""
    return f"{class_id}.example"
