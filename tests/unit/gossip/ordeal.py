"""A machine in the middle of its life, and bytes that decide what happens to it: for hypothesis and for atheris alike.

Whatever the bytes are, no exception may leave the machine, what it sends must be frames that others can read, and what
it keeps must be bounded and true: `Ordeal.check` says so after every step.
"""

from __future__ import annotations

import math

from google.protobuf.message import DecodeError

from gossip.effects import Effects
from gossip.frames import Aged, Announce, Chunk, Fetch, Frame, Graft, Push, Request
from gossip.linkstate import (
    ClassLoad,
    Key,
    Kind,
    Links,
    LinkState,
    LinkStatus,
    Load,
    NodeId,
    NodeInfo,
    Payload,
    Sessions,
    Version,
)
from gossip.wire import EPOCH_MAX, WireError, decode_frame, decode_record, encode_body, encode_frame
from smtp_edge.simulation import GossipWorld
from smtp_edge.simulation.gossip import WALL
from smtp_edge.simulation.stub import certificate_of, node_id_of, sign_as
from smtpmesh.gossip.v1 import gossip_pb2 as pb

MEMBERS = 6
STRANGERS = 3
KINDS, SHARDS = 6, 3
"""Two of the kinds are unknown to this version."""
KEYS_MAX = (MEMBERS + STRANGERS) * KINDS * SHARDS
STEPS_MAX = 40
FRAME_BYTES_MAX = 4 * 1024 * 1024
KEPT = 40
"""Frames of late that may be sent again, as they were or damaged."""


class Feed:
    """Choices out of bytes; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def left(self) -> bool:
        """There is something."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """0..255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self) -> int:
        """0..2^64, small or at the edges more often than not."""
        match self.byte() % 5:
            case 0:
                return self.byte()
            case 1:
                return int.from_bytes(self.take(4))
            case 2:
                return EPOCH_MAX - self.byte()
            case 3:
                return WALL + self.byte()
            case _:
                return int.from_bytes(self.take(7))

    def take(self, count: int) -> bytes:
        """So many bytes, or what is left."""
        found = self._data[self._at : self._at + count]
        self._at += count
        return found


