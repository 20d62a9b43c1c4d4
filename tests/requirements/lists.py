"""Reads the lists of requirements."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

FOLDER = Path(__file__).parent


class Role(StrEnum):
    """Whose duty it is: of us as we take mail, as we send it, as we keep and report it."""

    SERVER = "server"
    CLIENT = "client"
    RELAY = "relay"


class Level(StrEnum):
    """RFC 2119."""

    MUST = "MUST"
    SHOULD = "SHOULD"


@dataclass(frozen=True, slots=True)
class Requirement:
    """`name` is what tests cite: `5321 4.1.1.5b`. `deviation`: why we do not do so, or empty."""

    name: str
    role: Role
    level: Level
    text: str
    deviation: str = ""

    @property
    def section(self) -> str:
        """Without the letter that tells several of a section apart."""
        return self.name.partition(" ")[2].rstrip("abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True)
class Document:
    """An RFC."""

    number: str
    title: str
    requirements: tuple[Requirement, ...]


def read_documents() -> list[Document]:
    """All lists, in the order of their numbers. ValueError where a list is no list."""
    paths = sorted(FOLDER.glob("rfc*.toml"), key=lambda path: int(path.stem.removeprefix("rfc")))
    return [_read(path) for path in paths]


def _read(path: Path) -> Document:
    content = tomllib.loads(path.read_text("utf-8"))
    number = path.stem.removeprefix("rfc")
    rows = (
        Requirement(f"{number} {section}", Role(role), Level(level), text, *deviation)
        for section, (role, level, text, *deviation) in content["requirements"].items()
    )
    return Document(number, content["title"], tuple(rows))
