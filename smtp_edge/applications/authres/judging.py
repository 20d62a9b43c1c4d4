"""The work that blocks, for one message: SPF, signatures, DMARC. It runs in threads of the sink's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import getaddresses

import dns.resolver
from publicsuffixlist import PublicSuffixList

from smtp_edge.applications.authres import dmarc
from smtp_edge.applications.authres.bodyhash import BodyHash, BodyKey, Hashed
from smtp_edge.applications.authres.lookups import LookupFailed, Lookups
from smtp_edge.applications.authres.results import (
    FAIL,
    NONE,
    PASS,
    PERMERROR,
    TEMPERROR,
    TOO_MANY_AUTHORS,
    Result,
    to_ascii,
)
from smtp_edge.applications.authres.signatures import Hashes, find_body_keys, verify_arc, verify_dkim
from smtp_edge.applications.authres.spfcheck import check_spf
from smtp_edge.sinks.api import Message
from smtp_edge.sinks.fields import Field

AUTHORS_MAX = 10
"""Domains in From."""
_WORST_FIRST = (FAIL, PERMERROR, TEMPERROR, NONE, PASS)


@dataclass(frozen=True, slots=True)
class Signatures:
    """What signatures say."""

    dkim: list[Result]
    arc: Result
    sealers: frozenset[str] = frozenset()
    """Domains of a chain that passes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What DMARC says, and what the author's domain wants done."""

    result: Result
    policy: dmarc.Policy = field(default_factory=dmarc.Policy)


class Judge:
    """One for all messages."""

    def __init__(self, resolver: dns.resolver.Resolver, receiver: str) -> None:
        self._resolver, self._receiver = resolver, receiver
        self._suffixes = PublicSuffixList()

    def begin(self, message: Message, timeout_s: float) -> Case:
        """A message to be looked at, in so much time."""
        return Case(self, message, Lookups(self._resolver, time.monotonic() + timeout_s))

    @property
    def receiver(self) -> str:
        """Our name, for macros of SPF."""
        return self._receiver

    def organizational(self, domain: str) -> str:
        """The domain below the public suffix (RFC 7489 section 3.2); a public suffix is its own."""
        return self._suffixes.privatesuffix(domain) or domain


class Case:
    """One message."""

    def __init__(self, judge: Judge, message: Message, lookups: Lookups) -> None:
        self._judge, self._lookups = judge, lookups
        self._client, self._sender = message.client, message.envelope.sender
        self._header: tuple[Field, ...] = message.fields
        self._authors = find_authors(message.headers.all("from"))
        self._bodies = {key: BodyHash(key) for key in find_body_keys(message.fields)}

    @property
    def wants_body(self) -> bool:
        """A signature is about it."""
        return bool(self._bodies)

    def feed(self, piece: bytes) -> None:
        """A piece of the body."""
        for body in self._bodies.values():
            body.feed(piece)

    def check_spf(self) -> Result:
        """Of the reverse-path."""
        return check_spf(self._lookups, self._client.address, self._sender, self._client.helo, self._judge.receiver)

    def check_signatures(self) -> Signatures:
        """When the whole body was fed."""
        hashes: dict[BodyKey, Hashed] = {}
        for key, body in self._bodies.items():
            digest = body.finish()
            hashes[key] = Hashed(digest, body.size_bytes)
        found: Hashes = hashes
        dkim = verify_dkim(self._header, found, self._lookups)
        return Signatures(dkim, *verify_arc(self._header, found, self._lookups))

    def check_dmarc(self, spf: Result, dkim: Sequence[Result]) -> Verdict:
        """Of several authors the one that does worst (RFC 7489 section 6.6.1)."""
        if not self._authors or len(self._authors) > AUTHORS_MAX:
            return Verdict(dmarc.build("", PERMERROR, reason=TOO_MANY_AUTHORS if self._authors else "no author"))
        verdicts = [self._judge_author(author, spf, dkim) for author in self._authors]
        return min(verdicts, key=_badness)

    def _judge_author(self, domain: str, spf: Result, dkim: Sequence[Result]) -> Verdict:
        organizational = self._judge.organizational
        try:
            policy = dmarc.find_policy(domain, self._lookups.text, organizational)
        except LookupFailed:
            return Verdict(dmarc.build(domain, TEMPERROR))
        except dmarc.BadRecord:
            return Verdict(dmarc.build(domain, PERMERROR, reason="the record has no policy"))
        if policy is None:
            return Verdict(dmarc.build(domain, NONE))
        return Verdict(dmarc.judge(domain, policy, spf, dkim, organizational), policy)


def find_authors(values: Sequence[str]) -> tuple[str, ...]:
    """Domains of all addresses in all From fields, in lower case."""
    addresses = [address for _, address in getaddresses(list(values)) if "@" in address]
    return tuple(dict.fromkeys(to_ascii(address.rpartition("@")[2]) for address in addresses))


def _badness(verdict: Verdict) -> tuple[int, int]:
    return _WORST_FIRST.index(verdict.result.result), -dmarc.POLICIES.index(verdict.policy.policy)
