"""From a target to the places where a session may be tried, best first.

    hop                  hosts                      addresses                         TLS
    peer                 its mesh address           the machine's resolver            the cluster's own
    smart host           the configured one         the machine's resolver (1)        its `tls` word
    exchangers (MX)      mx.py                      resolver.py, hosts.txt unheeded   [[tls]], route, DANE, MTA-STS

(1) resolver.py for `tls = "dane"`, because only that knows DNSSEC.

Every address of a host is tried before the next host; addresses that failed a moment ago come last. A host that a
policy leaves out is named with the reason, so that people see why mail waits.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol

from dns.rdtypes.ANY.TLSA import TLSA

from router.decision import HopKind
from smtp_edge.client.attempt import Target
from smtp_edge.client.connecting import Place
from smtp_edge.client.dane import NOT_APPLICABLE, DanePlan, Tlsa, TlsaLookup, judge
from smtp_edge.client.mta_sts import Policy
from smtp_edge.client.mx import NO_ADDRESS, NO_HOST, Exchangers, NoExchanger, find_exchangers
from smtp_edge.client.resolver import Addresses, LookupFailed, Resolver
from smtp_edge.client.shunned import Shunned
from smtp_edge.client.tls_policy import CLEAR, Floor, LeftOut, Level, TlsDemand, Wish, plan_tls
from smtp_edge.settings import MxSettings, TlsSettings

LEVELS = {
    "none": Level.NONE,
    "mesh": Level.NONE,
    "opportunistic": Level.OPPORTUNISTIC,
    "encrypted": Level.ENCRYPTED,
    "starttls": Level.VERIFIED,
    "implicit": Level.VERIFIED,
    "verified": Level.VERIFIED,
    "dane": Level.DANE,
}
"""Words of the configuration."""


class Policies(Protocol):
    """MTA-STS policies (`smtp_edge.client.sts_keeper.PolicyKeeper`)."""

    async def find(self, domain: str) -> Policy | None:
        """The policy that counts for a domain now; None if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Absent:
    """A host that cannot be tried, or whose addresses cannot be found."""

    host: str
    reason: str
    by_policy: bool = False
    """TLS policies leave it out."""
    for_good: bool = False
    """DNS is sure that it has no address."""


