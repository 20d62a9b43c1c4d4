"""Mail exchangers of a domain (RFC 5321 section 5.1, RFC 7505).

Preference first, equal preferences shuffled; no MX record means the domain itself; a null MX means it takes no mail.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver
from dns.rdtypes.ANY.MX import MX

from smtp_edge.reply import Reply

EXCHANGERS_MAX = 10
"""Exchangers tried for one attempt."""
NULL_MX = Reply(556, "the domain accepts no mail", "5.1.10")
NO_DOMAIN = Reply(550, "no such domain", "5.1.2")


class NoExchanger(Exception):
    """There is none. With a `reply` for good; without, ask again later."""

    def __init__(self, reason: str, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.reply = reply


def order_exchangers(records: Sequence[tuple[int, str]], domain: str, rng: random.Random) -> list[str]:
    """Host names to try, best first. NoExchanger for a null MX."""
    if not records:
        return [domain]
    if len(records) == 1 and records[0][1] in (".", ""):
        raise NoExchanger("null MX", NULL_MX)
    shuffled = sorted(records, key=lambda record: (record[0], rng.random()))
    return [host.rstrip(".") for _, host in shuffled if host != "."][:EXCHANGERS_MAX]


async def find_exchangers(domain: str, resolver: dns.asyncresolver.Resolver, rng: random.Random) -> list[str]:
    """Look them up. NoExchanger if the domain does not exist, takes no mail, or DNS does not answer now."""
    if domain.startswith("["):
        return [domain[1:-1].removeprefix("IPv6:")]
    try:
        answer = await resolver.resolve(domain, dns.rdatatype.MX)
    except dns.resolver.NXDOMAIN:
        raise NoExchanger(f"{domain} does not exist", NO_DOMAIN) from None
    except dns.resolver.NoAnswer:
        return [domain]
    except (dns.exception.DNSException, OSError) as error:
        raise NoExchanger(f"DNS: {type(error).__name__} for {domain}") from error
    records = [(record.preference, record.exchange.to_text()) for record in answer if isinstance(record, MX)]
    return order_exchangers(records, domain, rng)
