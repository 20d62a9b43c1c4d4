"""The outbound client of a node with all that it asks: resolver, ways, MTA-STS policies; built from the settings."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime

from gossip.identity import Identity
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.client.resolver import Resolver
from smtp_edge.client.sts_fetch import HttpsFetcher
from smtp_edge.client.sts_keeper import FILE, PolicyKeeper
from smtp_edge.client.ways import Ways
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
        mx, sts = settings.mx, settings.mta_sts
        resolver = Resolver(settings.dns, family=mx.family, refuse_networks=mx.refuse_networks, rng=rng)
        self._keeper: PolicyKeeper | None = None
        if sts.enabled and any(route.via == ("mx",) for route in settings.route):
            self._keeper = PolicyKeeper(
                resolver,
                HttpsFetcher(resolver, timeout_s=sts.timeout_s, ca=sts.ca, port=sts.port),
                path=settings.node.data_dir / FILE,
                clock=clock,
                policies_max=sts.policies_max,
                wait_s=sts.timeout_s,
            )
        ways = Ways(
            resolver,
            settings=mx,
            tls=settings.tls,
            policies=self._keeper,
            own_names=(hostname, *mx.own_names),
            now=time.monotonic,
            rng=rng,
        )
        self.client = DeliveryClient(
            hostname=hostname,
            identity=identity,
            connect_timeout_s=settings.queue.connect_timeout_s,
            attempt_timeout_s=settings.queue.attempt_timeout_s,
            settings=settings.outbound,
            ways=ways,
        )

    async def start(self) -> None:
        """Read the policies of the last run."""
        if self._keeper is not None:
            await self._keeper.start()

    async def close(self) -> None:
        """Close idle connections and write the policies down; attempts in flight end by themselves."""
        await self.client.close()
        if self._keeper is not None:
            await self._keeper.close()
