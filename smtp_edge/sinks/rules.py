"""Rules of bindings: when a sink runs, and for which recipients. Pure.

    rcpt to=*@example.org,*@example.net; mail from!=*@spam.example; client=192.0.2.0/24; header subject=*invoice*

`;` is AND, `,` is OR, case is ignored and only `*` is special. `rcpt to` narrows the recipients that the sink sees.
Compiled once at start; a rule that an event cannot answer is an error at load, not a surprise at night.

    key            holds if                                                        known from
    listener       the name of the listener                                        connect
    client         the address, in a network (192.0.2.0/24)                        connect
    ehlo           what HELO or EHLO said                                          helo
    auth           the authenticated user, empty for none                          auth, mail
    command        the verb that was said                                          command alone
    mail from      the reverse-path, <> for the null one                           mail
    rcpt to        the forward-path                                                rcpt
    size           the bytes of the message: `<100K`, `>1M`                        data
    header NAME    the value of such a field; the values of all if there are more  data
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smtp_edge.envelope import Client, Recipient
from smtp_edge.globs import NULL_SENDER, compile_globs
from smtp_edge.networks import Networks
from smtp_edge.setting_kinds import parse_network

_AT_CONNECT = ("listener", "client")
_AT_MAIL = (*_AT_CONNECT, "ehlo", "auth", "mail from")
AT_RCPT = (*_AT_MAIL, "rcpt to")
HEADER = "header "
COMMAND = "command"
KEYS_BY_EVENT: dict[str, tuple[str, ...]] = {
    "connect": _AT_CONNECT,
    "helo": (*_AT_CONNECT, "ehlo"),
    "auth": (*_AT_CONNECT, "ehlo", "auth"),
    "mail": _AT_MAIL,
    "rcpt": AT_RCPT,
    "command": (*_AT_CONNECT, "ehlo", "auth", COMMAND),
    "data": (*AT_RCPT, "size", HEADER),
    "outcome": ("mail from", "rcpt to"),
    "link": (),
    "disconnect": _AT_CONNECT,
    "expand": ("mail from", "rcpt to", "size", HEADER),
    "route": ("mail from", "rcpt to"),
    "deliver": ("mail from", "rcpt to", "size", HEADER),
}
"""What each event can answer."""
_SIZE = re.compile(r"([<>])\s*(\d{1,15})\s*([KMG]?)", re.IGNORECASE)
_SIZE_UNIT = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class RuleError(ValueError):
    """The rule cannot be understood; `str()` is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when an event happens."""

    client: Client | None = None
    sender: str = ""
    recipients: tuple[Recipient, ...] = ()
    size_bytes: int = 0
    headers: Callable[[str], Sequence[str]] = lambda _name: ()
    """Name -> values."""
    command: str = ""
    """The verb, upper case."""

    def values(self, key: str) -> Sequence[str]:
        """Of one key, but for recipients and sizes."""
        client = self.client
        if key.startswith(HEADER):
            return self.headers(key.removeprefix(HEADER))
        if key == "mail from":
            return (self.sender or NULL_SENDER,)
        if key == COMMAND:
            return (self.command,)
        if client is None:
            return ()
        return ({"listener": client.listener, "client": client.address, "ehlo": client.helo, "auth": client.user}[key],)


Test = Callable[[str], bool]
"""Of one value."""


@dataclass(frozen=True, slots=True)
class Term:
    """`key=glob,glob` or `key!=glob,glob`."""

    key: str
    test: Test
    negated: bool
    globs: tuple[str, ...] = ()
    """In lower case; of `rcpt to`."""

    def holds(self, facts: Facts) -> bool:
        """True if any value passes (none, for a negated term)."""
        values = (str(facts.size_bytes),) if self.key == "size" else facts.values(self.key)
        return any(map(self.test, values)) != self.negated

    def wants(self, recipient: Recipient) -> bool:
        """For `rcpt to`."""
        return self.test(recipient.address) != self.negated


@dataclass(frozen=True, slots=True)
class Rule:
    """All terms must hold; no terms means always."""

    terms: tuple[Term, ...] = ()
    recipients: tuple[Term, ...] = ()
    """Those with `rcpt to`."""

    def may_take(self, recipient: Recipient) -> bool:
        """It speaks of recipients, and of this one."""
        return bool(self.recipients) and all(term.wants(recipient) for term in self.recipients)

    def select(self, facts: Facts) -> tuple[Recipient, ...] | None:
        """The recipients that the sink sees; None if it does not run."""
        if not all(term.holds(facts) for term in self.terms):
            return None
        if not self.recipients:
            return facts.recipients
        found = tuple(item for item in facts.recipients if all(term.wants(item) for term in self.recipients))
        return found or None


ALWAYS = Rule()
"""The rule without terms."""


def parse_rule(text: str, *, events: Sequence[str]) -> Rule:
    """Compile a rule for a sink that handles `events`. RuleError names what is wrong."""
    terms = tuple(_parse_term(part.strip()) for part in text.split(";") if part.strip())
    for term in terms:
        for event in events:
            known = KEYS_BY_EVENT.get(event, ())
            key = HEADER if term.key.startswith(HEADER) else term.key
            if key not in known:
                keys = ", ".join(f"{key}NAME" if key == HEADER else key for key in known) or "none"
                raise RuleError(f"the rule key {term.key!r} means nothing for the event {event!r}; it has: {keys}")
    return Rule(
        tuple(term for term in terms if term.key != "rcpt to"), tuple(term for term in terms if term.key == "rcpt to")
    )


def _parse_term(text: str) -> Term:
    key, separator, given = text.partition("=")
    if not separator or not given.strip():
        raise RuleError(f"{text!r} is not of the form key=glob,glob or key!=glob")
    negated = key.endswith("!")
    key = " ".join(key.removesuffix("!").lower().split())
    if key == HEADER.strip():
        raise RuleError(f"{text!r} does not say which header field: write header subject=...")
    values = [value.strip() for value in given.split(",") if value.strip()]
    if key == "client":
        return Term(key, _in_networks(values), negated)
    if key == "size":
        return Term(key, _of_size(values), negated)
    return Term(key, _like(values), negated, tuple(value.lower() for value in values))


def _like(globs: Sequence[str]) -> Test:
    pattern = compile_globs([glob.lower() for glob in globs])
    return lambda value: pattern is not None and pattern.fullmatch(value.lower()) is not None


def _in_networks(texts: Sequence[str]) -> Test:
    try:
        return Networks([parse_network(text) for text in texts]).hold
    except ValueError as error:
        raise RuleError(f"client wants networks like 192.0.2.0/24: {error}") from None


def _of_size(texts: Sequence[str]) -> Test:
    bounds = []
    for text in texts:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise RuleError(f"size wants bounds like <100K or >1M, not {text!r}")
        bounds.append((match[1], int(match[2]) * _SIZE_UNIT[match[3].upper()]))
    return lambda value: any(int(value) < bound if sign == "<" else int(value) > bound for sign, bound in bounds)
