"""Whether any of many bindings could want a recipient at all: one lookup, however many there are. Pure.

Most rules name domains (`rcpt to=*@example.org`): these go into a set, other patterns into one expression. A binding
whose rule says nothing of recipients wants all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from smtp_edge.envelope import Recipient
from smtp_edge.globs import compile_globs
from smtp_edge.sinks.rules import Rule

_DOMAIN = re.compile(r"\*@([^*@]+)")


class Concern:
    """Of the rules of one event."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._everybody = False
        self._domains: set[str] = set()
        patterns: list[str] = []
        for rule in rules:
            named = next((term.globs for term in rule.recipients if not term.negated), None)
            if named is None:
                self._everybody = True
                continue
            for glob in named:
                domain = _DOMAIN.fullmatch(glob)
                if domain is None:
                    patterns.append(glob)
                else:
                    self._domains.add(domain[1])
        self._pattern = compile_globs(patterns)

    def may(self, recipients: Sequence[Recipient]) -> bool:
        """False: no rule selects any of them. True: look."""
        if self._everybody:
            return True
        domains, pattern = self._domains, self._pattern
        for recipient in recipients:
            if domains and recipient.domain in domains:
                return True
            if pattern is not None and pattern.fullmatch(recipient.address.lower()):
                return True
        return False
