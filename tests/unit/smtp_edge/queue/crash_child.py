"""The process that test_crash kills: stores, settles and says so on standard output, until it dies.

    python -m tests.unit.smtp_edge.queue.crash_child DIRECTORY

`stored ID` is written after `put` returned, `settled ID` after `settle` did: what was said must be true for ever.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

from smtp_edge.envelope import MailData
from smtp_edge.queue.entry import Claim, HistoryNote
from smtp_edge.queue.ids import QueueIds
from smtp_edge.queue.spool import Spool
from smtp_edge.queue.sqlite import SQLiteStore
from tests.unit.smtp_edge.queue.builders import HEADER, build_end, build_new

PRODUCERS_COUNT = 10
SPOOLED_BYTES_MIN = 60_000


def build_body(queue_id: str) -> bytes:
    """Mail data that can be computed again from the queue id: from 100 bytes to 100 KB."""
    digest = hashlib.sha256(queue_id.encode()).hexdigest()
    return HEADER + (digest.encode() + b"\r\n") * (1 + int(digest[:6], 16) % 1500)


async def produce(store: SQLiteStore, spool: Spool, ids: QueueIds) -> None:
    while True:
        queue_id = ids.new(datetime.now(UTC))
        body = build_body(queue_id)
        data = MailData(len(body), body, header=HEADER)
        if len(body) > SPOOLED_BYTES_MIN:
            writer = spool.begin()
            writer.write(body)
            data = await writer.commit(HEADER)
        stored = await store.put(build_new("one", "two", queue_id=queue_id, data=data))
        os.write(1, f"stored {queue_id}\n".encode())
        if int.from_bytes(queue_id.encode()) % 3:
            await finish(store, stored.claims)
            os.write(1, f"settled {queue_id}\n".encode())


async def finish(store: SQLiteStore, claims: tuple[Claim, ...]) -> None:
    note = HistoryNote(datetime.now(UTC), "relayed")
    await store.settle([build_end(claim, notes=(note,)) for claim in claims])


async def main(directory: Path) -> None:
    store = SQLiteStore(
        directory,
        incarnation=uuid.uuid4().hex,
        history_s=3600,
        entries_max=10**6,
        clock=lambda: datetime.now(UTC),
    )
    await store.open()
    spool, ids = Spool(directory), QueueIds("crash")
    await asyncio.gather(*(produce(store, spool, ids) for _ in range(PRODUCERS_COUNT)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
