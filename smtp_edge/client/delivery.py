"""The outbound client: attempts with pooled connections, and probes.

A connection goes back to the pool only when it is known to be in step. One that turns out dead before the remote has
answered anything is replaced once, without anyone noticing; every other end is an `AttemptResult`.

    an attempt that ends so                        is followed, within the attempt, by
    no session with an address                     the next address, the next exchanger (ways.py)
    a session with an exchanger that breaks, or    the next exchanger, unless something is in doubt
    in which it blames itself (421, 4yz)
    an exchanger that cannot take the message      the next exchanger
    recipients beyond the remote's limits          another transaction for these
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import structlog

from gossip.identity import Identity
from router.decision import Hop, HopKind, OutcomeKind
from smtp_edge.client.attempt import AttemptResult, Job, Target
from smtp_edge.client.connecting import Connection, Connector, Place, Unconnected
from smtp_edge.client.mx import NoExchanger
from smtp_edge.client.pool import IDLE_S, Pool
from smtp_edge.client.replies import ConnectionLost
from smtp_edge.client.resolver import Resolver
from smtp_edge.client.results import merge
from smtp_edge.client.tls_policy import TlsDemand, Wish, wish_of
from smtp_edge.client.transaction import Stale, Transaction
from smtp_edge.client.ways import Absent, Ways
from smtp_edge.client.wording import NO_REQUIRETLS, NO_TLS
from smtp_edge.reply import Reply
from smtp_edge.settings import OutboundSettings

log = structlog.get_logger()

ROUNDS_MAX = 1000
"""Transactions for one message in one attempt; each takes at least one recipient."""
REASON_MAX = 1000
Fault = tuple[Place | Absent, AttemptResult]
NEXT_EXCHANGER = frozenset({OutcomeKind.HOP_TEMPFAIL, OutcomeKind.DISCONNECTED, OutcomeKind.TIMEOUT})
"""Ends of a transaction after which another exchanger may take the message."""


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
        settings: OutboundSettings | None = None,
        ways: Ways | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._identity = identity
        self._pool = Pool(idle_s)
        self._busy: dict[Hop, set[Transaction]] = {}
        self.configure(
            hostname=hostname,
            connect_timeout_s=connect_timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            settings=settings,
            ways=ways or Ways(Resolver(), own_names=(hostname,), now=time.monotonic, rng=rng or random.Random()),
        )

    def configure(
        self,
        *,
        hostname: str,
        connect_timeout_s: float,
        attempt_timeout_s: float,
        settings: OutboundSettings | None,
        ways: Ways,
    ) -> None:
        """Go by these from the next connection on; those that are open carry no further message, but between peers."""
        self._connector = Connector(
            hostname=hostname,
            identity=self._identity,
            connect_timeout_s=connect_timeout_s,
            settings=settings,
            on_fallback=_log_fallback,
        )
        self._ways, self._attempt_timeout_s = ways, attempt_timeout_s
        for hop in self._pool.hops():
            if hop.kind is not HopKind.PEER:
                self._pool.drop(hop)
        for transactions in self._busy.values():
            for transaction in transactions:
                transaction.connection.pooled &= transaction.connection.target.hop.kind is HopKind.PEER

    async def attempt(self, target: Target, job: Job) -> AttemptResult:
        """Try once to hand a message to the target."""
        result = await self._attempt(target, job)
        indexes, rounds = result.left_out, 1
        while indexes and _goes_on(result) and rounds < ROUNDS_MAX:
            recipients = tuple(job.envelope.recipients[index] for index in indexes)
            rest = replace(job, envelope=replace(job.envelope, recipients=recipients))
            last = await self._attempt(target, rest)
            result, rounds = merge(result, last, indexes), rounds + 1
            if not _goes_on(last):
                break
            indexes = result.left_out
        return result

    async def probe(self, target: Target) -> AttemptResult:
        """See whether the target takes a session: connect, EHLO, TLS, AUTH, NOOP."""
        began = time.monotonic()
        faults: list[Fault] = []
        try:
            async with aclosing(self._ways.find(target, Wish.NOTHING)) as places:
                async for place in places:
                    found = await self._reach(target, place)
                    if isinstance(found, Connection):
                        return await self._ask_noop(found, began)
                    faults.append((place, found))
        except NoExchanger as error:
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason=str(error))
        return _sum_up(faults)

    def forget(self, hop: Hop) -> None:
        """The hop is down: close its idle connections, and end what is in flight there and not in doubt.

        What is in doubt goes on waiting for its reply: sending it elsewhere would double it. A transfer to a peer may
        be repeated (its token is known there), so it ends, too.
        """
        self._pool.drop(hop)
        for transaction in self._busy.get(hop, ()):
            if hop.kind is HopKind.PEER or not transaction.dot_sent:
                transaction.break_off("the next hop is down")

    async def close(self) -> None:
        """Close all idle connections; attempts in flight end by themselves."""
        self._pool.close()

    # -- one transaction -----------------------------------------------------------------------------------------------

    async def _attempt(self, target: Target, job: Job) -> AttemptResult:
        pooled = self._pool.take(target, job)
        if pooled is not None:
            try:
                result = await self._transact(pooled, job)
                if not (result.unable and target.hop.kind is HopKind.MX):
                    return result
            except Stale:
                pass
        return await self._attempt_anew(target, job)

    async def _attempt_anew(self, target: Target, job: Job) -> AttemptResult:
        """On a fresh connection: the first place that takes the message, else the gravest fault of all."""
        wish = wish_of(job.envelope, job.data.header)
        faults: list[Fault] = []
        host = ""
        try:
            async with aclosing(self._ways.find(target, wish)) as places:
                async for place in places:
                    if place.host == host:  # its session broke or it could not take the message: the next host
                        continue
                    connector = self._connector
                    found = await self._reach(target, place)
                    if isinstance(found, Connection):
                        found.pooled = wish is not Wish.RELAX and connector is self._connector
                        found, host = await self._transact_fresh(found, job), place.host
                        if not _may_go_elsewhere(target, found):
                            return found
                    faults.append((place, found))
        except NoExchanger as error:
            return _no_exchanger(error, job)
        fault = _sum_up(faults)
        if wish is Wish.REQUIRE and fault.kind is OutcomeKind.TLS_FAILED:
            return _refused(NO_TLS if fault.remote else NO_REQUIRETLS, job, fault.reason)
        return fault

    async def _reach(self, target: Target, place: Place | Absent) -> Connection | AttemptResult:
        """A session with a place, or why there is none."""
        if isinstance(place, Absent):
            if place.by_policy:
                reply = Reply(454, place.reason, "4.7.5")
                reason = f"TLS: {place.reason}"
                return AttemptResult(OutcomeKind.TLS_FAILED, reply=reply, reason=reason, own_reply=True)
            return AttemptResult(OutcomeKind.CONNECT_FAILED, reason=place.reason)
        now, shunned = time.monotonic(), self._ways.shunned
        try:
            connection = await self._connector.open(target, place)
        except Unconnected as error:
            if error.kind in (OutcomeKind.CONNECT_FAILED, OutcomeKind.TIMEOUT):
                shunned.note_failure(place.address, now)
            remote = f"{place.host}[{place.address}]:{target.port}" if place.address else place.host
            return AttemptResult(error.kind, reply=error.reply, reason=error.reason, remote=remote, own_reply=error.own)
        shunned.note_session(place.address)
        return connection

    async def _transact_fresh(self, connection: Connection, job: Job) -> AttemptResult:
        try:
            return await self._transact(connection, job)
        except Stale as error:
            return AttemptResult(OutcomeKind.DISCONNECTED, reason=f"MAIL: {error.__cause__}", remote=connection.remote)

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
        self._pool.give_back(connection)
        return result

    async def _ask_noop(self, connection: Connection, began: float) -> AttemptResult:
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


def _goes_on(result: AttemptResult) -> bool:
    """True after an end that says nothing against another transaction with the same hop."""
    return result.kind in (OutcomeKind.ACCEPTED, OutcomeKind.MESSAGE_REFUSED)


def _may_go_elsewhere(target: Target, result: AttemptResult) -> bool:
    """True if another exchanger may take what this one did not."""
    return target.hop.kind is HopKind.MX and (result.unable or result.kind in NEXT_EXCHANGER)


def _sum_up(faults: Sequence[Fault]) -> AttemptResult:
    """The failure that stands for the attempt; with the reasons of all, if there are several.

    One that may pass by itself comes before one that is for good, and what a remote said before what nobody answered.
    """
    if not faults:
        return AttemptResult(OutcomeKind.CONNECT_FAILED, reason="there is no address to try")
    passing = [fault for _, fault in faults if not fault.unable] or [fault for _, fault in faults]
    chosen = next((fault for fault in reversed(passing) if fault.reply is not None), passing[-1])
    if len(faults) == 1:
        return chosen
    reasons = dict.fromkeys(f"{_where(place)}: {fault.reason}" for place, fault in faults)
    return replace(chosen, reason="; ".join(reasons)[:REASON_MAX])


def _where(place: Place | Absent) -> str:
    if isinstance(place, Absent) or not place.address:
        return place.host
    return f"{place.host}[{place.address}]"


def _no_exchanger(error: NoExchanger, job: Job) -> AttemptResult:
    if error.reply is None:
        return AttemptResult(OutcomeKind.CONNECT_FAILED, reason=str(error))
    return _refused(error.reply, job, str(error))


def _refused(reply: Reply, job: Job, reason: str) -> AttemptResult:
    """By ourselves, for good: no hop can do it."""
    replies = (reply,) * len(job.envelope.recipients)
    return AttemptResult(OutcomeKind.MESSAGE_REFUSED, replies, reply, reason, own_reply=True)


def _log_fallback(place: Place, demand: TlsDemand, reason: str) -> None:
    """TLS failed, and less is allowed: for the postmaster, and for domains whose MTA-STS policy is in testing."""
    log.info(
        "tls.fallback",
        host=place.host,
        address=place.address,
        wanted=demand.level.name.lower(),
        source=demand.source,
        reason=reason,
    )
