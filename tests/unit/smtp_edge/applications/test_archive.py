"""Copies of mail: by a blind recipient, or as files that are there, whole, before the 250; or it is not taken."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smtp_edge.applications import archive
from smtp_edge.applications.archive import Archive
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.api import Sink
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import Binding, SinkError
from smtp_edge.sinks.testing import Outcome, ask

MAIL = b"Subject: x\r\n\r\nhello\r\n.dot\r\n"
VAULT = "archive@vault.test"
AT = datetime(2026, 11, 25, 23, 15, 2, 123456, UTC)
FAILED = "451 4.3.0 local error in processing"


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


async def keep(sink: Sink, policy: str = "tempfail", sender: str = "sue@example.net", mail: bytes = MAIL) -> Outcome:
    binding = Binding("archive", sink, timeout_s=5, on_failure=policy)
    return await ask([binding], mail, sender=sender, recipients=("ann@a.test", "bob@b.test"))


async def test_a_blind_recipient_is_added_and_nothing_else() -> None:
    outcome = await keep(Archive(VAULT))
    assert outcome == Outcome("", MAIL, ("ann@a.test", "bob@b.test", VAULT), sender="sue@example.net")


@pytest.mark.parametrize(
    ("sender", "copied"),
    [
        (VAULT, False),
        ("Archive@VAULT.test", False),
        ("robot@vault.test", True),
        ("sue@own.test", False),
        ("sue@sub.own.test", True),
        ("", False),
    ],
)
async def test_mail_of_the_archive_itself_is_not_archived(tmp_path: Path, sender: str, copied: bool) -> None:
    excepted = ["own.test", "<>"]
    outcome = await keep(Archive(VAULT, except_from=excepted), sender=sender)
    assert (VAULT in outcome.recipients) is copied
    await keep(Archive(folder=str(tmp_path), except_from=[VAULT, *excepted]), sender=sender)
    assert len(files(tmp_path)) == copied


async def test_a_file_is_named_by_its_instant_and_says_for_whom_it_was(tmp_path: Path) -> None:
    sink = Archive(folder=str(tmp_path), now=lambda: AT)
    assert (await keep(sink)).content == MAIL
    assert (await keep(sink, mail=b"Subject: y\r\n\r\n" + b"z" * 500_000 + b"\r\n")).reply == ""
    small, large = sorted(files(tmp_path), key=lambda path: path.stat().st_size)
    assert small.parent == large.parent == tmp_path / "2026" / "11" / "25"
    assert small.name.startswith("231502.123456-")
    assert small.name.endswith(".eml")
    assert small.read_bytes() == (
        b"Return-Path: <sue@example.net>\r\nX-Envelope-To: ann@a.test\r\nX-Envelope-To: bob@b.test\r\n" + MAIL
    )
    assert large.read_bytes().endswith(b"z" * 500_000 + b"\r\n")
    assert small.stat().st_mode & 0o777 == 0o600


async def test_everything_is_synced_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync, real_rename, seen = os.fsync, os.rename, list[str]()

    def fsync(number: int) -> None:
        seen.append(os.path.relpath(os.readlink(f"/proc/self/fd/{number}"), tmp_path).partition("-")[0])
        real_fsync(number)

    def rename(old: Path, new: Path) -> None:
        seen.append("rename")
        real_rename(old, new)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    assert (await keep(Archive(folder=str(tmp_path), now=lambda: AT))).reply == ""
    day = "2026/11/25"
    assert seen == [".", "2026", "2026/11", f"{day}/231502.123456", "rename", day]


def no_space(*_: object) -> int:
    raise OSError(28, "No space left on device")


def gone(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    folder.rmdir()


def full(_folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(archive.os, "write", no_space)


def unsynced(_folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(archive.os, "fsync", no_space)


def occupied(folder: Path, _patch: pytest.MonkeyPatch) -> None:
    (folder / "2026").write_text("a file where a folder should be")


@pytest.mark.parametrize("fault", [gone, full, unsynced, occupied])
@pytest.mark.parametrize("policy", ["tempfail", "accept", "quarantine"])
async def test_a_disk_that_does_not_keep_it_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path, pytest.MonkeyPatch], None], policy: str
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    sink = Archive(folder=str(folder), now=lambda: AT)
    await sink.start()

    class Broken(Sink):
        async def data(self, message):  # type: ignore[no-untyped-def]
            fault(folder, monkeypatch)
            return await sink.data(message)

    outcome = await keep(Broken(), policy)
    await sink.stop()
    for lane in sink._lanes:
        lane.shutdown(wait=True)
    assert outcome.reply == (FAILED if policy == "tempfail" else "")
    assert bool(outcome.held) is (policy == "quarantine")
    assert not [path for path in files(tmp_path) if path.name != "2026"], "no half a file is left"


async def test_a_disk_that_hangs_holds_its_own_threads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, well = threading.Event(), asyncio.Event()
    real = os.fsync

    def fsync(number: int) -> None:
        hanging.wait(60)
        real(number)

    monkeypatch.setattr(archive.os, "fsync", fsync)
    sink = Archive(folder=str(tmp_path), now=lambda: AT)
    binding = Binding("archive", sink, timeout_s=0.1, on_failure="tempfail")
    assert (await ask([binding], MAIL)).reply == FAILED
    await asyncio.to_thread(well.set)
    hanging.set()
    for lane in sink._lanes:
        lane.shutdown(wait=True)
    assert files(tmp_path) == [], "what nobody waits for any more is not kept"


async def test_a_folder_that_is_not_there_keeps_the_node_from_starting(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="is no folder"):
        await keep(Archive(folder=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "say where to: recipient or folder"),
        ({"recipient": VAULT, "folder": "/x"}, "say where to: recipient or folder"),
        ({"recipient": "not an address"}, "recipient = 'not an address' is no address"),
        ({"folder": "here"}, "folder is an absolute path"),
        ({"recipient": VAULT, "except_from": "vault.test"}, "except_from is a list"),
        ({"recipient": VAULT, "except_from": [""]}, "except_from is a list"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SinkError, match=words):
        load_bindings([SinkSettings.model_validate({"use": "archive", "with": settings})])
