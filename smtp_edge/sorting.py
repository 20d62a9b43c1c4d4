"""Recipients to destination classes, and what other routes mean for mail that is stored under a class already. Pure.

A delivery is stored with its class, so that claiming and counting need no look at addresses. Other routes may part its
recipients. A part gets a token of its own, as when a relay parts them (`split_token`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from router.policy import DestinationClass, RouteTable
from smtp_edge.envelope import Recipient
from smtp_edge.queue.entry import Claim, Group, Regrouping
from smtp_edge.routes import TRACE_ROOM_BYTES

UNROUTABLE = "unroutable:"
"""Before the domain: the class of what no route takes."""
EXPANSION = "expand:"
"""The class of recipients that sinks may replace by others (`expand`)."""
REFUSED = "refused:"
"""The class of recipients that were refused after all of them had been taken: the sender gets a report."""
Groups = dict[str, tuple[DestinationClass | None, tuple[Recipient, ...]]]
"""Class id -> the class (None: no route takes it) and its recipients."""


class Sorter:
    """By one table of routes. `hostname`: where a recipient without domain (postmaster) is at home."""

    def __init__(self, table: RouteTable, hostname: str) -> None:
        self.table, self._hostname = table, hostname.lower()

    def classify(self, recipient: Recipient, size_bytes: int) -> DestinationClass | None:
        """The class of a recipient's mail of a size; None if no route takes it."""
        return self.table.classify(recipient.domain or self._hostname, size_bytes)

    def class_of(self, domain: str) -> str:
        """The class id of a domain's mail, whatever its size."""
        return _name(self.table.classify(domain or self._hostname), domain)

    def group(self, recipients: Sequence[Recipient], size_bytes: int) -> Groups:
        """The recipients of a message by class, each in their order."""
        groups: dict[str, tuple[DestinationClass | None, list[Recipient]]] = {}
        for recipient in recipients:
            found = self.classify(recipient, size_bytes)
            groups.setdefault(_name(found, recipient.domain), (found, []))[1].append(recipient)
        return {class_id: (found, tuple(members)) for class_id, (found, members) in groups.items()}

    def plan(self, claim: Claim) -> Regrouping | None:
        """What has to change about a delivery that is stored; None if it is where it belongs."""
        if claim.delivery.class_id in (EXPANSION, REFUSED):  # what becomes of it goes by the routes of then
            return None
        regrouping = self.regroup(claim)
        return None if {part.class_id for part in regrouping.groups} == {claim.delivery.class_id} else regrouping

    def regroup(self, claim: Claim) -> Regrouping:
        """A stored delivery as its recipients are routed."""
        delivery = claim.delivery
        groups = self.group(delivery.recipients, routed_bytes(claim.entry.data.size_bytes, bool(claim.entry.trace)))
        token, whole = delivery.transfer_token, len(groups) == 1
        parts = tuple(
            Group(class_id, members, token if whole else split_token(token, members))
            for class_id, (_, members) in groups.items()
        )
        return Regrouping(delivery.queue_id, delivery.copy, claim.token, delivery.recipients, parts)


def _name(found: DestinationClass | None, domain: str) -> str:
    return found.class_id if found is not None else f"{UNROUTABLE}{domain}"


def routed_bytes(size_bytes: int, from_peer: bool) -> int:
    """The size by which a message is routed: a client's has no trace fields yet."""
    return size_bytes if from_peer else size_bytes + TRACE_ROOM_BYTES


def split_token(token: str, recipients: Sequence[Recipient]) -> str:
    """Token of a part of a message whose recipients part ways here.

    Derived from the recipients, so that two relays that split differently never give one token to different parts.
    """
    digest = hashlib.sha256("\0".join(sorted(recipient.address for recipient in recipients)).encode())
    return f"{token}.{digest.hexdigest()[:12]}"
