"""Destinations to classes: which exits may serve which recipients.

A class is the unit that is queued, ranked and balanced: all mail that may leave through the same exits. Its id is
`NAME` of the route for mail that every exit takes, `NAME>LIMIT` for mail that is larger than LIMIT bytes, which some of
them do not, and `mx:DOMAIN` under direct delivery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.terms import ANY_WAY, NO_TERMS, Policy, Terms

MX_VIA = "mx"
"""The `via` word of a route that delivers to the destination's own mail exchangers."""
DIRECT_PREFIX = f"{MX_VIA}:"
ABOVE = ">"
"""Between a route's name and the size that the mail of a class exceeds."""
LIMIT_DIGITS_MAX = 16
CLASS_CACHE_MAX = 10_000
"""Domains remembered; past it the cache starts again, so that strangers' domains cannot grow it."""


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One `[[route]]` of the configuration. First match wins."""

    name: str
    domains: tuple[str, ...]
    """Lower-case domains; `*.example.org` matches any depth below it, `*` everything."""
    via: tuple[str, ...]
    """Smart-host names, or the one word `mx`."""
    policy: Policy = ANY_WAY
    terms: tuple[Terms, ...] = ()
    """Of each smart host of `via`, in its order; empty = nothing is known of them."""

    @property
    def direct(self) -> bool:
        """True for delivery to the destination's own mail exchangers."""
        return self.via == (MX_VIA,)

    def allowed(self, policy: Policy | None = None) -> list[Terms]:
        """Of the smart hosts that its policy (or another) lets mail leave by."""
        asked = self.policy if policy is None else policy
        return [terms for terms in self.terms or (NO_TERMS,) * len(self.via) if asked.refuse_exit(terms) is None]

    def limits(self) -> list[int]:
        """Sizes above which fewer of its smart hosts take a message, ascending."""
        return sorted({terms.size_bytes_max for terms in self.allowed() if terms.size_bytes_max})


@dataclass(frozen=True, slots=True)
class DestinationClass:
    """A destination class and the exits that serve it."""

    class_id: str
    """See the module."""
    exits: tuple[str, ...]
    """Hop ids, sorted: all that the route names, also those that the policy leaves out."""
    policy: Policy = ANY_WAY
    larger: tuple[DestinationClass, ...] = ()
    """The classes of the same route for larger mail, ascending."""
    too_large: bool = False
    """No exit of the route takes mail of this size."""

    @property
    def served_as(self) -> str:
        """The name under which relays say that an exit serves it."""
        return split_class_id(self.class_id)[0]

    def for_size(self, size_bytes: int) -> DestinationClass:
        """The class of a message of this size with the same destination."""
        found = self
        for larger in self.larger:
            if size_bytes <= larger.policy.above_bytes:
                break
            found = larger
        return found


