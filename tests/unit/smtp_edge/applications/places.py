"""Databases for tests of the applier and of `replicate`: a file of SQLite, or one of a private PostgreSQL."""

from __future__ import annotations

import itertools
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from smtp_edge.applications.applier import Applier
from tests.e2e.postgresql import PostgreSQL

MADE = """
CREATE TABLE kinds (name TEXT PRIMARY KEY);
CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price DOUBLE PRECISION CHECK (price >= 0), good BOOLEAN,
    kind TEXT REFERENCES kinds (name) DEFERRABLE INITIALLY IMMEDIATE, more {json});
"""
COLUMNS = {"id": "integer", "name": "text", "price": "number", "good": "boolean", "kind": "text", "more": "json"}
TABLES: dict[str, object] = {
    "parts": {"key": "id", "columns": COLUMNS},
    "kinds": {"key": "name", "columns": {"name": "text"}},
}
_numbers = itertools.count()


@dataclass
class Place:
    """A database for one test."""

    address: str
    password_file: str
    server: PostgreSQL | None = None

    def query(self, statement: str) -> list[tuple[object, ...]]:
        if self.server is not None:
            return list(self.server.query(statement, self.address.rpartition("/")[2]))
        with sqlite3.connect(self.address.removeprefix("sqlite:"), isolation_level=None) as connection:
            return [tuple("" if item is None else str(item) for item in row) for row in connection.execute(statement)]

    def applier(self, **settings: object) -> Applier:
        given = {"database": self.address, "password_file": self.password_file, "tables": TABLES}
        return Applier(**(given | settings))  # type: ignore[arg-type]


def make_sqlite(folder: Path) -> Place:
    """With its tables."""
    path = folder / f"place{next(_numbers)}.db"
    connection = sqlite3.connect(path)
    connection.executescript(MADE.format(json="TEXT"))
    connection.close()
    return Place(f"sqlite:{path}", "")


def make_postgresql(server: PostgreSQL) -> Place:
    """A database of its own, with its tables."""
    name = f"t{os.getpid()}_{next(_numbers)}"
    server.query(f"CREATE DATABASE {name}")
    server.query(MADE.format(json="JSONB"), name)
    return Place(server.url(name), str(server.password_file), server)
