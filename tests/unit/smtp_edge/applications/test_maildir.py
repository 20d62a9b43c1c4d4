"""Mailboxes on disk: which address is which folder, quotas, modes, and what a disk in trouble means."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.applications import maildir_files
from smtp_edge.applications.maildir import Maildir
from smtp_edge.applications.maildir_names import Layout, Place, folder_name
from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.sinks.api import TempFail
from smtp_edge.sinks.testing import ask
from tests.unit.smtp_edge.applications.store_contract import (
    ANN,
    BOB,
    EVE,
    TEXT,
    TRACE,
    StoreContract,
    codes,
    deliver,
    delivery_of,
)


def mails_in(folder: Path) -> list[bytes]:
    return [path.read_bytes() for part in ("new", "cur") for path in sorted((folder / part).glob("*"))]


class MaildirShelf:
    def __init__(self, root: Path) -> None:
        for name in ("ann", "bob"):
            (root / "box.test" / name).mkdir(parents=True)
        self.root, self.sink = root, Maildir(str(root))

    async def mails(self, address: str) -> list[bytes]:
        local = address.partition("@")[0]
        added = f"Return-Path: <{{}}>\r\nDelivered-To: {address}\r\n"
        heads = [added.format(sender).encode() for sender in ("sender@example.net", "")]
        found = mails_in(self.root / "box.test" / local)
        assert all(any(mail.startswith(head) for head in heads) for mail in found)
        return [mail[mail.index(b"Received:") :] for mail in found]


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncIterator[MaildirShelf]:
    shelf = MaildirShelf(tmp_path / "root")
    yield shelf
    await shelf.sink.stop()


class TestMaildir(StoreContract):
    pass


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "places"),
    [
        ("ann@box.test", [Place(("box.test", "ann"))]),
        ("Ann@Box.Test", [Place(("box.test", "ann"))]),
        ('"ann"@box.test', [Place(("box.test", "ann"))]),
        ('"a\\nn"@box.test', [Place(("box.test", "ann"))]),
        ("ann+Lists.x@box.test", [Place(("box.test", "ann+lists.x")), Place(("box.test", "ann"), "Lists.x")]),
        ("ann+@box.test", [Place(("box.test", "ann+")), Place(("box.test", "ann"))]),
        ("ann+a+b@box.test", [Place(("box.test", "ann+a+b")), Place(("box.test", "ann"), "a+b")]),
        ("ann+../../x@box.test", [Place(("box.test", "ann"), "../../x")]),
        ("+lists@box.test", [Place(("box.test", "+lists"))]),
        ("größe@box.test", [Place(("box.test", "größe"))]),
        ("gro\u0308ße@box.test", [Place(("box.test", "größe"))]),
        ("../bob@box.test", []),
        ("a/b@box.test", []),
        ('"../../etc"@box.test', []),
        ('".."@box.test', []),
        ('"."@box.test', []),
        ('""@box.test', []),
        ('"/etc"@box.test', []),
        ('"ann\0"@box.test', []),
        ('".ssh"@box.test', []),
        ("ann@..", []),
        ("ann@a/b", []),
        ("postmaster", []),
        ("a" * 256 + "@box.test", []),
        ("\udcff@box.test", []),
    ],
)
def test_an_address_is_a_mailbox_and_a_folder_or_nothing(address: str, places: list[Place]) -> None:
    assert Layout.parse("{domain}/{local}", "+").places(address) == places


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("lists", ".lists"),
        ("lists.python", ".lists.python"),
        ("a&b", ".a&-b"),
        ("größe", ".gr&APYA3w-e"),
        ("台北", ".&U,BTFw-"),
        ("", ""),
        ("INBOX", ""),
        ("..", ""),
        (".a", ""),
        ("a.", ""),
        ("a..b", ""),
        ("../../x", ""),
        ("a/b", ""),
        ("a\0b", ""),
        ("x" * 255, ""),
        ("\udcff", ""),
    ],
)
def test_a_folder_has_a_name_on_disk_or_is_the_inbox(folder: str, name: str) -> None:
    assert folder_name(folder) == name


AWKWARD = st.text(st.sampled_from('./\\+"@aZ\0\n ~$ß\u0301') | st.characters(), max_size=20)


@given(st.builds("{}@{}".format, AWKWARD, AWKWARD) | AWKWARD, st.sampled_from(["{domain}/{local}", "{local}/M"]))
def test_no_address_leads_out_of_the_root(address: str, layout: str) -> None:
    root = Path("/root-of-mail")
    for place in Layout.parse(layout, "+").places(address):
        path = root.joinpath(*place.mailbox, folder_name(place.folder) or "new")
        assert os.path.normpath(path) == str(path)
        assert len(path.relative_to(root).parts) == 3
        assert "\0" not in str(path)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"root": "mail"}, "root = 'mail' is no absolute path"),
        ({"layout": "{domain}"}, "layout = '{domain}' is no relative path with {local} in it"),
        ({"layout": "/{local}"}, "layout = '/{local}' is no relative path"),
        ({"layout": "../{local}"}, "no relative path"),
        ({"layout": "{local}/{user}"}, "no relative path"),
        ({"layout": "{local"}, "no relative path"),
        ({"delimiter": "/"}, "delimiter = '/' is none of the characters"),
        ({"delimiter": "++"}, "delimiter = '++' is none"),
        ({"mode": "0644"}, "mode = '0644' is none of: 0600, 0640, 0660"),
        ({"quota_bytes": -1}, "quota_bytes is at least 0"),
        ({"threads_max": 0}, "threads_max at least 1"),
        ({"over_quota": "maybe"}, "over_quota = 'maybe' is none of: reject, tempfail"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError) as caught:
        Maildir(**{"root": "/srv/mail", **settings})  # type: ignore[arg-type]
    assert error in str(caught.value)


# -- folders -----------------------------------------------------------------------------------------------------------


async def test_mail_to_a_folder_that_is_there_goes_into_it_whatever_the_case(shelf: MaildirShelf) -> None:
    ann = shelf.root / "box.test" / "ann"
    (ann / ".Lists.Python").mkdir()
    assert await codes(shelf.sink, await delivery_of("ann+lists.python@box.test")) == [250]
    (mail,) = mails_in(ann / ".Lists.Python")
    assert mail.startswith(b"Return-Path: <sender@example.net>\r\nDelivered-To: ann+lists.python@box.test\r\n" + TRACE)
    assert mails_in(ann) == []


async def test_mail_to_a_folder_that_is_not_there_goes_to_the_inbox(shelf: MaildirShelf) -> None:
    ann = shelf.root / "box.test" / "ann"
    assert await codes(shelf.sink, await delivery_of("ann+lists@box.test", "ann+../../bob@box.test")) == [250, 250]
    assert len(mails_in(ann)) == 2
    assert sorted(path.name for path in ann.iterdir()) == ["cur", "new", "tmp"]


async def test_folders_are_made_where_the_operator_wants_it(shelf: MaildirShelf) -> None:
    sink = Maildir(str(shelf.root), create_folders=True)
    ann = shelf.root / "box.test" / "ann"
    assert await codes(sink, await delivery_of("ann+lists.x@box.test", "ann+../../bob@box.test")) == [250, 250]
    assert (len(mails_in(ann / ".lists.x")), len(mails_in(ann))) == (1, 1)
    assert (ann / ".lists.x" / "maildirfolder").exists()


async def test_a_folder_that_was_made_since_the_first_try_gets_no_second_copy(shelf: MaildirShelf) -> None:
    delivery = await delivery_of("ann+lists@box.test")
    assert await codes(shelf.sink, delivery) == [250]
    (shelf.root / "box.test" / "ann" / ".lists").mkdir()
    assert await codes(shelf.sink, delivery) == [250]
    assert mails_in(shelf.root / "box.test" / "ann" / ".lists") == []


async def test_a_mailbox_of_the_whole_name_comes_first(shelf: MaildirShelf) -> None:
    (shelf.root / "box.test" / "ann+lists").mkdir()
    assert await codes(shelf.sink, await delivery_of("ann+lists@box.test")) == [250]
    assert len(mails_in(shelf.root / "box.test" / "ann+lists")) == 1


async def test_a_layout_of_local_parts_alone(tmp_path: Path) -> None:
    (tmp_path / "ann" / "Maildir").mkdir(parents=True)
    sink = Maildir(str(tmp_path), layout="{local}/Maildir", delimiter="-")
    assert await codes(sink, await delivery_of("ann@any.test", "ann-x@other.test", "bob@any.test")) == [250, 250, 550]
    assert len(mails_in(tmp_path / "ann" / "Maildir")) == 2


async def test_mail_that_was_read_and_flagged_is_not_delivered_again(shelf: MaildirShelf) -> None:
    delivery = await delivery_of(ANN)
    await codes(shelf.sink, delivery)
    ann = shelf.root / "box.test" / "ann"
    (path,) = (ann / "new").iterdir()
    path.rename(ann / "cur" / f"{path.name}:2,RS")
    assert await codes(shelf.sink, delivery) == [250]
    assert len(mails_in(ann)) == 1


async def test_names_begin_with_the_time_and_another_relays_clock_makes_no_second_copy(shelf: MaildirShelf) -> None:
    delivery = await delivery_of(ANN)
    await codes(shelf.sink, delivery)
    (path,) = (shelf.root / "box.test" / "ann" / "new").iterdir()
    assert path.name.startswith("1772366400.")
    later = replace(delivery, received_at=delivery.received_at + timedelta(seconds=2))
    assert await codes(shelf.sink, later) == [250]
    assert len(await shelf.mails(ANN)) == 1


@pytest.mark.parametrize(
    ("mode", "file_mode", "folder_mode"), [("0600", 0o600, 0o700), ("0640", 0o640, 0o750), ("0660", 0o660, 0o770)]
)
async def test_files_and_folders_have_the_mode_whatever_the_umask(
    shelf: MaildirShelf, mode: str, file_mode: int, folder_mode: int
) -> None:
    sink = Maildir(str(shelf.root), mode=mode, create_folders=True)
    before = os.umask(0o077 if mode == "0660" else 0)
    try:
        assert await codes(sink, await delivery_of("ann+x@box.test")) == [250]
    finally:
        os.umask(before)
    folder = shelf.root / "box.test" / "ann" / ".x"
    (path,) = (folder / "new").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == file_mode
    assert {stat.S_IMODE(made.stat().st_mode) for made in (folder, folder / "new", folder / "tmp")} == {folder_mode}
    assert path.stat().st_nlink == 1


# -- quota -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "reply"), [("tempfail", "452 4.2.2"), ("reject", "552 5.2.2")])
async def test_one_is_over_quota_and_one_is_fine(shelf: MaildirShelf, policy: str, reply: str) -> None:
    sink = Maildir(str(shelf.root), quota_bytes=5000, over_quota=policy)  # type: ignore[arg-type]
    trash = shelf.root / "box.test" / "bob" / ".Trash" / "cur"
    trash.mkdir(parents=True)
    (trash / "1.old:2,T").write_bytes(b"x" * 4500)
    fine, full = await deliver(sink, await delivery_of(ANN, BOB))
    assert (fine.code, str(full)) == (250, f"{reply} the mailbox is full")
    (trash / "1.old:2,T").unlink()
    assert await codes(sink, await delivery_of(ANN, BOB)) == [250, 250]
    assert [len(await shelf.mails(name)) for name in (ANN, BOB)] == [1, 1]


async def test_mail_that_filled_the_mailbox_is_still_delivered_when_asked_again(shelf: MaildirShelf) -> None:
    sink = Maildir(str(shelf.root), quota_bytes=len(TEXT) + 50)
    assert await codes(sink, await delivery_of(ANN)) == [250]
    assert await codes(sink, await delivery_of(ANN)) == [250]
    assert await codes(sink, await delivery_of(ANN, key="another")) == [452]


async def test_what_no_mailbox_may_hold_is_refused_for_good(shelf: MaildirShelf) -> None:
    sink = Maildir(str(shelf.root), quota_bytes=100)
    assert [str(reply) for reply in await deliver(sink, await delivery_of(ANN))] == [
        "552 5.2.3 the message is larger than the mailbox may be"
    ]


class Noting:
    """`os` that notes what is asked of the disk."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "write", "fsync", "link", "unlink"):
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            named_by = (
                arguments[0] if not isinstance(arguments[0], int) else os.readlink(f"/proc/self/fd/{arguments[0]}")
            )
            on = Path(named_by)
            self.asked.append(f"{name} {on.name if on.name in ('new', 'cur', 'tmp', 'ann') else on.parent.name + '/'}")
            return real(*arguments, **named)

        return call


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
async def test_what_is_visible_is_on_stable_storage_before_and_the_name_after(
    shelf: MaildirShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    await codes(shelf.sink, await delivery_of(ANN, key="the first one makes the folders"))
    noting = Noting()
    monkeypatch.setattr(maildir_files, "os", noting)
    delivery = await delivery_of(ANN)
    await codes(shelf.sink, delivery)
    assert noting.asked == [
        "open tmp/",
        "write tmp/",
        "fsync tmp/",
        "link tmp/",
        "open new",
        "fsync new",
        "unlink tmp/",
    ]
    noting.asked.clear()
    await codes(shelf.sink, delivery)
    assert noting.asked == ["open new", "fsync new"], "whoever says that it is there has seen to it"


def test_a_kill_at_any_step_leaves_exactly_one_copy_when_it_is_asked_again(tmp_path: Path) -> None:
    """Each run is a process of its own that ends by SIGKILL at one system call; see `maildir_killed`."""
    words = [sys.executable, "-m", "tests.unit.smtp_edge.applications.maildir_killed", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"open", "write", "half a write", "fsync", "link", "unlink", "mkdir"} <= {run["step"] for run in runs}
    assert len(runs) >= 30
    for run in runs:
        assert run["killed"], run
        assert run["seen"] in ([], ["whole"]), run
        assert (run["codes"], run["after"], run["tmp"]) == ([250], ["whole"], []), run
    assert {len(run["seen"]) for run in runs} == {0, 1}


# -- trouble -----------------------------------------------------------------------------------------------------------


async def test_without_its_root_mail_waits_and_comes_when_it_is_back(shelf: MaildirShelf) -> None:
    away = shelf.root.with_name("away")
    shelf.root.rename(away)
    assert [str(reply) for reply in await deliver(shelf.sink, await delivery_of(ANN, EVE))] == [
        "451 4.3.0 the mail store is not available now"
    ] * 2
    verdict = await shelf.sink.rcpt(Client("192.0.2.1"), Envelope("", ()), Recipient(EVE))
    assert isinstance(verdict, TempFail), "nobody is unknown because a disk is away"
    away.rename(shelf.root)
    assert await codes(shelf.sink, await delivery_of(ANN, EVE)) == [250, 550]


@pytest.mark.parametrize(
    ("fault", "reply"),
    [
        (errno.ENOSPC, "452 4.3.1 insufficient system storage"),
        (errno.EDQUOT, "452 4.2.2 the mailbox is full"),
        (errno.EIO, "451 4.3.0 the mail store is not available now"),
        (errno.EACCES, "451 4.2.0 the mailbox is not in order"),
    ],
)
@pytest.mark.parametrize("step", ["open", "write", "fsync", "link", "mkdir"])
async def test_a_disk_in_trouble_means_later_and_leaves_nothing_behind(
    shelf: MaildirShelf, monkeypatch: pytest.MonkeyPatch, fault: int, reply: str, step: str
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError(fault, os.strerror(fault))

    with monkeypatch.context() as patch:
        patch.setattr(maildir_files.os, step, fail)
        replies = await deliver(shelf.sink, await delivery_of(ANN))
    assert [str(answer) for answer in replies] == [reply]
    assert await shelf.mails(ANN) == []
    assert await codes(shelf.sink, await delivery_of(ANN)) == [250]
    assert list((shelf.root / "box.test" / "ann" / "tmp").iterdir()) == []


@pytest.mark.parametrize("step", ["write", "fsync", "link"])
async def test_a_disk_that_hangs_holds_nobody_and_makes_no_second_copy_when_it_goes_on(
    shelf: MaildirShelf, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    real = getattr(os, step)

    def hang(*arguments: Any, **named: Any) -> Any:
        if not hangs.is_set():
            hangs.set()
            goes_on.wait(60)
        return real(*arguments, **named)

    monkeypatch.setattr(maildir_files.os, step, hang)
    trying = asyncio.create_task(codes(shelf.sink, await delivery_of(ANN)))
    await asyncio.to_thread(hangs.wait, 60)
    trying.cancel()
    assert (await asyncio.gather(trying, return_exceptions=True))[0].__class__ is asyncio.CancelledError
    assert await codes(shelf.sink, await delivery_of(ANN, BOB)) == [250, 250], "others and a second try go on"
    goes_on.set()
    await asyncio.to_thread(shelf.sink._threads.shutdown, True)  # what has hung comes to its end
    assert await shelf.mails(ANN) == [TRACE + TEXT]
    assert list((shelf.root / "box.test" / "ann" / "tmp").iterdir()) == []


async def test_where_there_are_no_hard_links_the_file_is_moved(
    shelf: MaildirShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(maildir_files.os, "link", fail)
    assert await codes(shelf.sink, await delivery_of(ANN)) == [250]
    assert await shelf.mails(ANN) == [TRACE + TEXT]
    assert list((shelf.root / "box.test" / "ann" / "tmp").iterdir()) == []


async def test_a_file_in_the_place_of_a_folder_is_one_mailboxes_trouble(shelf: MaildirShelf) -> None:
    (shelf.root / "box.test" / "ann" / "new").write_text("not a folder")
    assert [str(reply) for reply in await deliver(shelf.sink, await delivery_of(ANN, BOB))] == [
        "451 4.2.0 the mailbox is not in order",
        "250 2.0.0 stored",
    ]


async def test_a_link_in_the_place_of_the_file_is_not_followed(shelf: MaildirShelf, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    delivery = await delivery_of(ANN)
    name = maildir_files.base_name(delivery.key_of(Recipient(ANN)), delivery.received_at)
    for part in ("tmp", "new", "cur"):
        (shelf.root / "box.test" / "ann" / part).mkdir()
    (shelf.root / "box.test" / "ann" / "tmp" / f"{name}.planted").symlink_to(victim)
    assert await codes(shelf.sink, delivery) == [250]
    assert victim.read_text() == "untouched"


async def test_it_refuses_the_unknown_in_a_session(shelf: MaildirShelf) -> None:
    outcome = await ask(shelf.sink, b"Subject: x\r\n\r\n", recipients=[EVE, ANN])
    assert outcome.recipients == (ANN,)
    outcome = await ask(Maildir(str(shelf.root)), b"Subject: x\r\n\r\n", recipients=[EVE])
    assert outcome.reply == "550 5.1.1 no such mailbox"