class Ordeal:
    """See the module."""

    def __init__(self) -> None:
        world = GossipWorld.converged(MEMBERS)
        world.run(2.5)
        self.node = world.nodes[0]
        self.others = [*world.nodes[1:], *(node_id_of(100 + index) for index in range(STRANGERS))]
        self.machine, self.now = world.by_id[self.node].machine, world.now
        self.recent: list[pb.Frame] = [
            encode_frame(Push(tuple(Aged(record, 1.0) for record in world.database(world.nodes[1]).records()[:8]))),
            encode_frame(Chunk((), None, True)),
            encode_frame(Fetch(None)),
        ]

    def run(self, data: bytes) -> None:
        """Do what the bytes say."""
        feed = Feed(data)
        for _ in range(STEPS_MAX):
            if not feed.left():
                break
            self.check(self._step(feed))

    def _step(self, feed: Feed) -> Effects:
        machine, wall = self.machine, WALL + int(self.now)
        peer = self.others[feed.byte() % len(self.others)]
        match feed.byte() % 12:
            case 0:
                self.now += feed.byte() / (10 if feed.byte() % 4 else 0.1)
                return machine.on_timer(self.now, WALL + int(self.now))
            case 1:
                return self._hear(peer, _parse(feed.take(feed.byte())))
            case 2 | 3:
                return self._hear(peer, _damage(self.recent[feed.byte() % len(self.recent)], feed))
            case 4 | 5:
                return machine.on_frame(peer, self._frame(feed), self.now, wall)
            case 6:
                return machine.on_session(peer, self.now, wall)
            case 7:
                return machine.on_session_lost(peer, self.now, wall, "reset")
            case 8:
                return machine.on_dial_failed(peer, self.now, wall, refused=bool(feed.byte() % 2))
            case 9:
                return machine.on_blocked(peer, self.now, wall, blocked=bool(feed.byte() % 2))
            case 10:
                return machine.publish(Kind.LOAD, [_load(feed)], self.now, wall)
            case _:
                return machine.publish(Kind.LINKS, [], self.now, wall)

    def _hear(self, peer: NodeId, message: pb.Frame | None) -> Effects:
        if message is None:
            return Effects()
        try:
            frame = decode_frame(message)
        except WireError:
            return self.machine.on_session_lost(peer, self.now, WALL + int(self.now), "a bad frame")
        if frame is None:
            return Effects()
        return self.machine.on_frame(peer, frame, self.now, WALL + int(self.now))

    def _frame(self, feed: Feed) -> Frame:
        """A frame that is well formed, and says anything."""
        match feed.byte() % 6:
            case 0:
                return Announce(tuple(feed.number() for _ in range(feed.byte() % 5)))
            case 1:
                return Graft(tuple(feed.number() for _ in range(feed.byte() % 5)))
            case 2:
                return Request(tuple(self._key(feed) for _ in range(feed.byte() % 5)))
            case 3:
                return Fetch(self._key(feed) if feed.byte() % 2 else None)
            case _:
                return Push(tuple(self._item(feed) for _ in range(feed.byte() % 4)))

    def _key(self, feed: Feed) -> Key:
        everybody = [self.node, *self.others]
        return Key(everybody[feed.byte() % len(everybody)], 1 + feed.byte() % KINDS, feed.byte() % SHARDS)

    def _item(self, feed: Feed) -> Aged:
        key = self._key(feed)
        version = Version(feed.number() % EPOCH_MAX, feed.number())
        lifetime_s = 1 + feed.number() % 86_400
        body = encode_body(
            key,
            version,
            "simulated" if feed.byte() % 8 else "other",
            _payload(key.kind, feed, self.others),
            certificate=certificate_of(key.origin) if key.kind == Kind.NODE else b"",
            issued_at=WALL,
            lifetime_s=lifetime_s,
        )
        signer = key.origin if feed.byte() % 4 else self.others[0]
        return Aged(decode_record(body, sign_as(signer, body)), feed.byte() * 10.0)

    def check(self, effects: Effects) -> None:
        """What must always hold."""
        machine = self.machine
        for _, frame in effects.frames:
            message = encode_frame(frame)
            raw = message.SerializeToString()
            assert len(raw) <= FRAME_BYTES_MAX
            assert getattr(decode_frame(pb.Frame.FromString(raw)), "faults", ()) == ()
            self.recent = [*self.recent[-KEPT:], message]
        due = machine.next_timer(self.now)
        assert math.isfinite(due)
        assert due >= self.now
        records = machine.database.records()
        assert len(records) == len(machine.database) <= KEYS_MAX
        marks = [record.mark for record in records if record.key.kind != Kind.LOAD]
        assert machine.database.root() == sum(marks) % 2**64
        for record in records:
            assert record.signature == sign_as(record.key.origin, record.body), "nobody speaks for another"
            assert record.cluster == "simulated"
        for peer in machine.peers():
            session = machine.session(peer)
            assert session is not None
            assert session.queued() <= KEYS_MAX


def _parse(raw: bytes) -> pb.Frame | None:
    try:
        return pb.Frame.FromString(raw)
    except DecodeError:
        return None  # gRPC ends such a stream by itself


def _damage(message: pb.Frame, feed: Feed) -> pb.Frame | None:
    raw = bytearray(message.SerializeToString())
    for _ in range(feed.byte() % 4):
        if raw:
            raw[feed.number() % len(raw)] ^= 1 << feed.byte() % 8
    if feed.byte() % 8 == 0:
        del raw[feed.number() % (len(raw) + 1) :]
    return _parse(bytes(raw))


def _load(feed: Feed) -> Load:
    return Load(classes=tuple(ClassLoad(f"c{index}", feed.byte(), feed.byte()) for index in range(feed.byte() % 3)))


def _payload(kind: int, feed: Feed, others: list[NodeId]) -> Payload:
    match kind:
        case Kind.NODE:
            return NodeInfo(f"n{feed.byte()}", "10.0.0.1:1", "10.0.0.1:2", zone=f"z{feed.byte() % 3}")
        case Kind.SESSIONS:
            return Sessions(tuple(sorted({others[feed.byte() % len(others)] for _ in range(feed.byte() % 5)})))
        case Kind.LOAD:
            return _load(feed)
        case _:
            return _links(feed)


def _links(feed: Feed) -> Payload:
    states = list(LinkStatus)
    return Links(
        tuple(
            LinkState(f"host:h{index}", states[feed.byte() % len(states)], 1000, feed.byte(), feed.byte(), feed.byte())
            for index in range(feed.byte() % 4)
        )
    )
