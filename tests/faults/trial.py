"""One life that ends at a system call, the next one that finds what is left, and what must be true then.

never a false 250       what was answered 250 arrives, or a report of it does
nothing lost            what was not answered is sent again by its client, and arrives
a clean start           the next start needs nobody, finds nothing damaged and leaves nothing behind
doubles                 only where nobody could know: the client had no answer, or the smart host's was not recorded
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.life import EXIT_CANNOT_START
from tests.faults.nursery import Nursery
from tests.faults.strace import (
    FILE_CALLS,
    NETWORK_CALLS,
    READ_CALLS,
    Call,
    Point,
    build_command,
    read_calls,
)
from tests.faults.world import AGAIN_S, LETTERS, TRIES_MAX, Letter, Process, SmartHost, submit

NAMES = ("a", "b")
"""Beginnings of the names of spool files, in the first life and in the second."""
SPOOL_FILES_MAX = 8
AT_ONCE = 2
"""Trials: they wait for each other's processes most of the time."""
FAILING_S = 1.0
"""So long a life whose disk fails for good may try."""
FINAL = frozenset({"relayed", "failed", "expired"})


@dataclass(slots=True)
class Disk:
    """What a life left behind, read from a copy."""

    files: frozenset[str] = frozenset()
    """Names of spool files: `incoming/NAME`, `NAME`."""
    states: dict[str, set[str]] = field(default_factory=dict)
    """Letter's name, or `report` and its name -> states of its deliveries."""

    def is_settled(self, name: str) -> bool:
        """Nothing that could go out again is left of the letter, and something was."""
        found = self.states.get(name, set()) | self.states.get(f"report {name}", set())
        return bool(found) and found <= FINAL


@dataclass(slots=True)
class Trial:
    """What happened."""

    point: Point | None
    struck: bool = False
    replies: dict[str, str] = field(default_factory=dict)
    answered: frozenset[str] = frozenset()
    """Letters that were answered 250 by the life that was struck."""
    taken: dict[str, int] = field(default_factory=dict)
    """Letter's name -> copies that the smart host had by then."""
    refusals: list[str] = field(default_factory=list)
    """What clients were told before they were answered 2yz."""
    disk: Disk = field(default_factory=Disk)
    doubled: list[str] = field(default_factory=list)
    """Letters that arrived more than once, each with why that may be."""
    faults: list[str] = field(default_factory=list)
    """What must not be."""


def traced_paths(queue: Path) -> list[Path]:
    """Everything that a life changes in its queue directory."""
    spool = queue / "spool"
    files = [
        spool / name / f"{prefix}{n}"
        for name in ("", "incoming")
        for prefix in NAMES
        for n in range(1, SPOOL_FILES_MAX + 1)
    ]
    database = [queue / f"queue.db{suffix}" for suffix in ("", "-wal", "-journal")]
    return [queue.parent, queue, queue / "lock", *database, spool, spool / "incoming", *files]


@dataclass(frozen=True, slots=True)
class Story:
    """A life to be struck."""

    name: str
    calls: tuple[str, ...]
    letters: tuple[Letter, ...] = LETTERS
    cut_through: bool = False
    fresh: bool = False
    """Begins without a queue directory; else with an empty queue, whose opening writes nothing."""

    def tracer(self, folder: Path, point: Point | None = None, error: str = "", *, lasting: bool = False) -> list[str]:
        """The words before the command of the life."""
        paths = [] if set(NETWORK_CALLS) & set(self.calls) else traced_paths(folder / "queue")  # sockets have none
        return build_command(folder / "log", self.calls, paths, point=point, error=error, lasting=lasting)


FIRST_START = Story("first start", FILE_CALLS, (), fresh=True)
FILES = Story("files", FILE_CALLS)
READS = Story("reads", READ_CALLS)
NETWORK = Story("network", NETWORK_CALLS)
PASSING = Story("passing", (*FILE_CALLS, *NETWORK_CALLS), cut_through=True)
STORIES = (FIRST_START, FILES, NETWORK, PASSING)


async def dry_run(nursery: Nursery, folder: Path, story: Story) -> list[Call]:
    """The calls of a life in which nothing goes wrong."""
    host = SmartHost()
    await host.start()
    try:
        life = await begin(nursery, folder, host, story, story.tracer(folder))
        await live(life, host, story.letters, {})
        assert await life.wait() == 0, (folder / "errors").read_text()
    finally:
        host.close()
    return read_calls(folder / "log")


