"""LIMITS of a next hop (RFC 9422), and how a message is cut to fit them. Pure.

    MAILMAX          transactions in one session: then a new connection
    RCPTMAX          recipients in one transaction: the rest follows in another one, at once
    RCPTDOMAINMAX    different domains of recipients in one session: the rest follows in another session

A limit that makes no sense is no limit (section 3.7 of the RFC); unknown ones are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from smtp_edge.envelope import Recipient

_LIMIT = re.compile(r"(MAILMAX|RCPTMAX|RCPTDOMAINMAX)=([1-9]\d{0,5})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a remote announced; 0 = no limit."""

    mail_max: int = 0
    rcpt_max: int = 0
    rcpt_domain_max: int = 0


NO_LIMITS = Limits()


def parse_limits(argument: str) -> Limits:
    """The argument of the LIMITS keyword."""
    found = [_LIMIT.fullmatch(word) for word in argument.split()]
    values = {match[1].upper(): int(match[2]) for match in found if match is not None}
    return Limits(values.get("MAILMAX", 0), values.get("RCPTMAX", 0), values.get("RCPTDOMAINMAX", 0))


def choose_recipients(limits: Limits, domains: set[str], recipients: Sequence[Recipient]) -> list[int]:
    """Recipients (by index, in order) that fit into one transaction of a session that has named `domains`.

    The domains of those chosen are added. Empty if the session can take none of them: a new one can.
    """
    chosen: list[int] = []
    for index, recipient in enumerate(recipients):
        if limits.rcpt_max and len(chosen) >= limits.rcpt_max:
            break
        if limits.rcpt_domain_max and recipient.domain not in domains:
            if len(domains) >= limits.rcpt_domain_max:
                continue
            domains.add(recipient.domain)
        chosen.append(index)
    return chosen
