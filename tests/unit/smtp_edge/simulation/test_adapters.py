"""Asyncio code in virtual time: the loop itself, and the routing shell and engine of real nodes on simulated gossip."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest

from gossip.linkstate import ClassLoad, LinkState, LinkStatus, Load, NodeId
from router.decision import EdgeState, ExitHop, Hop, HopKind, OutcomeKind
from router.engine import RoutingEngine
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings
from smtp_edge.client.attempt import AttemptResult, Target
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.dispatch.dispatcher import Dispatcher
from smtp_edge.routing import RoutingShell, Targets
from smtp_edge.settings import NodeSettings, Settings, SmartHostSettings
from smtp_edge.simulation import GossipWorld, SimulatedGossip, WorldClock, run
from smtp_edge.simulation.loop import NothingDueError
from smtp_edge.sinks.chain import SinkChain
from smtp_edge.sinks.reports import Reports

EXIT = Hop(HopKind.SMART_HOST, "s1")


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_a_day_passes_at_once_and_to_the_second() -> None:
    async def main() -> float:
        await asyncio.sleep(86_400)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run(main(), start_s=1000.0) == pytest.approx(1000 + 86_400 + 3600)
    assert time.monotonic() - began < 60


def test_timers_run_in_the_order_of_their_times() -> None:
    async def main() -> list[int]:
        order: list[int] = []

        async def note(number: int, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            order.append(number)

        await asyncio.gather(note(3, 0.3), note(1, 0.1), note(2, 0.2))
        return order

    assert run(main()) == [1, 2, 3]


def test_jobs_of_an_executor_are_done_at_once_and_their_faults_come_through() -> None:
    async def main() -> int:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await asyncio.to_thread(lambda: 42)

    assert run(main()) == 42


def test_waiting_for_what_nothing_will_bring_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingDueError):
        run(main())


# -- nodes -------------------------------------------------------------------------------------------------------------


class Prober:
    """Finds exits and living relays well."""

    def __init__(self, world: GossipWorld) -> None:
        self.world = world

    def forget(self, hop: Hop) -> None:
        pass

    async def probe(self, target: Target) -> AttemptResult:
        await asyncio.sleep(0.005)
        relay = self.world.by_id.get(NodeId(target.hop.name))
        if relay is not None and not relay.alive:
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason="connection refused")
        return AttemptResult(OutcomeKind.ACCEPTED, latency_s=0.005)


class SilentDispatcher:
    reports = Reports(lambda: SinkChain([]))

    def ask_again(self, *, news: bool, back: object = ()) -> None:
        pass

    async def wake(self, classes: object) -> None:
        pass


class Relay:
    """The routing half of a node, wired as `smtp_edge.node` wires it."""

    def __init__(self, clock: WorldClock, node_id: NodeId) -> None:
        table = RouteTable([RouteRule("default", ("*",), (EXIT.name,))])
        self.engine = RoutingEngine(
            node_id=node_id,
            node_name=node_id[:4],
            table=table,
            exits=[ExitHop(EXIT, EXIT.name, 10, 20)],
            settings=RouterSettings(),
            rng=random.Random(1),
            now=clock.now(),
        )
        self.clock = clock
        client = cast(DeliveryClient, Prober(clock.world))
        self.shell = RoutingShell(
            self.engine,
            Targets(
                Settings(node=NodeSettings(name="n"), smart_host=(SmartHostSettings(name=EXIT.name, host="127.0.0.1"),))
            ),
            client,
            backlogs=dict,
            classes_of=lambda _: (),
            now=clock.now,
        )
        self.gossip = SimulatedGossip(
            clock, node_id, on_change=self.shell.on_snapshot, on_session=self.shell.on_session
        )
        self.shell.connect(cast(Dispatcher, SilentDispatcher()), self.gossip)
        self.task = asyncio.create_task(self.shell.run())

    def fail_exit(self) -> None:
        """An attempt on the own exit that found nobody."""
        self.shell.began(EXIT, "default", 1000)
        refused = AttemptResult(OutcomeKind.CONNECT_FAILED, reason="connection refused")
        self.shell.ended(EXIT, "default", refused, self.clock.now(), 1000, "m")

    def sees_exit_of(self, other: NodeId) -> LinkStatus | None:
        """What the database here says of another node's exit."""
        nodes = {node.node_id: node for node in self.gossip.snapshot().nodes}
        return next((link.status for link in nodes[other].links if link.hop == EXIT.id), None)

    def peer_state(self, other: NodeId) -> EdgeState | None:
        """The engine's edge to a peer."""
        rows = self.engine.rows(self.clock.now())
        found = [item for row in rows for item in row.decision.candidates if item.hop.name == other]
        return found[0].state if found else None


