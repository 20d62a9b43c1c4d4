"""Random faults on a cluster in virtual time, then healing: all databases must be equal again, and no rule broken.

python -m tests.unit.gossip.swarm --seeds 0:200        many
python -m tests.unit.gossip.swarm --seeds 17 --trace   one, told step by step; the same run to the byte
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time

from gossip.database import SUM_MASK
from gossip.linkstate import Kind, LinkStatus, NodeId
from gossip.wire import mark_of
from smtp_edge.simulation import GossipWorld, Network

STEPS = (4, 14)
STEP_MAX_S = 20.0
HEAL_MAX_S = 150.0
CLOCKS_S = (-3600, 3600, -31_536_000, 31_536_000)


class SwarmError(AssertionError):
    """What went wrong, and the command that shows it again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    seed: int
    nodes: int
    heal_s: float
    trace: str
    """Digest of every delivery."""


class Swarm:
    """One seed."""

    def __init__(self, seed: int, *, told: bool = False) -> None:
        self.seed, self._told = seed, told
        self.rng = rng = random.Random(seed)
        self.count = rng.choice([3, 5, 8, 12, 20])
        delay_s, loss = rng.choice([(0.001, 0.001), (0.01, 0.15)]), rng.choice([0.0, 0.0, 0.02, 0.05])
        network = Network(random.Random(seed + 1), delay_s=delay_s, loss=loss)
        build = GossipWorld.fresh if rng.random() < 0.3 else GossipWorld.converged
        self.world = build(self.count, seed=seed, network=network)
        self._faults = {
            "kill": self._kill,
            "vanish": self._vanish,
            "freeze": lambda node: self.world.freeze(node, rng.choice([1.0, 2.0, 5.0, 12.0, 30.0])),
            "restart": lambda node: self._restart(node, keeps_state=True),
            "restart without state": lambda node: self._restart(node, keeps_state=False),
            "restart with another clock": lambda node: self._restart(
                node, keeps_state=rng.random() < 0.5, wall_offset_s=rng.choice(CLOCKS_S)
            ),
            "partition": self._partition,
            "one way": lambda node: self.world.network.block(node, self._other(node)),
            "heal": lambda _: self.world.heal(),
            "change": self._change,
            "storm": lambda _: [self._change(node) for node in self.world.alive()],
        }

    def run(self) -> Result:
        """Break, heal, compare. SwarmError if the databases stay different or a rule is broken."""
        world, rng = self.world, self.rng
        world.run(5.0)
        for _ in range(rng.randrange(*STEPS)):
            name, node = rng.choice(list(self._faults)), rng.choice(world.nodes)
            self._say(f"{name} {world.by_id[node].name}")
            self._faults[name](node)
            world.run(rng.random() * STEP_MAX_S)
            self._check_rules()
        self._say("heal everything")
        world.heal()
        for node in world.nodes:
            if not world.by_id[node].alive:
                world.restart(node, keeps_state=rng.random() < 0.5)
        began = world.now
        if not world.run_until(self._is_whole, HEAL_MAX_S, every_s=0.2):
            self._fail(f"{len(world.roots())} different databases {HEAL_MAX_S:.0f} s after the healing")
        self._check_rules()
        self._say(f"whole after {world.now - began:.1f} s, trace {world.trace()}")
        return Result(self.seed, self.count, world.now - began, world.trace())

    def _is_whole(self) -> bool:
        world = self.world
        if len(world.roots()) != 1:
            return False
        database = world.database(world.nodes[0])
        return set(database.nodes()) == set(world.nodes) and all(
            database.sessions(node) and not database.isolated(node) for node in world.nodes
        )

    def _check_rules(self) -> None:
        world = self.world
        for node in world.alive():
            database, total = world.database(node), 0
            for record in database.records():
                if record.key.kind != Kind.LOAD:
                    total += mark_of(record.body)
            if total & SUM_MASK != database.root():
                self._fail("a root is not the sum of its records")
            machine = world.by_id[node].machine
            for peer in machine.peers():
                session = machine.session(peer)
                if session is not None and session.queued() > len(database):
                    self._fail("more waits for a peer than there are keys")

    def _kill(self, node: NodeId) -> None:
        if self.world.by_id[node].alive:
            self.world.kill(node)

    def _vanish(self, node: NodeId) -> None:
        if self.world.by_id[node].alive:
            self.world.vanish(node)

    def _restart(self, node: NodeId, *, keeps_state: bool, wall_offset_s: int | None = None) -> None:
        if not self.world.by_id[node].alive:
            self.world.restart(node, keeps_state=keeps_state, wall_offset_s=wall_offset_s)

    def _partition(self, _: NodeId) -> None:
        nodes = self.world.nodes
        one = set(self.rng.sample(nodes, self.count // 2))
        self.world.partition([node for node in nodes if node in one], [node for node in nodes if node not in one])

    def _other(self, node: NodeId) -> NodeId:
        return self.rng.choice([other for other in self.world.nodes if other != node])

    def _change(self, node: NodeId) -> None:
        found = self.world.by_id[node]
        if found.alive:
            status = self.rng.choice([LinkStatus.UP, LinkStatus.DOWN])
            capacity = self.rng.randrange(1, 10**6)
            links = [dataclasses.replace(link, status=status, capacity_mmps=capacity) for link in found.links]
            self.world.publish_links(node, links)

    def _say(self, text: str) -> None:
        if self._told:
            print(f"{self.world.now - 1000:9.3f} s  {text}")

    def _fail(self, text: str) -> None:
        command = f"python -m tests.unit.gossip.swarm --seeds {self.seed} --trace"
        raise SwarmError(f"seed {self.seed}, {self.count} nodes: {text}; again: {command}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:200", help="FIRST:END or one")
    parser.add_argument("--trace", action="store_true", help="tell every step")
    arguments = parser.parse_args()
    first, _, end = arguments.seeds.partition(":")
    began, worst = time.monotonic(), 0.0
    seeds = range(int(first), int(end) if end else int(first) + 1)
    for seed in seeds:
        worst = max(worst, Swarm(seed, told=arguments.trace).run().heal_s)
    print(f"{len(seeds)} seeds, databases equal after {worst:.1f} s at most; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
