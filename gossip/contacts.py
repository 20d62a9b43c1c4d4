"""Members that are dialled: whom the overlay names, whom it named before they were lost, and when to try again. Pure.

A neighbour whose session was reset is dialled again at once; until it refuses, or a moment has passed, its link is not
withdrawn ("lingers"): a restart in place or a broken TCP connection is no news for anybody else.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from gossip.linkstate import NodeId
from gossip.settings import GossipSettings

RESET_TWICE_S = 0.5
"""A second reset this soon after the first one is no accident."""
YIELD_S = 0.1
"""After a reset the node with the larger id leaves the first dial to the other one for this long."""
STEP_OVER_AT = 2
"""Failed dials in a row after which the overlay takes the next one on the ring."""


@dataclass(slots=True)
class Contact:
    """One member that is dialled or was lost."""

    due: float
    pause_s: float
    dialling: bool = False
    failures: int = 0
    lost_at: float | None = None
    reset_at: float | None = None
    lingers_until: float | None = None
    """Until then its link is still told as up."""
    reason: str = ""


class Contacts:
    """See the module."""

    def __init__(self, node_id: NodeId, settings: GossipSettings, rng: random.Random) -> None:
        self._node_id, self._settings, self._rng = node_id, settings, rng
        self.by_node: dict[NodeId, Contact] = {}

    def aim(self, targets: Iterable[NodeId], sessions: Iterable[NodeId], now: float) -> None:
        """These are to have sessions; whoever is neither among them nor lingers is dialled no more."""
        wanted = set(targets)
        have = set(sessions)
        for node in sorted(wanted):  # a set's order is another one in each process
            if node not in self.by_node and node not in have:
                wait_s = self._settings.dial_anyway_s if node < self._node_id else 0.0
                self.by_node[node] = Contact(now + wait_s, self._settings.redial_first_s)
        for node in [node for node in self.by_node if node not in wanted]:
            contact = self.by_node[node]
            if not contact.dialling and contact.lingers_until is None:
                del self.by_node[node]

    def try_once(self, node: NodeId, now: float) -> None:
        """Dial a silent member without waiting for a reason."""
        self.by_node.setdefault(node, Contact(now, self._settings.redial_first_s, failures=STEP_OVER_AT))

    def record_session(self, node: NodeId) -> bool:
        """A session is up; True if the peer was told as down before."""
        contact = self.by_node.pop(node, None)
        return contact is None or contact.lingers_until is None

    def record_reset(self, node: NodeId, now: float, reason: str, *, grace_until: float, was_up_s: float) -> None:
        """Its stream broke. Dial again at once."""
        settings = self._settings
        contact = self.by_node.setdefault(node, Contact(now, settings.redial_first_s))
        twice = was_up_s < RESET_TWICE_S and now >= grace_until
        contact.reason, contact.lost_at = reason, now
        contact.lingers_until = now if twice else max(now, grace_until) + settings.linger_s
        contact.due = now + (YIELD_S if node < self._node_id else 0.0) + (settings.redial_first_s if twice else 0.0)

    def record_lost(self, node: NodeId, now: float, reason: str) -> None:
        """It is lost for good reasons: no lingering."""
        contact = self.by_node.setdefault(node, Contact(now, self._settings.redial_first_s))
        contact.reason, contact.lost_at, contact.lingers_until = reason, now, None
        contact.failures = max(contact.failures, STEP_OVER_AT)
        contact.due = now + self._pause(contact, now)

    def record_failure(self, node: NodeId, now: float, *, refused: bool, grace_until: float) -> bool:
        """A dial failed; True if it was refused while its link lingered: nobody listens there, and that is final."""
        contact = self.by_node.get(node)
        if contact is None:
            return False
        contact.dialling = False
        contact.failures += 1
        contact.due = now + self._pause(contact, now)
        if refused and contact.lingers_until is not None and now >= grace_until:
            contact.lingers_until = None
            return True
        return False

    def take_due(self, now: float) -> list[NodeId]:
        """Whom to dial now."""
        due = [node for node, contact in self.by_node.items() if not contact.dialling and contact.due <= now]
        for node in due:
            self.by_node[node].dialling = True
        return due

    def take_expired(self, now: float) -> list[tuple[NodeId, str]]:
        """Whose link has lingered long enough, with the reason of its loss."""
        over = [
            (node, contact.reason)
            for node, contact in self.by_node.items()
            if contact.lingers_until is not None and contact.lingers_until <= now
        ]
        for node, _ in over:
            self.by_node[node].lingers_until = None
        return over

    def extend(self, until: float) -> None:
        """We were paused: what lingers may linger on."""
        for contact in self.by_node.values():
            if contact.lingers_until is not None:
                contact.lingers_until = max(contact.lingers_until, until)

    def lingering(self) -> list[NodeId]:
        """Members without a session whose links are still told as up."""
        return [node for node, contact in self.by_node.items() if contact.lingers_until is not None]

    def stepped_over(self, node: NodeId) -> bool:
        """It failed too often: the overlay takes the next one."""
        contact = self.by_node.get(node)
        return contact is not None and contact.failures >= STEP_OVER_AT

    def next_due(self) -> float:
        """When something is to be done, monotonic seconds."""
        times = [contact.due for contact in self.by_node.values() if not contact.dialling]
        times += [c.lingers_until for c in self.by_node.values() if c.lingers_until is not None]
        return min(times, default=float("inf"))

    def _pause(self, contact: Contact, now: float) -> float:
        settings = self._settings
        late = contact.lost_at is not None and now - contact.lost_at > settings.redial_late_after_s
        longest = settings.redial_late_s if late or contact.lost_at is None else settings.redial_max_s
        pause_s = min(longest, contact.pause_s)
        contact.pause_s = min(settings.redial_late_s, contact.pause_s * 2)
        return pause_s * (1 + 0.2 * (self._rng.random() * 2 - 1))
