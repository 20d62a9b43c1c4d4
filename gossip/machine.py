"""The gossip protocol as a state machine without I/O: frames, sessions and time in, effects out.

    session up     both send Hello and Digest; each pushes what the other lacks and asks for what it lacks itself
    change         the origin signs a new version and pushes it; receivers verify, store, push on to those without it
    hello          every second; a root that differs twice in a row starts a Digest exchange (repair)
    silence        too long: the session is dropped; its origin's records stay: only their owner speaks about them

A dead node leaves the routes because its neighbours withdraw their own links to it. Nobody announces anybody's death.
The shell (`gossip.service`, or a simulator) sends the frames, keeps the timer and dials what `dials` names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gossip.database import Database, Verdict
from gossip.detector import Silence
from gossip.fit import fit
from gossip.identity import IdentityError, Member
from gossip.linkstate import Key, Kind, Links, NodeId, Payload, Snapshot, Version
from gossip.settings import GossipSettings
from gossip.wire import (
    UINT32_MAX,
    Record,
    WireError,
    decode_held,
    decode_key,
    decode_record,
    encode_body,
    encode_held,
    encode_key,
)
from smtpmesh.gossip.v1 import gossip_pb2 as pb

PUSH_MAX = 64
"""Advertisements in one frame."""
REQUEST_KEYS_MAX = 30_000
REFUSALS_MAX = 20
"""Refused advertisements after which a session is dropped: a member that forges is not worth listening to."""
MISMATCHES_BEFORE_REPAIR = 2
EXPIRE_S = 5.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """An advertisement that was not stored, and why. One log line each."""

    peer: NodeId
    origin: str
    reason: str


@dataclass(slots=True)
class Effects:
    """What the shell is to do."""

    frames: list[tuple[NodeId, pb.Frame]] = field(default_factory=list)
    drops: list[tuple[NodeId, str]] = field(default_factory=list)
    """Sessions to close, with the reason."""
    refusals: list[Refusal] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What of our own could not be advertised."""
    changed: bool = False
    """The database is different."""

    def add(self, other: Effects) -> None:
        """Take over another's effects."""
        self.frames += other.frames
        self.drops += other.drops
        self.refusals += other.refusals
        self.complaints += other.complaints
        self.changed = self.changed or other.changed


@dataclass(slots=True)
class SessionState:
    """One session, as the machine sees it."""

    silence: Silence
    since: float
    known: dict[Key, Version] = field(default_factory=dict)
    """What the peer has of the records held here, as far as it showed or was sent."""
    hello_sequence: int = 0
    mismatches: int = 0
    refusals: int = 0


@dataclass(slots=True)
class Own:
    """Own records of one kind: what is issued, and what waits for its turn."""

    pending: tuple[Payload, ...] | None = None
    issued: tuple[Payload, ...] = ()
    issued_at: float = float("-inf")
    refresh_at: float = float("inf")

    def latest(self) -> tuple[Payload, ...]:
        """What was said last, issued or not."""
        return self.pending if self.pending is not None else self.issued


