"""What this node says of itself, made to fit the wire before it is stored. Pure.

Every receiver rejects a record outside the bounds of `gossip.wire`, so an own record outside them would be lost
everywhere. Here texts are shortened, links and classes that cannot be said are left out, and LINKS are cut into shards.
Whatever is left out is a complaint: one sentence for the operator's log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gossip.linkstate import ClassLoad, Links, LinkState, Load, NodeInfo, Opaque, Payload, Sessions
from gossip.wire import (
    CLASSES_MAX,
    SHARD_MAX,
    TEXT_MAX,
    WireError,
    check_class_load,
    check_link,
    fit_tags,
    link_bytes,
)

PAYLOAD_BYTES_MAX = 48 * 1024
"""Of one record; the rest of `wire.BODY_BYTES_MAX` is for the key, the certificate and fields to come."""
LINKS_IN_SHARD_MAX = 128


def fit(payload: Payload) -> tuple[Payload, list[str]]:
    """The payload as it can be said, and what had to be left out."""
    match payload:
        case NodeInfo():
            return _fit_info(payload)
        case Links():
            links, complaints = _fit_links(payload.links)
            return Links(tuple(links)), complaints
        case Load():
            return _fit_load(payload)
        case Sessions() | Opaque():
            return payload, []


def shard_links(links: Sequence[LinkState]) -> tuple[list[Payload], list[str]]:
    """LINKS payloads of bounded count and size, at least one (no links is news too); and what was left out."""
    fitting, complaints = _fit_links(links)
    shards: list[list[LinkState]] = [[]]
    size_bytes = 0
    for link in fitting:
        length_bytes = link_bytes(link)
        if len(shards[-1]) >= LINKS_IN_SHARD_MAX or size_bytes + length_bytes > PAYLOAD_BYTES_MAX:
            shards.append([])
            size_bytes = 0
        shards[-1].append(link)
        size_bytes += length_bytes
    if len(shards) > SHARD_MAX + 1:
        complaints.append(f"only the first {SHARD_MAX + 1} shards of links are advertised")
    return [Links(tuple(shard)) for shard in shards[: SHARD_MAX + 1]], complaints


def _fit_info(info: NodeInfo) -> tuple[NodeInfo, list[str]]:
    changed: dict[str, object] = {}
    for item in dataclasses.fields(info):
        value = getattr(info, item.name)
        if isinstance(value, str):
            clean = "".join(letter if letter.isprintable() else "?" for letter in value)[:TEXT_MAX]
            if clean != value:
                changed[item.name] = clean
    complaints = [f"{name} of this node is too long or not printable and was changed" for name in changed]
    tags = fit_tags(info.tags)
    if set(tags) != set(info.tags):
        complaints.append(f"tags of this node: only {', '.join(tags) or 'none'} can be advertised")
    return dataclasses.replace(info, **changed, tags=tags), complaints  # type: ignore[arg-type]  # by the field's type


def _fit_links(links: Sequence[LinkState]) -> tuple[list[LinkState], list[str]]:
    fitting: list[LinkState] = []
    complaints: list[str] = []
    for link in links:
        short = _fit_classes(link)
        if short is not link:
            complaints.append(f"link {link.hop[:TEXT_MAX]!r}: only {len(short.classes)} of its classes are advertised")
        try:
            fitting.append(check_link(short))
        except WireError as error:
            complaints.append(f"link {link.hop[:TEXT_MAX]!r} is not advertised: {error}")
    return fitting, complaints


def _fit_classes(link: LinkState) -> LinkState:
    """The first classes of a link that fit one record."""
    left_bytes, count = PAYLOAD_BYTES_MAX - 2 * TEXT_MAX, 0
    for name in link.classes[:CLASSES_MAX]:
        left_bytes -= 4 + len(name.encode("utf-8", "replace"))
        if left_bytes < 0:
            break
        count += 1
    return link if count == len(link.classes) else dataclasses.replace(link, classes=link.classes[:count])


def _fit_load(load: Load) -> tuple[Load, list[str]]:
    classes: list[ClassLoad] = []
    complaints: list[str] = []
    left_bytes = PAYLOAD_BYTES_MAX
    for item in load.classes:
        left_bytes -= 40 + len(item.class_id.encode("utf-8", "replace"))
        if len(classes) == CLASSES_MAX or left_bytes < 0:
            complaints.append(f"load: only the first {len(classes)} classes are advertised")
            break
        try:
            classes.append(check_class_load(item))
        except WireError as error:
            complaints.append(f"load of class {item.class_id[:TEXT_MAX]!r} is not advertised: {error}")
    return dataclasses.replace(load, classes=tuple(classes)), complaints
