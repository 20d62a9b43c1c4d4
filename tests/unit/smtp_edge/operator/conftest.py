"""A served view on a unix socket; the folder's name is short, as a socket's path ends at 107 bytes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.smtp_edge.operator.views import FakeView, Served, make_identity


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sm-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    served = Served(FakeView(folder, make_identity(folder)), "unix:admin.sock")
    yield served
    served.close()
