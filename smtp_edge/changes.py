"""What differs between two configurations, by the names of settings, and what of it has to wait for a restart. Pure.

limits.bad_commands_max          a key of a section
smart_host[uplink-1].port        a key of one of several sections, by its name
smart_host[uplink-2] (new)       also (gone)
route (order)                    the same routes, and another one comes first
access                           sections without names: one of them differs
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtp_edge.setting_kinds import Section
from smtp_edge.settings import Settings

RESTART = (
    "node.name",  # stands on every line of the log and in the certificate
    "node.data_dir",
    "node.workers",
    "gossip",
    "mesh.listen",
    "router",
    "admin.listen",
    "metrics",
)
"""What holds from the start of a node to its end: addresses of its own doors, and objects that others hold."""
NAMED = frozenset({"listener", "auth", "smart_host", "route"})
NO_FILES = frozenset({"node.data_dir"})
"""Paths that are no files to be read."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Names of settings."""

    live: tuple[str, ...] = ()
    """These can be gone by at once."""
    restart: tuple[str, ...] = ()
    """These cannot."""


def compare(before: Settings, after: Settings) -> Difference:
    """What is another in `after`, in the order of the file's sections."""
    found = list(_compare(before, after))
    later = tuple(name for name in found if _needs_restart(name))
    return Difference(tuple(name for name in found if name not in later), later)


def hold_back(before: Settings, after: Settings) -> Settings:
    """`after`, but for what needs a restart."""
    updates: dict[str, Any] = {}
    for name in RESTART:
        section, _, key = name.partition(".")
        old = getattr(before, section)
        if key:
            new = updates.get(section, getattr(after, section))
            updates[section] = new.model_copy(update={key: getattr(old, key)})
        else:
            updates[section] = old
    return after.model_copy(update=updates)


def find_files(settings: Settings) -> Mapping[str, Path]:
    """Name of a setting -> the file (or folder of revocations) that it means."""
    found = {"cluster.revocations": settings.cluster.revocations_folder}
    for section in type(settings).model_fields:
        found |= _files_of(section, getattr(settings, section))
    return {name: path for name, path in found.items() if name not in NO_FILES}


def _files_of(name: str, value: object) -> dict[str, Path]:
    match value:
        case Path():
            return {name: value}
        case Section():
            parts = [_files_of(f"{name}.{key}", getattr(value, key)) for key in type(value).model_fields]
        case tuple():
            parts = [_files_of(_spell(name, number, item), item) for number, item in enumerate(value)]
        case _:
            parts = []
    return {key: path for part in parts for key, path in part.items()}


def _spell(section: str, number: int, item: object) -> str:
    return f"{section}[{getattr(item, 'name', number) if section in NAMED else number}]"


def _needs_restart(name: str) -> bool:
    return any(name == item or name.startswith((f"{item}.", f"{item}[")) for item in RESTART)


def _compare(before: Settings, after: Settings) -> Iterator[str]:
    for section in Settings.model_fields:
        old, new = getattr(before, section), getattr(after, section)
        if old == new:
            continue
        if section in NAMED:
            yield from _compare_named(section, old, new)
        elif isinstance(old, Section):
            yield from _compare_keys(section, old, new)
        else:
            yield section


def _compare_named(section: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[str]:
    before, after = ({item.name: item for item in items} for items in (old, new))
    for name, item in after.items():
        if name not in before:
            yield f"{section}[{name}] (new)"
        else:
            yield from _compare_keys(f"{section}[{name}]", before[name], item)
    for name in before:
        if name not in after:
            yield f"{section}[{name}] (gone)"
    stay_before = [name for name in before if name in after]
    if section == "route" and stay_before != [name for name in after if name in before]:
        yield f"{section} (order)"


def _compare_keys(name: str, old: Section, new: Section) -> Iterator[str]:
    for key, field in type(old).model_fields.items():
        if getattr(old, key) != getattr(new, key):
            yield f"{name}.{field.alias or key}"
