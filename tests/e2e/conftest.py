"""Fixtures of the end-to-end tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


ALONE = (
    "applier",
    "drain",
    "floods",
    "full_disk",
    "gossip_namespaces",
    "maildir_faults",
    "operators_see_gossip",
    "relay_bench",
    "relay_dies",
    "reload",
    "replication",
    "sinks_along_a_row",
    "sinks_in_mesh",
    "smart_host_dies",
    "transfers",
    "workers",
)
"""Tests with whole clusters, load and kills: the machine is theirs. The others run side by side."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them."""
    for item in items:
        if item.path.parent == HERE and item.path.stem.removeprefix("test_") in ALONE:
            item.add_marker("alone")


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with a short name (a Unix socket's path ends at 107 bytes), kept if the test fails."""
    path = Path(tempfile.mkdtemp(prefix="sm-e2e-"))
    path.chmod(0o755)
    failed_before = request.session.testsfailed
    yield path
    if request.session.testsfailed == failed_before:
        shutil.rmtree(path, ignore_errors=True)
    else:
        print(f"kept: {path}")
