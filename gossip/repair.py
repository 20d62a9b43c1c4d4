"""Two databases that differ become equal: sums of buckets, then lines of the buckets that differ, then records. Pure.

A node that holds far less than its peer (it joins) fetches everything instead, chunk by chunk, at its own pace; with
another peer it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterable

from gossip.database import MARK_MASK, Database
from gossip.frames import Buckets, Digest, Frame, Held, Record, Request
from gossip.linkstate import Key

LINES_MAX = 4000
"""Lines of one digest frame; a bucket is never cut."""
KEYS_MAX = 4000
CHUNK_BYTES_MAX = 256 * 1024
FETCH_ABOVE = 64
"""Records of a peer above which a node that has less than half of them fetches."""


def differing(ours: tuple[int, ...], theirs: tuple[int, ...]) -> list[int]:
    """Buckets whose sums differ."""
    return [bucket for bucket, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other]


def digests(database: Database, buckets: Iterable[int]) -> list[Frame]:
    """What is held in some buckets, as frames of bounded size."""
    frames: list[Frame] = []
    lines: list[Held] = []
    chosen: set[int] = set()
    by_bucket: dict[int, list[Held]] = {bucket: [] for bucket in buckets}
    for line in database.lines(frozenset(by_bucket)):
        by_bucket[int(line.key.origin[:2], 16)].append(line)
    for bucket, found in by_bucket.items():
        if lines and len(lines) + len(found) > LINES_MAX:
            frames.append(Digest(frozenset(chosen), tuple(lines)))
            lines, chosen = [], set()
        lines += found
        chosen.add(bucket)
    if chosen:
        frames.append(Digest(frozenset(chosen), tuple(lines)))
    return frames


def compare(database: Database, digest: Digest) -> tuple[list[Record], list[Key]]:
    """What the sender of a digest lacks, and what it has that is missing here."""
    theirs = {line.key: line for line in digest.held}
    newer: list[Record] = []
    for line in database.lines(digest.buckets):
        other = theirs.get(line.key)
        if other is None or other.version < line.version or _conflict(line, other):
            record = database.get(line.key)
            if record is not None:
                newer.append(record)
    missing: list[Key] = []
    for key, line in theirs.items():
        record = database.get(key)
        if record is None:
            if not database.buried(key, line.version):
                missing.append(key)
        elif record.version < line.version or _conflict(line, Held(key, record.version, record.mark & MARK_MASK)):
            missing.append(key)
    return newer, missing[:KEYS_MAX]


def _conflict(one: Held, other: Held) -> bool:
    return one.version == other.version and one.mark != other.mark


def buckets_frame(database: Database) -> Buckets:
    """The sums."""
    return Buckets(database.sums())


def request(keys: list[Key]) -> Request:
    """What is missing."""
    return Request(tuple(keys))
