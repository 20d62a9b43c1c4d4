"""Databases: each test that asks for one runs with SQLite and with a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import find_command
from tests.e2e.postgresql import PostgreSQL, postgresql
from tests.unit.smtp_edge.applications.places import Place, make_postgresql, make_sqlite


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQL]:
    """One for all tests of a process."""
    if find_command("initdb") is None:
        pytest.skip("needs initdb")
    with postgresql() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty database."""
    return make_sqlite(tmp_path) if request.param == "sqlite" else make_postgresql(request.getfixturevalue("server"))


@pytest.fixture
def other_place(place: Place, tmp_path: Path) -> Place:
    """Another one of the same kind."""
    return make_sqlite(tmp_path) if place.server is None else make_postgresql(place.server)
