"""Between protobuf and the values of `linkstate` and `frames`. Whatever arrives is bounded
afterwards, or a `WireError`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

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
    Held,
    Hello,
    Prune,
    Push,
    Record,
    Request,
    Revocations,
)
from gossip.linkstate import (
    KIND_MAX,
    TAG_PATTERN,
    TAGS_MAX,
    ClassLoad,
    Key,
    Kind,
    Links,
    LinkState,
    LinkStatus,
    Load,
    NodeId,
    NodeInfo,
    Opaque,
    Payload,
    Sessions,
    TlsLevel,
    Urgency,
    Version,
)
from smtpmesh.gossip.v1 import gossip_pb2 as pb

BODY_BYTES_MAX = 64 * 1024
TEXT_MAX = 255
LINKS_MAX = 2000
CLASSES_MAX = 256
CAPACITY_MAX_MMPS = 10**12
LATENCY_MAX_US = 3600 * 10**6
COUNT_MAX = 2**53
LIFETIME_MAX_S = 86_400
SHARD_MAX = 1000
SESSIONS_MAX = 256
EPOCH_MAX = 2**62
"""Epochs are Unix seconds, or a little more. Above this one could never be topped."""
BUCKETS = 256
NODE_ID_BYTES = 16
ROOT_BYTES = 8
ID_BYTES = 12
IDS_MAX = 2000
PATH_MAX = 12
REVOCATIONS_MAX = 10_000
UINT32_MAX = 2**32 - 1

_NODE_ID = re.compile(r"[0-9a-f]{32}")
_TAG = re.compile(TAG_PATTERN)
_HOP = re.compile(r"(?:peer:[0-9a-f]{32}|host:[A-Za-z0-9._-]{1,64}|mx:[^\s,\x00-\x20\x7f]{1,255})")


class WireError(ValueError):
    """What arrived makes no sense; the peer is at fault."""


def encode_body(
    key: Key,
    version: Version,
    cluster: str,
    payload: Payload,
    *,
    certificate: bytes,
    issued_at: int,
    lifetime_s: int,
    urgency: Urgency = Urgency.REFRESH,
) -> bytes:
    """The bytes that the origin signs."""
    body = pb.Body(
        cluster=cluster,
        key=encode_key(key),
        epoch=version.epoch,
        sequence=version.sequence,
        issued_at=issued_at,
        lifetime_s=lifetime_s,
        urgency=int(urgency),
    )
    match payload:
        case NodeInfo():
            body.node.CopyFrom(_encode_node(payload, certificate))
        case Links():
            body.links.links.extend(_encode_link(link) for link in payload.links)
        case Load():
            body.load.CopyFrom(_encode_load(payload))
        case Sessions():
            body.sessions.peers.extend(bytes.fromhex(peer) for peer in payload.peers)
        case Opaque():
            raise WireError("a record of an unknown kind cannot be made here")
    signed: bytes = body.SerializeToString(deterministic=True)
    return signed


def decode_record(body: bytes, signature: bytes) -> Record:
    """A record from signed bytes; the signature is not checked here. WireError for nonsense."""
    if len(body) > BODY_BYTES_MAX:
        raise WireError("advertisement is too long")
    try:
        message = pb.Body.FromString(body)
    except DecodeError as error:
        raise WireError("advertisement cannot be decoded") from error
    key = decode_key(message.key)
    if not 1 <= message.lifetime_s <= LIFETIME_MAX_S:
        raise WireError("lifetime out of bounds")
    if message.epoch > EPOCH_MAX:
        raise WireError("epoch out of bounds")
    payload, certificate = _decode_payload(message, key.kind)
    return Record(
        key,
        Version(message.epoch, message.sequence),
        message.cluster,
        message.lifetime_s,
        payload,
        certificate,
        body,
        signature,
        Urgency(min(message.urgency, Urgency.REFRESH)),
        mark_of(body),
    )


def mark_of(body: bytes) -> int:
    """128 bits that name a record's content."""
    return int.from_bytes(hashlib.blake2b(body, digest_size=16).digest(), "big")


def encode_key(key: Key) -> pb.RecordKey:
    """A key on the wire."""
    return pb.RecordKey(origin=key.origin, kind=int(key.kind), shard=key.shard)


