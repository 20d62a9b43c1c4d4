"""Which deliveries an operator means: by id, class, recipient's domain, sender, state, age. Pure.

What is asked of several kinds must hold together; of one kind, any: `--domain a.example --domain b.example --older 1h`
is mail for either, an hour old. SQL narrows it down by what the tables can say; `matches` is what decides.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from smtp_edge.envelope import Recipient
from smtp_edge.queue.entry import Claim, DeliveryState
from smtp_edge.queue.rows import to_us

UNFINISHED = tuple(state for state in DeliveryState if not state.final)
NULL_SENDER = "<>"


@dataclass(frozen=True, slots=True)
class Selection:
    """See the module."""

    queue_ids: tuple[str, ...] = ()
    """Queue ids here, or the origins that messages are named by across the mesh."""
    class_ids: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    """Of recipients, in lower case; `.example.org`: all below it."""
    senders: tuple[str, ...] = ()
    """An address, `@domain`, or `<>`."""
    states: tuple[DeliveryState, ...] = ()
    """None: all that are not final."""
    before_at: datetime | None = None
    """Received earlier than this (by the first relay that had it)."""
    after_at: datetime | None = None

    @property
    def everything(self) -> bool:
        """Nothing narrows it down."""
        return self == Selection()

    def matches(self, claim: Claim) -> bool:
        """True if a delivery is meant, as far as SQL could not tell."""
        if self.domains and not any(map(self._is_to, claim.delivery.recipients)):
            return False
        sender = claim.entry.envelope.sender
        return not self.senders or any(_is_from(sender, wanted) for wanted in self.senders)

    def _is_to(self, recipient: Recipient) -> bool:
        domain = recipient.domain
        return any(domain == wanted or (wanted[:1] == "." and domain.endswith(wanted)) for wanted in self.domains)

    def where(self) -> tuple[str, list[Any]]:
        """A condition on `delivery d JOIN entry e` that holds for everything meant, and its values."""
        parts: list[str] = [_one_of("d.state", self.states or UNFINISHED)]
        values: list[Any] = [state.value for state in self.states or UNFINISHED]
        if self.queue_ids:
            parts.append(f"({_one_of('e.queue_id', self.queue_ids)} OR {_one_of('e.origin', self.queue_ids)})")
            values += [*self.queue_ids, *self.queue_ids]
        if self.class_ids:
            parts.append(_one_of("d.class_id", self.class_ids))
            values += self.class_ids
        for column, sign, at in (("d.received_at", "<", self.before_at), ("d.received_at", ">", self.after_at)):
            if at is not None:
                parts.append(f"{column} {sign} ?")
                values.append(to_us(at))
        for column, patterns in (
            ("d.recipients", [f"%{_from_at(domain)}%" for domain in self.domains]),
            ("e.document", [f"%{_quoted(sender)}%" for sender in self.senders if sender != NULL_SENDER]),
        ):
            if patterns and not (column == "e.document" and NULL_SENDER in self.senders):
                parts.append("(" + " OR ".join(f"{column} LIKE ? ESCAPE '\\'" for _ in patterns) + ")")
                values += patterns
        return " AND ".join(parts), values


def _one_of(column: str, values: tuple[object, ...]) -> str:
    return f"{column} IN ({', '.join('?' * len(values))})"


def _from_at(domain: str) -> str:
    return _quoted(domain if domain.startswith(".") else f"@{domain}")


def _is_from(sender: str, wanted: str) -> bool:
    if wanted == NULL_SENDER:
        return not sender
    if wanted.startswith("@"):
        return sender.lower().endswith(wanted.lower())
    return sender.lower() == wanted.lower()


def _quoted(text: str) -> str:
    """As it stands in a JSON document, for LIKE."""
    plain = json.dumps(text)[1:-1]
    return plain.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
