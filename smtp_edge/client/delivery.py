"""The outbound client: attempts with pooled connections, and probes.

A connection goes back to the pool only when it is known to be in step. One that turns out dead before the remote has
answered anything is replaced once, without anyone noticing; every other end is an `AttemptResult`.
"""

from __future__ import annotations

import asyncio
import random
import time

import dns.asyncresolver

from gossip.identity import Identity
from router.decision import Hop, HopKind, OutcomeKind
from smtp_edge.client.attempt import AttemptResult, Job, Target
from smtp_edge.client.connecting import Connection, Connector, Unconnected
from smtp_edge.client.mx import NoExchanger, find_exchangers
from smtp_edge.client.replies import ConnectionLost
from smtp_edge.client.transaction import Stale, Transaction

IDLE_S = 30.0
SWEEP_S = 5.0


class DeliveryClient:
    """See the module. One event loop; the caller bounds how many attempts run at once on a hop."""

    def __init__(
        self,
        *,
        hostname: str,
        identity: Identity | None,
        connect_timeout_s: float,
        attempt_timeout_s: float,
        idle_s: float = IDLE_S,
        resolver: dns.asyncresolver.Resolver | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._connector = Connector(hostname=hostname, identity=identity, connect_timeout_s=connect_timeout_s)
        self._attempt_timeout_s, self._idle_s = attempt_timeout_s, idle_s
        self._resolver = resolver
        self._rng = rng or random.Random()
        self._idle: dict[Hop, list[Connection]] = {}
        self._busy: dict[Hop, set[Transaction]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def attempt(self, target: Target, job: Job) -> AttemptResult:
        """Try once to hand a message to the target."""
        pooled = self._take(target)
        if pooled is not None:
            try:
                return await self._transact(pooled, job)
            except Stale:
                pass
        try:
            connection = await self._connect(target)
        except Unconnected as error:
            return _unconnected(error)
        except NoExchanger as error:
            return _no_exchanger(error, job)
        try:
            return await self._transact(connection, job)
        except Stale as error:
            return AttemptResult(OutcomeKind.DISCONNECTED, reason=f"MAIL: {error.__cause__}", remote=connection.remote)

    async def probe(self, target: Target) -> AttemptResult:
        """See whether the target takes a session: connect, EHLO, TLS, AUTH, NOOP."""
        began = time.monotonic()
        try:
            connection = await self._connect(target)
        except Unconnected as error:
            return _unconnected(error)
        except NoExchanger as error:
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason=str(error))
        try:
            async with asyncio.timeout(self._attempt_timeout_s):
                connection.stream.write(b"NOOP\r\n")
                reply = await connection.stream.read_reply()
        except (ConnectionLost, TimeoutError) as error:
            return AttemptResult(OutcomeKind.DISCONNECTED, reason=f"NOOP: {error}", remote=connection.remote)
        finally:
            connection.close()
        kind = OutcomeKind.ACCEPTED if reply.positive else OutcomeKind.HOP_TEMPFAIL
        return AttemptResult(kind, (), reply, str(reply), time.monotonic() - began, connection.remote, connection.tls)

    def forget(self, hop: Hop) -> None:
        """The hop is down: close its idle connections, and end what is in flight there and not in doubt.

        What is in doubt goes on waiting for its reply: sending it elsewhere would double it. A transfer to a peer may
        be repeated (its token is known there), so it ends, too.
        """
        for connection in self._idle.pop(hop, ()):
            connection.close()
        for transaction in self._busy.get(hop, ()):
            if hop.kind is HopKind.PEER or not transaction.dot_sent:
                transaction.break_off("the next hop is down")

    async def close(self) -> None:
        """Close all idle connections; attempts in flight end by themselves."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for hop in list(self._idle):
            self.forget(hop)

    # -- connections ---------------------------------------------------------------------------------------------------

    async def _transact(self, connection: Connection, job: Job) -> AttemptResult:
        transaction = Transaction(connection, job)
        busy = self._busy.setdefault(connection.target.hop, set())
        busy.add(transaction)
        try:
            result = await transaction.run(timeout_s=self._attempt_timeout_s)
        finally:
            busy.discard(transaction)
            if not busy:
                self._busy.pop(connection.target.hop, None)
        self._give_back(connection)
        return result

    async def _connect(self, target: Target) -> Connection:
        """The first exchanger that gives a session; the last one's fault if none does."""
        if target.hop.kind is not HopKind.MX:
            return await self._connector.open(target, target.host)
        fault: Unconnected | None = None
        resolver = self._resolver or dns.asyncresolver.get_default_resolver()
        for host in await find_exchangers(target.host, resolver, self._rng):
            try:
                return await self._connector.open(target, host)
            except Unconnected as error:
                fault = error
        raise fault or Unconnected(OutcomeKind.CONNECT_FAILED, "no mail exchanger")

    def _take(self, target: Target) -> Connection | None:
        idle = self._idle.get(target.hop)
        while idle:
            connection = idle.pop()
            if connection.stream.usable and connection.target == target:
                return connection
            connection.stream.abort()
        return None

    def _give_back(self, connection: Connection) -> None:
        """Keep a connection that is in step and not used up."""
        target = connection.target
        kept = self._idle.setdefault(target.hop, [])
        used_up = connection.used_count >= target.messages_per_connection_max or len(kept) >= target.connections_max
        if self._closed or used_up or not connection.stream.usable:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        kept.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for long."""
        self._sweeper = None
        oldest = time.monotonic() - self._idle_s
        for hop, connections in list(self._idle.items()):
            fresh = [
                connection for connection in connections if connection.idle_since >= oldest and connection.stream.usable
            ]
            for connection in connections:
                if connection not in fresh:
                    connection.close()
            if fresh:
                self._idle[hop] = fresh
            else:
                del self._idle[hop]
        if self._idle and not self._closed:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)


def _unconnected(error: Unconnected) -> AttemptResult:
    return AttemptResult(error.kind, reply=error.reply, reason=error.reason)


def _no_exchanger(error: NoExchanger, job: Job) -> AttemptResult:
    if error.reply is None:
        return AttemptResult(OutcomeKind.CONNECT_FAILED, reason=str(error))
    replies = (error.reply,) * len(job.envelope.recipients)
    return AttemptResult(OutcomeKind.MESSAGE_REFUSED, replies, error.reply, str(error))
