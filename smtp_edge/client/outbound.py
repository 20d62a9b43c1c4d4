"""The outbound client of a node with all that it asks: resolver, ways, MTA-STS policies; built from the settings."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from datetime import datetime

from gossip.identity import Identity
from router.policy import MX_VIA, RouteTable
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.client.resolver import Resolver
from smtp_edge.client.sts_fetch import HttpsFetcher
from smtp_edge.client.sts_keeper import FILE, PolicyKeeper
from smtp_edge.client.tls_policy import Level
from smtp_edge.client.ways import Ways
from smtp_edge.routes import build_table
from smtp_edge.settings import Settings


class Outbound:
    """`client` is what the dispatcher uses. `start` it once, `close` it once."""

    def __init__(
        self,
        settings: Settings,
        *,
        hostname: str,
        identity: Identity,
        clock: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        self._identity, self._clock, self._rng = identity, clock, rng
        self._keeper: PolicyKeeper | None = None
        self._running = False
        self._leaving: set[asyncio.Task[None]] = set()
        resolver = self._resolver(settings)
        self._keeper = self._build_keeper(settings, resolver)
        self.client = DeliveryClient(
            hostname=hostname,
            identity=identity,
            connect_timeout_s=settings.queue.connect_timeout_s,
            attempt_timeout_s=settings.queue.attempt_timeout_s,
            settings=settings.outbound,
            ways=self._build_ways(settings, resolver, hostname),
        )

    async def prepare(self, settings: Settings) -> PolicyKeeper | None:
        """For `configure`: policies that were not heeded until now are read before mail goes by them."""
        if self._keeper is not None or not _heeds_policies(settings):
            return self._keeper
        keeper = self._build_keeper(settings, self._resolver(settings))
        if keeper is not None and self._running:
            await keeper.start()
        return keeper

    def configure(self, settings: Settings, *, hostname: str, keeper: PolicyKeeper | None) -> None:
        """Other resolvers, ways, TLS and patience from the next connection on; files of authorities are read again.

        `keeper`: what `prepare` gave. Connections that were opened before carry no further mail.
        """
        resolver = self._resolver(settings)
        if self._keeper is not None and not _heeds_policies(settings):
            self._let_go(self._keeper)
            keeper = None
        self._keeper = keeper
        if keeper is not None:
            sts = settings.mta_sts
            keeper.configure(
                resolver, _fetcher(settings, resolver), policies_max=sts.policies_max, wait_s=sts.timeout_s
            )
        self.client.configure(
            hostname=hostname,
            connect_timeout_s=settings.queue.connect_timeout_s,
            attempt_timeout_s=settings.queue.attempt_timeout_s,
            settings=settings.outbound,
            ways=self._build_ways(settings, resolver, hostname),
        )

    def _let_go(self, keeper: PolicyKeeper) -> None:
        task = asyncio.get_running_loop().create_task(keeper.close())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _resolver(self, settings: Settings) -> Resolver:
        mx = settings.mx
        return Resolver(settings.dns, family=mx.family, refuse_networks=mx.refuse_networks, rng=self._rng)

    def _build_keeper(self, settings: Settings, resolver: Resolver) -> PolicyKeeper | None:
        if not _heeds_policies(settings):
            return None
        return PolicyKeeper(
            resolver,
            _fetcher(settings, resolver),
            path=settings.node.data_dir / FILE,
            clock=self._clock,
            policies_max=settings.mta_sts.policies_max,
            wait_s=settings.mta_sts.timeout_s,
        )

    def _build_ways(self, settings: Settings, resolver: Resolver, hostname: str) -> Ways:
        table = build_table(settings)
        return Ways(
            resolver,
            settings=settings.mx,
            tls=settings.tls,
            policies=self._keeper,
            own_names=(hostname, *settings.mx.own_names),
            route_floor=lambda domain: find_floor(table, domain),
            now=time.monotonic,
            rng=self._rng,
        )

    async def start(self) -> None:
        """Read the policies of the last run."""
        self._running = True
        if self._keeper is not None:
            await self._keeper.start()

    async def close(self) -> None:
        """Close idle connections and write the policies down; attempts in flight end by themselves."""
        await self.client.close()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        if self._keeper is not None:
            await self._keeper.close()


def _heeds_policies(settings: Settings) -> bool:
    return settings.mta_sts.enabled and any(route.via == (MX_VIA,) for route in settings.route)


def _fetcher(settings: Settings, resolver: Resolver) -> HttpsFetcher:
    sts = settings.mta_sts
    return HttpsFetcher(resolver, timeout_s=sts.timeout_s, ca=sts.ca, port=sts.port)


def find_floor(table: RouteTable, domain: str) -> Level:
    """`tls_min` of the route by which mail goes to the exchangers of a domain."""
    rule = table.find_rule(domain)
    return Level[rule.policy.tls_min.name] if rule is not None and rule.direct else Level.NONE
