"""Workers: one configuration, run by several processes, so that a machine's cores are all used. Pure.

`[node] workers = N`: each worker is a relay of the cluster like any other, with a queue, an identity, a place in gossip
and a door for peers of its own. What its siblings share with it are the addresses of the client listeners
(SO_REUSEPORT: the kernel gives each new connection to one of them). A worker that dies is a relay that died.

    of worker K            what it is, from the settings of the node
    node.name              NAME-K
    node.data_dir          the folder itself for worker 1, `worker-K` in it for the others: so one process becomes
                           worker 1 of several, and back, and its mail stays where it is
    cluster                node.crt and node.key for worker 1, node-K.crt and node-K.key for the others
    gossip, mesh           listen and advertise: the port + K - 1; gossip.join: all siblings as well
    admin, metrics         the port + K - 1; a Unix socket is in the worker's own data_dir
    limits of the machine  an equal part, rounded up (`SHARED`)

A number above `count` is a worker that is no more and whose queue still holds mail: it takes none from clients, drains,
and ends when nothing is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from smtp_edge.networks import from_here
from smtp_edge.setting_kinds import Section
from smtp_edge.settings import Settings

FOLDER = "worker-"
"""In node.data_dir, with the worker's number."""
BUFFER_BYTES_MIN = 1024 * 1024
SHARED: Mapping[str, tuple[str, ...]] = {
    "listener": ("connections_max", "connections_per_client_max"),
    "limits": (
        "handshakes_max",
        "connections_per_minute",
        "messages_per_minute",
        "recipients_per_minute",
        "handshakes_per_minute",
        "auth_failures_per_client",
        "auth_failures_per_user",
        "buffer_bytes_max",
    ),
    "smart_host": ("connections_max",),
    "mx": ("connections_max",),
    "queue": ("entries_max", "history_max", "active_max", "memory_bytes_max"),
}
"""Keys that bound what the machine holds, what a client may do to it, or what it does to a next hop: each worker has an
equal part. All others are of a session, a message or an answer, and hold for each worker as they stand."""
_FOLDER = re.compile(rf"{FOLDER}([2-9]|[1-9]\d+)")
Model = TypeVar("Model", bound=Section)


@dataclass(frozen=True, slots=True)
class Worker:
    """One of `count` processes; numbers begin at 1."""

    number: int = 1
    count: int = 1

    @property
    def retiring(self) -> bool:
        """It is no more, but for the mail that it holds."""
        return self.number > self.count

    def derive(self, settings: Settings) -> Settings:
        """The settings of this worker, from those of the node. `node.workers` stays as it is."""
        if (self.number, self.count) == (1, 1):
            return settings
        shared = share(settings, self.count)
        ahead = self.number - 1
        node, gossip, mesh = settings.node, settings.gossip, settings.mesh
        admin, metrics = settings.admin, settings.metrics
        updates = {
            "node": node.model_copy(update={"name": self.name_of(node.name), "data_dir": self.data_dir(settings)}),
            "cluster": _own_identity(settings, self.number),
            "gossip": gossip.model_copy(
                update={
                    "listen": move_port(gossip.listen, ahead),
                    "advertise": move_port(gossip.advertise, ahead),
                    "join": (*gossip.join, *self._siblings(settings)),
                }
            ),
            "mesh": mesh.model_copy(
                update={"listen": move_port(mesh.listen, ahead), "advertise": move_port(mesh.advertise, ahead)}
            ),
            "admin": admin.model_copy(
                update={"listen": self._admin_listen(settings), "advertise": move_port(admin.advertise, ahead)}
            ),
            "metrics": metrics.model_copy(update={"listen": move_port(metrics.listen, ahead)}),
        }
        if self.retiring:
            updates["listener"] = ()  # type: ignore[assignment]
        return shared.model_copy(update=updates)

    def name_of(self, node: str) -> str:
        """`mx1-2` for the node mx1; one of one process is called as it always was."""
        return node if (self.number, self.count) == (1, 1) else f"{node}-{self.number}"

    def data_dir(self, settings: Settings) -> Path:
        """Where its queue and state are."""
        data_dir = settings.node.data_dir
        return data_dir if self.number == 1 else data_dir / f"{FOLDER}{self.number}"

    def _siblings(self, settings: Settings) -> Iterator[str]:
        """Where gossip of the others is dialled from this machine."""
        for number in range(1, self.count + 1):
            if number != self.number:
                yield from_here(move_port(settings.gossip.listen, number - 1))

    def _admin_listen(self, settings: Settings) -> str:
        """A path that leads out of data_dir is the same for all: it gets the number."""
        listen = settings.admin.listen
        if not listen.startswith("unix:"):
            return move_port(listen, self.number - 1)
        path = Path(listen.removeprefix("unix:"))
        if self.number == 1 or not (path.is_absolute() or ".." in path.parts):
            return listen
        whole = settings.node.data_dir / path
        return f"unix:{number_file(whole, self.number)}"


def list_workers(count: int) -> list[Worker]:
    """All of a node."""
    return [Worker(number, count) for number in range(1, count + 1)]


def find_folders(data_dir: Path) -> dict[int, Path]:
    """Number -> folder, of workers that there are or were; the first has none of its own."""
    found = {int(match[1]): path for path in data_dir.glob(f"{FOLDER}*") if (match := _FOLDER.fullmatch(path.name))}
    return dict(sorted(found.items()))


def number_file(path: Path, number: int) -> Path:
    """`node-2.crt` for `node.crt`; the first worker's has no number."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def move_port(address: str, by: int) -> str:
    """`host:port` with another port. Port 0 (any) and what is no address stay as they are."""
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + by}" if port.isdigit() and int(port) else address


# -- limits ------------------------------------------------------------------------------------------------------------


def share(settings: Settings, count: int) -> Settings:
    """The settings with one worker's part of each limit in `SHARED`: rounded up, so never less than one. 0 stays 0."""
    updates: dict[str, Any] = {}
    for section, keys in SHARED.items():
        value = getattr(settings, section)
        if isinstance(value, tuple):
            updates[section] = tuple(_share_section(item, keys, count) for item in value)
        else:
            updates[section] = _share_section(value, keys, count)
    updates["listener"] = tuple(_share_own_limits(listener, count) for listener in updates["listener"])
    return settings.model_copy(update=updates)


def _share_own_limits(listener: Any, count: int) -> Any:
    """What a listener says itself about limits, and nothing that it leaves to others."""
    own = listener.limits
    if own is None:
        return listener
    keys = tuple(key for key in SHARED["limits"] if key in own.model_fields_set)
    return listener.model_copy(update={"limits": _share_section(own, keys, count)})


def _share_section(section: Model, keys: tuple[str, ...], count: int) -> Model:
    parts = {key: -(-getattr(section, key) // count) for key in keys}
    if "buffer_bytes_max" in parts:
        parts["buffer_bytes_max"] = max(parts["buffer_bytes_max"], BUFFER_BYTES_MIN)
    return section.model_copy(update={key: part for key, part in parts.items() if part != getattr(section, key)})


# -- private -----------------------------------------------------------------------------------------------------------


def _own_identity(settings: Settings, number: int) -> Section:
    cluster = settings.cluster
    files = {name: number_file(getattr(cluster, name), number) for name in ("certificate", "key")}
    return cluster.model_copy(update=files)
