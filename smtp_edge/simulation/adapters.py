"""Gossip for asyncio code in virtual time: what `gossip.service.GossipService` is to a node, on a simulated machine.

    world = GossipWorld.converged(3)
    clock = WorldClock(world)                  # inside a task on `loop.VirtualTimeLoop`
    gossip = SimulatedGossip(clock, world.nodes[0], on_change=..., on_session=...)

The world's events happen when the loop's time has come for them; callbacks run on the loop, as the real service's do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from gossip.effects import Effects
from gossip.fit import shard_links
from gossip.linkstate import Kind, LinkState, Load, NodeId, NodeInfo, Payload, Snapshot
from gossip.status import Event, GossipStats
from smtp_edge.simulation.gossip import GossipWorld


class WorldClock:
    """Ties a world to the running loop. The loop's time and the world's are the same from then on."""

    def __init__(self, world: GossipWorld) -> None:
        self.world = world
        self.loop = asyncio.get_running_loop()
        self._ahead_s = world.now - self.loop.time()
        self._due = float("inf")
        self._handle: asyncio.TimerHandle | None = None
        self.arm()

    def now(self) -> float:
        """The world's time."""
        return self.loop.time() + self._ahead_s

    def catch_up(self) -> None:
        """Let everything happen that is due, before something new does."""
        self.world.advance(self.now())

    def arm(self) -> None:
        """Wake up for the world's next event. To be called after anything was done to the world."""
        due = self.world.next_event()
        if self._handle is not None:
            if due == self._due:
                return
            self._handle.cancel()
        self._due = due
        self._handle = self.loop.call_at(due - self._ahead_s, self._step) if due < float("inf") else None

    def close(self) -> None:
        """The world stands still."""
        if self._handle is not None:
            self._handle.cancel()

    def _step(self) -> None:
        self._handle = None
        self.world.advance(max(self.now(), self._due))
        self.arm()


class SimulatedGossip:
    """One node's gossip. The methods and callbacks of `GossipService` that a node uses."""

    def __init__(
        self,
        clock: WorldClock,
        node_id: NodeId,
        *,
        on_change: Callable[[Snapshot], None],
        on_session: Callable[[NodeId, bool, str], None],
        on_event: Callable[[Event], None] = lambda _: None,
        distort: Callable[[LinkState], LinkState] = lambda link: link,
    ) -> None:
        """`distort`: what a link is told to be, instead of what was measured."""
        self._clock, self._node = clock, clock.world.by_id[node_id]
        self._on_change, self._on_session, self._on_event = on_change, on_session, on_event
        self._distort = distort
        self._told_soon = False
        self._node.on_effects = self._take

    def publish_info(self, info: NodeInfo) -> None:
        """Advertise who this node is."""
        self._publish(Kind.NODE, [info])

    def publish_links(self, links: Sequence[LinkState]) -> None:
        """Advertise the own links."""
        self._node.links = tuple(map(self._distort, links))
        self._publish(Kind.LINKS, shard_links(self._node.links)[0])

    def publish_load(self, load: Load) -> None:
        """Advertise what waits here."""
        self._publish(Kind.LOAD, [load])

    def snapshot(self) -> Snapshot:
        """The database."""
        return self._node.machine.snapshot(self._clock.now())

    def stats(self) -> GossipStats:
        """Counters and gauges of the machine."""
        return self._node.machine.stats(self._clock.now())

    def close(self) -> None:
        """The process is gone: nobody is told anything any more."""
        self._node.on_effects = None

    def _publish(self, kind: Kind, payloads: Sequence[Payload]) -> None:
        self._clock.catch_up()
        self._clock.world.publish(self._node.node_id, kind, payloads)
        self._clock.arm()

    def _take(self, effects: Effects) -> None:
        loop = self._clock.loop
        for change in effects.peers:
            loop.call_soon(self._on_session, change.node_id, change.up, change.reason)
        for event in effects.events:
            loop.call_soon(self._on_event, event)
        if effects.changed and not self._told_soon:
            self._told_soon = True
            loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._told_soon = False
        self._on_change(self.snapshot())
