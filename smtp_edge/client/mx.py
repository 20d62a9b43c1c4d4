"""Mail exchangers of a domain (RFC 5321 section 5.1, RFC 7505).

    DNS says                                        mail goes to
    MX records                                      best preference first, equal ones shuffled, at most `hosts_max`
    an own name among them                          only what is preferred to it; nothing: looping (5.4.6)
    one record with the root as its host            nowhere, for good (5.1.10, null MX)
    no MX record                                    the domain itself (implicit MX), if it has an address
    no such domain                                  nowhere, for good (5.1.2), if the resolver is to be believed
    the domain is an alias                          whatever the name behind it says
    SERVFAIL, no answer, an answer that is bogus    nowhere now: ask again later
    an address literal instead of a domain          that address

Hosts with names that no host can have are left out. The order is pure; asking is one function at the end.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dns.rdtypes.ANY.MX import MX

from smtp_edge.client.resolver import LookupFailed, Resolver
from smtp_edge.reply import Reply

HOSTS_MAX = 10
NULL_MX = Reply(556, "the domain accepts no mail", "5.1.10")
NO_DOMAIN = Reply(550, "no such domain", "5.1.2")
NO_ADDRESS = Reply(550, "the domain has no mail exchanger and no address", "5.4.4")
NO_HOST = Reply(550, "no mail exchanger of the domain has an address that mail may go to", "5.4.4")
LOOP = Reply(554, "the best mail exchanger of the domain is this host: mail would loop", "5.4.6")
BAD_LITERAL = Reply(550, "bad address literal", "5.1.2")

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,62})(?:\.[a-z0-9_](?:[a-z0-9_-]{0,62}))*", re.IGNORECASE)


class NoExchanger(Exception):
    """There is none. With a `reply` for good; without, ask again later."""

    def __init__(self, reason: str, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Exchangers:
    """Where mail for a domain goes, best first."""

    domain: str
    """After aliases."""
    hosts: tuple[str, ...]
    secure: bool = False
    """DNSSEC vouches for the list (also for there being none)."""
    implicit: bool = False
    """No MX record: the host is the domain itself."""
    literal: bool = False
    """The host is an address."""


def order_exchangers(
    records: Sequence[tuple[int, str]],
    domain: str,
    rng: random.Random,
    *,
    own_names: Collection[str] = (),
    hosts_max: int = HOSTS_MAX,
) -> list[str]:
    """Host names to try, best first. NoExchanger for a null MX, and where the best one is ourselves.

    `own_names` are in lower case.
    """
    if len(records) == 1 and records[0][1] in (".", ""):
        raise NoExchanger("null MX", NULL_MX)
    named = [(preference, host.rstrip(".").lower()) for preference, host in records]
    if not records:
        named = [(0, domain)]
    own = min((preference for preference, host in named if host in own_names), default=None)
    better = [record for record in named if own is None or record[0] < own]
    if not better:
        raise NoExchanger("the best mail exchanger is this host", LOOP)
    usable = {host: preference for preference, host in sorted(better, reverse=True) if _HOST.fullmatch(host)}
    if not usable:
        raise NoExchanger("no mail exchanger has a usable name", NO_HOST)
    return sorted(usable, key=lambda host: (usable[host], rng.random()))[:hosts_max]


def parse_literal(domain: str) -> str:
    """The address in `[192.0.2.1]` or `[IPv6:2001:db8::1]`. NoExchanger for anything else."""
    inner = domain[1:-1]
    try:
        return str(IPv6Address(inner[5:]) if inner[:5].lower() == "ipv6:" else IPv4Address(inner))
    except ValueError:
        raise NoExchanger(f"bad address literal {domain}", BAD_LITERAL) from None


async def find_exchangers(
    domain: str,
    resolver: Resolver,
    rng: random.Random,
    *,
    own_names: Collection[str] = (),
    hosts_max: int = HOSTS_MAX,
) -> Exchangers:
    """Look them up. NoExchanger if the domain does not exist, takes no mail, or DNS does not answer now."""
    if domain.startswith("["):
        address = parse_literal(domain)
        if not resolver.permits(address):
            raise NoExchanger(f"mail may not go to {address}", NO_HOST)
        return Exchangers(domain, (address,), literal=True)
    try:
        answer = await resolver.lookup(domain, "MX")
    except LookupFailed as error:
        raise NoExchanger(str(error)) from error
    if not answer.exists:
        if answer.certain:
            raise NoExchanger(f"{domain} does not exist", NO_DOMAIN)
        raise NoExchanger(f"DNS: {domain} does not exist, says a resolver that does not know the root either")
    records = [(record.preference, record.exchange.to_text()) for record in answer.records if isinstance(record, MX)]
    hosts = order_exchangers(records, answer.canonical, rng, own_names=own_names, hosts_max=hosts_max)
    return Exchangers(answer.canonical, tuple(hosts), answer.secure, implicit=not records)
