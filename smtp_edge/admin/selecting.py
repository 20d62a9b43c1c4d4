"""From what an operator asks to a selection, an order, a shape. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TypeVar

from smtp_edge.queue.entry import DeliveryState
from smtp_edge.queue.selection import NULL_SENDER, Selection
from smtpmesh.admin.v1 import admin_pb2 as pb

E = TypeVar("E", bound=enum.StrEnum)
VALUES_MAX = 500
"""Names of one kind in a selection: a statement of SQL holds so many."""


class SelectionError(ValueError):
    """It cannot be selected so; `str()` says why, and what there is."""


def read_selection(asked: pb.Selection, at: datetime) -> Selection:
    """What is meant, at a time. SelectionError."""
    for kind, values in (("ids", asked.queue_ids), ("domains", asked.domains), ("senders", asked.senders)):
        if len(values) > VALUES_MAX:
            raise SelectionError(f"{len(values)} {kind} at once; name {VALUES_MAX} at most")
    if asked.older_s < 0 or asked.younger_s < 0:
        raise SelectionError("an age is 0 or more")
    return Selection(
        queue_ids=tuple(asked.queue_ids),
        class_ids=tuple(asked.class_ids),
        domains=tuple(domain.lower().lstrip("@") for domain in asked.domains),
        senders=tuple(_read_sender(sender) for sender in asked.senders),
        states=tuple(read_words(asked.states, DeliveryState, "state")),
        before_at=at - timedelta(seconds=asked.older_s) if asked.older_s else None,
        after_at=at - timedelta(seconds=asked.younger_s) if asked.younger_s else None,
    )


def read_words(words: Iterable[str], kind: type[E], name: str) -> list[E]:
    """Members of an enumeration. SelectionError names those that there are."""
    found = []
    for word in words:
        try:
            found.append(kind(word))
        except ValueError:
            known = ", ".join(member.value for member in kind)
            raise SelectionError(f"no {name} {word!r}; there are: {known}") from None
    return found


def _read_sender(sender: str) -> str:
    if sender in ("", NULL_SENDER):
        return NULL_SENDER
    if "@" not in sender:
        raise SelectionError(f"{sender!r} is no sender: say an address, @domain for all of a domain, or <>")
    return sender.strip("<>")
