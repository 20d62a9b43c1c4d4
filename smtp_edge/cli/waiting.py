"""`status --wait`: until a node is ready, for scripts that start one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from smtp_edge.cli.common import EXIT_TRY_AGAIN, fail
from smtp_edge.cli.everyone import ask_all

POLL_S = 0.25


def wait_ready(config: Path, admin: str | None, timeout_s: float) -> None:
    """Returns when the node is ready; ends the process with 75, and what is missing, when it is not in time."""
    deadline = time.monotonic() + timeout_s
    while missing := find_missing(config, admin):
        if time.monotonic() >= deadline:
            fail(f"not ready after {timeout_s:.0f} s: {missing}", EXIT_TRY_AGAIN)
        time.sleep(POLL_S)


def find_missing(config: Path, admin: str | None) -> str:
    """What keeps the node, or one of its workers, from being ready; empty: nothing."""
    for answer in ask_all(config, admin, _ask):
        if answer.trouble:
            return answer.trouble
        if answer.value:
            return f"{answer.name}: {answer.value}" if answer.name else str(answer.value)
    return ""


def _ask(client: Any) -> str:
    return _judge(client.call("GetStatus", {}), client.call("GetGossipStats", {}))


def _judge(status: Any, stats: Any) -> str:
    """It serves when it answers here: the admin service starts last."""
    if status.room.overloaded:
        return f"it takes no mail: {status.room.reason}"
    if stats.sessions < stats.sessions_wanted:
        return f"{stats.sessions} of {stats.sessions_wanted} sessions with other nodes are up"
    return ""
