"""The pytest plugin: a fixture `mesh` for tests of failover, and the mesh's timeline beside a test that failed.

    def test_failover(mesh):
        mesh.host("s1", capacity_mps=40)
        ...

`@pytest.mark.mesh(seed=7)` gives arguments of `Mesh`. Loaded by its entry point wherever smtpmesh is installed, so
nothing of the simulator is imported before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from smtp_edge.simulation.mesh import Mesh


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "mesh(**arguments): arguments of smtp_edge.simulation.Mesh for the fixture mesh")


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """An empty simulated mesh, closed after the test."""
    from smtp_edge.simulation.mesh import Mesh

    marker = request.node.get_closest_marker("mesh")
    with Mesh(**(marker.kwargs if marker is not None else {})) as made:
        yield made


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Show what the mesh did when a test of it fails."""
    outcome = yield
    report = outcome.get_result()
    if call.when != "call" or not report.failed:
        return
    found = getattr(item, "funcargs", {}).get("mesh")
    if found is None or not type(found).__module__.startswith("smtp_edge.simulation"):
        return
    from smtp_edge.simulation.report import build_report, render

    if found.now > 0:
        report.sections.append(("simulated mesh", render(build_report(found))))
