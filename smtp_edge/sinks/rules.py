"""Rules of bindings: when a sink runs.

    rcpt to=*@example.org,*@example.net; mail from!=*@spam.example

`;` is AND, `,` is OR, case is ignored and only `*` is special. `rcpt to` narrows the recipients that the sink sees.
Compiled once at start; a rule that an event cannot answer is an error at load, not a surprise at night.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

KEYS_BY_EVENT = {
    "route": ("mail from", "rcpt to"),
}
"""What each wired event can answer; the events of later issues add their rows here."""


class RuleError(ValueError):
    """The rule cannot be understood; `str()` is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Term:
    """`key=glob,glob` or `key!=glob,glob`."""

    key: str
    pattern: re.Pattern[str]
    negated: bool

    def holds(self, values: Sequence[str]) -> bool:
        """True if any value matches (none, for a negated term)."""
        return any(self.pattern.fullmatch(value) for value in values) != self.negated


@dataclass(frozen=True, slots=True)
class Rule:
    """All terms must hold; no terms means always."""

    terms: tuple[Term, ...] = ()

    def matches(self, facts: Callable[[str], Sequence[str]]) -> bool:
        """`facts(key)` gives the values of a key."""
        return all(term.holds(facts(term.key)) for term in self.terms)


ALWAYS = Rule()
"""The rule without terms."""


def parse_rule(text: str, *, events: Sequence[str]) -> Rule:
    """Compile a rule for a sink that handles `events`. RuleError names what is wrong."""
    terms = tuple(_parse_term(part.strip()) for part in text.split(";") if part.strip())
    for term in terms:
        for event in events:
            known = KEYS_BY_EVENT.get(event, ())
            if term.key not in known:
                raise RuleError(
                    f"the rule key {term.key!r} means nothing for the event {event!r}; it has: {', '.join(known)}"
                )
    return Rule(terms)


def _parse_term(text: str) -> Term:
    key, separator, globs = text.partition("=")
    if not separator or not globs.strip():
        raise RuleError(f"{text!r} is not of the form key=glob,glob or key!=glob")
    negated = key.endswith("!")
    key = " ".join(key.removesuffix("!").lower().split())
    alternatives = "|".join(_translate(glob.strip()) for glob in globs.split(",") if glob.strip())
    return Term(key, re.compile(alternatives, re.IGNORECASE), negated)


def _translate(glob: str) -> str:
    return ".*".join(re.escape(piece) for piece in glob.split("*"))
