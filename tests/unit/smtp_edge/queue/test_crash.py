"""kill -9 at random instants: what was acknowledged is there, whole, and nothing else is claimed to be."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from smtp_edge.queue.entry import DeliveryState
from smtp_edge.queue.sqlite import SQLiteStore
from tests.unit.smtp_edge.queue.builders import AT
from tests.unit.smtp_edge.queue.crash_child import build_body
from tests.unit.smtp_edge.queue.test_sqlite_store import build_store

ROUNDS = 5
WORDS_MAX = 400
"""Words of the child that the parent waits for, at most, before it kills."""


def run_until_killed(directory: Path, words_count: int) -> tuple[set[str], set[str]]:
    """Queue ids that the child said were stored, and settled."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.smtp_edge.queue.crash_child", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[4],
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(words_count)]
    os.kill(child.pid, signal.SIGKILL)
    rest, errors = child.communicate(timeout=20)
    lines += rest.splitlines(keepends=True)
    assert child.returncode == -signal.SIGKILL, errors
    said = [line.split() for line in lines if line.endswith("\n") and line.startswith(("stored", "settled"))]
    return {name for word, name in said if word == "stored"}, {name for word, name in said if word == "settled"}


async def check(store: SQLiteStore, stored: set[str], settled: set[str]) -> None:
    waiting = await store.list(limit=1_000_000)
    assert {claim.delivery.state for claim in waiting} <= {DeliveryState.QUEUED}
    assert not settled & {claim.delivery.queue_id for claim in waiting}
    claims = await store.claim(1_000_000, AT)
    found = {claim.delivery.queue_id for claim in claims}
    for queue_id in stored - found:
        history = await store.history(queue_id)
        assert history is not None, f"{queue_id} was acknowledged and is lost"
        assert {delivery.state for delivery in history.deliveries} == {DeliveryState.RELAYED}
    for claim in claims:
        data = claim.entry.data
        content = data.inline if data.path is None else data.path.read_bytes()
        assert content == build_body(claim.delivery.queue_id)
    for queue_id in found:
        assert sorted(claim.delivery.copy for claim in claims if claim.delivery.queue_id == queue_id) == [0, 1]
    assert (await store.summary()).corrupt == 0


@pytest.mark.rfc("5321 4.2.5", "5321 6.1a")
async def test_killed_at_any_instant_nothing_acknowledged_is_missing(tmp_path: Path) -> None:
    seed = int(os.environ.get("SMTPMESH_SEED", random.randrange(2**32)))
    print(f"replay: SMTPMESH_SEED={seed} pytest {__file__}")
    rng, directory = random.Random(seed), tmp_path / "queue"
    stored: set[str] = set()
    settled: set[str] = set()
    for _ in range(ROUNDS):
        more_stored, more_settled = run_until_killed(directory, rng.randint(1, WORDS_MAX))
        stored, settled = stored | more_stored, settled | more_settled
        store = build_store(directory)
        await store.open()
        await check(store, stored, settled)
        await store.close()
        with sqlite3.connect(directory / "queue.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert stored