async def begin(nursery: Nursery, folder: Path, host: SmartHost, story: Story, tracer: list[str]) -> Process:
    """The first life of a trial."""
    if not story.fresh:
        await make_queue(nursery, folder, host)
    queue, errors = folder / "queue", folder / "errors"
    return await Process.start(
        nursery, queue, host, names="a", tracer=tracer, errors=errors, cut_through=story.cut_through
    )


async def make_queue(nursery: Nursery, folder: Path, host: SmartHost) -> None:
    """An empty queue: a copy of one that a life made."""
    template = folder.parent / "template"
    if not template.exists():
        life = await Process.start(nursery, template, host, names="z", errors=folder / "errors")
        await life.ask("stop")
        assert await life.wait() == 0, (folder / "errors").read_text()
    shutil.copytree(template, folder / "queue")


async def live(life: Process, host: SmartHost, letters: Sequence[Letter], replies: dict[str, str]) -> None:
    """Send the letters one by one, each when the one before has arrived; then let the life end. Or it is dead."""
    for letter in letters:
        replies[letter.name] = await submit(life.port, letter) if life.port else ""
        if replies[letter.name].startswith("2"):
            await wait_for(life, host, letter.name)
    for command in ("empty", "prune", "stop"):
        await life.ask(command)


async def wait_for(life: Process, host: SmartHost, name: str, timeout_s: float | None = None) -> None:
    """Until the letter arrived, nobody is left to bring it, or it takes too long."""
    waits = [asyncio.ensure_future(host.wait_for(name)), asyncio.ensure_future(life.wait())]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def kill_at(nursery: Nursery, folder: Path, story: Story, point: Point) -> Trial:
    """One life that is killed, and the next one."""
    trial = Trial(point)
    host = SmartHost()
    await host.start()
    try:
        life = await begin(nursery, folder, host, story, story.tracer(folder, point))
        await live(life, host, story.letters, trial.replies)
        trial.struck = await life.wait() == -signal.SIGKILL
        await find_consequences(nursery, folder, host, trial)
    finally:
        host.close()
    return trial


async def fail_at(nursery: Nursery, folder: Path, story: Story, point: Point, error: str) -> Trial:
    """One life in which one call fails, and the next one."""
    trial = Trial(point)
    host = SmartHost()
    await host.start()
    try:
        life = await begin(nursery, folder, host, story, story.tracer(folder, point, error))
        if life.port:
            for letter in story.letters:
                await insist(life, letter, trial.replies, trial.refusals)
            for command in ("empty", "prune", "stop"):
                if not await life.ask(command):
                    trial.faults.append(f"no answer to {command}")
        code = await life.wait()
        if code != (0 if life.port else EXIT_CANNOT_START):
            trial.faults.append(f"ends with {code}: {(folder / 'errors').read_text()[-800:]}")
        trial.struck = any(call.injected for call in read_calls(folder / "log"))
        await find_consequences(nursery, folder, host, trial)
    finally:
        host.close()
    return trial


async def fail_for_good(nursery: Nursery, folder: Path, story: Story, point: Point, error: str) -> Trial:
    """One life in which every call of a name fails from some point on, until it is killed; and the next one."""
    trial = Trial(point)
    host = SmartHost()
    await host.start()
    try:
        life = await begin(nursery, folder, host, story, story.tracer(folder, point, error, lasting=True))
        for letter in story.letters if life.port else ():
            await insist(life, letter, trial.replies, trial.refusals, tries_max=2)
            if trial.replies[letter.name].startswith("2"):
                await wait_for(life, host, letter.name, FAILING_S)
        for command in ("empty", "prune"):
            await life.ask(command, FAILING_S)
        life.kill()
        await life.wait()
        trial.struck = any(call.injected for call in read_calls(folder / "log"))
        await find_consequences(nursery, folder, host, trial)
    finally:
        host.close()
    return trial


