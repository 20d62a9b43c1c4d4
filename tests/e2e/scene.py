"""What the end-to-end tests share: bounded waiting, draining, and the size of a run.

Every test starts its own processes on loopback and breaks one thing. `SMTPMESH_E2E_FULL=1` is the long form: ten kills
instead of three, 1,000 messages through Postfix instead of 60.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smtp_edge.demo.cluster import Cluster
from smtp_edge.demo.ledger import Ledger, build_ledger
from smtp_edge.demo.submit import Submitter
from smtp_edge.demo.watch import AdminCalls, LogReader, find_doubts, read_attempts

FULL = os.environ.get("SMTPMESH_E2E_FULL") == "1"
POLL_S = 0.05
DRAIN_MAX_S = 60.0


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Poll until the condition holds; AssertionError with `what` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(POLL_S)


def admin_calls(cluster: Cluster) -> AdminCalls:
    """Admin clients of all relays."""
    return AdminCalls({name: relay.admin for name, relay in cluster.relays.items()})


def wait_members(cluster: Cluster, calls: AdminCalls, timeout_s: float = 15.0) -> None:
    """Wait until every relay has a session with every other."""
    count = len(cluster.relays)
    wait_until(lambda: all(calls.members(relay) == count for relay in cluster.relays), timeout_s, "a full mesh")


def cut_off(cluster: Cluster, name: str) -> None:
    """Before a relay starts: its smart hosts are where nobody listens."""
    config = cluster.relays[name].config
    text = config.read_text()
    for host in cluster.hosts.values():
        assert f"port = {host.port}" in text
        text = text.replace(f"port = {host.port}", "port = 1")
    config.write_text(text)


def drain(cluster: Cluster, calls: AdminCalls, submitter: Submitter, timeout_s: float = DRAIN_MAX_S) -> None:
    """Wait until all queues are empty; what is missing then is for the ledger to say."""
    submitter.stop()
    wait_until(lambda: all(calls.waiting(relay) == 0 for relay in cluster.relays), timeout_s, "empty queues")


def account(cluster: Cluster, *submitters: Submitter) -> Ledger:
    """The ledger of all that was submitted."""
    host_names = {host.plan.hop: name for name, host in cluster.hosts.items()}
    return build_ledger(
        [submission for submitter in submitters for submission in submitter.submissions()],
        cluster.arrivals(),
        kills=cluster.kills,
        doubts=find_doubts(read_attempts(cluster.logs()), host_names),
        rates={name: host.plan.rate_mps for name, host in cluster.hosts.items()},
    )


def events(path: Path, *names: str) -> list[dict[str, Any]]:
    """Log lines with one of these events."""
    return [line for line in LogReader("", path).read() if line.get("event") in names]


def arrived(cluster: Cluster, message_id: str) -> bool:
    """True once a smart host wrote the message."""
    return any(arrival.message_id == message_id for arrival in cluster.arrivals())


def records(path: Path) -> list[dict[str, Any]]:
    """A smart host's own lines."""
    return LogReader("", path).read()
