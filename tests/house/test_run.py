"""deploy/run.py: what an old interpreter, a bare Debian and a second terminal find."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import stat
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "deploy" / "run.py"
LOCKS = (ROOT / "deploy" / "requirements.lock", ROOT / "deploy" / "requirements-dev.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_run", RUN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(requirement: str) -> str:
    """The distribution's name alone, as indexes compare it."""
    (name,) = re.findall(r"^[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: Path) -> dict[str, str]:
    """Name -> its whole requirement with hashes."""
    joined = lock.read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {normal(line): line for line in lines}


def test_python_3_9_can_read_it() -> None:
    ast.parse(RUN.read_text("utf-8"), feature_version=(3, 9))


def test_it_needs_the_standard_library_only() -> None:
    tree = ast.walk(ast.parse(RUN.read_text("utf-8")))
    names = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    assert names
    assert names <= sys.stdlib_module_names


def test_an_old_python_gets_a_sentence(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "PYTHON_MIN", (99, 0))
    assert run.main(["demo"]) == 1
    assert "needs Python 99.0 or newer" in capsys.readouterr().err


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_its_hashes_and_no_address(lock: Path) -> None:
    packages = locked(lock)
    assert packages
    assert [name for name, line in packages.items() if "--hash=sha256:" not in line or "==" not in line] == []
    assert "://" not in lock.read_text("utf-8")


def test_the_locks_name_every_dependency() -> None:
    project = PROJECT["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    running = {normal(item) for item in [*project["dependencies"], *extras]}
    run_lock, dev_lock = map(locked, LOCKS)
    assert running - run_lock.keys() == set()
    assert {normal(item) for item in PROJECT["dependency-groups"]["dev"]} - dev_lock.keys() == set()


def test_the_locks_agree() -> None:
    run_lock, dev_lock = (
        {name: re.findall(r"==[^\s;]+", line) for name, line in locked(lock).items()} for lock in LOCKS
    )
    assert {name: version for name, version in dev_lock.items() if name in run_lock} == run_lock


def test_without_root_it_prints_the_line_to_run(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    run.install_packages(["swaks"], "as a peer", optional=True)
    assert "as root, run: apt-get install -y --no-install-recommends swaks" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.install_packages(["python3-venv"], "to create .venv")


def test_an_installation_starts_no_service(run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(run, "START_POLICY", str(policy))
    with run.nothing_started():
        assert "exit 101" in policy.read_text()
        assert policy.stat().st_mode & stat.S_IXUSR
    assert not policy.exists()


def test_the_policy_of_the_machine_is_left_alone(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("its own")
    monkeypatch.setattr(run, "START_POLICY", str(policy))
    with run.nothing_started():
        pass
    assert policy.read_text() == "its own"


def test_a_stamped_environment_is_left_alone(run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    monkeypatch.setattr(run, "VENV", str(tmp_path))
    monkeypatch.setattr(run, "PYTHON", str(python))
    installed: list[str] = []
    monkeypatch.setattr(run, "install", installed.extend)
    run.prepare([run.RUN_LOCK])
    assert installed == [run.RUN_LOCK]
    Path(run.stamp_path(run.RUN_LOCK)).write_text(run.stamp_of(run.RUN_LOCK))
    run.prepare([run.RUN_LOCK])
    assert installed == [run.RUN_LOCK]
