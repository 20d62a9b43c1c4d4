"""Damaged databases: what can be read is saved, what cannot is named, and nothing is thrown away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from smtp_edge.cli import cli
from smtp_edge.envelope import MailData
from smtp_edge.queue import repair as repair_module
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.queue.repair import check, repair
from smtp_edge.queue.rows import PAGE_BYTES
from smtp_edge.queue.salvage import HELD_REASON, Report
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.queue.store import StoreError
from tests.unit.smtp_edge.queue.builders import AT, HEADER, build_deferral, build_end, build_new, build_note, hold
from tests.unit.smtp_edge.queue.test_migrations import make_old
from tests.unit.smtp_edge.queue.test_sqlite_store import build_store, spooled

COUNT = 60


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


async def fill(queue: Path) -> dict[str, str]:
    """Queued, deferred, held, claimed and finished mail; queue id -> state."""
    store, states = build_store(queue), {}
    await store.open()
    for number in range(COUNT):
        body = HEADER + f"message {number}".encode() + b"x" * 2000 + b"\r\n"
        data = await spooled(queue) if number == 7 else MailData(len(body), body, header=HEADER)
        addresses = ("ann@one.example", "bob@two.example")
        new = build_new("one", "two", addresses=addresses, data=data)
        name = new.entry.queue_id
        claims = (await store.put(new, claim=number % 5 in (1, 3, 4))).claims
        states[name] = "queued"
        if number % 5 == 1:
            await store.settle([build_deferral(claim, 10, notes=(build_note("attempt"),)) for claim in claims])
            states[name] = "deferred"
        elif number % 5 == 2:
            await hold(store, name)
            states[name] = "held"
        elif number % 5 == 3:
            await store.settle([build_end(claim, notes=(build_note("relayed"),)) for claim in claims])
            states[name] = "relayed"
    await store.close()
    return states


def save(queue: Path, *, force: bool = False) -> Report:
    return repair(queue, class_of=lambda domain: domain.partition(".")[0], at=AT, force=force)


async def read(queue: Path) -> dict[str, str]:
    store: SQLiteStore = build_store(queue)
    await store.open()
    found = {}
    for claim in await store.list(states=list(DeliveryState), limit=10_000):
        found[claim.delivery.queue_id] = claim.delivery.state.value
    await store.close()
    return found


def find(queue: Path, pattern: str) -> list[Path]:
    return list(queue.glob(pattern))


def snapshot(queue: Path) -> dict[Path, bytes]:
    """What is on disk of its mail."""
    return {
        file: file.read_bytes()
        for file in queue.rglob("*")
        if file.is_file() and file.name != "lock" and file.suffix in ("", ".db")
    }


def roots(queue: Path) -> dict[str, int]:
    with sqlite3.connect(queue / "queue.db") as connection:
        found = dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE rootpage > 0"))
    connection.close()
    return found


def leaves(queue: Path, name: str) -> list[int]:
    """Pages below the root of a table that has two levels."""
    page = read_page(queue, roots(queue)[name])
    assert page[0] in (2, 5), "an interior page"
    count = int.from_bytes(page[3:5], "big")
    cells = [int.from_bytes(page[12 + 2 * number : 14 + 2 * number], "big") for number in range(count)]
    return [int.from_bytes(page[cell : cell + 4], "big") for cell in cells]


def read_page(queue: Path, number: int) -> bytes:
    with (queue / "queue.db").open("rb") as file:
        file.seek((number - 1) * PAGE_BYTES)
        return file.read(PAGE_BYTES)


def wreck(queue: Path, *pages: int) -> None:
    with (queue / "queue.db").open("r+b") as file:
        for number in pages:
            file.seek((number - 1) * PAGE_BYTES)
            file.write(b"\xa5" * PAGE_BYTES)


async def test_a_sound_queue_is_left_alone(queue: Path) -> None:
    await fill(queue)
    before = (queue / "queue.db").read_bytes()
    assert check(queue) == []
    assert save(queue).folder is None
    assert (queue / "queue.db").read_bytes() == before


async def test_a_sound_queue_built_anew_is_the_same(queue: Path) -> None:
    states = await fill(queue)
    report = save(queue, force=True)
    assert report.clean
    assert (report.kept, report.history) == (48, 12)
    assert await read(queue) == states
    store = build_store(queue)
    await store.open()
    history = await store.history(next(name for name, state in states.items() if state == "deferred"))
    assert history is not None
    assert [note.event for note in history.notes] == ["received", "attempt", "attempt"]
    await store.close()


async def test_deliveries_that_are_lost_are_held_for_a_person(queue: Path) -> None:
    states = await fill(queue)
    wreck(queue, leaves(queue, "delivery")[0])
    assert check(queue)
    report = save(queue)
    assert report.held
    assert not report.lost
    found = await read(queue)
    assert set(found) >= {name for name, state in states.items() if state != "relayed"}
    held = {line.split()[0] for line in report.held}
    assert {found[name] for name in held} == {"held"}
    assert report.held[0].endswith("to ann@one.example, bob@two.example")
    store = build_store(queue)
    await store.open()
    claims = [claim for claim in await store.list(limit=1000) if claim.delivery.queue_id in held]
    assert {claim.delivery.class_id for claim in claims} == {"one", "two"}
    assert {claim.delivery.last_reply for claim in claims} == {HELD_REASON}
    await store.close()


async def test_only_where_deliveries_may_be_lost_recipients_are_in_doubt(queue: Path) -> None:
    """Ann has had hers, in all messages. Nobody can know that of those beside the page that is lost."""
    store = build_store(queue)
    await store.open()
    new = [build_new("one", addresses=("ann@one.example", "bob@one.example")) for _ in range(300)]
    claims = [stored.claims[0] for stored in await asyncio.gather(*map(store.put, new))]
    bob = claims[0].delivery.recipients[1:]
    await store.settle([replace(build_deferral(claim, 10), recipients=bob) for claim in claims])
    names = sorted(claim.entry.queue_id for claim in claims)
    await store.close()
    wreck(queue, leaves(queue, "delivery")[1])
    report = save(queue)
    held = [line.split()[0] for line in report.held]
    first, last = names.index(held[0]), names.index(held[-1])
    assert held == names[first : last + 1]
    assert 0 < first < last < 299
    assert set(await read(queue)) == set(names)


async def test_mail_data_that_is_lost_leaves_a_damaged_message_in_the_list(queue: Path) -> None:
    states = await fill(queue)
    wreck(queue, *leaves(queue, "body")[2:4])
    report = save(queue)
    assert report.damaged
    assert not report.held
    store = build_store(queue)
    await store.open()
    listed = {item.queue_id for item in await store.damaged(1000)}
    assert listed == {line.split()[0] for line in report.damaged}
    whole = [claim.entry.queue_id for claim in await store.claim(1000, AT)]
    await store.close()
    assert listed | set(whole) >= {name for name, state in states.items() if state in ("queued", "claimed")}
    assert not listed & set(whole)


async def test_messages_that_are_lost_are_named_and_their_mail_data_is_kept_as_files(queue: Path) -> None:
    states = await fill(queue)
    wreck(queue, leaves(queue, "entry")[0])
    report = save(queue)
    assert report.lost
    assert report.folder is not None
    lost = {line.split(":")[0] for line in report.lost}
    saved = {file.stem: file.read_bytes() for file in (report.folder / "lost").iterdir()}
    assert set(saved) == lost
    assert all(content.startswith(HEADER) for content in saved.values())
    assert all(line.endswith("for ann@one.example, bob@two.example") for line in report.lost)
    assert report.holes
    waiting = {name for name, state in states.items() if state != "relayed"}
    assert set(await read(queue)) >= waiting - lost


async def test_a_spool_file_that_nobody_names_any_more_is_kept(queue: Path) -> None:
    await fill(queue)
    wreck(queue, *leaves(queue, "entry"))
    files = [file.name for file in (queue / "spool").iterdir() if file.is_file()]
    report = save(queue)
    assert report.folder is not None
    assert len(files) == 1
    assert [file.name for file in (report.folder / "spool").iterdir()] == files
    assert list((queue / "spool").iterdir()) == [queue / "spool" / "incoming"]
    assert (report.folder / "queue.db").exists()
    assert (report.folder / "report.txt").read_text().startswith("problem: ")


@pytest.mark.parametrize("left", [b"", None], ids=["empty", "gone"])
async def test_a_database_that_was_emptied_or_removed_costs_no_spool_file(queue: Path, left: bytes | None) -> None:
    await fill(queue)
    files = sorted(file.name for file in (queue / "spool").iterdir() if file.is_file())
    (queue / "queue.db").unlink()
    if left is not None:
        (queue / "queue.db").write_bytes(left)
    with pytest.raises(StoreError, match=r"has no messages, but .* 1 spool file .*queue repair --force"):
        await build_store(queue).open()
    report = save(queue, force=True)
    assert report.folder is not None
    assert sorted(file.name for file in (report.folder / "spool").iterdir()) == files
    store = build_store(queue)
    await store.open()
    await store.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b"not a database" * 10_000),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[: 3 * PAGE_BYTES + 100]),
        lambda file: file.write_bytes(b"\0" * PAGE_BYTES + file.read_bytes()[PAGE_BYTES:]),
    ],
    ids=["nonsense", "empty", "cut off", "no first page"],
)
async def test_what_is_beyond_rescue_gives_a_new_queue_and_keeps_the_old(
    queue: Path, damage: Callable[[Path], object]
) -> None:
    await fill(queue)
    damage(queue / "queue.db")
    wrecked = (queue / "queue.db").read_bytes()
    report = save(queue, force=True)
    assert report.folder is not None
    assert (report.folder / "queue.db").read_bytes() == wrecked
    assert not report.clean
    store = build_store(queue)
    await store.open()
    await store.put(build_new())
    await store.close()


async def test_a_damaged_queue_does_not_start_and_names_the_way_out(queue: Path) -> None:
    await fill(queue)
    (queue / "queue.db").write_bytes(b"not a database" * 10_000)
    store = build_store(queue)
    with pytest.raises(StoreError, match="smtpmesh queue repair"):
        await store.open()


async def test_one_delivery_that_does_not_decode_puts_no_other_message_in_doubt(queue: Path) -> None:
    """A recipient who left a delivery, because it was delivered, is not a recipient who is lost."""
    store = build_store(queue)
    await store.open()
    names = []
    for _ in range(3):
        (claim,) = (await store.put(build_new("one", addresses=("ann@one.example", "bob@one.example")))).claims
        left = replace(build_deferral(claim, 10), recipients=claim.delivery.recipients[1:])
        await store.settle([left])
        names.append(claim.entry.queue_id)
    await store.close()
    with sqlite3.connect(queue / "queue.db") as connection:
        connection.execute("UPDATE delivery SET recipients = '[[' WHERE queue_id = ?", (names[1],))
    connection.close()
    report = save(queue, force=True)
    assert [line.split()[0] for line in report.held] == [names[1]]
    assert await read(queue) == {names[0]: "deferred", names[1]: "held", names[2]: "deferred"}


async def test_what_only_the_log_has_is_saved_as_well(queue: Path, tmp_path: Path) -> None:
    """As after kill -9, with the shared part of the log gone."""
    store = build_store(queue)
    await store.open()
    stored = await store.put(build_new())
    shutil.copytree(queue, tmp_path / "killed")
    await store.close()
    (tmp_path / "killed" / "queue.db-shm").unlink()
    assert check(tmp_path / "killed") == []
    assert save(tmp_path / "killed", force=True).kept == 1
    assert list(await read(tmp_path / "killed")) == [stored.claims[0].entry.queue_id]


async def test_who_may_have_what_was_under_way_is_known_behind_a_repair(queue: Path, tmp_path: Path) -> None:
    store = build_store(queue)
    await store.open()
    (claim,) = (await store.put(build_new())).claims
    store.note_offer(claim.entry.queue_id, 0, "peer:b")
    shutil.copytree(queue, tmp_path / "killed")
    await store.close()
    assert save(tmp_path / "killed", force=True).kept == 1
    again = build_store(tmp_path / "killed")
    await again.open()
    (claim,) = await again.claim(10, AT)
    assert claim.delivery.in_doubt_hop == "peer:b"
    await again.close()


async def test_a_damaged_queue_of_an_earlier_release_comes_out_as_one_of_this(queue: Path) -> None:
    make_old(queue, 1)
    report = save(queue, force=True)
    assert (report.clean, report.kept, report.history) == (True, 4, 1)
    assert sorted((await read(queue)).values()) == ["deferred", "held", "queued", "queued", "relayed"]


@pytest.mark.parametrize("number", range(8))
async def test_cut_off_at_any_step_it_is_done_by_the_next_one(
    queue: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    states = await fill(queue)
    wreck(queue, leaves(queue, "delivery")[0])
    (queue / "spool" / "stray").write_bytes(b"whose?")
    renames, rename = itertools.count(), Path.rename

    def cut_off(self: Path, target: Path) -> Path:
        if next(renames) == number:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cut_off)
    with contextlib.suppress(KeyboardInterrupt):
        save(queue)
    monkeypatch.undo()
    if find(queue, "*.ready"):
        with pytest.raises(StoreError, match="was cut off: `smtpmesh queue repair` finishes it"):
            await build_store(queue).open()
    later = AT + timedelta(seconds=1)
    repair(queue, class_of=lambda domain: domain.partition(".")[0], at=later)
    assert check(queue) == []
    waiting = {name for name, state in states.items() if state != "relayed"}
    assert set(await read(queue)) >= waiting
    assert [len(find(queue, f"damaged-*/{name}")) for name in ("spool/stray", "queue.db")] == [1, 1]
    assert not find(queue, "*.ready")


async def test_without_space_for_the_new_database_nothing_is_changed(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(queue)
    before = snapshot(queue)
    open_new = repair_module._open_new

    @contextlib.contextmanager
    def open_small(path: Path) -> Iterator[sqlite3.Connection]:
        with open_new(path) as connection:
            connection.execute("PRAGMA max_page_count = 20")
            yield connection

    monkeypatch.setattr(repair_module, "_open_new", open_small)
    with pytest.raises(StoreError, match=r"cannot be written: database or disk is full; nothing was changed"):
        save(queue, force=True)
    assert snapshot(queue) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_root_repairs_belongs_to_the_nodes_user(queue: Path) -> None:
    await fill(queue)
    wreck(queue, leaves(queue, "entry")[0])
    for path in (queue, *find(queue, "**/*")):
        os.chown(path, 12345, 12346)
    save(queue)
    made = [path for path in find(queue, "**/*") if path.suffix not in (".db-wal", ".db-shm")]
    assert {(stat.st_uid, stat.st_gid) for stat in map(os.stat, made)} == {(12345, 12346)}


async def test_a_queue_in_use_is_not_touched(queue: Path) -> None:
    store = build_store(queue)
    await store.open()
    with pytest.raises(StoreError, match="in use by process"):
        save(queue)
    await store.close()


def test_where_there_is_no_queue_nothing_is_made(queue: Path) -> None:
    with pytest.raises(StoreError, match="there is no queue"):
        save(queue)
    assert not queue.exists()


async def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(
        '[node]\nname = "n"\n[[smart_host]]\nname = "a"\nhost = "a.example"\n[[route]]\nname = "default"\nvia = ["a"]\n'
    )
    queue = tmp_path / "data" / "queue"
    await fill(queue)

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["queue", "repair", "--config", str(config), *words])
        return result.exit_code, result.output

    assert run("--check") == (0, "nothing is wrong\n")
    code, text = run()
    assert (code, text.endswith("nothing is wrong, and nothing was changed\n")) == (0, True)
    wreck(queue, leaves(queue, "delivery")[0])
    code, text = run("--check")
    assert code == 1
    assert text.startswith("problem: ")
    code, text = run()
    assert code == 1
    assert "held: " in text
    assert "the old database is in " in text
    assert run("--check") == (0, "nothing is wrong\n")