class Machine:
    """See the module. `sign` and `member_of` are the identity's; `wall` are Unix seconds, for people only."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        cluster: str,
        certificate: bytes,
        sign: Callable[[bytes], bytes],
        member_of: Callable[[bytes], Member],
        settings: GossipSettings,
        epoch: int,
        rng: random.Random,
        now: float,
    ) -> None:
        self._node_id, self._cluster, self._certificate = node_id, cluster, certificate
        self._sign, self._settings, self._rng = sign, settings, rng
        self.database = Database(cluster, member_of)
        self.epoch = epoch
        self._sequence = 0
        self._sessions: dict[NodeId, SessionState] = {}
        self._own: dict[Kind, Own] = {kind: Own() for kind in Kind}
        self._hello_at = now
        self._expire_at = now + EXPIRE_S
        self._timer_due = now
        self._grace_until = 0.0

    # -- in ------------------------------------------------------------------------------------------------------------

    def publish(
        self, kind: Kind, payloads: Sequence[Payload], now: float, wall: int, *, urgent: bool = False
    ) -> Effects:
        """Say something new about this node. Held back for a moment if the last version is too fresh."""
        fitted = [fit(payload) for payload in payloads]
        effects = Effects(complaints=[text for _, texts in fitted for text in texts])
        own = self._own[kind]
        latest = own.latest()
        wanted = tuple(payload for payload, _ in fitted)
        if kind is Kind.LINKS:  # a shard that is no longer needed says so, or its links would stay at the peers
            wanted += (Links(),) * (max(len(latest), len(own.issued)) - len(wanted))
        if wanted != latest:
            own.pending = wanted
            effects.add(self._issue_due(now, wall, urgent=kind if urgent else None))
        return effects

    def on_session(self, peer: NodeId, now: float) -> Effects:
        """A session with an authenticated peer is up (or was replaced by a newer one)."""
        self._sessions[peer] = SessionState(Silence(self._settings, now), now)
        effects = Effects()
        self._send_hello(peer, effects, now)
        self._send_digest(peer, effects)
        return effects

    def on_session_lost(self, peer: NodeId) -> None:
        """The shell lost or closed it."""
        self._sessions.pop(peer, None)

    def on_frame(self, peer: NodeId, frame: pb.Frame, now: float, wall: int) -> Effects:
        """A frame of a session. Nonsense is the peer's fault and ends the session."""
        session = self._sessions.get(peer)
        effects = Effects()
        if session is None:
            return effects
        session.silence.hear(now)
        match frame.WhichOneof("frame"):
            case "hello":
                self._on_hello(peer, session, frame.hello, effects)
            case "push":
                self._on_push(peer, session, frame.push, effects, now, wall)
            case "digest":
                self._on_digest(peer, session, frame.digest, effects, now)
            case "request":
                self._on_request(peer, session, frame.request, effects, now)
            case _:
                pass  # a newer peer's frame
        return effects

    def on_timer(self, now: float, wall: int) -> Effects:
        """Hellos, silence, refresh, expiry. Call at `next_timer`."""
        effects = self._issue_due(now, wall)
        late_s = now - self._timer_due
        if late_s > self._settings.pause_s:
            self._grace_until = now + self._settings.pause_grace_s
            for session in self._sessions.values():
                session.silence.excuse(now)
        if now >= self._hello_at:
            self._hello_at = now + self._settings.hello_s
            for peer in list(self._sessions):
                self._send_hello(peer, effects, now, lag_ms=int(max(0.0, late_s) * 1000))
        if now >= self._grace_until:
            self._find_silent(effects, now)
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_S
            if self.database.expire(now, self._node_id):
                effects.changed = True
                self._forget_expired()
        self._timer_due = self.next_timer(now)
        return effects

    def next_timer(self, now: float) -> float:
        """When `on_timer` is due."""
        times = [self._hello_at, self._expire_at]
        times += [self._due(kind, own) for kind, own in self._own.items() if own.pending is not None]
        times += [own.refresh_at for own in self._own.values()]
        return max(now, min(times))

    # -- out -----------------------------------------------------------------------------------------------------------

    def snapshot(self, now: float) -> Snapshot:
        """The database."""
        return self.database.snapshot(now)

    def session_times(self, peer: NodeId) -> tuple[float, float] | None:
        """(since, heard) of a session, monotonic; None if there is none."""
        session = self._sessions.get(peer)
        return (session.since, session.silence.heard_at) if session is not None else None

    def dials(self) -> list[tuple[NodeId, str]]:
        """Known nodes without a session, with their gossip addresses."""
        wanted = [node for node in self.database.nodes() if node != self._node_id and node not in self._sessions]
        infos = [(node, self.database.info(node)) for node in wanted]
        return [(node, info.gossip_address) for node, info in infos if info is not None and info.gossip_address]

    # -- own records ---------------------------------------------------------------------------------------------------

    def _issue_due(self, now: float, wall: int, *, urgent: Kind | None = None) -> Effects:
        effects = Effects()
        for kind, own in self._own.items():
            if own.pending is not None and (kind is urgent or now >= self._due(kind, own)):
                self._issue(kind, own, own.pending, effects, now, wall)
            elif now >= own.refresh_at:
                self._issue(kind, own, own.issued, effects, now, wall)
        return effects

    def _due(self, kind: Kind, own: Own) -> float:
        return own.issued_at + (self._settings.load_s if kind is Kind.LOAD else self._settings.origination_s)

    def _issue(
        self, kind: Kind, own: Own, payloads: tuple[Payload, ...], effects: Effects, now: float, wall: int
    ) -> None:
        own.pending, own.issued, own.issued_at = None, payloads, now
        jitter = 1 + self._settings.refresh_jitter * (self._rng.random() * 2 - 1)
        own.refresh_at = now + self._settings.refresh_s * jitter
        for shard, payload in enumerate(payloads):
            self._sequence += 1
            key, version = Key(self._node_id, kind, shard), Version(self.epoch, self._sequence)
            body = encode_body(
                key,
                version,
                self._cluster,
                payload,
                certificate=self._certificate if kind is Kind.NODE else b"",
                issued_at=wall,
                lifetime_s=int(self._settings.lifetime_s),
            )
            record = decode_record(body, self._sign(body))
            verdict, reason = self.database.offer(record, now)
            assert verdict is Verdict.STORED, reason
            effects.changed = True
            self._push(record, effects, now)

    def _fight_back(self, heard: Version, effects: Effects, now: float, wall: int) -> None:
        """Someone holds a newer record of ours than we do (lost state, or a clock that went back): start above it."""
        if heard < Version(self.epoch, self._sequence):
            return
        self.epoch, self._sequence = max(heard.epoch + 1, wall), 0
        for kind, own in self._own.items():
            if own.latest():
                self._issue(kind, own, own.latest(), effects, now, wall)

    # -- frames --------------------------------------------------------------------------------------------------------

    def _on_hello(self, peer: NodeId, session: SessionState, hello: pb.Hello, effects: Effects) -> None:
        if hello.root == self.database.root():
            session.mismatches = 0
            return
        session.mismatches += 1
        if session.mismatches >= MISMATCHES_BEFORE_REPAIR:
            session.mismatches = 0
            self._send_digest(peer, effects)

    def _on_push(
        self, peer: NodeId, session: SessionState, push: pb.Push, effects: Effects, now: float, wall: int
    ) -> None:
        for item in push.advertisements:
            try:
                record = decode_record(item.body, item.signature)
            except WireError as error:
                self._refuse(peer, session, "?", str(error), effects)
                continue
            if record.key.origin == self._node_id:
                self._on_own_record(peer, session, record, effects, now, wall)
            else:
                self._on_record(peer, session, record, effects, now, item.age_ms / 1000)

    def _on_record(
        self, peer: NodeId, session: SessionState, record: Record, effects: Effects, now: float, age_s: float
    ) -> None:
        verdict, reason = self.database.offer(record, now, age_s)
        match verdict:
            case Verdict.STORED | Verdict.CONFLICT | Verdict.KNOWN:
                if self.database.get(record.key) is not None:
                    session.known[record.key] = max(record.version, session.known.get(record.key, record.version))
            case Verdict.REFUSED:
                self._refuse(peer, session, record.key.origin, reason, effects)
            case Verdict.UNKNOWN_ORIGIN:
                pass  # its certificate is on the way; the digest brings the record again
        if verdict is Verdict.CONFLICT:
            effects.refusals.append(Refusal(peer, record.key.origin, reason))
        replaced = verdict is Verdict.CONFLICT and self.database.get(record.key) == record
        if replaced:  # others hold the same version with the other content, and no digest would show it
            for other in self._sessions.values():
                other.known.pop(record.key, None)
            session.known[record.key] = record.version
        if verdict is Verdict.STORED or replaced:
            effects.changed = True
            self._push(record, effects, now)

    def _on_own_record(
        self, peer: NodeId, session: SessionState, record: Record, effects: Effects, now: float, wall: int
    ) -> None:
        """An echo of ourselves; believed only if it bears our own signature."""
        held = self.database.get(record.key)
        if held is not None and held.body == record.body:
            session.known[record.key] = record.version
            return
        if held is None or record.version >= held.version:
            genuine, reason = self._check_own(record)
            if not genuine:
                self._refuse(peer, session, record.key.origin, reason, effects)
                return
            self._cover(record.key)
            self._fight_back(record.version, effects, now, wall)
            effects.add(self._issue_due(now, wall))

    def _cover(self, key: Key) -> None:
        """A shard of links from before a restart: there is nothing in it any more, which others must hear."""
        own = self._own[Kind.LINKS]
        latest = own.latest()
        if key.kind is Kind.LINKS and latest and key.shard >= len(latest):
            own.pending = latest + (Links(),) * (key.shard + 1 - len(latest))

    def _check_own(self, record: Record) -> tuple[bool, str]:
        try:
            member = self.database.member_of(self._certificate)
        except IdentityError as error:
            return False, str(error)
        if not member.verify(record.signature, record.body):
            return False, "it claims to be ours and is not"
        return True, ""

    def _on_digest(self, peer: NodeId, session: SessionState, digest: pb.Digest, effects: Effects, now: float) -> None:
        theirs = decode_held(digest)
        ours = dict(self.database.versions())
        session.known.update((key, version) for key, version in theirs.items() if key in ours)
        newer: list[Record] = []
        for key, version in ours.items():
            record = self.database.get(key)
            if record is not None and (key not in theirs or theirs[key] < version):
                newer.append(record)
        self._send_records(peer, session, newer, effects, now)
        missing = [key for key, version in theirs.items() if key not in ours or ours[key] < version]
        missing = sorted(missing, key=lambda key: (key.kind, key))[:REQUEST_KEYS_MAX]
        if missing:
            effects.frames.append((peer, pb.Frame(request=pb.Request(keys=[encode_key(key) for key in missing]))))

    def _on_request(
        self, peer: NodeId, session: SessionState, request: pb.Request, effects: Effects, now: float
    ) -> None:
        records: dict[Key, Record] = {}
        for item in request.keys:
            try:
                record = self.database.get(decode_key(item))
            except WireError:
                continue
            if record is not None:
                records[record.key] = record
        self._send_records(peer, session, list(records.values()), effects, now)

    # -- sending -------------------------------------------------------------------------------------------------------

    def _push(self, record: Record, effects: Effects, now: float) -> None:
        """To every peer not known to have it, except its origin."""
        frame = pb.Frame(push=pb.Push(advertisements=[self._advertisement(record, now)]))
        for peer, session in self._sessions.items():
            known = session.known.get(record.key)
            if peer != record.key.origin and (known is None or known < record.version):
                session.known[record.key] = record.version
                effects.frames.append((peer, frame))

    def _send_records(
        self, peer: NodeId, session: SessionState, records: Sequence[Record], effects: Effects, now: float
    ) -> None:
        for start in range(0, len(records), PUSH_MAX):
            group = records[start : start + PUSH_MAX]
            for record in group:
                session.known[record.key] = record.version
            push = pb.Push(advertisements=[self._advertisement(record, now) for record in group])
            effects.frames.append((peer, pb.Frame(push=push)))

    def _send_hello(self, peer: NodeId, effects: Effects, now: float, *, lag_ms: int = 0) -> None:
        session = self._sessions[peer]
        session.hello_sequence += 1
        hello = pb.Hello(sequence=session.hello_sequence, root=self.database.root(), loop_lag_ms=lag_ms)
        effects.frames.append((peer, pb.Frame(hello=hello)))

    def _send_digest(self, peer: NodeId, effects: Effects) -> None:
        effects.frames.append((peer, pb.Frame(digest=pb.Digest(held=encode_held(self.database.versions())))))

    def _forget_expired(self) -> None:
        for session in self._sessions.values():
            session.known = {key: version for key, version in session.known.items() if self.database.get(key)}

    def _advertisement(self, record: Record, now: float) -> pb.Advertisement:
        age_ms = min(UINT32_MAX, int(1000 * self.database.age_s(record.key, now)))
        return pb.Advertisement(body=record.body, signature=record.signature, age_ms=age_ms)

    def _find_silent(self, effects: Effects, now: float) -> None:
        for peer, session in self._sessions.items():
            if session.silence.lost(now):
                effects.drops.append((peer, f"silent for {now - session.silence.heard_at:.1f} s"))

    def _refuse(self, peer: NodeId, session: SessionState, origin: str, reason: str, effects: Effects) -> None:
        session.refusals += 1
        effects.refusals.append(Refusal(peer, origin, reason))
        if session.refusals >= REFUSALS_MAX:
            effects.drops.append((peer, "too many refused advertisements"))