async def find_consequences(nursery: Nursery, folder: Path, host: SmartHost, trial: Trial) -> None:
    """After a life has ended: what it left, the next one, and the verdict."""
    trial.answered = frozenset(name for name, reply in trial.replies.items() if reply.startswith("2"))
    trial.disk = read_disk(folder / "queue", folder / "copy")
    trial.taken = dict(host.taken)
    await recover(nursery, folder, host, trial)
    judge(trial, host)


async def recover(nursery: Nursery, folder: Path, host: SmartHost, trial: Trial) -> None:
    """The next life, on a good disk: clients send what was not answered, then everything goes."""
    life = await Process.start(nursery, folder / "queue", host, names="b", errors=folder / "errors")
    try:
        if not life.port:
            trial.faults.append(f"does not start: {(folder / 'errors').read_text()}")
            return
        for letter in LETTERS:
            await insist(life, letter, trial.replies)
        answer = await life.ask("empty")
        if answer != "empty 0":
            trial.faults.append(f"damaged: {answer}")
        await life.ask("stop")
        if await life.wait():
            trial.faults.append("does not stop")
    finally:
        life.kill()
    trial.faults += [f"left behind: {name}" for name in read_disk(folder / "queue", folder / "copy").files]
    with sqlite3.connect(folder / "queue" / "queue.db") as connection:
        if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
            trial.faults.append("the database is damaged")
    connection.close()


async def insist(
    life: Process,
    letter: Letter,
    replies: dict[str, str],
    refusals: list[str] | None = None,
    *,
    tries_max: int = TRIES_MAX,
) -> None:
    """As a client does: again and again until it is answered 2yz."""
    for _ in range(tries_max):
        if replies.get(letter.name, "").startswith("2"):
            return
        reply = replies[letter.name] = await submit(life.port, letter)
        if not reply.startswith("2"):
            if refusals is not None:
                refusals.append(reply)
            await asyncio.sleep(AGAIN_S)


def judge(trial: Trial, host: SmartHost) -> None:
    """See the module."""
    trial.faults += [f"{name} arrived damaged" for name in host.damaged]
    for letter in LETTERS:
        name, copies = letter.name, host.taken[letter.name]
        if not copies:
            trial.faults.append(f"{name} is lost")
        if copies <= 1:
            continue
        if name not in trial.answered:
            trial.doubled.append(f"{name}: the client had no answer")
        elif trial.taken.get(name) and not trial.disk.is_settled(name):
            trial.doubled.append(f"{name}: the smart host's answer was not recorded")
        else:
            trial.faults.append(f"{name} arrived {copies} times")


def read_disk(queue: Path, copy: Path) -> Disk:
    """Look at a copy: opening the database recovers it, and that is for the next life to do."""
    shutil.rmtree(copy, ignore_errors=True)
    if not queue.exists():
        return Disk()
    shutil.copytree(queue, copy)
    spool = copy / "spool"
    disk = Disk(frozenset(str(file.relative_to(spool)) for file in spool.rglob("*") if file.is_file()))
    if not (copy / "queue.db").exists():
        return disk
    connection = sqlite3.connect(copy / "queue.db")
    try:
        rows = connection.execute(
            "SELECT json_extract(e.document, '$.recipients[0][0]'), json_extract(e.document, '$.client'), d.state,"
            " e.origin FROM delivery d JOIN entry e USING (queue_id)"
        ).fetchall()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        rows = []
    finally:
        connection.close()
    for recipient, client, state, _ in rows:
        name = recipient.partition("@")[0]
        name = "report refused" if client.startswith("report on") else name
        disk.states.setdefault(name, set()).add(state)
    return disk


Strike = Callable[[Nursery, Path, Story, Point], Awaitable[Trial]]
"""What is done at a point."""


async def strike_all(
    nursery: Nursery, folder: Path, story: Story, points: Sequence[Point], strike: Strike
) -> list[Trial]:
    """A trial for each point, each in a folder of its own, `AT_ONCE` at a time."""
    free = asyncio.Semaphore(AT_ONCE)

    async def strike_one(number: int, point: Point) -> Trial:
        async with free:
            own = folder / f"{number}"
            own.mkdir()
            trial = await strike(nursery, own, story, point)
            if not trial.faults:
                shutil.rmtree(own)
            return trial

    first = [await strike_one(0, points[0])] if points else []  # makes what the others copy
    return first + await asyncio.gather(*(strike_one(number, point) for number, point in enumerate(points[1:], 1)))
