"""For all tests: what needs a foreign program is skipped where it is missing, and one list at the end says so."""

from __future__ import annotations

import os
import shutil

import pytest

SERVER_COMMANDS = "/usr/sbin:/sbin:/usr/lib/dovecot"
"""Debian keeps servers' commands here, outside the PATH of ordinary users."""


def find_command(name: str) -> str | None:
    """Path of a foreign program, or None."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SERVER_COMMANDS}")


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
