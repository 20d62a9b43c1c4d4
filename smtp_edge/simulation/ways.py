"""Modelled SMTP: exits with a speed and a temper, ways between a relay and a next hop, and the client that uses them.

Everything here is what the real relay meets as sockets: refused connections, silence, 421, slow replies, connections
that break after the final dot. What decides (engine, dispatcher, queue) is the product's own code.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import AttemptResult, Job, Target
from smtp_edge.client.blame import blame
from smtp_edge.reply import Reply
from smtp_edge.transfer import parse_backlogs

ROUND_TRIPS = 2
"""Of a pipelined transaction on an open connection; the last half of one is the answer to the final dot."""
HANDSHAKES = 4
"""Round trips before the first MAIL: TCP, TLS, greeting and EHLO."""
ACCEPTED = Reply(250, "Ok", "2.0.0")
UNAVAILABLE = Reply(421, "Service not available", "4.3.2")
BUSY = Reply(451, "Try again later", "4.3.0")
GREYLISTED = Reply(451, "Greylisted, come back later", "4.7.1")
TOO_LARGE = Reply(552, "Message too large", "5.3.4")

Accept = Callable[[Job, str], Awaitable[Reply | None]]
"""Takes a message from a client (its node id) for good; None if the taker died before it could answer."""


@dataclass(eq=False)
class Server:
    """One end that takes mail: a smart host, or the mesh door of a relay."""

    hop: Hop
    accept: Accept
    capacity_mps: float = float("inf")
    """Messages per second that it takes from all together."""
    error_rate: float = 0.0
    """Share of transactions that it answers 451 to MAIL."""
    speed: float = 1.0
    """Factor on its capacity now."""
    refusing: bool = False
    """Nobody listens: the process is dead, its machine is not."""
    silent: bool = False
    """Nothing comes back from there."""
    generation: int = 0
    """Counts restarts: connections of an earlier one are gone."""
    free_at: float = 0.0
    open: dict[asyncio.Future[bool], None] = field(default_factory=dict)
    """Transactions in flight up to their final dot, and those that hang: False breaks their connection."""

    def break_connections(self) -> None:
        """Reset whatever is open."""
        self.generation += 1
        self.free_at = 0.0
        for waiting in list(self.open):
            if not waiting.done():
                waiting.set_result(False)


@dataclass
class Way:
    """From one relay to one next hop."""

    latency_s: float = 0.002
    """One direction."""
    capacity_mps: float = float("inf")
    speed: float = 1.0
    loss: float = 0.0
    """Share of transactions whose connection breaks before the final dot."""
    lost_replies: float = 0.0
    """Share of transactions whose connection breaks after it, when the message was taken."""
    blocked: bool = False
    missing: bool = False
    """There is none, and never will be."""
    free_at: float = 0.0
    taken: int = 0
    """Messages that came through and were accepted."""
    hanging: dict[asyncio.Future[bool], None] = field(default_factory=dict)
    """What waits for the end of a block, or for the end of a silent server: True goes on, False ends it."""

    @property
    def closed(self) -> bool:
        """Nothing comes through now."""
        return self.blocked or self.missing

    def unblock(self) -> None:
        """Segments come through again, as the senders' retransmission timers have it."""
        self.blocked = False
        for waiting in list(self.hanging):
            _finish(waiting)


