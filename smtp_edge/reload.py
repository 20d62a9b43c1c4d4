"""Reading the configuration again while the node runs: SIGHUP, the admin call Reload, `smtpmesh reload`.

    read        the file and every file that it names, checked as at a start; one mistake, and nothing is changed
    compare     with what the node goes by: what can be applied, what has to wait for a restart
    apply       the node takes it over in one step of its event loop (`Node.reconfigure`), or not at all

One at a time: who asks meanwhile waits, and gets an answer about the files as they are by then.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog

from gossip.revocation import SUFFIX
from smtp_edge.changes import compare, find_files, hold_back
from smtp_edge.configuration import ConfigurationError, load_configuration
from smtp_edge.preflight import find_mistakes, find_warnings
from smtp_edge.settings import Settings

log = structlog.get_logger()

CONTENT = "(content)"
"""Behind the name of a setting: the file that it names has another content."""


class ReloadError(Exception):
    """The node cannot go by that configuration, and goes on by its old one; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a reload."""

    applied: tuple[str, ...] = ()
    """Names of settings; of files that were read again and have changed, with `CONTENT`."""
    restart: tuple[str, ...] = ()
    """Names of settings that differ in the file and wait for a restart."""
    warnings: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()
    """Why nothing was changed; empty if the configuration is good."""
    sessions: int = 0
    """Of clients, that go on by what they began with."""

    def __str__(self) -> str:
        if self.mistakes:
            return f"configuration refused: {len(self.mistakes)} mistakes, nothing is changed"
        words = f"configuration reloaded: applied {len(self.applied)}"
        return words + (f", needs restart: {', '.join(self.restart)}" if self.restart else "")


@dataclass(frozen=True, slots=True)
class Configured:
    """What a node goes by."""

    at: datetime
    """Since when: its start, or the last reload that was not refused."""
    restart: tuple[str, ...] = ()
    """Settings that were another in the file then, and wait for a restart."""
    mistakes: tuple[str, ...] = ()
    """Of the last reload, if that was refused."""


NEVER_RELOADED = Configured(datetime.fromtimestamp(0, UTC))


class Reconfigurable(Protocol):
    """The part of a node that is used here."""

    @property
    def settings(self) -> Settings:
        """What it goes by."""
        ...

    async def reconfigure(self, settings: Settings) -> int:
        """Go by these; the number of sessions that go on by others. ReloadError: nothing was changed."""
        ...


class Reloader:
    """See the module. `tell`: a line for monitors. `derive`: a worker's settings from those of the file."""

    def __init__(
        self,
        path: Path,
        node: Reconfigurable,
        tell: Callable[[str], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        derive: Callable[[Settings], Settings] = lambda settings: settings,
    ) -> None:
        self._path, self._node, self._tell, self._clock, self._derive = path, node, tell, clock, derive
        self.configured = Configured(clock())
        self._one, self._ready = asyncio.Lock(), asyncio.Event()
        self._contents: Mapping[str, str] = {}
        self._waiting: asyncio.Task[Report] | None = None
        self._tasks: set[asyncio.Task[Report]] = set()
        self._over = False

    async def start(self) -> None:
        """The node runs: from now on files are compared with what they are now."""
        self._contents = await asyncio.to_thread(_digest_all, find_files(self._node.settings))
        self._ready.set()

    async def stop(self) -> None:
        """The node is about to stop: a reload that was begun ends first, no other one begins."""
        self._over = True
        async with self._one:
            pass

    def hang_up(self) -> None:
        """SIGHUP. However many come while one waits for its turn: one reload is enough for all of them."""
        if self._waiting is not None:
            return
        task = self._waiting = asyncio.get_running_loop().create_task(self.reload("signal"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self, by: str, *, dry_run: bool = False) -> Report:
        """Once. `by` whom, for the log. `dry_run`: only say what would be."""
        async with self._one:
            await self._ready.wait()
            if self._waiting is asyncio.current_task():
                self._waiting = None
            if self._over:
                return Report(mistakes=("the node stops",))
            try:
                report = await self._reload(dry_run)
            except Exception as error:
                log.exception("node.reload_failed", by=by)
                report = Report(mistakes=(f"it could not be carried out ({type(error).__name__}): see the node's log",))
            if not dry_run:
                self._note(report, by)
            return report

    async def _reload(self, dry_run: bool) -> Report:
        before = self._node.settings
        try:
            wanted, warnings, contents = await asyncio.to_thread(_read, self._path, before, self._derive)
        except ConfigurationError as error:
            return Report(mistakes=tuple(f"{error.path}: {mistake}" for mistake in error.mistakes))
        difference = compare(before, wanted)
        known = self._contents
        changed = [f"{name} {CONTENT}" for name, digest in contents.items() if known.get(name, digest) != digest]
        report = Report((*difference.live, *changed), difference.restart, tuple(warnings))
        if dry_run:
            return report
        try:
            sessions = await self._node.reconfigure(hold_back(before, wanted))
        except ReloadError as error:
            return Report(mistakes=(f"{self._path}: {error}",))
        self._contents = contents
        return Report(report.applied, report.restart, report.warnings, sessions=sessions)

    def _note(self, report: Report, by: str) -> None:
        if report.mistakes:
            self.configured = replace(self.configured, mistakes=report.mistakes)
            log.error("node.reload_refused", reason="; ".join(report.mistakes), by=by)
        else:
            self.configured = Configured(self._clock(), report.restart)
            names = {"applied": list(report.applied), "needs_restart": list(report.restart)}
            log.info("node.reloaded", by=by, sessions_before=report.sessions, warnings=list(report.warnings), **names)
        self._tell(f"{report} (by {by})")


def _read(
    path: Path, before: Settings, derive: Callable[[Settings], Settings]
) -> tuple[Settings, Sequence[str], Mapping[str, str]]:
    """Settings, warnings, digests of files. ConfigurationError with all mistakes. Blocks."""
    given, warnings = load_configuration(path)
    settings = derive(given)
    contents = _digest_all(find_files(settings))  # before they are read: what changes meanwhile is told the next time
    checked = given.model_copy(update={"sink": ()}) if given.sink == before.sink else given
    mistakes = find_mistakes(checked)
    if mistakes:
        raise ConfigurationError(path, mistakes)
    return settings, [*warnings, *find_warnings(given, datetime.now(UTC))], contents


def _digest_all(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: _digest(path) for name, path in files.items()}


def _digest(path: Path) -> str:
    """Of what a file holds, or the revocations of a folder; empty for what is neither."""
    paths = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    found = hashlib.sha256()
    try:
        for item in paths:
            if item.is_file():
                found.update(item.name.encode("utf-8", "surrogateescape") + item.read_bytes())
    except OSError:
        return ""
    return found.hexdigest()
