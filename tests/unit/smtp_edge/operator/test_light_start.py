"""The command starts lightly: scripts call it often. Counted in modules, as times depend on the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
HEAVY = {"grpc", "networkx", "pydantic", "cryptography", "aiosmtpd", "aiosmtplib", "dns", "rich", "google.protobuf",
         "prometheus_client"}  # fmt: skip
LIST_MODULES = """
import json, sys
from click.testing import CliRunner
from smtp_edge.cli import cli
CliRunner().invoke(cli, sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
"""


def loaded(*words: str) -> set[str]:
    """Heavy packages that a command imports."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}"}
    command = [sys.executable, "-c", LIST_MODULES, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    return HEAVY & modules


@pytest.mark.parametrize(
    "words", [["--help"], ["version"], ["routes", "--help"], ["queue", "list", "--help"], ["send", "--help"]]
)
def test_help_and_version_import_nothing_heavy(words: list[str]) -> None:
    assert loaded(*words) == set()


def test_a_question_to_a_socket_imports_what_a_call_needs() -> None:
    assert loaded("status", "--admin", "unix:/nowhere") == {"grpc", "google.protobuf"}


def test_check_config_needs_no_grpc() -> None:
    assert loaded("check-config", "--config", "/nowhere/node.toml") == {"pydantic"}


def test_the_module_runs_as_a_program() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'proto'}"}
    command = [sys.executable, "-m", "smtp_edge.cli", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    for word in ("run", "demo", "routes", "explain", "nodes", "links", "queue", "status", "check-config", "init"):
        assert f"\n  {word} " in done.stdout
    assert done.stdout.startswith("Usage: smtpmesh [OPTIONS] COMMAND [ARGS]...")