class Ways:
    """See the module."""

    def __init__(
        self,
        resolver: Resolver,
        *,
        settings: MxSettings | None = None,
        tls: Sequence[TlsSettings] = (),
        policies: Policies | None = None,
        own_names: Sequence[str] = (),
        route_floor: Callable[[str], Level] = lambda _domain: Level.NONE,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """`route_floor`: what the route of a domain asks of its exchangers."""
        self._resolver, self._settings = resolver, settings or MxSettings()
        self._floors, self._route_floor = FloorTable(tls), route_floor
        self._policies = policies
        self._own_names = frozenset(name.lower().rstrip(".") for name in own_names if name)
        self._now, self._rng = now, rng
        self.shunned = Shunned()

    async def find(self, target: Target, wish: Wish) -> AsyncGenerator[Place | Absent, None]:
        """Places and hosts left out, as they are found. NoExchanger where a domain has none.

        After the last one, NoExchanger also if every host of a domain surely has no address.
        """
        if target.hop.kind is HopKind.MX:
            async for found in self._find_exchangers(target, wish):
                yield found
        else:
            async for found in self._find_configured(target, wish):
                yield found

    # -- configured hosts ----------------------------------------------------------------------------------------------

    async def _find_configured(self, target: Target, wish: Wish) -> AsyncGenerator[Place | Absent, None]:
        if target.tls == "mesh":
            demands: tuple[TlsDemand, ...] | LeftOut = (CLEAR,)
            addresses = await self._by_machine(target.host, target.port)
        elif target.socket is not None:
            yield Place(str(target.socket), "", (CLEAR,))
            return
        else:
            dane = NOT_APPLICABLE
            floor = Floor(LEVELS[target.tls], ca=target.tls_ca)
            if floor.level is Level.DANE:
                found = await self._resolve(target.host)
                if isinstance(found, Absent):
                    yield found
                    return
                addresses = list(found.addresses)
                dane = await self._judge(target.host, found, target.port, list_secure=True)
            else:
                addresses = await self._by_machine(target.host, target.port)
            demands = plan_tls(
                floor, target.host, dane=dane, reference_names=(dane.base,), name_trusted=True, wish=wish
            )
        if isinstance(demands, LeftOut):
            yield Absent(target.host, demands.reason, by_policy=True)
            return
        if not addresses:
            yield Absent(target.host, "it has no address")
        for address in self.shunned.order(addresses, self._now()):
            yield Place(target.host, address, demands)

    async def _by_machine(self, host: str, port: int) -> list[str]:
        """Addresses as the machine finds them (hosts file, mDNS, DNS ...)."""
        if _is_address(host):
            return [host]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            return []
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    # -- exchangers ----------------------------------------------------------------------------------------------------

    async def _find_exchangers(self, target: Target, wish: Wish) -> AsyncGenerator[Place | Absent, None]:
        domain, settings = target.host, self._settings
        exchangers = await find_exchangers(
            domain, self._resolver, self._rng, own_names=self._own_names, hosts_max=settings.hosts_max
        )
        floor = self._floors.find(domain).raised_to(self._route_floor(domain))
        wants_policy = self._policies is not None and floor.level is not Level.NONE and not exchangers.literal
        policy = await self._policies.find(domain) if wants_policy and self._policies is not None else None
        left = settings.addresses_max
        hopeless = True
        for host in exchangers.hosts:
            found = await self._resolve_exchanger(host, exchangers)
            hopeless = hopeless and isinstance(found, Absent) and found.for_good
            if isinstance(found, Absent):
                yield found
                continue
            demands = await self._plan(target, exchangers, found, floor, policy, wish)
            if isinstance(demands, LeftOut):
                yield Absent(host, demands.reason, by_policy=True)
                continue
            for address in self.shunned.order(found.addresses, self._now())[:left]:
                left -= 1
                yield Place(host, address, demands)
        if hopeless:
            raise NoExchanger("no host has an address", NO_ADDRESS if exchangers.implicit else NO_HOST)

    async def _resolve_exchanger(self, host: str, exchangers: Exchangers) -> Addresses | Absent:
        if exchangers.literal:
            return Addresses(host, host, (host,))
        return await self._resolve(host)

    async def _resolve(self, host: str) -> Addresses | Absent:
        if _is_address(host):
            return Addresses(host, host, (host,))
        try:
            found = await self._resolver.addresses(host)
        except LookupFailed as error:
            return Absent(host, str(error))
        if found.addresses:
            return found
        why = "mail may not go to its addresses" if found.refused else "it has no address"
        return Absent(host, why, for_good=found.certain)

    async def _plan(
        self,
        target: Target,
        exchangers: Exchangers,
        found: Addresses,
        floor: Floor,
        policy: Policy | None,
        wish: Wish,
    ) -> tuple[TlsDemand, ...] | LeftOut:
        dane = NOT_APPLICABLE
        if (self._settings.dane or floor.level is Level.DANE) and floor.level is not Level.NONE:
            dane = await self._judge(found.host, found, target.port, list_secure=exchangers.secure)
        names = (dane.base, *((target.host, exchangers.domain) if exchangers.secure else ()))
        return plan_tls(
            floor,
            found.host,
            dane=dane,
            policy=policy,
            reference_names=tuple(dict.fromkeys(names)),
            name_trusted=exchangers.secure,
            wish=wish,
        )

    # -- DANE ----------------------------------------------------------------------------------------------------------

    async def _judge(self, host: str, found: Addresses, port: int, *, list_secure: bool) -> DanePlan:
        """Ask for TLSA records where the answer would count, and judge."""
        if not list_secure:
            return NOT_APPLICABLE
        bases = [found.canonical, host] if found.secure else []
        if not found.secure and found.canonical != host and await self._is_alias_secure(host):
            bases = [host]
        lookup, base = TlsaLookup.NOT_ASKED, host
        records: tuple[Tlsa, ...] = ()
        for base in dict.fromkeys(bases):
            lookup, records = await self._look_up_tlsa(base, port)
            if lookup is TlsaLookup.FAILED or records:
                break
        return judge(list_secure=True, addresses_secure=bool(bases), lookup=lookup, records=records, base=base)

    async def _is_alias_secure(self, host: str) -> bool:
        try:
            return (await self._resolver.lookup(host, "CNAME")).secure
        except LookupFailed:
            return False

    async def _look_up_tlsa(self, base: str, port: int) -> tuple[TlsaLookup, tuple[Tlsa, ...]]:
        try:
            answer = await self._resolver.lookup(f"_{port}._tcp.{base}", "TLSA")
        except LookupFailed:
            return TlsaLookup.FAILED, ()
        if not answer.secure:
            return TlsaLookup.INSECURE, ()
        found = [record for record in answer.records if isinstance(record, TLSA)]
        return TlsaLookup.SECURE, tuple(
            Tlsa(int(record.usage), int(record.selector), int(record.mtype), record.cert) for record in found
        )


class FloorTable:
    """`[[tls]]`: the first table that names a domain counts."""

    def __init__(self, tables: Sequence[TlsSettings]) -> None:
        self._tables = [(table.domains, Floor(LEVELS[table.level], table.names, table.ca)) for table in tables]

    def find(self, domain: str) -> Floor:
        """The floor of a lower-case domain."""
        for domains, floor in self._tables:
            if any(_names(pattern, domain) for pattern in domains):
                return floor
        return Floor()


def _names(pattern: str, domain: str) -> bool:
    if pattern.startswith("*."):
        return domain.endswith(pattern[1:])
    return pattern in ("*", domain)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