def decode_key(message: pb.RecordKey) -> Key:
    """A key from the wire. WireError for a malformed one."""
    if not _NODE_ID.fullmatch(message.origin) or message.shard > SHARD_MAX or not 1 <= message.kind <= KIND_MAX:
        raise WireError("bad record key")
    return Key(NodeId(message.origin), message.kind, message.shard)


# -- frames ------------------------------------------------------------------------------------------------------------


def encode_frame(frame: Frame) -> pb.Frame:
    """A frame as it travels."""
    match frame:
        case Hello():
            return pb.Frame(hello=_encode_hello(frame))
        case Push():
            return pb.Frame(push=pb.Push(advertisements=_encode_items(frame.items)))
        case Announce():
            return pb.Frame(announce=pb.Announce(ids=_encode_ids(frame.ids)))
        case Graft():
            return pb.Frame(graft=pb.Graft(ids=_encode_ids(frame.ids)))
        case Prune():
            return pb.Frame(prune=pb.Prune())
        case Buckets():
            return pb.Frame(buckets=pb.Buckets(sums=frame.sums))
        case Digest():
            held = [
                pb.Held(key=encode_key(h.key), epoch=h.version.epoch, sequence=h.version.sequence, mark=h.mark)
                for h in frame.held
            ]
            return pb.Frame(digest=pb.Digest(buckets=bytes(sorted(frame.buckets)), held=held))
        case Request():
            return pb.Frame(request=pb.Request(keys=[encode_key(key) for key in frame.keys]))
        case Fetch():
            return pb.Frame(fetch=pb.Fetch(after=encode_key(frame.after) if frame.after is not None else None))
        case Chunk():
            last = encode_key(frame.last) if frame.last is not None else None
            return pb.Frame(chunk=pb.Chunk(advertisements=_encode_items(frame.items), last=last, done=frame.done))
        case Check():
            return pb.Frame(check=pb.Check(number=frame.number, target=frame.target, path=frame.path))
        case Answer():
            return pb.Frame(
                answer=pb.Answer(
                    number=frame.number,
                    target=frame.target,
                    path=frame.path,
                    session=frame.session,
                    silent_ms=frame.silent_ms,
                )
            )
        case Revocations():
            items = [pb.Revocation(body=body, signature=signature) for body, signature in frame.items]
            return pb.Frame(revocations=pb.Revocations(items=items))


def decode_frame(message: pb.Frame) -> Frame | None:
    """A frame of a peer; None for one that this version does not know. WireError for nonsense."""
    match message.WhichOneof("frame"):
        case "hello":
            return _decode_hello(message.hello)
        case "push":
            return Push(*_decode_items(message.push.advertisements))
        case "announce":
            return Announce(_decode_ids(message.announce.ids))
        case "graft":
            return Graft(_decode_ids(message.graft.ids))
        case "prune":
            return Prune()
        case "buckets":
            if len(message.buckets.sums) != BUCKETS:
                raise WireError("bad number of buckets")
            return Buckets(tuple(message.buckets.sums))
        case "digest":
            held = tuple(
                Held(decode_key(item.key), Version(item.epoch, item.sequence), item.mark)
                for item in message.digest.held
            )
            return Digest(frozenset(message.digest.buckets), held)
        case "request":
            return Request(tuple(decode_key(key) for key in message.request.keys))
        case "fetch":
            return Fetch(decode_key(message.fetch.after) if message.fetch.HasField("after") else None)
        case "chunk":
            items, faults = _decode_items(message.chunk.advertisements)
            last = decode_key(message.chunk.last) if message.chunk.HasField("last") else None
            return Chunk(items, last, message.chunk.done, faults)
        case "check":
            return Check(message.check.number, *_decode_path(message.check.target, message.check.path))
        case "answer":
            answer = message.answer
            target, path = _decode_path(answer.target, answer.path)
            return Answer(answer.number, target, path, answer.session, answer.silent_ms)
        case "revocations":
            if len(message.revocations.items) > REVOCATIONS_MAX:
                raise WireError("too many revocations")
            return Revocations(tuple((item.body, item.signature) for item in message.revocations.items))
    return None


def frame_kind(frame: Frame) -> str:
    """Name of a frame, for counters."""
    return type(frame).__name__.lower()


