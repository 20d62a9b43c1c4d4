"""Between protobuf and the link-state values. Whatever arrives is a bounded value afterwards, or a `WireError`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

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
UINT32_MAX = 2**32 - 1

_NODE_ID = re.compile(r"[0-9a-f]{32}")
_HOP = re.compile(r"(?:peer:[0-9a-f]{32}|host:[A-Za-z0-9._-]{1,64}|mx:[^\s,\x00-\x20\x7f]{1,255})")


class WireError(ValueError):
    """What arrived makes no sense; the peer is at fault."""


@dataclass(frozen=True, slots=True)
class Record:
    """A decoded advertisement, with the signed bytes as they travel."""

    key: Key
    version: Version
    cluster: str
    lifetime_s: int
    payload: Payload
    certificate: bytes
    """DER, in NODE records; empty in others."""
    body: bytes
    signature: bytes


def encode_body(
    key: Key, version: Version, cluster: str, payload: Payload, *, certificate: bytes, issued_at: int, lifetime_s: int
) -> bytes:
    """The bytes that the origin signs."""
    body = pb.Body(
        cluster=cluster,
        key=encode_key(key),
        epoch=version.epoch,
        sequence=version.sequence,
        issued_at=issued_at,
        lifetime_s=lifetime_s,
    )
    match payload:
        case NodeInfo():
            body.node.CopyFrom(_encode_node(payload, certificate))
        case Links():
            body.links.links.extend(_encode_link(link) for link in payload.links)
        case Load():
            body.load.CopyFrom(_encode_load(payload))
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
    payload, certificate = _decode_payload(message, key.kind)
    version = Version(message.epoch, message.sequence)
    return Record(key, version, message.cluster, message.lifetime_s, payload, certificate, body, signature)


def encode_key(key: Key) -> pb.RecordKey:
    """A key on the wire."""
    return pb.RecordKey(origin=key.origin, kind=int(key.kind), shard=key.shard)


def decode_key(message: pb.RecordKey) -> Key:
    """A key from the wire. WireError for an unknown kind or a malformed origin."""
    if not _NODE_ID.fullmatch(message.origin) or message.shard > SHARD_MAX:
        raise WireError("bad record key")
    try:
        return Key(NodeId(message.origin), Kind(message.kind), message.shard)
    except ValueError as error:
        raise WireError(f"unknown kind of record {message.kind}") from error


def encode_held(held: Iterable[tuple[Key, Version]]) -> list[pb.Held]:
    """Keys with versions, for a digest."""
    return [pb.Held(key=encode_key(key), epoch=version.epoch, sequence=version.sequence) for key, version in held]


def decode_held(message: pb.Digest) -> dict[Key, Version]:
    """The peer's keys and versions; unknown kinds are skipped."""
    held: dict[Key, Version] = {}
    for item in message.held:
        try:
            held[decode_key(item.key)] = Version(item.epoch, item.sequence)
        except WireError:
            continue
    return held


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


def link_bytes(link: LinkState) -> int:
    """Size of a link in a LINKS record, with its frame."""
    return _encode_link(link).ByteSize() + 4


def _decode_payload(message: pb.Body, kind: Kind) -> tuple[Payload, bytes]:
    which = message.WhichOneof("payload")
    if kind is Kind.NODE and which == "node":
        return _decode_node(message.node), message.node.certificate
    if kind is Kind.LINKS and which == "links":
        if len(message.links.links) > LINKS_MAX:
            raise WireError("too many links")
        return Links(tuple(_decode_link(link) for link in message.links.links)), b""
    if kind is Kind.LOAD and which == "load":
        return _decode_load(message.load), b""
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
    )


def _decode_link(message: pb.LinkPayload) -> LinkState:
    if not _HOP.fullmatch(message.hop):
        raise WireError("bad hop id")
    try:
        status = LinkStatus(message.status)
    except ValueError as error:
        raise WireError("unknown link status") from error
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
    )


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


def _text(value: str) -> str:
    if len(value) > TEXT_MAX or not value.isprintable():
        raise WireError("text is too long or not printable")
    return value
