"""Destinations to classes: which exits may serve which recipients.

A class is the unit that is queued, ranked and balanced: all recipients whose mail may leave through the same exits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

MX_VIA = "mx"
"""The `via` word of a route that delivers to the destination's own mail exchangers."""


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One `[[route]]` of the configuration. First match wins."""

    name: str
    domains: tuple[str, ...]
    """Lower-case domains; `*.example.org` matches any depth below it, `*` everything."""
    via: tuple[str, ...]
    """Smart-host names, or the one word `mx`."""

    @property
    def direct(self) -> bool:
        """True for delivery to the destination's own mail exchangers."""
        return self.via == (MX_VIA,)


@dataclass(frozen=True, slots=True)
class DestinationClass:
    """A destination class and the exits that serve it."""

    class_id: str
    """The rule's name, or `mx:DOMAIN` under a direct rule."""
    exits: tuple[str, ...]
    """Hop ids, sorted."""


class RouteTable:
    """Compiled rules: domain -> class, in constant time for exact domains."""

    def __init__(self, rules: Sequence[RouteRule]) -> None:
        self.rules = tuple(rules)
        self._exact: dict[str, RouteRule] = {}
        self._suffix: dict[str, RouteRule] = {}
        self._default: RouteRule | None = None
        self._cache: dict[str, DestinationClass] = {}
        for rule in self.rules:
            for domain in rule.domains:
                if domain == "*":
                    self._default = self._default or rule
                elif domain.startswith("*."):
                    self._suffix.setdefault(domain[2:], rule)
                else:
                    self._exact.setdefault(domain, rule)

    def classify(self, domain: str) -> DestinationClass | None:
        """Class of a lower-case domain; None when no rule matches (the recipient is unroutable)."""
        found = self._cache.get(domain)
        if found is None:
            rule = self._match(domain)
            if rule is None:
                return None
            if len(self._cache) >= CLASS_CACHE_MAX:
                self._cache.clear()
            found = self._cache[domain] = self._build_class(rule, domain)
        return found

    def find_rule(self, domain: str) -> RouteRule | None:
        """The rule that takes a lower-case domain, for people; None when no rule matches."""
        return self._match(domain)

    def digest(self) -> str:
        """Hash of the rules, 16 hexadecimal digits: nodes that route differently are shown to the operator."""
        text = "\n".join(f"{rule.name} {','.join(rule.domains)} {','.join(rule.via)}" for rule in self.rules)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _match(self, domain: str) -> RouteRule | None:
        rule = self._exact.get(domain)
        labels = domain.split(".")
        for start in range(1, len(labels)):
            if rule is not None:
                return rule
            rule = self._suffix.get(".".join(labels[start:]))
        return rule or self._default

    @staticmethod
    def _build_class(rule: RouteRule, domain: str) -> DestinationClass:
        if rule.direct:
            return DestinationClass(f"mx:{domain}", (f"mx:{domain}",))
        return DestinationClass(rule.name, tuple(sorted(f"host:{name}" for name in rule.via)))


CLASS_CACHE_MAX = 10_000
"""Domains remembered; past it the cache starts again, so that strangers' domains cannot grow it."""