class ModelledClient:
    """The outbound client of one relay: `smtp_edge.dispatch.dispatcher.Attempter`, and probes."""

    def __init__(
        self,
        node_id: str,
        server_of: Callable[[str], Server | None],
        way_to: Callable[[str], Way],
        rng: random.Random,
        *,
        connect_timeout_s: float,
        attempt_timeout_s: float,
        on_attempt: Callable[[str, float], None],
        on_unanswered: Callable[[str, Job], None],
    ) -> None:
        """`on_unanswered`: a hop took a message and its answer got lost, or nobody is there to hear it."""
        self._node_id, self._server_of, self._way_to, self._rng = node_id, server_of, way_to, rng
        self._connect_timeout_s, self._attempt_timeout_s = connect_timeout_s, attempt_timeout_s
        self._on_attempt, self._on_unanswered = on_attempt, on_unanswered
        self._late: set[asyncio.Task[None]] = set()
        """What arrives after our own end."""
        self._idle: dict[str, tuple[int, int]] = {}
        """Hop id -> (generation of the server, open idle connections)."""
        self._hanging: dict[str, dict[asyncio.Future[bool], None]] = {}
        """Hop id -> transactions before their final dot that wait for what does not come."""

    async def attempt(self, target: Target, job: Job) -> AttemptResult:
        """One delivery."""
        loop = asyncio.get_running_loop()
        began, hop = loop.time(), target.hop.id
        self._on_attempt(hop, began)
        server, way = self._server_of(hop), self._way_to(hop)
        if server is None:
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason="no such host")
        if not self._take(hop, server):
            failure = await self._connect(server, way)
            if failure is not None:
                return failure
        began = loop.time()
        result = await self._transact(server, way, job, began)
        if result.kind in (OutcomeKind.ACCEPTED, OutcomeKind.HOP_TEMPFAIL):
            generation, count = self._idle.get(hop, (server.generation, 0))
            self._idle[hop] = (generation, count + 1)
        return result

    async def probe(self, target: Target) -> AttemptResult:
        """Connect, EHLO, NOOP."""
        began, hop = asyncio.get_running_loop().time(), target.hop.id
        server, way = self._server_of(hop), self._way_to(hop)
        if server is None:
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason="no such host")
        failure = await self._connect(server, way)
        if failure is not None:
            return failure
        return AttemptResult(OutcomeKind.ACCEPTED, (), ACCEPTED, latency_s=asyncio.get_running_loop().time() - began)

    def forget(self, hop: Hop) -> None:
        """Close idle connections, end what hangs."""
        self._idle.pop(hop.id, None)
        for waiting in self._hanging.pop(hop.id, ()):
            _finish(waiting, through=False)

    def _take(self, hop: str, server: Server) -> bool:
        generation, count = self._idle.get(hop, (0, 0))
        if count == 0 or generation != server.generation:
            self._idle.pop(hop, None)
            return False
        self._idle[hop] = (generation, count - 1)
        return True

    async def _connect(self, server: Server, way: Way) -> AttemptResult | None:
        if way.closed or server.silent:
            await asyncio.sleep(self._connect_timeout_s)
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason="connect: timed out")
        if server.refusing:
            await asyncio.sleep(2 * way.latency_s)
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason="connect: connection refused")
        await asyncio.sleep(2 * way.latency_s * HANDSHAKES)
        return None

    async def _transact(self, server: Server, way: Way, job: Job, began: float) -> AttemptResult:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bool] = loop.create_future()
        wait_s = self._queue(server, way, began) + way.latency_s * (2 * ROUND_TRIPS - 1)
        sent_at, generation = began + wait_s - way.latency_s, server.generation
        timer = loop.call_later(wait_s, _finish, done)
        server.open[done] = None
        try:
            alive = await done
        except asyncio.CancelledError:
            if loop.time() >= sent_at:
                loop.call_at(began + wait_s, self._arrive_late, server, way, job, generation)
            raise
        finally:
            timer.cancel()
            server.open.pop(done, None)
        if not alive:
            return AttemptResult(OutcomeKind.DISCONNECTED, reason="DATA: connection reset")
        until = began + self._attempt_timeout_s
        while way.closed or server.silent:
            if not await self._hang(server, way, until, self._hanging.setdefault(server.hop.id, {})):
                late = loop.time() >= until
                kind = OutcomeKind.TIMEOUT if late else OutcomeKind.DISCONNECTED
                return AttemptResult(kind, reason="DATA: no reply" if late else "DATA: the connection ended")
        if self._rng.random() < server.error_rate:
            return AttemptResult(OutcomeKind.HOP_TEMPFAIL, (), BUSY, str(BUSY))
        if self._rng.random() < way.loss:
            return AttemptResult(OutcomeKind.DISCONNECTED, reason="DATA: connection reset")
        generation = server.generation  # it may have been started again while this hung
        reply = await server.accept(job, self._node_id)
        if reply is None:
            return AttemptResult(OutcomeKind.IN_DOUBT, reason="final dot: connection reset")
        way.taken += reply.positive
        fault: str | None = "nobody is left to hear it"
        try:
            fault = await self._hear(server, way, generation, until)
        finally:
            if fault is not None and reply.positive:
                self._on_unanswered(server.hop.id, job)
        if fault is not None:
            return AttemptResult(OutcomeKind.IN_DOUBT, reason=f"final dot: {fault}")
        return self._result(reply, job, loop.time() - began)

    def _arrive_late(self, server: Server, way: Way, job: Job, generation: int) -> None:
        """Who sent it died when the final dot was on its way: it is taken all the same, and nobody hears the answer."""
        if server.generation != generation or way.closed or server.silent or server.refusing:
            return

        async def take() -> None:
            reply = await server.accept(job, self._node_id)
            if reply is not None and reply.positive:
                self._on_unanswered(server.hop.id, job)

        task = asyncio.get_running_loop().create_task(take())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def _hear(self, server: Server, way: Way, generation: int, until: float) -> str | None:
        """The answer's way back; None if it arrives."""
        await asyncio.sleep(way.latency_s)
        if server.generation != generation or self._rng.random() < way.lost_replies:
            return "connection reset"
        while way.closed or server.silent:
            if not await self._hang(server, way, until, {}):
                return "no reply"
        return None

    async def _hang(self, server: Server, way: Way, until: float, among: dict[asyncio.Future[bool], None]) -> bool:
        """Nothing comes through: True once it does again; False if time is over, the server reset, or we gave up.

        TCP sends again at doubling intervals, so what hung for a while comes through within as long again.
        """
        loop = asyncio.get_running_loop()
        began, waiting = loop.time(), loop.create_future()
        places = (way.hanging, server.open, among)
        for place in places:
            place[waiting] = None
        timer = loop.call_at(until, _finish, waiting, False)
        try:
            through = await waiting
        finally:
            timer.cancel()
            for place in places:
                place.pop(waiting, None)
        if through:
            await asyncio.sleep(min(until - loop.time(), self._rng.random() * (loop.time() - began)))
        return bool(through)

    def _queue(self, server: Server, way: Way, now: float) -> float:
        """Seconds until the last byte is through: both the way and the server take one message after another."""
        at = now
        if way.capacity_mps < float("inf"):
            at = way.free_at = max(at, way.free_at) + 1 / (way.capacity_mps * way.speed)
        if server.capacity_mps < float("inf"):
            at = server.free_at = max(at, server.free_at) + 1 / (server.capacity_mps * server.speed)
        return at - now

    def _result(self, reply: Reply, job: Job, latency_s: float) -> AttemptResult:
        replies = (reply,) * len(job.envelope.recipients)
        kind = OutcomeKind.ACCEPTED if reply.positive else blame(reply, "RCPT")
        return AttemptResult(
            kind,
            replies,
            reply,
            str(reply),
            latency_s,
            peer_backlogs=parse_backlogs(reply.text) if reply.positive else {},
        )


def _finish(done: asyncio.Future[bool], through: bool = True) -> None:
    if not done.done():
        done.set_result(through)
