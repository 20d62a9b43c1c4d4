"""A node's own records: when a new version may go out, and that nobody else's version of us prevails. Pure.

Each kind has its hold (`gossip.holds`). Whoever hears a newer record of its own than it issued starts above it
("fight-back", RFC 2328 section 13.4). Two machines with one key would do that for ever: after a few rounds it is told
as a duplicate identity and slowed down.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gossip.database import Database, Verdict
from gossip.fit import fit
from gossip.frames import Record
from gossip.holds import Hold
from gossip.linkstate import Key, Kind, Links, LinkState, NodeId, NodeInfo, Payload, Sessions, Urgency, Version
from gossip.scores import is_return, urgency_of
from gossip.settings import GossipSettings
from gossip.wire import EPOCH_MAX, LIFETIME_MAX_S, decode_record, encode_body

FIGHTS_MAX = 3
"""Fight-backs within `FIGHT_WINDOW_S` after which another machine with our key must be assumed."""
FIGHT_WINDOW_S = 60.0
FIGHT_PAUSE_MAX_S = 60.0


@dataclass(slots=True)
class Own:
    """Own records of one kind: what is issued, and what waits for its turn."""

    hold: Hold
    pending: tuple[Payload, ...] | None = None
    pending_since: float = 0.0
    urgency: Urgency = Urgency.REFRESH
    returned: bool = False
    """What waits says that a link is back."""
    issued: tuple[Payload, ...] = ()

    def latest(self) -> tuple[Payload, ...]:
        """What was said last, issued or not."""
        return self.pending if self.pending is not None else self.issued


@dataclass(slots=True)
class Fights:
    """Fight-backs of late."""

    times: list[float] = field(default_factory=list)
    pause_until: float = float("-inf")
    pause_s: float = 0.0


class Origination:
    """See the module. `sign` is the identity's; `wall` are Unix seconds, for people and for the epoch."""

    def __init__(
        self,
        node_id: NodeId,
        cluster: str,
        certificate: bytes,
        sign: Callable[[bytes], bytes],
        database: Database,
        settings: GossipSettings,
        epoch: int,
        rng: random.Random,
    ) -> None:
        self._node_id, self._cluster, self._certificate, self._sign = node_id, cluster, certificate, sign
        self._database, self._settings, self._rng = database, settings, rng
        self.epoch, self._sequence = epoch, 0
        self._own = {kind: Own(_hold_of(kind, settings)) for kind in Kind}
        self._fights = Fights()
        self._refresh_at = float("inf")
        """All kinds together: they share frames on their way."""
        self.issued: dict[str, int] = {}
        self.members = 1

    def adopt(self, issued: dict[Kind, tuple[Payload, ...]], now: float) -> None:
        """These were issued already, as the first versions of this epoch."""
        self._refresh_at = now + self._refresh_s() * self._rng.random()
        for kind, payloads in issued.items():
            self._own[kind].issued = payloads
            self._sequence += len(payloads)

    def rotate(self, certificate: bytes, sign: Callable[[bytes], bytes]) -> None:
        """A renewed certificate of the same key: the NODE record carries it from the next version on."""
        self._certificate, self._sign = certificate, sign
        node = self._own[Kind.NODE]
        if node.latest():
            node.pending, node.urgency, node.issued = node.latest(), Urgency.RECOVER, ()

    def told_sessions(self) -> frozenset[NodeId]:
        """The peers that the last SESSIONS record lists."""
        return frozenset(
            peer for item in self._own[Kind.SESSIONS].issued if isinstance(item, Sessions) for peer in item.peers
        )

    def publish(self, kind: Kind, payloads: Sequence[Payload], now: float, *, calm: bool = False) -> list[str]:
        """Say something new about this node at the next `issue_due`; what cannot be said.

        `calm`: what is taken back works still, and nobody has to hurry because of it.
        """
        fitted = [fit(payload) for payload in payloads]
        own = self._own[kind]
        latest = own.latest()
        wanted = tuple(payload for payload, _ in fitted)
        if kind is Kind.LINKS:  # a shard that is no longer needed says so, or its links would stay at the peers
            wanted += (Links(),) * (max(len(latest), len(own.issued)) - len(wanted))
        if wanted == own.issued:
            own.pending = None  # what waited is no news any more
        elif wanted != latest:
            if own.pending is None:
                own.pending_since = now
            own.pending = wanted
            own.urgency = max(_urgency(own.issued, wanted), Urgency.RECOVER if calm else Urgency.WITHDRAW)
            own.returned = is_return(_links(own.issued), _links(wanted))
        return [text for _, texts in fitted for text in texts]

    def issue_due(self, now: float, wall: int) -> list[Record]:
        """The versions whose time has come, stored already."""
        if now < self._fights.pause_until or not self._own[Kind.NODE].latest():
            return []  # the NODE record comes first: its certificate verifies the others
        records: list[Record] = []
        for kind, own in self._own.items():
            if own.pending is not None and now >= self._due(kind, own):
                records += self._issue(kind, own, own.pending, own.urgency, now, wall)
        if now >= self._refresh_at:
            self._plan_refresh(now)
            for kind, own in self._own.items():
                if own.pending is None and own.issued:
                    records += self._issue(kind, own, own.issued, Urgency.REFRESH, now, wall)
        return records

    def next_due(self) -> float:
        """When `issue_due` has something, monotonic seconds."""
        if not self._own[Kind.NODE].latest():
            return float("inf")
        times = [self._due(kind, own) for kind, own in self._own.items() if own.pending is not None]
        return max(min([*times, self._refresh_at]), self._fights.pause_until)

    def fight_back(self, heard: Version, now: float, wall: int) -> tuple[bool, bool]:
        """Someone holds a newer record of ours than we do; (a new epoch begins, it looks like a duplicate identity)."""
        if heard < Version(self.epoch, self._sequence) or now < self._fights.pause_until:
            return False, False
        fights = self._fights
        fights.times = [at for at in fights.times if now - at < FIGHT_WINDOW_S] + [now]
        duplicate = len(fights.times) > FIGHTS_MAX
        if duplicate:
            fights.pause_s = min(FIGHT_PAUSE_MAX_S, max(1.0, fights.pause_s * 2))
            fights.pause_until = now + fights.pause_s * (0.5 + self._rng.random())
        self.epoch, self._sequence = min(EPOCH_MAX, max(heard.epoch + 1, wall)), 0
        for own in self._own.values():
            if own.latest():
                own.pending, own.urgency, own.issued = own.latest(), Urgency.WITHDRAW, ()
                own.hold.issued_at = float("-inf")
        return True, duplicate

    def cover(self, key: Key) -> None:
        """A shard of links from before a restart: there is nothing in it any more, which others must hear."""
        own = self._own[Kind.LINKS]
        latest = own.latest()
        if key.kind == Kind.LINKS and latest and key.shard >= len(latest):
            own.pending = latest + (Links(),) * (key.shard + 1 - len(latest))
            own.urgency = Urgency.WITHDRAW

    def _due(self, kind: Kind, own: Own) -> float:
        if kind is Kind.LOAD:
            settings = self._settings
            return own.hold.issued_at + max(settings.load_s, self.members / settings.load_per_s)
        due = own.hold.due(own.urgency, returned=own.returned)
        return max(due, own.pending_since + self._settings.trifle_s) if own.urgency is Urgency.REFRESH else due

    def _plan_refresh(self, now: float) -> None:
        jitter = 1 + self._settings.refresh_jitter * (self._rng.random() * 2 - 1)
        self._refresh_at = now + self._refresh_s() * jitter

    def _refresh_s(self) -> float:
        settings = self._settings
        return min(settings.refresh_max_s, max(settings.refresh_s, self.members / settings.refresh_per_s))

    def _issue(
        self, kind: Kind, own: Own, payloads: tuple[Payload, ...], urgency: Urgency, now: float, wall: int
    ) -> list[Record]:
        settings = self._settings
        refresh_s = self._refresh_s()
        lifetime_s = min(LIFETIME_MAX_S, int(settings.lifetime_factor * refresh_s))
        changed = [
            shard
            for shard, payload in enumerate(payloads)
            if urgency is Urgency.REFRESH or shard >= len(own.issued) or own.issued[shard] != payload
        ]
        own.hold.record_issue(urgency, now, returned=own.returned)
        own.pending, own.issued, own.returned = None, payloads, False
        if self._refresh_at == float("inf"):
            self._plan_refresh(now)
        records: list[Record] = []
        for shard in changed:
            self._sequence += 1
            body = encode_body(
                Key(self._node_id, kind, shard),
                Version(self.epoch, self._sequence),
                self._cluster,
                payloads[shard],
                certificate=self._certificate if kind is Kind.NODE else b"",
                issued_at=wall,
                lifetime_s=lifetime_s,
                urgency=urgency,
            )
            record = decode_record(body, self._sign(body))
            verdict, reason = self._database.offer(record, now)
            assert verdict is Verdict.STORED, reason
            records.append(record)
        self.issued[kind.name.lower()] = self.issued.get(kind.name.lower(), 0) + len(records)
        return records


def _hold_of(kind: Kind, settings: GossipSettings) -> Hold:
    longest = settings.hold_sessions_max_s if kind is Kind.SESSIONS else settings.hold_max_s
    return Hold(settings.hold_first_s, longest, settings.hold_quiet_s, settings.hold_bypass_s)


def _urgency(before: tuple[Payload, ...], after: tuple[Payload, ...]) -> Urgency:
    first = after[0] if after else None
    match first:
        case Links():
            if not before:
                return Urgency.RECOVER
            found = urgency_of(_links(before), _links(after))
            return found if found is not None else Urgency.REFRESH
        case Sessions(peers=peers):
            was = before[0].peers if before and isinstance(before[0], Sessions) else ()
            return Urgency.WITHDRAW if set(was) - set(peers) else Urgency.RECOVER
        case NodeInfo() as info:
            known = before[0] if before and isinstance(before[0], NodeInfo) else None
            worse = known is not None and (info.draining, info.overloaded) > (known.draining, known.overloaded)
            return Urgency.DEGRADE if worse else Urgency.RECOVER
    return Urgency.RECOVER


def _links(payloads: tuple[Payload, ...]) -> list[LinkState]:
    return [link for item in payloads if isinstance(item, Links) for link in item.links]
