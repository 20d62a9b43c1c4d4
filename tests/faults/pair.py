"""Two relays, one of which is killed: letters go from a client to the sender, from there to its peer, and out.

Between peers a repeat is known by its token. So the death of the sender never doubles a letter that was answered, and
the death of the receiver only where the smart host had it and the receiver had not recorded that.
"""

from __future__ import annotations

import enum
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gossip.identity import Authority, certificate_der, node_id_of, write_new
from tests.faults.nursery import Nursery
from tests.faults.strace import Call, Point, read_calls
from tests.faults.trial import Story, Trial, insist, judge, read_disk, wait_for
from tests.faults.world import LETTERS, Process, SmartHost, submit


class Role(enum.StrEnum):
    """Whose life it is."""

    SENDER = "sender"
    RECEIVER = "receiver"


@dataclass(frozen=True, slots=True)
class Ground:
    """What all pairs have in common: the certificates of a cluster of two, and an empty queue."""

    folder: Path

    async def make(self, nursery: Nursery) -> None:
        """All files."""
        at = datetime.now(UTC)
        authority = Authority.create("faults", at=at)
        (self.folder / "ca.crt").write_bytes(authority.certificate_pem)
        for role in Role:
            certificate, key = authority.issue(role.value, at=at)
            (self.folder / f"{role}.crt").write_bytes(certificate)
            write_new(self.folder / f"{role}.key", key, mode=0o600)
        life = await Process.start(nursery, self.folder / "empty", 0, names="z", errors=self.folder / "errors")
        await life.ask("stop")
        assert await life.wait() == 0, (self.folder / "errors").read_text()

    def prepare(self, folder: Path) -> None:
        """A queue for each of the two."""
        for role in Role:
            shutil.copytree(self.folder / "empty", folder / role / "queue")

    def mesh(self, role: Role, port: int) -> Mapping[str, object]:
        """What a life is told."""
        words: dict[str, object] = {
            "ca": str(self.folder / "ca.crt"),
            "certificate": str(self.folder / f"{role}.crt"),
            "key": str(self.folder / f"{role}.key"),
            "port": port,
        }
        if role is Role.SENDER:
            receiver = (self.folder / f"{Role.RECEIVER}.crt").read_bytes()
            words["peer"] = node_id_of(certificate_der(receiver))
        return words


class Pair:
    """The two, and the smart host behind them."""

    def __init__(self, nursery: Nursery, folder: Path, ground: Ground) -> None:
        self._nursery, self._folder, self._ground = nursery, folder, ground
        self.host = SmartHost()
        self.lives: dict[Role, Process] = {}

    async def start(self, tracers: Mapping[Role, list[str]]) -> None:
        """All, as far as the receiver lives: its port is not known before."""
        self._ground.prepare(self._folder)
        await self.host.start()
        await self._start(Role.RECEIVER, "a", tracers.get(Role.RECEIVER, []))
        if self.lives[Role.RECEIVER].port:
            await self._start(Role.SENDER, "a", tracers.get(Role.SENDER, []))

    async def start_again(self) -> None:
        """Whoever is dead. The receiver listens where it did."""
        for role in (Role.RECEIVER, Role.SENDER):
            if role not in self.lives or not self.lives[role].alive:
                await self._start(role, "b", [])

    async def _start(self, role: Role, names: str, tracer: list[str]) -> None:
        receiver = self.lives.get(Role.RECEIVER)
        port = receiver.mesh_port if receiver is not None else 0
        sends = role is Role.SENDER
        self.lives[role] = await Process.start(
            self._nursery,
            self._folder / role / "queue",
            port if sends else self.host,
            names=names,
            tracer=tracer,
            errors=self._folder / role / "errors",
            mesh=self._ground.mesh(role, 0 if sends else port),
        )

    async def live(self, victim: Role, replies: dict[str, str]) -> None:
        """Letters one by one, each when the one before has arrived; then the victim ends. Or it is dead."""
        for letter in LETTERS:
            if not self.lives[victim].alive:
                return
            replies[letter.name] = await submit(self.lives[Role.SENDER].port, letter)
            if replies[letter.name].startswith("2"):
                await wait_for(self.lives[victim], self.host, letter.name)
        for command in ("empty", "prune"):
            for role in Role:
                if self.lives[victim].alive:
                    await self.lives[role].ask(command)
        await self.lives[victim].ask("stop")

    async def finish(self, replies: dict[str, str]) -> list[str]:
        """The client insists, everything goes, both end. What was wrong."""
        for letter in LETTERS:
            await insist(self.lives[Role.SENDER], letter, replies)
        faults = []
        for command, answer in (("empty", "empty 0"), ("stop", "stopped")):
            for role in Role:
                found = await self.lives[role].ask(command)
                faults += [f"{role}, {command}: {found}"] if found != answer else []
        codes = {role: await self.lives[role].wait() for role in Role}
        return faults + [f"{role} ends with {code}" for role, code in codes.items() if code]

    async def end(self) -> None:
        """Whatever still runs."""
        for life in self.lives.values():
            if life.alive:
                life.kill()
                await life.wait()
        self.host.close()


async def dry_run_pair(nursery: Nursery, folder: Path, ground: Ground, story: Story, role: Role) -> list[Call]:
    """The calls of one of them in a life in which nothing goes wrong."""
    pair = Pair(nursery, folder, ground)
    try:
        await pair.start({role: story.tracer(folder / role)})
        await pair.live(role, {})
        assert await pair.lives[role].wait() == 0, (folder / role / "errors").read_text()
        assert dict(pair.host.taken) == {letter.name: 1 for letter in LETTERS}
    finally:
        await pair.end()
    return read_calls(folder / role / "log")


async def kill_one(nursery: Nursery, folder: Path, ground: Ground, story: Story, victim: Role, point: Point) -> Trial:
    """One of them dies at a point, and comes back; the other lives on."""
    trial = Trial(point)
    pair = Pair(nursery, folder, ground)
    try:
        await pair.start({victim: story.tracer(folder / victim, point)})
        await pair.live(victim, trial.replies)
        trial.struck = await pair.lives[victim].wait() == -signal.SIGKILL
        trial.answered = frozenset(name for name, reply in trial.replies.items() if reply.startswith("2"))
        trial.disk = read_disk(folder / victim / "queue", folder / victim / "copy")
        trial.taken = dict(pair.host.taken)
        await pair.start_again()
        trial.faults += await pair.finish(trial.replies)
        for role in Role:
            left = read_disk(folder / role / "queue", folder / role / "copy").files
            trial.faults += [f"{role} left behind: {name}" for name in left]
    finally:
        await pair.end()
    judge(trial, pair.host)
    if victim is Role.SENDER:
        trial.faults += [text for text in trial.doubled if "no answer" not in text]
    return trial
