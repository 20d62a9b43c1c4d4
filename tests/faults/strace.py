"""Running a process under strace, which kills it at a system call or lets the call fail, and reading what it wrote.

strace counts the calls of each thread apart: `when=3` is the third call of whichever thread gets there first. So a
point is a system call with a number, and a dry run tells which points there are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE_CALLS = (
    "openat",
    "mkdir",
    "write",
    "writev",
    "pwrite64",
    "fsync",
    "fdatasync",
    "ftruncate",
    "fallocate",
    "rename",
    "unlink",
)
"""Whatever changes a file or makes it last; of the paths that are asked for."""
READ_CALLS = ("read", "pread64", "preadv2")
BY_PATH = frozenset({"openat", "mkdir", "rename", "unlink"})
NETWORK_CALLS = ("sendto", "sendmsg")
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_PATHS = re.compile(r"<(/[^>]*)>|\"([^\"]*)\"")
INJECTED = "(INJECTED)"


@dataclass(frozen=True, slots=True)
class Call:
    """One system call of a log, in the order in which calls began."""

    thread: str
    name: str
    text: str
    """Arguments and result."""
    paths: tuple[str, ...]
    """Of file descriptors and arguments."""

    @property
    def subject(self) -> str:
        """What it is about: a file without the numbers in its name, or the first word that is sent."""
        if not self.paths:
            return ""
        if self.name in NETWORK_CALLS:
            return self.paths[-1].partition(" ")[0]
        path = self.paths[-1] if self.name in BY_PATH else self.paths[0]
        name = path.rpartition("/")[2]
        return re.sub(r"\d+", "N", name)

    @property
    def injected(self) -> bool:
        """strace let it fail."""
        return INJECTED in self.text


@dataclass(frozen=True, slots=True)
class Point:
    """The `number`-th call of one name, in the thread that gets there first."""

    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.call} {self.number}"


def build_command(
    log: Path,
    calls: Sequence[str],
    paths: Sequence[Path] = (),
    *,
    point: Point | None = None,
    error: str = "",
    lasting: bool = False,
) -> list[str]:
    """The words before the traced command. With a point: kill there, or fail with `error` (once, or from then on)."""
    words = ["strace", "-f", "-qq", "-y", "-s", "64", "-o", str(log), "-e", f"trace={','.join(calls)}"]
    for path in paths:
        words += ["-P", str(path)]
    if point is not None:
        what = f"error={error}" if error else "signal=KILL"
        words += ["-e", f"inject={point.call}:{what}:when={point.number}{'+' if lasting else ''}"]
    return words


def read_calls(log: Path) -> list[Call]:
    """All calls that were begun."""
    found = []
    for line in log.read_text("utf-8", "replace").splitlines():
        match = _LINE.match(line)
        if match is not None:
            thread, name, text = match.groups()
            paths = tuple(one or other for one, other in _PATHS.findall(text))
            found.append(Call(thread, name, text, paths))
    return found


def find_points(calls: Iterable[Call]) -> dict[Point, Call]:
    """Every point of a run with the call at which it would strike, in the order of time."""
    counts: Counter[tuple[str, str]] = Counter()
    found: dict[Point, Call] = {}
    for call in calls:
        counts[call.thread, call.name] += 1
        found.setdefault(Point(call.name, counts[call.thread, call.name]), call)
    return found


def choose(points: Mapping[Point, Call], count: int) -> list[Point]:
    """So many of them: first one of each kind (the call, the kind of file, what went before), then evenly in time."""
    kinds: dict[tuple[str, str, str], Point] = {}
    before = ""
    for point, call in points.items():
        kinds.setdefault((call.name, call.subject, before), point)
        before = f"{call.name} {call.subject}"
    found = list(kinds.values())
    step = max(1.0, len(found) / count)
    return [found[int(step * number)] for number in range(min(count, len(found)))]