class RouteTable:
    """Compiled rules: domain -> class, in constant time for exact domains."""

    def __init__(self, rules: Sequence[RouteRule]) -> None:
        self.rules = tuple(rules)
        self._exact: dict[str, RouteRule] = {}
        self._suffix: dict[str, RouteRule] = {}
        self._default: RouteRule | None = None
        self._cache: dict[str, DestinationClass] = {}
        self._named = {rule.name: _build_class(rule) for rule in reversed(self.rules) if not rule.direct}
        for rule in self.rules:
            for domain in rule.domains:
                if domain == "*":
                    self._default = self._default or rule
                elif domain.startswith("*."):
                    self._suffix.setdefault(domain[2:], rule)
                else:
                    self._exact.setdefault(domain, rule)

    def classify(self, domain: str, size_bytes: int = 0) -> DestinationClass | None:
        """Class of mail to a lower-case domain; None when no rule matches (the recipient is unroutable)."""
        found = self._cache.get(domain)
        if found is None:
            rule = self._match(domain)
            if rule is None:
                return None
            if len(self._cache) >= CLASS_CACHE_MAX:
                self._cache.clear()
            found = self._cache[domain] = _build_direct(rule, domain) if rule.direct else self._named[rule.name]
        return found.for_size(size_bytes) if found.larger else found

    def find_rule(self, domain: str) -> RouteRule | None:
        """The rule that takes a lower-case domain, for people; None when no rule matches."""
        return self._match(domain)

    def classes(self) -> list[DestinationClass]:
        """All that have a name of their own and take mail; those of single domains are found when they are needed."""
        named = sorted(self._named.values(), key=lambda item: item.class_id)
        return [item for base in named for item in (base, *base.larger) if not item.too_large]

    def find_class(self, class_id: str) -> DestinationClass | None:
        """A class by its id; None for one that no rule has.

        Mail may have been stored under a limit that is another one now: what `NAME>LIMIT` means is in its name.
        """
        if class_id.startswith(DIRECT_PREFIX):
            domain = class_id.removeprefix(DIRECT_PREFIX)
            rule = self._match(domain)
            policy = rule.policy if rule is not None and rule.direct else ANY_WAY
            return DestinationClass(class_id, (class_id,), policy)
        name, above_bytes = split_class_id(class_id)
        rule = next((rule for rule in self.rules if rule.name == name and not rule.direct), None)
        return _build_larger(rule, self._named[name], above_bytes) if rule is not None else None

    def digest(self) -> str:
        """Hash of the rules, 16 hexadecimal digits: nodes that route differently are shown to the operator."""
        return hashlib.sha256("\n".join(map(_describe, self.rules)).encode()).hexdigest()[:16]

    def size_bytes_max(self) -> int:
        """The largest message that any destination takes; 0 = there is no limit."""
        found = 0
        for rule in self.rules:
            largest = self._named[rule.name].larger[-1:] if not rule.direct else ()
            if not largest or not largest[0].too_large:
                return 0
            found = max(found, largest[0].policy.above_bytes)
        return found

    def _match(self, domain: str) -> RouteRule | None:
        rule = self._exact.get(domain)
        labels = domain.split(".")
        for start in range(1, len(labels)):
            if rule is not None:
                return rule
            rule = self._suffix.get(".".join(labels[start:]))
        return rule or self._default


def split_class_id(class_id: str) -> tuple[str, int]:
    """The route's name (or `mx:DOMAIN`), and the size that the mail exceeds: 0 = mail that every exit takes."""
    name, _, limit = class_id.partition(ABOVE)
    return (name, int(limit)) if limit.isdecimal() and len(limit) <= LIMIT_DIGITS_MAX else (class_id, 0)


def _build_direct(rule: RouteRule, domain: str) -> DestinationClass:
    class_id = f"{DIRECT_PREFIX}{domain}"
    return DestinationClass(class_id, (class_id,), rule.policy)


def _build_class(rule: RouteRule) -> DestinationClass:
    base = DestinationClass(rule.name, tuple(sorted(f"host:{name}" for name in rule.via)), rule.policy)
    return replace(base, larger=tuple(_build_larger(rule, base, limit) for limit in rule.limits()))


def _build_larger(rule: RouteRule, base: DestinationClass, above_bytes: int) -> DestinationClass:
    if not above_bytes:
        return base
    policy = replace(rule.policy, above_bytes=above_bytes)
    nobody = bool(rule.allowed()) and not rule.allowed(policy)
    return DestinationClass(f"{rule.name}{ABOVE}{above_bytes}", base.exits, policy, too_large=nobody)


def _describe(rule: RouteRule) -> str:
    """A rule as text. One without policy reads as it always did, so that older nodes are not said to differ."""
    words = [rule.name, ",".join(rule.domains), ",".join(rule.via)]
    asked = rule.policy
    words += [f"require={','.join(asked.require_tags)}"] if asked.require_tags else []
    words += [f"forbid={','.join(asked.forbid_tags)}"] if asked.forbid_tags else []
    words += [f"tls={asked.tls_min.name.lower()}"] if asked.tls_min else []
    words += [] if asked.transit else ["transit=no"]
    limits = rule.limits()
    words += [f"sizes={','.join(map(str, limits))}"] if limits else []
    return " ".join(words)
