"""The house keeps itself: generated code is fresh, contracts hold, nothing names where it was built."""

from __future__ import annotations

import filecmp
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOP_LEVEL = {
    ".ci", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "README.md", "deploy", "gossip", "proto",
    "pyproject.toml", "router", "smtp_edge", "tests",
}  # fmt: skip


def run(*words: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def tracked() -> list[Path]:
    listed = run("git", "ls-files")
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines()]


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    done = run(sys.executable, ROOT / "deploy" / "run.py", "protos", tmp_path)
    assert done.returncode == 0, done.stderr
    fresh = sorted(tmp_path.rglob("*_pb2*"))
    assert len(fresh) == 8
    stale = [
        file for file in fresh if not filecmp.cmp(file, ROOT / "proto" / file.relative_to(tmp_path), shallow=False)
    ]
    assert stale == []


def test_import_contracts_hold() -> None:
    done = run(BIN / "lint-imports")
    assert done.returncode == 0, done.stdout


def test_the_top_level_is_the_one_that_was_agreed() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in tracked()} <= TOP_LEVEL


def test_no_file_names_the_machine_or_a_registry() -> None:
    forbidden = re.compile(
        rb"https?://[^\s\"']*(?:pypi|simple/|debian\.org|npmjs)|(?<![\w.])/(?:work|root)/", re.IGNORECASE
    )
    found = [
        str(file.relative_to(ROOT))
        for file in tracked()
        if file.is_file() and file != Path(__file__) and forbidden.search(file.read_bytes())
    ]
    assert found == []


def test_every_test_folder_is_a_package() -> None:
    folders = {file.parent for file in tracked() if file.suffix == ".py" and "tests" in file.relative_to(ROOT).parts}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_the_command_starts_quickly_because_it_imports_little() -> None:
    code = "import sys, smtp_edge.cli; print(sorted({'grpc', 'networkx', 'pydantic'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).stdout.strip() == "[]"
