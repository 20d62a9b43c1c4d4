"""Network namespaces for clusters: one with nothing but loopback, or one per member, on two bridges or in a row.

Needs root and iproute2, no packet filter: what is cut is an interface between two bridges, or one neighbour entry.
Names carry the process id of their maker; whatever was made is removed by `close`.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

_numbers = itertools.count(1)
NOWHERE = "02:00:00:00:00:ff"
"""A hardware address that nobody has: frames to it reach every port of the bridges and are dropped there."""
CLONE_NEWNET = 0x40000000
"""Of setns(2)."""


def unavailable() -> str:
    """Why no namespace can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    if shutil.which("ip") is None:
        return "needs ip (iproute2), for network namespaces"
    with Names() as names:
        try:
            names.add("probe")
        except subprocess.CalledProcessError as error:
            return f"needs network namespaces: {error.stderr.strip()}"
    return ""


def ip(*words: str) -> None:
    """Run ip(8); CalledProcessError with its stderr."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=10)


def call_inside(name: str, function: Callable[[], T]) -> T:
    """Call it in a namespace. Sockets that it makes are of there, whoever uses them afterwards."""
    with ThreadPoolExecutor(1, initializer=_enter, initargs=(name,)) as thread:  # only this thread moves, and it ends
        return thread.submit(function).result(30)


def _enter(name: str) -> None:
    descriptor = os.open(f"/var/run/netns/{name}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns to {name}")
    finally:
        os.close(descriptor)


class Names:
    """Namespaces made here."""

    def __init__(self) -> None:
        self._prefix = f"sm{os.getpid()}-{next(_numbers)}-"
        self._made: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, label: str) -> str:
        """Make one, with loopback up; its name."""
        name = self._prefix + label
        ip("netns", "add", name)
        self._made.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def close(self) -> None:
        """Remove all, with the interfaces in them. Processes must have ended before."""
        for name in reversed(self._made):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=10)
        self._made.clear()


class Island(Names):
    """One namespace with loopback only, so that its byte counter is one cluster's."""

    def __init__(self) -> None:
        super().__init__()
        self.name = self.add("lo")

    def inside(self, member: str) -> Sequence[str]:
        """Words before a command that is to run there."""
        return ["ip", "netns", "exec", self.name]


class Halves(Names):
    """Members m1 ... on two bridges in a namespace of their own; the cable between the bridges can be pulled.

    m1 - m5 --- bridge west === cable === bridge east --- m6 - m10
    """

    def __init__(self, members: Sequence[str]) -> None:
        super().__init__()
        self.members = list(members)
        self._spaces: dict[str, str] = {}
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        middle = self._middle = self.add("br")
        for side in ("west", "east"):
            ip("-n", middle, "link", "add", side, "type", "bridge")
            ip("-n", middle, "link", "set", side, "up")
        ip("-n", middle, "link", "add", "cable", "type", "veth", "peer", "name", "elbac")
        for end, side in (("cable", "west"), ("elbac", "east")):
            ip("-n", middle, "link", "set", end, "master", side, "up")
        for number, member in enumerate(self.members):
            space = self._spaces[member] = self.add(member)
            side = "west" if number < len(self.members) // 2 else "east"
            ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", member, "netns", middle)
            ip("-n", middle, "link", "set", member, "master", side, "up")
            ip("-n", space, "addr", "add", f"{self.host(member)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")

    def host(self, member: str) -> str:
        """Its address."""
        return f"10.99.0.{self.members.index(member) + 1}"

    def inside(self, member: str) -> Sequence[str]:
        """Words before a command that is to run there."""
        return ["ip", "netns", "exec", self._spaces[member]]

    def part(self) -> None:
        """Nothing passes between the halves; nobody's own interface goes down."""
        ip("-n", self._middle, "link", "set", "cable", "down")

    def heal(self) -> None:
        """Everything passes."""
        ip("-n", self._middle, "link", "set", "cable", "up")

    def block(self, sender: str, receiver: str) -> None:
        """What the one sends to the other gets lost without a sign; the other direction and all others work."""
        address = ["to", self.host(receiver), "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent"]
        ip("-n", self._spaces[sender], "neigh", "replace", *address)

    def unblock(self, sender: str, receiver: str) -> None:
        """Back to normal."""
        ip("-n", self._spaces[sender], "neigh", "del", "to", self.host(receiver), "dev", "eth0")


class Row(Names):
    """Members in a row: each has a cable to the one before it and the one behind it, and no way to the others.

    m1 --- m2 --- m3
    """

    def __init__(self, members: Sequence[str]) -> None:
        super().__init__()
        self.members = list(members)
        self._spaces: dict[str, str] = {}
        try:
            for member in self.members:
                self._spaces[member] = self.add(member)
                ip("-n", self._spaces[member], "addr", "add", f"{self.host(member)}/32", "dev", "lo")
            for left, right in itertools.pairwise(self.members):
                self._connect(left, right)
        except BaseException:
            self.close()
            raise

    def _connect(self, left: str, right: str) -> None:
        one, other = self._spaces[left], self._spaces[right]
        ip("-n", one, "link", "add", "right", "type", "veth", "peer", "name", "left", "netns", other)
        for space, device, own, there in ((one, "right", left, right), (other, "left", right, left)):
            ip("-n", space, "link", "set", device, "up")
            ip("-n", space, "route", "add", self.host(there), "dev", device, "src", self.host(own))

    def space(self, member: str) -> str:
        """Name of its namespace."""
        return self._spaces[member]

    def host(self, member: str) -> str:
        """Its address."""
        return f"10.99.1.{self.members.index(member) + 1}"

    def inside(self, member: str) -> Sequence[str]:
        """Words before a command that is to run there."""
        return ["ip", "netns", "exec", self._spaces[member]]
