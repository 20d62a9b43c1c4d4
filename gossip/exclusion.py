"""Whom a node does not listen to: forgers for a while (quarantine), and members whose certificate was revoked. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gossip.budget import Quarantine
from gossip.linkstate import NodeId
from gossip.settings import GossipSettings

REFUSALS_MAX = 20
"""Refused advertisements after which a session is dropped and its peer shut out: a forger is not worth listening to."""

Revocation = tuple[bytes, bytes]
"""Body and signature."""


class Exclusion:
    """See the module. Without `check_revocation` no revocation is believed."""

    def __init__(self, settings: GossipSettings, check_revocation: Callable[[bytes, bytes], NodeId] | None) -> None:
        self._settings, self._check = settings, check_revocation
        self._quarantine: dict[NodeId, Quarantine] = {}
        self.revocations: dict[NodeId, Revocation] = {}

    def shut_out(self, peer: NodeId, now: float) -> bool:
        """True if a peer is in quarantine or revoked."""
        if peer in self.revocations:
            return True
        found = self._quarantine.get(peer)
        return found is not None and now < found.until

    def begin_quarantine(self, peer: NodeId, now: float) -> float:
        """Shut a peer out; for how long, seconds."""
        settings = self._settings
        found = self._quarantine.setdefault(peer, Quarantine(settings.quarantine_first_s, settings.quarantine_max_s))
        return found.begin(now)

    def quarantined_count(self, now: float) -> int:
        """Peers in quarantine."""
        return sum(now < item.until for item in self._quarantine.values())

    def unknown(self, items: Sequence[Revocation]) -> list[Revocation]:
        """Those that are worth a check."""
        known = set(self.revocations.values())
        return [item for item in items if item not in known] if self._check is not None else []

    def revoke(self, revocation: Revocation) -> NodeId | None:
        """Whom it removes; None if that one was removed before. ValueError or IdentityError if it is not genuine."""
        if self._check is None:
            return None
        node = self._check(*revocation)
        if node in self.revocations:
            return None
        self.revocations[node] = revocation
        return node
