"""Access rules: `[[access]]` of the configuration, in order; the first that fits decides. Pure.

    condition    known from                       a rule that names it can refuse
    listener     the connection                   with the greeting
    client       the connection (PROXY, XCLIENT)  with the greeting
    helo         HELO, EHLO                       at HELO
    user         MAIL (AUTH comes before it)      at MAIL
    sender       MAIL                             at MAIL
    recipient    RCPT                             at RCPT

A rule is decided as soon as everything that it names is known, and never before an earlier rule that may yet fit: order
is what the operator wrote. `permit` only ends the list. It is no leave to relay: that is asked of the relay policy
(relay.py) afterwards, whatever stands here. Peers are not asked at all.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from smtp_edge.globs import NULL_SENDER, as_addresses, compile_globs
from smtp_edge.networks import Networks
from smtp_edge.reply import Reply
from smtp_edge.settings_inbound import AccessSettings

CODES = {"reject": (550, "5.7.1"), "defer": (450, "4.7.1")}
TEXT = "access denied"


class Stage(enum.IntEnum):
    """How much is known."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3


@dataclass(frozen=True, slots=True)
class Facts:
    """About a session; what is not known yet is not looked at."""

    client: str
    helo: str = ""
    user: str = ""
    sender: str = ""
    recipient: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A compiled rule."""

    number: int
    """In the file, from 0: for the log."""
    stage: Stage
    """From here on it can be decided."""
    clients: Networks
    helo: re.Pattern[str] | None
    user: re.Pattern[str] | None
    sender: re.Pattern[str] | None
    recipient: re.Pattern[str] | None
    refusal: Reply | None
    """None = permit."""

    def may_fit(self, facts: Facts, stage: Stage) -> bool:
        """False if something that is known rules it out."""
        if self.clients and not self.clients.hold(facts.client):
            return False
        if stage >= Stage.HELO and self.helo is not None and not self.helo.fullmatch(facts.helo.lower()):
            return False
        if stage >= Stage.MAIL and not self._fits_sender(facts):
            return False
        return stage < Stage.RCPT or self.recipient is None or bool(self.recipient.fullmatch(facts.recipient.lower()))

    def _fits_sender(self, facts: Facts) -> bool:
        if self.user is not None and not (facts.user and self.user.fullmatch(facts.user.lower())):
            return False
        return self.sender is None or bool(self.sender.fullmatch(facts.sender.lower() or NULL_SENDER))


class AccessRules:
    """The rules that one listener has to ask."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = tuple(rules)

    def decide(self, facts: Facts, stage: Stage) -> Rule | None:
        """The rule that refuses, now that so much is known; None to go on."""
        for rule in self.rules:
            if rule.may_fit(facts, stage):
                undecided = stage < rule.stage
                return None if undecided or rule.refusal is None else rule
        return None


def compile_rules(sections: Sequence[AccessSettings], listener: str) -> AccessRules:
    """The rules for a listener."""
    named = enumerate(sections)
    return AccessRules(
        [_compile(n, section) for n, section in named if not section.listener or listener in section.listener]
    )


def _compile(number: int, section: AccessSettings) -> Rule:
    stage = Stage.CONNECT
    if section.helo:
        stage = Stage.HELO
    if section.user or section.sender:
        stage = Stage.MAIL
    if section.recipient:
        stage = Stage.RCPT
    return Rule(
        number=number,
        stage=stage,
        clients=Networks(section.client),
        helo=compile_globs(section.helo),
        user=compile_globs(section.user),
        sender=compile_globs(as_addresses(section.sender)),
        recipient=compile_globs(as_addresses(section.recipient)),
        refusal=build_refusal(section),
    )


def build_refusal(section: AccessSettings) -> Reply | None:
    """What the client is told; None for permit. ValueError if code and status do not fit."""
    if section.action == "permit":
        return None
    code, status = CODES[section.action]
    return Reply(section.code or code, section.text or TEXT, section.status or status)


def at_greeting(refusal: Reply) -> Reply:
    """As a greeting only 554 and 421 are known (RFC 5321 section 4.3.2); both end the session."""
    code = 421 if refusal.transient else 554
    return Reply(code, refusal.text, refusal.status)
