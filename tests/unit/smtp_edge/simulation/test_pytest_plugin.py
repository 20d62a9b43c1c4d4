"""The plugin as its users have it: the examples of the documentation are run, and a failure shows the timeline."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import smtp_edge.simulation

pytest_plugins = ["pytester"]
TESTING = Path(smtp_edge.simulation.__file__).parent / "TESTING.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", TESTING.read_text("utf-8"), re.DOTALL | re.MULTILINE)
QUIET = ("-p", "no:cacheprovider", "-p", "no:asyncio")
PLUGIN = "smtp_edge.simulation.pytest_plugin"


def plugged(pytester: pytest.Pytester) -> list[str]:
    """Words that load the plugin where the installed entry point does not."""
    listed = pytester.runpytest_inprocess("--trace-config", "--collect-only", *QUIET)
    return [] if PLUGIN in listed.stdout.str() else ["-p", PLUGIN]


def test_there_are_three_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.findall(r"def (\w+)", text)[0])
def test_the_examples_of_the_documentation_pass(pytester: pytest.Pytester, example: str) -> None:
    words = plugged(pytester)
    pytester.makepyfile(test_example=example)
    pytester.runpytest_inprocess(*words, *QUIET, "--strict-markers").assert_outcomes(passed=1)


def test_a_failure_shows_the_timeline(pytester: pytest.Pytester) -> None:
    words = plugged(pytester)
    pytester.makepyfile(
        test_example="""
        def test_hope(mesh):
            mesh.host("s1", capacity_mps=5)
            mesh.relay("a", exits=["s1"])
            mesh.load("a", rate_mps=3)
            mesh.kill("s1", at=2.0)
            mesh.run(5)
            assert mesh.queued == 0
        """
    )
    result = pytester.runpytest_inprocess(*words, *QUIET)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*simulated mesh*", "*2.0 s kill s1*", "lost      0"])
