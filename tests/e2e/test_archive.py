"""The archive in a real session: a blind copy arrives, a file is there with the 250, a disk fails.

smtplib -> relay A (sink archive) -> keeper
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.one_relay import POLICIES, check_policy, one_relay, send, wait_kept
from tests.e2e.scene import wait_until
from tests.e2e.test_full_disk import fill, small_disk

BLIND = """
[[sink]]
use = "archive"
with = { recipient = "archive@vault.test", except_from = ["robot.test"] }
"""
FOLDER = """
[[sink]]
use = "archive"
timeout = "5s"
on_failure = "{policy}"
with = {{ folder = "{folder}" }}
"""


def mail(word: str) -> bytes:
    return f"Subject: x\r\n\r\n{word}\r\n".encode()


def kept_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.eml*") if path.is_file())


def test_a_blind_copy_goes_to_the_archive(folder: Path) -> None:
    with one_relay(folder / "c", BLIND) as (relay, keeper):
        assert send(relay, mail("copied"), "ann", "bob")[0] == 250
        assert send(relay, mail("its own"), sender="x@robot.test")[0] == 250
        assert send(relay, mail("its own"), sender="archive@vault.test")[0] == 250
        wait_until(lambda: sum(len(kept.rcpts) for kept in keeper.messages) >= 5, 20, "ann, bob, the archive, ann, ann")
        copies = [kept for kept in keeper.messages if "archive@vault.test" in kept.recipients]
        assert [(kept.sender, kept.body) for kept in copies] == [("sender@demo.test", b"copied\r\n")]
        assert b"vault.test" not in copies[0].data, "nobody sees it"


def test_the_file_is_there_when_the_client_hears_250(folder: Path) -> None:
    vault = folder / "vault"
    vault.mkdir()
    with one_relay(folder / "c", FOLDER.format(policy="tempfail", folder=vault)) as (relay, keeper):
        for count in range(1, 6):
            assert send(relay, mail(f"number {count}"))[0] == 250
            found = [path.read_bytes() for path in kept_files(vault)]
            assert len(found) == count
            assert sum(text.endswith(f"\r\n\r\nnumber {count}\r\n".encode()) for text in found) == 1
        wait_kept(keeper, 5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_disk_that_is_gone_full_or_something_else_means_what_the_binding_says(folder: Path, policy: str) -> None:
    vault, disk = folder / "vault", folder / "disk"
    vault.mkdir()
    disk.mkdir()
    with (
        one_relay(folder / "c", FOLDER.format(policy=policy, folder=vault)) as (relay, keeper),
        small_disk(disk),
    ):
        vault.rmdir()
        replies = [send(relay, mail("while it is gone"))]
        vault.symlink_to(disk)
        fill(disk / "ballast")
        replies.append(send(relay, mail("while it is full")))
        vault.unlink()
        vault.write_text("a file")
        replies.append(send(relay, mail("while it is no folder")))
        wait_until(lambda: kept_files(disk) == [], 10, "no file of what failed")
        vault.unlink()
        vault.mkdir()
        assert send(relay, mail("when it is well"))[0] == 250
        assert len(kept_files(vault)) == 1
        check_policy(relay, keeper, policy, replies, well=1)
