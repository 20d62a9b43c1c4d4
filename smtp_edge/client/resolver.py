"""DNS questions of the outbound client, on dnspython's resolver: answers as values, cached by TTL, bounded.

An answer says whether it is *secure* (RFC 4035: the resolver has validated it), which is believed only where `[dns]
trust_ad` says that the resolver may be believed. No answer at all (SERVFAIL, timeout, bogus signatures) is
`LookupFailed`: always a reason to wait, never one to bounce.

A name that does not exist is believed from a resolver that shows the authority's SOA beside it (RFC 2308 section 5), or
that can at least name the root servers: a resolver which knows nothing says NXDOMAIN to everything.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
from dns.rdata import Rdata
from dns.rdatatype import RdataType

from smtp_edge.settings import DnsSettings

EDNS_PAYLOAD_BYTES = 1232
"""Passes every path without fragments (DNS flag day 2020)."""
FALLBACK_SERVER = "127.0.0.1"
"""Where /etc/resolv.conf names nobody (resolv.conf(5))."""


class LookupFailed(Exception):
    """The resolver gave no usable answer now; `str()` is for people."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What DNS says about a name and a type."""

    name: str
    """As asked, without the final dot."""
    canonical: str
    """After aliases (CNAME)."""
    records: tuple[Rdata, ...] = ()
    secure: bool = False
    exists: bool = True
    """False: NXDOMAIN."""
    certain: bool = True
    """For NXDOMAIN: the resolver is to be believed about it."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses of a host, in the order to try them."""

    host: str
    canonical: str
    addresses: tuple[str, ...] = ()
    secure: bool = False
    """All of them are."""
    refused: int = 0
    """Addresses left out because of `refuse_networks`."""
    certain: bool = True
    """If there are none: DNS is sure of it."""


class Resolver:
    """See the module. `resolver` replaces dnspython's own in tests."""

    def __init__(
        self,
        settings: DnsSettings | None = None,
        *,
        family: Literal["any", "ipv4", "ipv6"] = "any",
        refuse_networks: Sequence[IPv4Network | IPv6Network] = (),
        rng: random.Random | None = None,
        resolver: dns.asyncresolver.Resolver | None = None,
    ) -> None:
        self._settings = settings or DnsSettings()
        self._types = {"any": ("AAAA", "A"), "ipv4": ("A",), "ipv6": ("AAAA",)}[family]
        self._refuse = tuple(refuse_networks)
        self._rng = rng or random.Random()
        self._resolver = resolver
        self._knows_the_root: bool | None = None

    async def lookup(self, name: str, kind: str) -> Answer:
        """Ask for the records of a type. LookupFailed if there is no answer."""
        asked = parse_name(name)
        try:
            answer = await self._dns().resolve(
                asked, kind, search=False, raise_on_no_answer=False, lifetime=self._settings.timeout_s
            )
        except dns.resolver.NXDOMAIN as error:
            return await self._missing(name, asked, error)
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise LookupFailed(f"DNS: {_explain(error)} for {kind} of {name}") from error
        records = tuple(answer.rrset) if answer.rrset is not None else ()
        return Answer(name, _text(answer.canonical_name), records, self._is_secure(answer.response.flags))

    async def addresses(self, host: str) -> Addresses:
        """Addresses of a host, families in turn, shuffled inside a family. LookupFailed if no family gave an answer."""
        answers = await asyncio.gather(*(self.lookup(host, kind) for kind in self._types), return_exceptions=True)
        found = [answer for answer in answers if isinstance(answer, Answer)]
        fault = next((answer for answer in answers if isinstance(answer, BaseException)), None)
        if not found or (fault is not None and not any(answer.records for answer in found)):
            assert fault is not None
            raise fault
        every = [[record.to_text() for record in answer.records] for answer in found]
        families = [[address for address in family if not self._is_refused(address)] for family in every]
        for family in families:
            self._rng.shuffle(family)
        allowed = tuple(interleave(families))
        return Addresses(
            host,
            found[0].canonical,
            allowed,
            secure=all(answer.secure for answer in found),
            refused=sum(map(len, every)) - len(allowed),
            certain=all(answer.exists or answer.certain for answer in found),
        )

    def permits(self, address: str) -> bool:
        """True if mail may go to an address that was not looked up (an address literal)."""
        return not self._is_refused(address)

    def _is_refused(self, address: str) -> bool:
        parsed = ip_address(address)
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._refuse)

    async def _missing(self, name: str, asked: dns.name.Name, error: dns.resolver.NXDOMAIN) -> Answer:
        response: dns.message.Message = error.response(asked)  # type: ignore[no-untyped-call]
        shown = any(rrset.rdtype == dns.rdatatype.SOA for rrset in response.authority)
        certain = shown or await self._resolver_knows_the_root()
        return Answer(name, name, secure=self._is_secure(response.flags), exists=False, certain=certain)

    async def _resolver_knows_the_root(self) -> bool:
        """Asked once, while it is needed; what is not known is asked again."""
        if not self._knows_the_root:
            self._knows_the_root = False
            with suppress(dns.exception.DNSException, OSError):
                await self._dns().resolve(dns.name.root, RdataType.NS, search=False, lifetime=self._settings.timeout_s)
                self._knows_the_root = True
        return self._knows_the_root

    def _is_secure(self, flags: int) -> bool:
        return self._settings.trust_ad and bool(flags & dns.flags.AD)

    def _dns(self) -> dns.asyncresolver.Resolver:
        if self._resolver is None:
            self._resolver = build_resolver(self._settings)
        return self._resolver


