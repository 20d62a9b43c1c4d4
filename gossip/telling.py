"""What a node tells of its own links and sessions: as they are, but what flaps is told as down (`damping`). Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from gossip.damping import Damping
from gossip.linkstate import Links, NodeId, Payload
from gossip.scores import GOOD, TRIED


class ToldLinks:
    """Links that go down and up again and again are told as down until they are calm.

    Only those: a way that loses every seventh connection is suspected once a minute, and a drain is an order.
    """

    def __init__(self) -> None:
        self._damping = Damping()
        self._measured: tuple[Payload, ...] = ()
        self._up: frozenset[str] = frozenset()
        self._down: frozenset[str] = frozenset()

    def tell(self, payloads: Sequence[Payload], now: float) -> list[Payload]:
        """Links as measured; as they are to be told."""
        self._measured = tuple(payloads)
        links = [link for payload in payloads if isinstance(payload, Links) for link in payload.links]
        up = frozenset(link.hop for link in links if link.status in GOOD)
        for hop in up & self._down:
            self._damping.record_recovery(hop, now)
        self._up, self._down = up, frozenset(link.hop for link in links if link.status in TRIED)
        shown = {link.hop: link for link in self._damping.hide_links(links, now)}
        return [
            Links(tuple(shown[link.hop] for link in payload.links)) if isinstance(payload, Links) else payload
            for payload in payloads
        ]

    def tell_again(self, now: float) -> list[Payload] | None:
        """The last links, if one may be calm by now."""
        return self.tell(self._measured, now) if self._damping.next_change() <= now else None

    def damped_count(self, now: float) -> int:
        """Links that are up and told as down."""
        return len(self._damping.hidden(self._up, now))


class ToldSessions:
    """The peers that are listed in the SESSIONS record. A session that lingers was listed and is listed on."""

    def __init__(self) -> None:
        self._damping = Damping()
        self._lost_once: frozenset[NodeId] = frozenset()
        self.listed: frozenset[NodeId] = frozenset()
        """Before damping."""

    def tell(self, two_way: Iterable[NodeId], lingering: Iterable[NodeId], now: float) -> frozenset[NodeId]:
        """Sessions of this moment; those that are to be told."""
        up = set(two_way)
        for peer in up - self.listed:
            if self.listed and peer in self._lost_once:
                self._damping.record_recovery(peer, now)
        up |= {peer for peer in lingering if peer in self.listed}
        self._lost_once |= self.listed - up
        self.listed = frozenset(up)
        return self.listed - self._damping.hidden([str(peer) for peer in up], now)

    def damped_count(self, sessions: Collection[NodeId], now: float) -> int:
        """Peers with a session that are told as down."""
        return len(self._damping.hidden([str(peer) for peer in sessions], now))
