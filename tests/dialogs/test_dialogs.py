"""Every dialogue of this folder, through every door, on every loop, with its segments as they are and cut to bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.dialogs.script import Script, ScriptError, read_script
from tests.dialogs.stage import CUTS, DOORS, LOOPS, Scenery, build_scenery, play

FOLDER = Path(__file__).parent
SCRIPTS = [read_script(path) for path in sorted(FOLDER.rglob("*.dialog"))]


def name_of(script: Script) -> str:
    """`limits/recipients`."""
    return str(script.path.relative_to(FOLDER).with_suffix(""))


WAYS = [*((loop, "whole") for loop in LOOPS), (list(LOOPS)[-1], "crumbs")]
CASES = [
    pytest.param(script, door, loop, cut, id=f"{name_of(script)}-{door}-{loop}-{cut}")
    for script in SCRIPTS
    for door in DOORS
    for loop, cut in WAYS
    if cut == "whole" or not script.settings.get("whole")
]


@pytest.fixture(scope="session")
def scenery(tmp_path_factory: pytest.TempPathFactory) -> Scenery:
    return build_scenery(tmp_path_factory.mktemp("scenery"))


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are slow on purpose; these passwords are known to all."""
    monkeypatch.setattr("smtp_edge.auth.users.COST_LOG2", 2)


@pytest.mark.parametrize(("script", "door", "loop", "cut"), CASES)
def test_dialogue(script: Script, door: str, loop: str, cut: str, tmp_path: Path, scenery: Scenery) -> None:
    faults: list[dict[str, Any]] = []
    with capture_logs() as lines, asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.get_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        runner.run(play(script, DOORS[door], CUTS[cut], tmp_path, scenery))
    assert faults == []
    assert [line for line in lines if line["event"].endswith(".bug")] == []


def test_there_are_many() -> None:
    assert len(SCRIPTS) >= 150


def test_a_line_that_is_no_step_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.dialog"
    path.write_text("C: NOOP\nX: what\n")
    with pytest.raises(ScriptError, match="line 2"):
        read_script(path)