async def until(condition: Callable[[], bool], limit_s: float) -> float:
    """Virtual seconds until it held."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  (virtual time costs nothing)
            await asyncio.sleep(0.001)
    return loop.time() - began


async def mesh(count: int) -> tuple[WorldClock, dict[NodeId, Relay]]:
    clock = WorldClock(GossipWorld.converged(count))
    relays = {node: Relay(clock, node) for node in clock.world.nodes}
    await asyncio.sleep(2)
    return clock, relays


def test_what_one_relay_measures_all_others_route_by_within_a_tenth_of_a_second() -> None:
    async def main() -> None:
        _, relays = await mesh(5)
        origin, *others = relays
        assert all(relays[node].sees_exit_of(origin) is not LinkStatus.DOWN for node in others)
        relays[origin].fail_exit()
        await until(lambda: all(relays[node].sees_exit_of(origin) is LinkStatus.DOWN for node in others), 0.1)

    run(main())


def test_a_node_can_be_made_to_tell_its_links_wrong() -> None:
    async def main() -> set[int]:
        clock = WorldClock(GossipWorld.converged(2))
        one, other = clock.world.nodes
        liar = SimulatedGossip(
            clock,
            one,
            on_change=lambda _: None,
            on_session=lambda *_: None,
            distort=lambda link: replace(link, capacity_mmps=2 * link.capacity_mmps),
        )
        liar.publish_links([LinkState("host:s1", LinkStatus.UP, 1000, 1000, 21_000, 5000, 10)])
        await asyncio.sleep(1)
        nodes = {node.node_id: node for node in clock.world.by_id[other].machine.snapshot(clock.now()).nodes}
        return {link.capacity_mmps for link in nodes[one].links}

    assert run(main()) == {42_000}


def test_a_relay_that_dies_is_no_next_hop_for_anybody_within_half_a_second() -> None:
    async def main() -> None:
        clock, relays = await mesh(4)
        victim, *others = relays
        assert {relays[node].peer_state(victim) for node in others} <= {EdgeState.UNKNOWN, EdgeState.UP}
        clock.world.kill(victim)
        clock.arm()
        await until(lambda: all(relays[node].peer_state(victim) is EdgeState.DOWN for node in others), 0.5)

    run(main())


def test_news_of_others_are_no_reason_to_tell_the_own_load() -> None:
    async def main() -> int:
        _, relays = await mesh(3)
        told = []
        first, other, _ = relays.values()
        first.gossip.publish_load = told.append  # type: ignore[method-assign]
        for number in range(100):
            other.gossip.publish_load(Load(classes=(ClassLoad("default", number, 0),)))
            await asyncio.sleep(0.1)
        return len(told)

    assert run(main()) in range(19, 22), "twice a second"


def test_the_same_seed_is_the_same_run_to_the_byte() -> None:
    async def main() -> str:
        clock, relays = await mesh(4)
        relays[clock.world.nodes[1]].fail_exit()
        await asyncio.sleep(5)
        return clock.world.trace()

    assert run(main()) == run(main())