def _encode_hello(hello: Hello) -> pb.Hello:
    return pb.Hello(
        sequence=hello.sequence,
        heard=hello.heard,
        root=hello.root.to_bytes(ROOT_BYTES, "big"),
        loop_lag_ms=hello.lag_ms,
        wanted=hello.wanted,
        records=hello.records,
        protocol=hello.protocol,
        held_ms=hello.held_ms,
    )


def _decode_hello(message: pb.Hello) -> Hello:
    return Hello(
        message.sequence,
        message.heard,
        int.from_bytes(message.root[:ROOT_BYTES], "big"),
        message.loop_lag_ms,
        message.wanted,
        message.records,
        message.protocol,
        message.held_ms,
    )


def _encode_items(items: Iterable[Aged]) -> list[pb.Advertisement]:
    return [
        pb.Advertisement(
            body=item.record.body, signature=item.record.signature, age_ms=min(UINT32_MAX, int(item.age_s * 1000))
        )
        for item in items
    ]


def _decode_items(messages: Iterable[pb.Advertisement]) -> tuple[tuple[Aged, ...], tuple[str, ...]]:
    items: list[Aged] = []
    faults: list[str] = []
    for message in messages:
        try:
            items.append(Aged(decode_record(message.body, message.signature), message.age_ms / 1000))
        except WireError as error:
            faults.append(str(error))
    return tuple(items), tuple(faults)


def _encode_ids(ids: Iterable[int]) -> bytes:
    return b"".join(item.to_bytes(ID_BYTES, "big") for item in ids)


def _decode_ids(packed: bytes) -> tuple[int, ...]:
    if len(packed) % ID_BYTES or len(packed) > ID_BYTES * IDS_MAX:
        raise WireError("bad identifiers of records")
    return tuple(int.from_bytes(packed[at : at + ID_BYTES], "big") for at in range(0, len(packed), ID_BYTES))


def _decode_path(target: str, path: Iterable[str]) -> tuple[NodeId, tuple[NodeId, ...]]:
    nodes = tuple(NodeId(node) for node in path)
    if not 1 <= len(nodes) <= PATH_MAX or not all(_NODE_ID.fullmatch(node) for node in (target, *nodes)):
        raise WireError("bad path")
    return NodeId(target), nodes


def check_link(link: LinkState) -> LinkState:
    """The link as every receiver will read it. WireError if they would reject it."""
    try:
        return _decode_link(_encode_link(link))
    except (TypeError, ValueError) as error:
        raise WireError(str(error)) from error


def check_class_load(item: ClassLoad) -> ClassLoad:
    """The load of a class as every receiver will read it. WireError if they would reject it."""
    try:
        return _decode_load(_encode_load(Load(classes=(item,)))).classes[0]
    except (TypeError, ValueError) as error:
        raise WireError(str(error)) from error


