"""Every command of the README, run in order as a reader would."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
FILES = dict(re.findall(r"^```toml\n# (\S+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE))
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
READY_WITHIN_S = 30.0
REROUTE_MAX_S = 1.0
SHARES = {"smart host A": 1 / 7, "smart host B": 2 / 7, "smart host C": 4 / 7}
SHARE_OFF_MAX = 0.12


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder from which the commands work as they stand."""
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(command: str, desk: Path, *, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        shlex.split(command), cwd=desk, capture_output=True, text=True, timeout=timeout_s, check=False
    )


@contextmanager
def running(command: str, desk: Path) -> Iterator[None]:
    """A node for as long as it is needed."""
    config = command.rpartition(" ")[2]
    with (desk / "log").open("w") as log:
        node = subprocess.Popen(shlex.split(command), cwd=desk, stderr=log)
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while run(f".venv/bin/smtpmesh status --config {config}", desk).returncode:
            assert node.poll() is None, (desk / "log").read_text()
            assert time.monotonic() < deadline, "the node is not ready"
        yield
    finally:
        node.terminate()
        assert node.wait(30) == 0


def test_the_readme_names_the_two_commands_first() -> None:
    assert [command.split()[2] for command in COMMANDS[:2]] == ["demo", "test"]


def test_the_commands_for_an_own_cluster_work_in_order(desk: Path) -> None:
    commands = [command for command in COMMANDS if "smtpmesh" in command]
    starts = next(n for n, command in enumerate(commands) if " run " in command)
    for command in commands[:starts]:
        done = run(command, desk)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    with running(commands[starts], desk):
        for command in commands[starts + 1 :]:
            done = run(command, desk)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            assert done.stdout.strip()
            assert json.loads(run(f"{command} --json", desk).stdout)


def test_the_demo_loses_nothing_and_shares_by_capacity(desk: Path) -> None:
    command = next(command for command in COMMANDS if command.endswith(" demo"))
    done = run(f"{command} --json", desk, timeout_s=240)
    assert done.returncode == 0, done.stderr
    ledger = json.loads(done.stdout)
    assert ledger["balanced"] is True
    assert (ledger["lost"], ledger["changed"], ledger["doubled_in_mesh"]) == ([], [], 0)
    assert ledger["submitted"] == ledger["accepted"] == ledger["delivered"]
    assert all(double["reason"] for double in ledger["doubled"])
    assert (ledger["reroutes"][0]["last_use_s"] or 0.0) <= REROUTE_MAX_S
    shares = {host: item["share"] for host, item in ledger["hosts"].items()}
    assert shares == {host: pytest.approx(share, abs=SHARE_OFF_MAX) for host, share in SHARES.items()}


def test_the_other_developer_commands_exist() -> None:
    shown = subprocess.run(
        [sys.executable, ROOT / "deploy" / "run.py"], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert shown.returncode == 2
    for verb in ("demo", "test", "lint", "protos", "bench"):
        assert f"deploy/run.py {verb}" in shown.stdout


def test_links_of_the_documents_lead_somewhere() -> None:
    for name in ("README.md", "ARCHITECTURE.md"):
        text = (ROOT / name).read_text("utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
