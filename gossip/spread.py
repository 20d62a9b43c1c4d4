"""Who gets the body of a new record, and who only hears that it exists. Pure.

Small clusters flood: every record goes to every session that is not known to have it. Above `tree_above` members,
and for refreshes everywhere, bodies follow a tree that forms by itself (Plumtree, Leitao et al., SRDS 2007): a session
that brings a body twice is pruned to announcements of 12 bytes, and grafted back when an announced record does not
arrive in time. Bad news goes to everybody at once, always: it is rare, and the fastest of many ways counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gossip.frames import Announce, Frame, Graft, Record
from gossip.linkstate import Key, NodeId, Urgency
from gossip.session import Session
from gossip.settings import GossipSettings

RECENT_MAX = 8192
MISSING_MAX = 4096
ID_SHIFT = 32


def id_of(record: Record) -> int:
    """What announcements carry: the upper 96 bits of the mark."""
    return record.mark >> ID_SHIFT


@dataclass(slots=True)
class Missing:
    """An announced record that is not here yet."""

    due: float
    peers: list[NodeId] = field(default_factory=list)


class Spread:
    """See the module."""

    def __init__(self, settings: GossipSettings) -> None:
        self._settings = settings
        self._recent: OrderedDict[int, Key] = OrderedDict()
        self._missing: dict[int, Missing] = {}

    def queue(self, record: Record, sessions: Mapping[NodeId, Session], *, tree: bool) -> list[NodeId]:
        """Put a new record where it waits for each peer that lacks it; those peers."""
        self._remember(record)
        touched: list[NodeId] = []
        for peer, session in sessions.items():
            if peer == record.key.origin or session.has(record.key, record.mark):
                continue
            if session.eager or record.urgency <= Urgency.DEGRADE or not (tree or record.urgency is Urgency.REFRESH):
                session.queue(record)
            else:
                session.announcing[id_of(record)] = None
            touched.append(peer)
        return touched

    def record_arrival(self, record: Record) -> None:
        """It is here: nobody need be asked for it."""
        if self._missing:
            self._missing.pop(id_of(record), None)

    def on_announce(self, peer: NodeId, ids: tuple[int, ...], now: float) -> None:
        """A peer has these; wait whether they come by themselves."""
        for item in ids:
            if item in self._recent:
                continue
            missing = self._missing.get(item)
            if missing is None and len(self._missing) < MISSING_MAX:
                missing = self._missing[item] = Missing(now + self._settings.graft_s)
            if missing is not None and peer not in missing.peers:
                missing.peers.append(peer)

    def on_graft(self, ids: tuple[int, ...], get: Callable[[Key], Record | None]) -> list[Record]:
        """What a peer did not get, as far as it is still here."""
        found = (get(self._recent[item]) for item in ids if item in self._recent)
        return [record for record in found if record is not None]

    def grafts(self, now: float, sessions: Mapping[NodeId, Session]) -> list[tuple[NodeId, Frame]]:
        """Requests for what was announced and did not come, each to the next of its announcers."""
        wanted: dict[NodeId, list[int]] = {}
        for item, missing in list(self._missing.items()):
            if missing.due > now:
                continue
            peers = [peer for peer in missing.peers if peer in sessions]
            if not peers:
                del self._missing[item]  # repair will bring it
                continue
            wanted.setdefault(peers[0], []).append(item)
            missing.peers = peers[1:]
            missing.due = now + self._settings.graft_s
        for peer in wanted:
            sessions[peer].eager = True
        return [(peer, Graft(tuple(ids))) for peer, ids in wanted.items()]

    def next_due(self) -> float:
        """When a graft is due."""
        return min((missing.due for missing in self._missing.values()), default=float("inf"))

    def _remember(self, record: Record) -> None:
        self._recent[id_of(record)] = record.key
        self._missing.pop(id_of(record), None)
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)


def announce(ids: list[int]) -> Announce:
    """The frame."""
    return Announce(tuple(ids))
