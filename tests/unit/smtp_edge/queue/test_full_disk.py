"""A real full disk: refused, nothing lost, and back to work when there is space again. Needs the right to mount."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.envelope import MailData
from smtp_edge.queue import writer as writer_module
from smtp_edge.queue.entry import Claim
from smtp_edge.queue.faults import Kind
from smtp_edge.queue.spool import Spool, SpoolWriter
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.queue.store import StoreFull
from tests.unit.smtp_edge.queue.builders import AT, HEADER, build_end, build_new
from tests.unit.smtp_edge.queue.test_sqlite_store import build_store, eventually_put

SIZE_BYTES = 3 * 1024 * 1024
BODY = HEADER + b"x" * 50_000 + b"\r\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def fill(store: SQLiteStore, accepted: list[Claim]) -> None:
    for _ in range(100):
        new = build_new(data=MailData(len(BODY), BODY, header=HEADER))
        accepted += (await store.put(new)).claims


def write_much(writer: SpoolWriter) -> None:
    for _ in range(100):
        writer.write(b"x" * 100_000)


def fill_disk(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def list_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_full_disk_refuses_and_recovers(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "TRIAL_S", 0.01)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (SIZE_BYTES // 2))
    store = build_store(small_disk / "queue")
    await store.open()
    accepted: list[Claim] = []
    with pytest.raises(StoreFull):
        await fill(store, accepted)
    assert accepted
    assert store.backlog_counts() == {"default": len(accepted)}
    await store.settle([build_end(accepted[0])])  # from the reserve
    assert store.trouble is not None
    assert store.trouble.kind is Kind.FULL
    with pytest.raises(StoreFull):
        await store.put(build_new())
    ballast.unlink()
    await eventually_put(store)
    assert (small_disk / "queue" / "reserve").exists()
    await store.close()
    store = build_store(small_disk / "queue")
    await store.open()
    claims = await store.claim(200, AT)
    assert len(claims) == len(accepted)  # one settled, one added
    assert {claim.entry.data.inline for claim in claims} == {BODY, HEADER + b"body\r\n"}
    await store.close()


async def test_full_disk_refuses_spooled_mail_and_leaves_nothing(small_disk: Path) -> None:
    spool = Spool(small_disk / "queue")
    writer = spool.begin()
    with pytest.raises(StoreFull):
        write_much(writer)
    await writer.abort()
    assert list_files(small_disk / "queue") == []
    again = spool.begin()
    again.write(BODY)
    data = await again.commit(HEADER)
    assert data.path is not None
    assert data.path.read_bytes() == BODY


async def test_spool_commit_on_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    writer = Spool(small_disk / "queue").begin()
    writer.write(b"x" * 20_000)  # still in the buffer: only the commit meets the disk
    fill_disk(small_disk / "ballast")
    with pytest.raises(StoreFull):
        await writer.commit(HEADER)
    assert list_files(small_disk / "queue") == []