def fit_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags that every receiver will take, as it will read them."""
    return tuple(sorted({tag for tag in tags if _TAG.fullmatch(tag)})[:TAGS_MAX])


def link_bytes(link: LinkState) -> int:
    """Size of a link in a LINKS record, with its frame."""
    return _encode_link(link).ByteSize() + 4


def _decode_payload(message: pb.Body, kind: int) -> tuple[Payload, bytes]:
    which = message.WhichOneof("payload")
    if kind == Kind.NODE and which == "node":
        return _decode_node(message.node), message.node.certificate
    if kind == Kind.LINKS and which == "links":
        if len(message.links.links) > LINKS_MAX:
            raise WireError("too many links")
        return Links(tuple(_decode_link(link) for link in message.links.links)), b""
    if kind == Kind.LOAD and which == "load":
        return _decode_load(message.load), b""
    if kind == Kind.SESSIONS and which == "sessions":
        return _decode_sessions(message.sessions), b""
    if kind > max(Kind):
        return Opaque(), b""
    raise WireError("payload does not fit the kind")


def _encode_node(info: NodeInfo, certificate: bytes) -> pb.NodePayload:
    return pb.NodePayload(
        certificate=certificate,
        name=info.name,
        gossip_address=info.gossip_address,
        mesh_address=info.mesh_address,
        zone=info.zone,
        software=info.software,
        draining=info.draining,
        overloaded=info.overloaded,
        no_transit=info.no_transit,
        direct_mx=info.direct_mx,
        routes_digest=info.routes_digest,
        tags=info.tags,
        admin_address=info.admin_address,
        sinks_digest=info.sinks_digest,
    )


def _decode_node(message: pb.NodePayload) -> NodeInfo:
    return NodeInfo(
        name=_text(message.name),
        gossip_address=_text(message.gossip_address),
        mesh_address=_text(message.mesh_address),
        zone=_text(message.zone),
        software=_text(message.software),
        draining=message.draining,
        overloaded=message.overloaded,
        no_transit=message.no_transit,
        direct_mx=message.direct_mx,
        routes_digest=_text(message.routes_digest),
        tags=_decode_tags(message.tags),
        admin_address=_text(message.admin_address),
        sinks_digest=_text(message.sinks_digest),
    )


def _encode_link(link: LinkState) -> pb.LinkPayload:
    return pb.LinkPayload(
        hop=link.hop,
        status=int(link.status),
        availability_permille=link.availability_permille,
        reliability_permille=link.reliability_permille,
        capacity_mmps=link.capacity_mmps,
        latency_us=link.latency_us,
        samples=min(UINT32_MAX, link.samples),
        cost=min(UINT32_MAX, link.cost),
        classes=list(link.classes),
        tags=link.tags,
        tls=int(link.tls),
        size_bytes_max=link.size_bytes_max,
        sustained_mmps=link.sustained_mmps,
    )


def _decode_link(message: pb.LinkPayload) -> LinkState:
    if not _HOP.fullmatch(message.hop):
        raise WireError("bad hop id")
    known = message.status <= max(LinkStatus)  # a newer version may tell finer states apart
    status = LinkStatus(message.status) if known else LinkStatus.UNKNOWN
    if len(message.classes) > CLASSES_MAX:
        raise WireError("too many classes")
    return LinkState(
        hop=message.hop,
        status=status,
        availability_permille=min(1000, message.availability_permille),
        reliability_permille=min(1000, message.reliability_permille),
        capacity_mmps=min(CAPACITY_MAX_MMPS, message.capacity_mmps),
        latency_us=min(LATENCY_MAX_US, message.latency_us),
        samples=message.samples,
        cost=min(1_000_000, message.cost),
        classes=tuple(_text(name) for name in message.classes),
        tags=_decode_tags(message.tags),
        tls=TlsLevel(min(message.tls, max(TlsLevel))),
        size_bytes_max=min(COUNT_MAX, message.size_bytes_max),
        sustained_mmps=min(CAPACITY_MAX_MMPS, message.sustained_mmps),
    )


def _decode_sessions(message: pb.SessionsPayload) -> Sessions:
    if len(message.peers) > SESSIONS_MAX or any(len(peer) != NODE_ID_BYTES for peer in message.peers):
        raise WireError("bad sessions")
    return Sessions(tuple(NodeId(peer.hex()) for peer in message.peers))


def _encode_load(load: Load) -> pb.LoadPayload:
    return pb.LoadPayload(
        accept_capacity_mmps=load.accept_capacity_mmps,
        headroom_permille=load.headroom_permille,
        classes=[
            pb.ClassLoadPayload(
                class_id=item.class_id,
                backlog_count=item.backlog_count,
                oldest_s=min(UINT32_MAX, item.oldest_s),
                ingress_mmps=item.ingress_mmps,
            )
            for item in load.classes
        ],
    )


def _decode_load(message: pb.LoadPayload) -> Load:
    if len(message.classes) > CLASSES_MAX:
        raise WireError("too many classes")
    return Load(
        accept_capacity_mmps=min(CAPACITY_MAX_MMPS, message.accept_capacity_mmps),
        headroom_permille=min(1000, message.headroom_permille),
        classes=tuple(_decode_class_load(item) for item in message.classes),
    )


def _decode_class_load(message: pb.ClassLoadPayload) -> ClassLoad:
    return ClassLoad(
        _text(message.class_id),
        min(COUNT_MAX, message.backlog_count),
        message.oldest_s,
        min(CAPACITY_MAX_MMPS, message.ingress_mmps),
    )


def _decode_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Sorted, each once: equal tags are equal values, whoever sent them."""
    if len(tags) > TAGS_MAX or not all(_TAG.fullmatch(tag) for tag in tags):
        raise WireError("bad tags")
    return tuple(sorted(set(tags)))


def _text(value: str) -> str:
    if len(value) > TEXT_MAX or not value.isprintable():
        raise WireError("text is too long or not printable")
    return value
