"""`smtpmesh simulate` from its files to its pictures, and what it says of files that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from smtp_edge.cli import cli

MESH = """
duration_s = 12
[[host]]
name = "s1"
capacity_mps = 20
[[host]]
name = "s2"
capacity_mps = 20
[[relay]]
name = "a"
exits = ["s1", "s2"]
[[relay]]
name = "b"
[[load]]
relay = "a"
rate_mps = 15
[[load]]
relay = "b"
rate_mps = 10
"""
SCENARIO = """
[[event]]
at = 4
do = "kill"
what = "s2"
[[event]]
at = 8
do = "restart"
what = "s2"
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Path:
    (tmp_path / "mesh.toml").write_text(MESH)
    return tmp_path / "mesh.toml"


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    (tmp_path / "failover.toml").write_text(SCENARIO)
    return tmp_path / "failover.toml"


def simulate(*words: object) -> Result:
    return CliRunner().invoke(cli, ["simulate", *(str(word) for word in words)])


def test_a_timeline_and_the_balance_are_printed(mesh: Path, scenario: Path) -> None:
    result = simulate(mesh, "--scenario", scenario)
    assert result.exit_code == 0, result.output
    assert "4.0 s kill s2" in result.stdout
    assert "8.0 s restart s2" in result.stdout
    assert "\nlost      0\n" in result.stdout
    assert "rerouted  4.0 s s2: a left it after" in result.stdout
    assert all(len(line) <= 120 for line in result.stdout.splitlines())


def test_json_has_the_same_and_the_bound_follows_what_works(mesh: Path, scenario: Path) -> None:
    report = json.loads(simulate(mesh, "--scenario", scenario, "--json").stdout)
    assert [round(bound) for _, bound in report["bounds"]] == [40, 20, 40]
    assert report["accepted"] == report["delivered"] + report["queued"]
    assert (report["lost"], report["duration_s"]) == (0, pytest.approx(12))
    middle = report["windows"][1]
    assert middle["delivered_mps"] == pytest.approx(20, rel=0.1)


def test_the_same_seed_gives_the_same_output_and_another_one_does_not(mesh: Path) -> None:
    first = simulate(mesh, "--duration", 5).stdout
    assert first == simulate(mesh, "--duration", 5).stdout
    assert first != simulate(mesh, "--duration", 5, "--seed", 9).stdout


def test_another_process_gives_the_same_output(mesh: Path, scenario: Path) -> None:
    words = [sys.executable, "-m", "smtp_edge.cli", "simulate", str(mesh), "--scenario", str(scenario), "--json"]
    runs = [
        subprocess.run(words, capture_output=True, check=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout


def test_pictures_and_a_page_are_written(mesh: Path, scenario: Path, tmp_path: Path) -> None:
    picture, page = tmp_path / "x.png", tmp_path / "x.html"
    result = simulate(mesh, "--scenario", scenario, "--plot", picture, "--plot", page)
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text("utf-8")
    assert "<svg" in text
    assert "kill s2" in text
    assert "lost      0" in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("https://matplotlib.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", ""), "nothing is loaded from anywhere"


def test_a_format_that_nobody_knows_and_a_missing_library_are_one_sentence(
    mesh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = simulate(mesh, "--duration", 1, "--plot", tmp_path / "x.xyz")
    assert result.exit_code == 1
    assert "xyz" in result.stderr
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = simulate(mesh, "--duration", 1, "--plot", tmp_path / "x.png")
    assert (result.exit_code, result.stderr) == (
        1,
        "smtpmesh: plots need matplotlib: pip install 'smtpmesh[plot]'\n",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[relay]]\nname = 'a'\nexit = ['s']\n", "relay[0].exit: unknown key; did you mean exits?"),
        ("[[relay]]\nname = 'a'\nexits = ['s9']\n", "a has the exits s9, which are no hosts"),
        (
            "[[host]]\nname = 's'\ncapacity_mps = -1\n",
            "host[0].capacity_mps: must be greater than 0 and at most 1000000, not -1",
        ),
        ("[[relay]\n", "is not valid TOML"),
        ("", "there is no relay"),
    ],
)
def test_a_wrong_mesh_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "mesh.toml").write_text(text)
    result = simulate(tmp_path / "mesh.toml")
    assert result.exit_code == 78
    assert expected in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[event]]\nat = 1\ndo = 'kill'\nwhat = 'x'\n", "no relay or host 'x'; there are: a, b, s1, s2"),
        ("[[event]]\nat = 1\ndo = 'kill'\n", "the event at 1 s (kill) does not say what"),
        ("[[event]]\nat = 1\ndo = 'burn'\n", "event[0].do"),
    ],
)
def test_a_wrong_scenario_is_explained(mesh: Path, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "failover.toml").write_text(text)
    result = simulate(mesh, "--scenario", tmp_path / "failover.toml")
    assert result.exit_code == 78
    assert expected in result.stderr


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    result = simulate(tmp_path / "nothing.toml")
    assert result.exit_code == 78
    assert "nothing.toml: there is no such file" in result.stderr


@pytest.mark.parametrize("story", ["herd", "flap", "slow"])
def test_the_stories_of_the_readme_stay_at_the_bound_and_lose_nothing(story: str) -> None:
    """No herding, no oscillation: what piled up is carried off at the speed of everything, and no host is left out."""
    folder = Path("deploy/scenarios")
    report = json.loads(simulate(folder / "mesh.toml", "--scenario", folder / f"{story}.toml", "--json").stdout)
    assert (report["lost"], report["doubled_inside"]) == (0, 0)
    assert report["doubled"] <= 5, "a host that dies between acceptance and answer gets the message again"
    assert report["revisits"] <= report["accepted"] / 1000
    calm = [after for before, after in pairwise(report["windows"]) if not (before["events"] or after["events"])]
    busy = [window for window in calm if window["queued"] > 100]
    assert busy or story == "flap"
    assert all(window["delivered_mps"] >= 0.97 * window["bound_mps"] for window in busy)
    assert max(window["queued"] for window in report["windows"]) < {"herd": 1500, "flap": 100, "slow": 1500}[story]
    assert max(item[3] for item in report["rerouted"] or [[0] * 4]) < 1


def test_an_event_can_happen_again_and_again(mesh: Path, tmp_path: Path) -> None:
    flap = tmp_path / "flap.toml"
    flap.write_text('[[event]]\nat = 1\ndo = "kill"\nwhat = "s2"\nevery_s = 2\ntimes = 3\n')
    printed = simulate(mesh, "--scenario", flap, "--duration", 8).stdout
    assert [f"{at}.0 s kill s2" in printed for at in (1, 3, 5, 7)] == [True, True, True, False]
    flap.write_text('[[event]]\nat = 1\ndo = "kill"\nwhat = "s2"\ntimes = 3\n')
    result = simulate(mesh, "--scenario", flap)
    assert (result.exit_code, result.stderr) == (
        78,
        "smtpmesh: the event at 1 s (kill) happens 3 times; say every_s, too\n",
    )
