"""For all tests: what needs a foreign program is skipped where it is missing, and one list at the end says so."""

from __future__ import annotations

import glob
import os
import shutil
from pathlib import Path

import pytest

PEERS = Path(__file__).resolve().parents[1] / ".venv" / "peers"
"""Where `deploy/run.py test` unpacks what cannot be installed: `PACKAGE/usr/...`, and `npm/node_modules/PACKAGE`."""
SERVER_COMMANDS = ":".join(["/usr/sbin:/sbin:/usr/lib/dovecot", *sorted(glob.glob("/usr/lib/postgresql/*/bin"))])
"""Debian keeps servers' commands here, outside the PATH of ordinary users."""


def find_command(name: str) -> str | None:
    """Path of a foreign program, or None."""
    unpacked = [str(folder) for folder in sorted(PEERS.glob("*/usr/*bin"))]
    return shutil.which(name, path=":".join([os.environ.get("PATH", ""), SERVER_COMMANDS, *unpacked]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `peer("command")` when the command is missing."""
    for mark in item.iter_markers("peer"):
        for command in mark.args:
            if find_command(command) is None:
                pytest.skip(f"needs {command}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One visible list of what did not run."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        terminalreporter.section("not tested here")
        for report in skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            terminalreporter.write_line(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")
