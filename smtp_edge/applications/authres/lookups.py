"""Questions to the DNS, for libraries that block: by servers of our choice, and none after a message's time is up.

No such name and no such record are answers (an empty one); a server that refuses, fails or is silent is none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import dns.exception
import dns.inet
import dns.name
import dns.nameserver
import dns.rdata
import dns.resolver

QUESTION_S_MAX = 5.0
"""For one question, with all its tries."""
NO_NAME = (
    dns.name.LabelTooLong,
    dns.name.NameTooLong,
    dns.name.EmptyLabel,
    dns.name.BadEscape,
    dns.name.IDNAException,
    UnicodeError,
)


class LookupFailed(Exception):
    """There was no answer; later there may be one."""


def parse_servers(servers: Sequence[str]) -> list[dns.nameserver.Nameserver]:
    """`address`, `address:port`, `[address]:port`. ValueError."""
    found: list[dns.nameserver.Nameserver] = []
    for text in servers:
        host, port = text, "53"
        if text.startswith("[") or text.count(":") == 1:
            host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not dns.inet.is_address(host) or not (port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"dns_servers: {text!r} is no address, with or without a port")
        found.append(dns.nameserver.Do53Nameserver(host, int(port)))
    return found


def build_resolver(servers: Sequence[str]) -> dns.resolver.Resolver:
    """Of these servers; without any, the machine's. ValueError for servers that are none, and for a machine without."""
    if not servers:
        try:
            return dns.resolver.Resolver()
        except dns.resolver.NoResolverConfiguration as error:
            raise ValueError(f"dns_servers: say which, this machine has none: {error}") from None
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers = parse_servers(servers)
    return resolver


class Lookups:
    """The questions of one message. Answers are kept; any thread may ask."""

    def __init__(self, resolver: dns.resolver.Resolver, deadline: float) -> None:
        """`deadline`: of `time.monotonic`."""
        self._resolver, self._deadline = resolver, deadline
        self._known: dict[tuple[str, str], tuple[dns.rdata.Rdata, ...]] = {}

    def ask(self, name: str, kind: str) -> tuple[dns.rdata.Rdata, ...]:
        """Records of a kind, aliases followed. LookupFailed."""
        key = name.lower().rstrip("."), kind
        if key not in self._known:
            self._known[key] = self._ask(name, kind)
        return self._known[key]

    def text(self, name: str) -> list[bytes]:
        """TXT records, their strings joined. LookupFailed."""
        return [b"".join(record.strings) for record in self.ask(name, "TXT")]  # type: ignore[attr-defined]

    def _ask(self, name: str, kind: str) -> tuple[dns.rdata.Rdata, ...]:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise LookupFailed("the time for this message is up")
        try:
            answer = self._resolver.resolve(
                name, kind, lifetime=min(left_s, QUESTION_S_MAX), raise_on_no_answer=False, search=False
            )
        except (dns.resolver.NXDOMAIN, *NO_NAME):
            return ()
        except (dns.exception.DNSException, OSError) as error:
            raise LookupFailed(f"{kind} of {name}: {type(error).__name__}") from error
        return tuple(answer.rrset or ())
