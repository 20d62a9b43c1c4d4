"""Spool files, queue ids and retry times."""

from __future__ import annotations

import errno
import os
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from smtp_edge.envelope import HEADER_KEPT_MAX, MailData
from smtp_edge.queue.ids import QueueIds
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.queue.spool import Spool, make_durable
from smtp_edge.queue.store import StoreError, StoreFull
from smtp_edge.settings import QueueSettings

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def list_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_committed_file_holds_what_was_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    writer = spool.begin()
    for chunk in (b"A: b\r\n\r\n", b"..dot\r\n" * 50_000, b"end\r\n"):
        writer.write(chunk)
    data = await writer.commit(b"A: b\r\n\r\n")
    assert data.path is not None
    assert data.path.parent == tmp_path / "spool"
    assert data.path.read_bytes() == b"A: b\r\n\r\n" + b"..dot\r\n" * 50_000 + b"end\r\n"
    assert (data.size_bytes, data.header, data.inline) == (350_013, b"A: b\r\n\r\n", None)
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []


async def test_header_is_kept_up_to_its_bound(tmp_path: Path) -> None:
    data = await Spool(tmp_path).begin().commit(b"x" * (HEADER_KEPT_MAX + 1))
    assert len(data.header) == HEADER_KEPT_MAX


async def test_abort_leaves_nothing_and_may_be_repeated(tmp_path: Path) -> None:
    writer = Spool(tmp_path).begin()
    writer.write(b"x" * 1_000_000)
    await writer.abort()
    await writer.abort()
    assert list_files(tmp_path) == []


async def test_discard_removes_the_file_once_and_ignores_inline(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    data = await spool.begin().commit(b"")
    assert data.path is not None
    await spool.discard(data)
    await spool.discard(data)
    await spool.discard(MailData(1, b"x"))
    assert not data.path.exists()


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EIO, StoreError)]
)
async def test_what_cannot_be_synced_is_not_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    writer = Spool(tmp_path).begin()
    writer.write(b"x")
    data = await writer.commit(b"")
    assert data.path is not None
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError) as caught:
        make_durable(data.path)
    assert type(caught.value) is kind


async def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Spool(tmp_path).begin()
    writer.write(b"x")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(StoreFull):
        await writer.commit(b"")
    assert list_files(tmp_path) == []


async def test_spool_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file"):
        Spool(tmp_path / "file").begin()


def test_ids_are_short_and_unlike_even_at_one_instant() -> None:
    ids = QueueIds("node-a")
    given = [ids.new(AT) for _ in range(1000)]
    assert len(set(given)) == 1000
    assert all(re.fullmatch("[0-9A-Za-z]{16}", name) for name in given)


def test_ids_sort_by_time_even_when_the_clock_steps_back() -> None:
    ids = QueueIds("node-a")
    given = [ids.new(AT + timedelta(seconds=step)) for step in (0, 5, -3600, -3600, 86400, 3650 * 86400)]
    assert given == sorted(given)


def test_ids_of_nodes_and_processes_differ() -> None:
    same = [QueueIds("node-a", random.Random(1)), QueueIds("node-b", random.Random(1)), QueueIds("node-a")]
    assert len({ids.new(AT) for ids in same}) == 3


POLICY = RetryPolicy(first_s=10, factor=2, max_s=3600, lifetime_s=432000, delay_notice_s=14400)


@pytest.mark.parametrize(
    ("attempts", "pause_s"), [(0, 10), (1, 10), (2, 20), (3, 40), (9, 2560), (10, 3600), (5000, 3600)]
)
@pytest.mark.rfc("5321 4.5.4.1b")
def test_pause_grows_to_its_ceiling(attempts: int, pause_s: float) -> None:
    assert POLICY.pause_s(attempts) == pause_s


def test_steady_policy_never_grows() -> None:
    assert RetryPolicy(60, 1, 3600, 0, 0).pause_s(100_000) == 60


def test_ceiling_below_the_first_pause_wins() -> None:
    assert RetryPolicy(60, 2, 30, 0, 0).pause_s(1) == 30


def test_jitter_shortens_by_a_quarter_at_most() -> None:
    rng = random.Random(1)
    pauses = [(POLICY.next_attempt_at(3, AT, rng) - AT).total_seconds() for _ in range(1000)]
    assert 30 <= min(pauses) < 30.5
    assert 39.5 < max(pauses) <= 40


@pytest.mark.rfc("5321 4.5.4.1b", "5321 4.5.4.1c")
def test_policy_follows_the_settings() -> None:
    settings = QueueSettings(retry_first_s=1, retry_factor=3, retry_max_s=50, lifetime_s=99, delay_notice_s=7)
    assert RetryPolicy.from_settings(settings) == RetryPolicy(1, 3, 50, 99, 7)