def build_resolver(settings: DnsSettings) -> dns.asyncresolver.Resolver:
    """dnspython's resolver as configured."""
    resolver = dns.asyncresolver.Resolver(configure=False)
    if settings.servers:
        resolver.nameservers = [_nameserver(server) for server in settings.servers]
    else:
        try:
            resolver = dns.asyncresolver.Resolver()
        except dns.resolver.NoResolverConfiguration:
            resolver.nameservers = [FALLBACK_SERVER]
    resolver.timeout = min(2.0, settings.timeout_s)
    resolver.lifetime = settings.timeout_s
    if settings.cache_max:
        resolver.cache = dns.resolver.LRUCache(settings.cache_max)
    if settings.trust_ad:
        resolver.use_edns(0, dns.flags.DO, EDNS_PAYLOAD_BYTES)
        resolver.flags = dns.flags.RD | dns.flags.AD
    return resolver


def parse_name(text: str) -> dns.name.Name:
    """An absolute name; LookupFailed for what is none. Beyond ASCII by IDNA 2008."""
    try:
        codec = dns.name.IDNA_2008_Practical if not text.isascii() else None
        return dns.name.from_text(text, dns.name.root, codec)
    except (dns.exception.DNSException, UnicodeError) as error:
        raise LookupFailed(f"DNS: {text!r} is no domain name") from error


def interleave(families: Sequence[Sequence[str]]) -> list[str]:
    """One of each in turn: a broken IPv6 does not use up every try."""
    longest = max((len(family) for family in families), default=0)
    return [family[turn] for turn in range(longest) for family in families if turn < len(family)]


def _nameserver(server: str) -> dns.nameserver.Nameserver:
    if server.count(":") == 1 or server.startswith("["):
        address, _, port = server.rpartition(":")
    else:
        address, port = server, "53"
    return dns.nameserver.Do53Nameserver(address.strip("[]"), int(port))


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _explain(error: BaseException) -> str:
    match error:
        case dns.resolver.LifetimeTimeout():
            return "no answer in time"
        case dns.resolver.NoNameservers():
            return "the resolver could not find out (SERVFAIL)"
        case OSError():
            return error.strerror or "no resolver reached"
        case _:
            return type(error).__name__
