"""Idle connections, for each hop: taken by the next message that they suit, closed after a while."""

from __future__ import annotations

import asyncio
import time

from router.decision import Hop
from smtp_edge.client.attempt import Job, Target
from smtp_edge.client.connecting import Connection
from smtp_edge.client.limits import NO_LIMITS

IDLE_S = 30.0
SWEEP_S = 5.0


class Pool:
    """See the module. Only connections that are known to be in step come here."""

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._idle: dict[Hop, list[Connection]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, target: Target, job: Job) -> Connection | None:
        """A connection of the hop that may carry the message, the one used last."""
        idle = self._idle.get(target.hop)
        while idle:
            connection = idle.pop()
            if not connection.stream.usable or connection.target != target:
                connection.stream.abort()
            elif suits(connection, job):
                return connection
            else:
                connection.close()
        return None

    def give_back(self, connection: Connection) -> None:
        """Keep a connection that is in step and not used up."""
        target = connection.target
        kept = self._idle.setdefault(target.hop, [])
        mail_max = connection.limits.mail_max or target.messages_per_connection_max
        used_up = connection.used_count >= min(mail_max, target.messages_per_connection_max)
        full = len(kept) >= target.connections_max
        if self._closed or used_up or full or not connection.pooled or not connection.stream.usable:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        kept.append(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def hops(self) -> list[Hop]:
        """That have idle connections."""
        return list(self._idle)

    def drop(self, hop: Hop) -> None:
        """Close what is idle on a hop."""
        for connection in self._idle.pop(hop, ()):
            connection.close()

    def close(self) -> None:
        """Close everything; nothing is kept from now on."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for hop in list(self._idle):
            self.drop(hop)

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


def suits(connection: Connection, job: Job) -> bool:
    """True if a message may use a connection that was opened for another one."""
    envelope = job.envelope
    if envelope.requiretls and envelope.sender and not (connection.verified and "requiretls" in connection.extensions):
        return False
    limits = connection.limits
    if limits is NO_LIMITS or not limits.rcpt_domain_max or len(connection.domains) < limits.rcpt_domain_max:
        return True
    return any(recipient.domain in connection.domains for recipient in envelope.recipients)
