"""The gossip protocol as a state machine without I/O: frames, sessions and time in, effects out.

    session up     both say Hello; if the roots differ, sums of buckets and digests follow (`repair`)
    change         the origin signs a new version (`origination`); receivers verify, store, pass it on (`spread`)
    hello          every second; carries what was heard back, the root, the own lateness
    reset          the peer is dialled again at once; refused, or not back in a moment: the link is withdrawn
    silence        too long: others are asked (`suspicion`); nobody hears it: the link is withdrawn

A node's SESSIONS record lists the peers that it hears and that hear it. A dead node leaves the routes because its
neighbours withdraw their own links to it; nobody announces anybody's death. Every entry takes `now` (monotonic
seconds) and returns what the shell is to do; nothing here reads a clock, a socket or a random source of its own.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from gossip.budget import Budget
from gossip.contacts import Contacts
from gossip.database import Database, Verdict, Verifier
from gossip.detector import PEER_LAG_MAX_S, Patience, Silence
from gossip.effects import Effects, PeerChange, Refusal
from gossip.exclusion import REFUSALS_MAX, Exclusion, Revocation
from gossip.frames import (
    Aged,
    Announce,
    Answer,
    Buckets,
    Check,
    Chunk,
    Digest,
    Fetch,
    Frame,
    Graft,
    Hello,
    Prune,
    Push,
    Record,
    Request,
    Revocations,
)
from gossip.identity import IdentityError
from gossip.linkstate import Key, Kind, NodeId, NodeInfo, Payload, Sessions, Snapshot, Urgency
from gossip.membership import Membership, RingsOf
from gossip.origination import Origination
from gossip.overlay import Rings
from gossip.reach import path_to_neighbour, reachable
from gossip.repair import CHUNK_BYTES_MAX, FETCH_ABOVE, buckets_frame, compare, differing, digests, request
from gossip.session import PUSH_MAX, Session
from gossip.settings import GossipSettings
from gossip.spread import Spread, announce
from gossip.status import EventKind, GossipStats
from gossip.suspicion import ASKED_MAX, FRESH_S, HOPS_MAX, Suspicion
from gossip.telling import ToldLinks, ToldSessions

MISMATCHES_BEFORE_REPAIR = 2
REPAIR_FIRST_S = 2.0
REPAIR_MAX_S = 30.0
FETCH_TOKENS = 2000
FETCH_PATIENCE_S = 3.0
"""A peer whose next chunk takes longer is no longer waited for: another one goes on where it stopped."""
CHECKS_PER_S = 50.0
CONTINUES_S = 2.5
"""How long a session that follows a broken one may take to show that it is two-way."""
EXPIRE_S = 5.0
ROOTS_KEPT = 128
REACH_MIN_S = 0.05
REACH_S_PER_MEMBER = 0.001
"""The walk over all sessions costs about a microsecond for each session of each member; this keeps it below 2 %."""


class Machine:
    """See the module. `member_of` checks a certificate (IdentityError); `wall` are Unix seconds, for people only."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        cluster: str,
        certificate: bytes,
        sign: Callable[[bytes], bytes],
        member_of: Callable[[bytes], Verifier],
        settings: GossipSettings,
        epoch: int,
        rng: random.Random,
        now: float,
        database: Database | None = None,
        rings_of: RingsOf | None = None,
        zones: dict[NodeId, str] | None = None,
        check_revocation: Callable[[bytes, bytes], NodeId] | None = None,
    ) -> None:
        self._node_id, self._settings, self._rng = node_id, settings, rng
        self.database = database if database is not None else Database(cluster, member_of)
        self._own = Origination(node_id, cluster, certificate, sign, self.database, settings, epoch, rng)
        self._certificate = certificate
        self._sessions: dict[NodeId, Session] = {}
        self._exclusion = Exclusion(settings, check_revocation)
        self._contacts = Contacts(node_id, settings, rng)
        self._spread = Spread(settings)
        self._suspicions: dict[NodeId, Suspicion] = {}
        self._patience = Patience()
        self._members = Membership(node_id, self.database, zones, rings_of)
        self._own.members = max(1, len(self._members))
        self._targets: frozenset[NodeId] = frozenset()
        self._aim_stale = True
        self._touched: dict[NodeId, None] = {}
        """Sessions with something to send at the end of this turn."""
        self._told_sessions, self._told_links = ToldSessions(), ToldLinks()
        self._paused_s = 0.0
        self._roots: deque[int] = deque(maxlen=ROOTS_KEPT)
        self._reached: frozenset[NodeId] = frozenset({node_id})
        self._reach_stale = True
        self._reach_at = now
        self._check_number = 0
        self._hello_at = now + settings.hello_s * rng.random()
        self._silent_at = float("inf")
        self._tries_at = now + settings.silent_node_s * (0.5 + rng.random())
        self._expire_at = now + EXPIRE_S
        self._alive_at = now
        self._timer_due = now
        self._grace_until = float("-inf")
        self._fetch_from: Key | None = None
        self.synced = False
        """The root was equal to a peer's once."""
        self.counts: dict[str, int] = {}
        """Offered records by verdict."""
        self.event_counts: dict[str, int] = {}

    def resume(self, payloads: dict[Kind, Payload], sessions: Sequence[NodeId], rings: Rings, now: float) -> None:
        """Begin in the middle of things: own records are in the database, sessions are up (for simulators)."""
        self._own.adopt({kind: (payload,) for kind, payload in payloads.items()}, now)
        settings = self._settings
        for peer in sessions:
            session = self._sessions[peer] = Session(
                Silence(settings, now),
                now,
                Budget.full(settings.verify_per_s, settings.verify_burst, now),
                Budget.full(CHECKS_PER_S, CHECKS_PER_S, now),
            )
            session.hello, session.hellos_sent, session.hello_at = Hello(1, 1, self.database.root()), 1, now
            session.heard_back, session.heard_back_at = 1, now
        self._members.adopt(rings)
        self._reach_stale, self.synced = False, True
        self._told_sessions.listed = frozenset(sessions)
        self._reached = frozenset(self._members)
        self._aim(now)
        self._plan_silence(now)

    def remember(self, record: Record, now: float, age_s: float) -> None:
        """A record from before a restart: whom to dial, and what to believe while nobody answers yet."""
        self.database.offer(record, now, age_s)
        if self.database.get(record.key) is record and isinstance(record.payload, NodeInfo):
            self._note_member(record.key.origin, record.payload.zone)

    # -- in: own news --------------------------------------------------------------------------------------------------

    def publish(self, kind: Kind, payloads: Sequence[Payload], now: float, wall: int) -> Effects:
        """Say something new about this node, at once or when its hold is over (`gossip.holds`)."""
        effects = Effects()
        if kind is Kind.LINKS:
            payloads = self._told_links.tell(payloads, now)
        effects.complaints = self._own.publish(kind, payloads, now)
        if kind is Kind.NODE and payloads and isinstance(payloads[0], NodeInfo):
            self._note_member(self._node_id, payloads[0].zone)
        self._issue(effects, now, wall)
        return self._end(effects, now, wall)

    def rotate(self, certificate: bytes, sign: Callable[[bytes], bytes], now: float, wall: int) -> Effects:
        """Go on with a renewed certificate of the same key."""
        self._certificate = certificate
        self._own.rotate(certificate, sign)
        effects = Effects()
        self._issue(effects, now, wall)
        return self._end(effects, now, wall)

    def revoke(self, items: Sequence[Revocation], now: float, wall: int) -> Effects:
        """Revocations from the operator. What is new is passed on to everybody."""
        effects = Effects()
        self._take_revocations(items, None, effects, now, wall)
        return self._end(effects, now, wall)

    def _take_revocations(
        self, items: Sequence[Revocation], peer: NodeId | None, effects: Effects, now: float, wall: int
    ) -> None:
        new: list[Revocation] = []
        for item in self._exclusion.unknown(items):
            session = self._sessions.get(peer) if peer is not None else None
            if session is not None and not session.budget.take(now):
                break
            try:
                node = self._exclusion.revoke(item)
            except (ValueError, IdentityError) as error:
                if peer is None:
                    effects.complaints.append(str(error))
                elif session is not None:
                    self._refuse(peer, session, "?", str(error), effects, now)
                continue
            if node is not None:
                new.append(item)
                self._remove_member(node, effects, now, wall)
        if new:
            effects.frames += [(other, Revocations(tuple(new))) for other in self._sessions if other != peer]

    def _remove_member(self, node: NodeId, effects: Effects, now: float, wall: int) -> None:
        """An authority took its certificate back: forget its records, end its session. The shell refuses new ones."""
        if self.database.forget(node, now):
            effects.changed = True
        self._forget_member(node)
        self._contacts.by_node.pop(node, None)
        self._reach_stale = True
        effects.event(EventKind.NODE_REVOKED, node)
        if self._sessions.pop(node, None) is not None:
            effects.drops.append((node, "its certificate was revoked"))
        effects.peers.append(PeerChange(node, False, "its certificate was revoked"))
        self._list_sessions(now)
        self._issue(effects, now, wall)

    # -- in: sessions --------------------------------------------------------------------------------------------------

    def shut_out(self, peer: NodeId, now: float) -> bool:
        """True if a peer is in quarantine or revoked; the shell refuses its sessions."""
        return self._exclusion.shut_out(peer, now)

    def on_session(self, peer: NodeId, now: float, wall: int) -> Effects:
        """A session with an authenticated peer is up (or was replaced by a newer one)."""
        self._notice(now)
        effects = Effects()
        settings = self._settings
        known = peer in self._sessions
        self._sessions[peer] = Session(
            Silence(settings, now),
            now,
            Budget.full(settings.verify_per_s, settings.verify_burst, now),
            Budget.full(CHECKS_PER_S, CHECKS_PER_S, now),
            continues=peer in self._told_sessions.listed,
        )
        self._suspicions.pop(peer, None)
        news = self._contacts.record_session(peer)
        self._aim_stale = self._reach_stale = True
        self._send_hello(peer, effects, now)
        if self._exclusion.revocations:
            effects.frames.append((peer, Revocations(tuple(self._exclusion.revocations.values()))))
        if news and not known:
            effects.peers.append(PeerChange(peer, True, "session up"))
            effects.event(EventKind.SESSION_UP, peer)
        return self._end(effects, now, wall)

    def on_session_lost(self, peer: NodeId, now: float, wall: int, reason: str = "reset") -> Effects:
        """Its stream broke, or the peer closed it."""
        self._notice(now)
        effects = Effects()
        session = self._sessions.pop(peer, None)
        if session is None:
            return effects
        self._suspicions.pop(peer, None)
        self._aim_stale = self._reach_stale = True
        if peer in self._targets or peer in self._told_sessions.listed:
            self._contacts.record_reset(peer, now, reason, grace_until=self._grace_until, was_up_s=now - session.since)
        self._expire_lingering(effects, now)
        self._list_sessions(now)
        self._issue(effects, now, wall)
        return self._end(effects, now, wall)

    def on_dial_failed(self, peer: NodeId, now: float, wall: int, *, refused: bool) -> Effects:
        """A dial that `Effects.dials` asked for came to nothing. `refused`: somebody is there, and nobody listens."""
        self._notice(now)
        effects = Effects()
        before = self._contacts.stepped_over(peer)
        reason = self._contacts.by_node[peer].reason if peer in self._contacts.by_node else ""
        if self._contacts.record_failure(peer, now, refused=refused, grace_until=self._grace_until):
            self._tell_lost(peer, f"{reason}; dialled again: refused", effects, now)
            self._issue(effects, now, wall)
        if self._contacts.stepped_over(peer) != before:
            self._aim_stale = True
        return self._end(effects, now, wall)

    def on_blocked(self, peer: NodeId, now: float, wall: int, *, blocked: bool) -> Effects:
        """The peer reads slowly (or again): what is new waits here, newest version for each key."""
        session = self._sessions.get(peer)
        if session is not None:
            session.blocked = blocked
            self._touched[peer] = None
        return self._end(Effects(), now, wall)

    # -- in: frames ----------------------------------------------------------------------------------------------------

    def on_frame(self, peer: NodeId, frame: Frame, now: float, wall: int) -> Effects:
        """A frame of a session."""
        self._notice(now)
        effects = Effects()
        session = self._sessions.get(peer)
        if session is None:
            return effects
        match frame:
            case Hello():
                self._on_hello(peer, session, frame, effects, now)
            case Push():
                session.silence.touch(now)
                self._on_items(peer, session, frame.items, frame.faults, effects, now, wall)
            case Announce():
                session.silence.touch(now)
                self._spread.on_announce(peer, frame.ids, now)
            case Graft():
                session.eager = True
                for record in self._spread.on_graft(frame.ids, self.database.get):
                    session.queue(record)
                self._touched[peer] = None
            case Prune():
                session.eager = False
            case Buckets():
                buckets = differing(self.database.sums(), frame.sums)
                effects.frames += [(peer, digest) for digest in digests(self.database, buckets)]
            case Digest():
                self._on_digest(peer, session, frame, effects)
            case Request():
                self._on_request(peer, session, frame)
            case Fetch():
                self._on_fetch(peer, frame, effects, now)
            case Chunk():
                self._on_chunk(peer, session, frame, effects, now, wall)
            case Check():
                self._on_check(peer, session, frame, effects, now)
            case Answer():
                self._on_answer(peer, session, frame, effects, now, wall)
            case Revocations():
                self._take_revocations(frame.items, peer, effects, now, wall)
        return self._end(effects, now, wall)

    # -- in: time ------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float, wall: int) -> Effects:
        """Whatever is due. Call at `next_timer`."""
        self._notice(now)
        effects = Effects()
        late_s = max(0.0, now - self._timer_due)
        self._patience.record_lag(late_s, now)
        if now >= self._hello_at:
            self._hello_at = max(self._hello_at + self._settings.hello_s, now)
            self._tick(effects, now, late_s)
        if now >= self._silent_at or self._suspicions:
            self._find_silent(effects, now)
        self._expire_lingering(effects, now)
        effects.frames += self._spread.grafts(now, self._sessions)
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_S
            self._expire(effects, now)
        if now >= self._tries_at:
            self._tries_at = now + self._settings.silent_node_s * (0.5 + self._rng.random())
            self._try_silent_node(now)
        self._issue(effects, now, wall)
        self._touched.update(dict.fromkeys(self._sessions))
        return self._end(effects, now, wall)

    def next_timer(self, now: float) -> float:
        """When `on_timer` is due."""
        settings = self._settings
        due = min(
            self._hello_at,
            self._silent_at,
            self._expire_at,
            self._own.next_due(),
            self._contacts.next_due(),
            self._spread.next_due(),
        )
        for session in self._sessions.values():
            if session.waiting or session.urgent or session.announcing:
                due = min(due, session.due(settings.batch_s, settings.batch_busy_s))
        for suspicion in self._suspicions.values():
            if suspicion.until > now:  # else it waits for `_silent_at`: another one vouched for the suspect
                due = min(due, suspicion.until)
        if self._reach_stale and settings.track_reach:
            due = min(due, self._reach_at)
        self._timer_due = max(self._alive_at, due)
        return max(now, due)

    # -- out -----------------------------------------------------------------------------------------------------------

    @property
    def revocations(self) -> dict[NodeId, Revocation]:
        """Of all removed members."""
        return self._exclusion.revocations

    @property
    def epoch(self) -> int:
        """Of the own records."""
        return self._own.epoch

    def snapshot(self, now: float) -> Snapshot:
        """The database."""
        return self.database.snapshot(now)

    def session(self, peer: NodeId) -> Session | None:
        """What is known of a session, for people."""
        return self._sessions.get(peer)

    def peers(self) -> list[NodeId]:
        """Who has a session."""
        return list(self._sessions)

    def reached(self) -> frozenset[NodeId]:
        """Members on a path of two-way sessions from here, at the last look."""
        return self._reached

    def is_suspect(self, peer: NodeId) -> bool:
        """Its session is silent or broken and nothing is decided."""
        return peer in self._suspicions or peer in self._contacts.lingering()

    def lost_reason(self, peer: NodeId) -> tuple[float, str] | None:
        """When and why a session was lost here."""
        contact = self._contacts.by_node.get(peer)
        return (contact.lost_at, contact.reason) if contact is not None and contact.lost_at is not None else None

    def in_sync(self, peer: NodeId) -> bool | None:
        """Its last root was one of ours of late."""
        session = self._sessions.get(peer)
        if session is None or session.hello is None:
            return None
        return session.hello.root == self.database.root() or session.hello.root in self._roots

    def stats(self, now: float) -> GossipStats:
        """What the machine knows of `GossipStats`; the shell adds frames and bytes."""
        nodes = self.database.nodes()
        return GossipStats(
            records=dict(self.counts),
            originated=dict(self._own.issued),
            events=dict(self.event_counts),
            sessions=len(self._sessions),
            sessions_wanted=len(self._targets),
            members=len(nodes),
            unreachable=sum(node not in self._reached for node in nodes),
            database_records=len(self.database),
            stones=self.database.stones,
            outbox_records=sum(session.queued() for session in self._sessions.values()),
            eager_sessions=sum(session.eager for session in self._sessions.values()),
            own_lag_s=self._patience.lag_s if self._patience.factor(now) > 1 else 0.0,
            patience=self._patience.factor(now),
            damped=self._told_sessions.damped_count(self._sessions, now) + self._told_links.damped_count(now),
            quarantined=self._exclusion.quarantined_count(now),
            epoch=self.epoch,
            root=f"{self.database.root():016x}",
        )

    # -- own records ---------------------------------------------------------------------------------------------------

    def _issue(self, effects: Effects, now: float, wall: int) -> None:
        for record in self._own.issue_due(now, wall):
            effects.changed = True
            if record.key.kind == Kind.SESSIONS:
                self._reach_stale = True
            self._pass_on(record)
            self._remember_root()

    def _list_sessions(self, now: float) -> None:
        """Tell which sessions are two-way, wanted by one end at least, and not flapping."""
        up = [
            peer
            for peer, session in self._sessions.items()
            if session.two_way() and (peer in self._targets or session.hello is None or session.hello.wanted)
        ]
        shown = self._told_sessions.tell(up, self._contacts.lingering(), now)
        calm = all(peer in self._sessions for peer in self._own.told_sessions() - shown)  # superfluous, not lost
        self._own.publish(Kind.SESSIONS, [Sessions(tuple(sorted(shown)))], now, calm=calm)

    # -- membership ----------------------------------------------------------------------------------------------------

    def _note_member(self, node: NodeId, zone: str) -> bool:
        new = self._members.record(node, zone)
        self._own.members = len(self._members)
        return new

    def _forget_member(self, node: NodeId) -> bool:
        was = self._members.remove(node)
        self._own.members = max(1, len(self._members))
        return was

    def _aim(self, now: float) -> None:
        """Compute the neighbours anew."""
        self._aim_stale = False
        targets = self._members.neighbours(self._steps_over)
        if targets is not None:
            self._targets = targets
            self._contacts.aim(targets, self._sessions, now)

    def _steps_over(self, node: NodeId) -> bool:
        if node in self._sessions:
            return False
        return self._contacts.stepped_over(node) or self.database.isolated(node)

    def _try_silent_node(self, now: float) -> None:
        silent = [
            node
            for node in self._members
            if node != self._node_id and node not in self._sessions and node not in self._contacts.by_node
        ]
        lost = [
            node
            for node in silent
            if (node not in self._reached if self._settings.track_reach else self.database.isolated(node))
        ]
        if lost:
            self._contacts.try_once(self._rng.choice(lost), now)

    def _walk(self, effects: Effects, now: float) -> None:
        """Who can be reached, and who no more."""
        self._reach_stale = False
        self._reach_at = now + max(REACH_MIN_S, REACH_S_PER_MEMBER * len(self._members))
        own = [*self._sessions, *self._contacts.lingering()]
        found = reachable(self._node_id, own, self.database.sessions)
        for node in sorted(found - self._reached):
            effects.event(EventKind.NODE_REACHABLE, node)
            if node not in self._sessions:
                effects.peers.append(PeerChange(node, True, "reachable through others"))
        for node in sorted(self._reached - found):
            effects.event(EventKind.NODE_UNREACHABLE, node)
            effects.peers.append(PeerChange(node, False, "its neighbours have lost it"))
        self._reached = found

    # -- hellos and silence --------------------------------------------------------------------------------------------

    def _tick(self, effects: Effects, now: float, late_s: float) -> None:
        """Once a hello interval."""
        for peer, session in list(self._sessions.items()):
            session.age_known()
            session.continues = session.continues and now - session.since < CONTINUES_S and not session.heard_back
            wanted = peer in self._targets or session.fetching or session.hello is None or session.hello.wanted
            if wanted:
                session.unwanted_since = None
            elif session.unwanted_since is None:
                session.unwanted_since = now
            elif now - session.unwanted_since > self._settings.unwanted_s and self._node_id < peer:
                del self._sessions[peer]
                self._aim_stale = True
                effects.drops.append((peer, "no longer neighbours"))
                continue
            self._send_hello(peer, effects, now, lag_ms=int(late_s * 1000))
        self._list_sessions(now)
        links = self._told_links.tell_again(now)
        if links is not None:
            self._own.publish(Kind.LINKS, links, now)
        self._plan_silence(now)

    def _plan_silence(self, now: float) -> None:
        times = [session.silence.heard_at + self._limit_s(session, now) for session in self._sessions.values()]
        self._silent_at = min(times, default=float("inf")) + 0.001

    def _limit_s(self, session: Session, now: float) -> float:
        lag_s = min(PEER_LAG_MAX_S, session.hello.lag_ms / 1000) if session.hello is not None else 0.0
        return session.silence.limit_s * self._patience.factor(now) + lag_s

    def _find_silent(self, effects: Effects, now: float) -> None:
        for peer, session in list(self._sessions.items()):
            silent_s = now - session.silence.heard_at
            limit_s = self._limit_s(session, now)
            suspicion = self._suspicions.get(peer)
            one_way = session.heard_back_at and now - session.heard_back_at > limit_s + self._settings.silence_min_s
            if silent_s <= limit_s:
                if suspicion is not None:
                    del self._suspicions[peer]
                    effects.event(EventKind.CLEARED, peer)
                if one_way and now >= self._grace_until:
                    self._drop_lost(peer, "it does not hear us", effects, now)
                continue
            if now < self._grace_until:
                continue
            if suspicion is None:
                suspicion = self._suspicions[peer] = self._ask(peer, effects, now)
                effects.event(EventKind.SUSPECT, peer, f"silent for {silent_s:.1f} s")
            if not suspicion.decided(now):
                continue
            if suspicion.vouched and silent_s <= 2 * limit_s:
                continue
            only = ", but others hear it" if suspicion.vouched else ""
            self._drop_lost(peer, f"silent for {silent_s:.1f} s{only}", effects, now)
        self._plan_silence(now)
        if self._silent_at <= now:
            self._silent_at = now + self._settings.hello_s / 2

    def _ask(self, peer: NodeId, effects: Effects, now: float) -> Suspicion:
        """Ask two other neighbours of a silent one whether they hear it."""
        self._check_number += 1
        suspicion = Suspicion(self._check_number, now + self._settings.check_s)
        skipped = frozenset({peer, *self._suspicions})
        own = [node for node in self._sessions if node not in skipped]
        for _ in range(ASKED_MAX):
            path = path_to_neighbour(self._node_id, own, peer, self.database.sessions, skipped=skipped, hops=HOPS_MAX)
            if path is None:
                break
            suspicion.asked.add(path[-1])
            skipped |= {path[-1]}
            effects.frames.append((path[1], Check(suspicion.number, peer, tuple(path))))
        return suspicion

    def _on_check(self, peer: NodeId, session: Session, check: Check, effects: Effects, now: float) -> None:
        if not session.checks.take(now) or self._node_id not in check.path[1:]:
            return
        at = check.path.index(self._node_id)
        if check.path[at - 1] != peer:
            return
        if at + 1 < len(check.path):
            if check.path[at + 1] in self._sessions:
                effects.frames.append((check.path[at + 1], check))
            return
        target = self._sessions.get(check.target)
        silent_ms = int(1000 * (now - target.silence.heard_at)) if target is not None else 0
        back = check.path[::-1]
        effects.frames.append((peer, Answer(check.number, check.target, back, target is not None, silent_ms)))

    def _on_answer(
        self, peer: NodeId, session: Session, answer: Answer, effects: Effects, now: float, wall: int
    ) -> None:
        if not session.checks.take(now) or self._node_id not in answer.path[1:]:
            return
        at = answer.path.index(self._node_id)
        if answer.path[at - 1] != peer:
            return
        if at + 1 < len(answer.path):
            if answer.path[at + 1] in self._sessions:
                effects.frames.append((answer.path[at + 1], answer))
            return
        suspicion = self._suspicions.get(answer.target)
        if suspicion is not None and suspicion.number == answer.number:
            suspicion.record_answer(answer.path[0], answer.session and answer.silent_ms < FRESH_S * 1000)
            self._find_silent(effects, now)
            self._issue(effects, now, wall)

    def _drop_lost(self, peer: NodeId, reason: str, effects: Effects, now: float) -> None:
        del self._sessions[peer]
        self._suspicions.pop(peer, None)
        self._aim_stale = self._reach_stale = True
        effects.drops.append((peer, reason))
        self._contacts.record_lost(peer, now, reason)
        self._tell_lost(peer, reason, effects, now)

    def _expire_lingering(self, effects: Effects, now: float) -> None:
        for peer, reason in self._contacts.take_expired(now):
            self._tell_lost(peer, reason, effects, now)

    def _tell_lost(self, peer: NodeId, reason: str, effects: Effects, now: float) -> None:
        self._aim_stale = self._reach_stale = True
        effects.peers.append(PeerChange(peer, False, reason))
        effects.event(EventKind.SESSION_DOWN, peer, reason)
        self._list_sessions(now)

    def _send_hello(self, peer: NodeId, effects: Effects, now: float, *, lag_ms: int = 0) -> None:
        session = self._sessions[peer]
        wanted = peer in self._targets or session.fetching
        hello = session.next_hello(self.database.root(), len(self.database), now, lag_ms=lag_ms, wanted=wanted)
        effects.frames.append((peer, hello))

    def _on_hello(self, peer: NodeId, session: Session, hello: Hello, effects: Effects, now: float) -> None:
        first, now_two_way = session.hello is None, session.hear_hello(hello, now)
        if first:
            self._send_hello(peer, effects, now)
        if now_two_way or first:
            self._list_sessions(now)
        if hello.root == self.database.root() or hello.root in self._roots:
            session.mismatches, session.repair_pause_s = 0, 0.0
            session.fetching = False
            if not self.synced:
                self.synced = True
                effects.event(EventKind.IN_SYNC, self._node_id, peer=peer)
            return
        session.mismatches += 1
        stranger = first and (not self.synced or hello.records != len(self.database))
        if stranger or (session.mismatches >= MISMATCHES_BEFORE_REPAIR and now >= session.repair_after):
            session.mismatches = 0
            self._begin_repair(peer, session, hello, effects, now)

    # -- records -------------------------------------------------------------------------------------------------------

    def _on_items(
        self,
        peer: NodeId,
        session: Session,
        items: tuple[Aged, ...],
        faults: tuple[str, ...],
        effects: Effects,
        now: float,
        wall: int,
    ) -> None:
        for fault in faults:
            self._refuse(peer, session, "?", fault, effects, now)
        for item in items:
            if peer not in self._sessions:
                return  # shut out in the middle of its own frame
            if item.record.key.origin == self._node_id:
                self._on_own_record(peer, session, item.record, effects, now, wall)
            else:
                self._on_record(peer, session, item, effects, now)

    def _on_record(self, peer: NodeId, session: Session, item: Aged, effects: Effects, now: float) -> None:
        record = item.record
        session.known[record.key] = record.mark
        session.unqueue(record.key)
        self._spread.record_arrival(record)
        if not self.database.is_news(record):
            self._count("known")
            held = self.database.get(record.key)
            if held is not None and held.mark == record.mark and self._on_tree(record):
                self._prune(peer, session, effects, now)
            elif held is not None and held.version > record.version:
                session.known.pop(record.key, None)
            return
        if not session.budget.take(now):
            self._count("over-budget")  # repair will bring it
            return
        old = self.database.get(record.key)
        verdict, reason = self.database.offer(record, now, item.age_s)
        self._count(verdict.value.replace(" ", "-"))
        match verdict:
            case Verdict.REFUSED:
                self._refuse(peer, session, record.key.origin, reason, effects, now)
            case Verdict.UNTRUSTED:
                effects.refusals.append(Refusal(peer, record.key.origin, reason))
            case Verdict.CONFLICT:
                effects.refusals.append(Refusal(peer, record.key.origin, reason))
                effects.event(EventKind.CONFLICT, record.key.origin, reason, peer)
            case Verdict.STORED | Verdict.KNOWN | Verdict.UNKNOWN_ORIGIN:
                pass
        if self.database.get(record.key) is record:
            self._stored(record, old, effects, peer)

    def _stored(self, record: Record, old: Record | None, effects: Effects, peer: NodeId) -> None:
        effects.changed = True
        self._remember_root()
        origin, kind = record.key.origin, record.key.kind
        if kind == Kind.NODE and isinstance(record.payload, NodeInfo):
            if self._note_member(origin, record.payload.zone):
                effects.event(EventKind.NODE_JOINED, origin, record.payload.name, peer)
        elif kind == Kind.SESSIONS:
            self._reach_stale = True
            was = old.payload.peers if old is not None and isinstance(old.payload, Sessions) else ()
            for node in was:  # it may be isolated now: the overlay steps over it
                if node in self._targets and node not in self._sessions:
                    self._aim_stale = True
            if origin in self._targets and origin not in self._sessions:
                self._aim_stale = True
        if record.urgency < Urgency.REFRESH and kind in (Kind.LINKS, Kind.SESSIONS) and old is not None:
            effects.event(EventKind.CHANGED, origin, f"{Kind(kind).name.lower()} {record.urgency.name.lower()}", peer)
        self._pass_on(record)

    def _on_own_record(
        self, peer: NodeId, session: Session, record: Record, effects: Effects, now: float, wall: int
    ) -> None:
        """An echo of ourselves; believed only if it bears our own signature."""
        session.known[record.key] = record.mark
        held = self.database.get(record.key)
        if held is not None and (held.mark == record.mark or held.version > record.version):
            return
        try:
            genuine = self.database.member_of(self._certificate).verify(record.signature, record.body)
        except IdentityError:
            genuine = False
        if not genuine:
            self._refuse(peer, session, record.key.origin, "it claims to be ours and is not", effects, now)
            return
        self._own.cover(record.key)
        began, duplicate = self._own.fight_back(record.version, now, wall)
        if duplicate:
            effects.event(EventKind.DUPLICATE_IDENTITY, self._node_id, "another machine uses our key", peer)
            effects.complaints.append(
                "another machine uses this node's key: stop one of them, and issue it a key of its own"
            )
        if began:
            self._issue(effects, now, wall)

    def _pass_on(self, record: Record) -> None:
        tree = len(self._members) > self._settings.tree_above
        self._touched.update(dict.fromkeys(self._spread.queue(record, self._sessions, tree=tree)))

    def _on_tree(self, record: Record) -> bool:
        """Its body travels on the tree: a second copy is a session too many."""
        if record.urgency <= Urgency.DEGRADE:
            return False
        return record.urgency is Urgency.REFRESH or len(self._members) > self._settings.tree_above

    def _prune(self, peer: NodeId, session: Session, effects: Effects, now: float) -> None:
        if now - session.pruned_at > self._settings.graft_s:
            session.pruned_at = now
            effects.frames.append((peer, Prune()))

    def _refuse(self, peer: NodeId, session: Session, origin: str, reason: str, effects: Effects, now: float) -> None:
        session.refusals += 1
        effects.refusals.append(Refusal(peer, origin, reason))
        effects.event(EventKind.REFUSED, peer, reason)
        if session.refusals < REFUSALS_MAX or peer not in self._sessions:
            return
        length_s = self._exclusion.begin_quarantine(peer, now)
        effects.event(EventKind.QUARANTINED, peer, f"for {length_s:.0f} s")
        self._drop_lost(peer, "too many refused advertisements", effects, now)
        self._contacts.by_node.pop(peer, None)

    # -- repair --------------------------------------------------------------------------------------------------------

    def _begin_repair(self, peer: NodeId, session: Session, hello: Hello, effects: Effects, now: float) -> None:
        session.repair_pause_s = min(REPAIR_MAX_S, max(REPAIR_FIRST_S, session.repair_pause_s * 2))
        session.repair_after = now + session.repair_pause_s
        if hello.records > FETCH_ABOVE and 2 * len(self.database) < hello.records:
            if any(other.fetching and now - other.fetched_at < FETCH_PATIENCE_S for other in self._sessions.values()):
                return  # one after the other: all of them have the same
            session.fetching, session.fetched_at = True, now
            session.budget.tokens += FETCH_TOKENS
            effects.frames.append((peer, Fetch(self._fetch_from)))
        elif self._node_id < peer or session.repair_pause_s > REPAIR_FIRST_S:
            effects.frames.append((peer, buckets_frame(self.database)))

    def _on_digest(self, peer: NodeId, session: Session, digest: Digest, effects: Effects) -> None:
        newer, missing = compare(self.database, digest)
        for record in newer:
            session.queue(record)
        self._touched[peer] = None
        if missing:
            effects.frames.append((peer, request(missing)))

    def _on_request(self, peer: NodeId, session: Session, wanted: Request) -> None:
        for key in wanted.keys:
            record = self.database.get(key)
            if record is not None:
                session.queue(record)
        self._touched[peer] = None

    def _on_fetch(self, peer: NodeId, fetch: Fetch, effects: Effects, now: float) -> None:
        records, done = self.database.after(fetch.after, CHUNK_BYTES_MAX)
        last = records[-1].key if records else None
        effects.frames.append((peer, Chunk(tuple(self._aged(record, now) for record in records), last, done)))

    def _on_chunk(self, peer: NodeId, session: Session, chunk: Chunk, effects: Effects, now: float, wall: int) -> None:
        session.silence.touch(now)
        self._on_items(peer, session, chunk.items, chunk.faults, effects, now, wall)
        if chunk.done or chunk.last is None:
            session.fetching, self._fetch_from = False, None
            session.repair_after = now
        elif session.fetching:
            self._fetch_from, session.fetched_at = chunk.last, now
            session.budget.tokens += FETCH_TOKENS
            effects.frames.append((peer, Fetch(chunk.last)))

    def _expire(self, effects: Effects, now: float) -> None:
        gone = self.database.expire(now, self._node_id)
        for key in gone:
            effects.changed = self._reach_stale = True
            if key.kind == Kind.NODE and self._forget_member(key.origin):
                effects.event(EventKind.NODE_EXPIRED, key.origin)
        if gone:
            self._remember_root()

    # -- ends of turns -------------------------------------------------------------------------------------------------

    def _notice(self, now: float) -> None:
        """Were we stopped? Before anything is judged: what others did not say meanwhile proves nothing."""
        gap_s = now - max(self._alive_at, self._timer_due)
        self._alive_at = now
        if gap_s <= self._settings.pause_s:
            return
        self._grace_until = now + self._settings.pause_grace_s
        self._patience.record_lag(gap_s, now)
        self._suspicions.clear()
        self._contacts.extend(self._grace_until + self._settings.linger_s)
        for session in self._sessions.values():
            session.silence.excuse(now)
            session.heard_back_at = now
        self._silent_at = self._grace_until
        self._paused_s = gap_s

    def _end(self, effects: Effects, now: float, wall: int) -> Effects:
        """Send what may go now, dial whom the overlay wants, and look who can be reached."""
        if self._paused_s:
            effects.event(EventKind.PAUSED, self._node_id, f"for {self._paused_s:.1f} s")
            self._paused_s = 0.0
        if self._reach_stale and now >= self._reach_at and self._settings.track_reach:
            self._walk(effects, now)
        if self._aim_stale or self._members.stale:
            self._aim(now)
            self._list_sessions(now)
            self._issue(effects, now, wall)
        for peer in self._contacts.take_due(now):
            info = self.database.info(peer)
            if info is not None and info.gossip_address and not self.shut_out(peer, now):
                effects.dials.append((peer, info.gossip_address))
            else:
                self._contacts.record_failure(peer, now, refused=False, grace_until=self._grace_until)
        settings = self._settings
        for peer in self._touched:
            session = self._sessions.get(peer)
            if session is not None and session.due(settings.batch_s, settings.batch_busy_s) <= now:
                self._flush(peer, session, effects, now)
        self._touched.clear()
        for event in effects.events:
            self.event_counts[event.kind.value] = self.event_counts.get(event.kind.value, 0) + 1
        return effects

    def _flush(self, peer: NodeId, session: Session, effects: Effects, now: float) -> None:
        records, ids = session.take(now)
        for start in range(0, len(records), PUSH_MAX):
            group = records[start : start + PUSH_MAX]
            effects.frames.append((peer, Push(tuple(self._aged(record, now) for record in group))))
        if ids:
            effects.frames.append((peer, announce(ids)))

    def _aged(self, record: Record, now: float) -> Aged:
        return Aged(record, self.database.age_s(record.key, now))

    def _remember_root(self) -> None:
        root = self.database.root()
        if not self._roots or self._roots[-1] != root:
            self._roots.append(root)

    def _count(self, verdict: str) -> None:
        self.counts[verdict] = self.counts.get(verdict, 0) + 1
