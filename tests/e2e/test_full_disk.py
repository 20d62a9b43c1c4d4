"""A relay's disk is full to the last byte: it says so everywhere, peers and clients go elsewhere, and it comes back."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan, Relay, is_serving
from smtp_edge.demo.ledger import to_text
from smtp_edge.demo.submit import Submitter
from smtp_edge.demo.watch import read_attempts
from tests.e2e.scene import account, admin_calls, drain, events, wait_members, wait_until
from tests.e2e.test_drain import smtpmesh

DISK_BYTES = 48 * 1024 * 1024
SETTINGS = "[queue]\nfree_bytes_min = 4194304\n"
HEARD_S = 1.0
"""Until the other relay has heard, on busy cores."""
HOSTS = (HostPlan("A", 40), HostPlan("B", 40))


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A file system of its own on an empty folder, if this may be done here."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path) -> None:
    """To the last byte."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        while True:
            file.write(b"x")


def room(relay: Relay) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(smtpmesh(relay, "status", "--json").stdout)["room"]
    return found


def accepted(relay: Relay) -> int:
    return int(json.loads(smtpmesh(relay, "status", "--json").stdout)["accepted"])


def stamp(relay: Relay, event: str) -> float:
    """When the relay logged it, once."""
    (line,) = events(relay.server.log, event)
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def overloaded_nodes(relay: Relay) -> set[str]:
    nodes = json.loads(smtpmesh(relay, "nodes", "--json").stdout)["nodes"]
    return {node["name"] for node in nodes if node["overloaded"]}


def test_a_full_disk_costs_nothing_but_the_way_through_that_relay(folder: Path) -> None:
    cluster = Cluster(folder, relays=("A", "B"), hosts=HOSTS, settings=SETTINGS)
    full, other = cluster.relays["relay A"], cluster.relays["relay B"]
    with small_disk(full.data_dir), cluster:
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls)
        load = Submitter(cluster.submission_targets(), rate_mps=40, thread_count=6)
        load.start()
        wait_until(lambda: load.counts().accepted >= 40, 20, "mail flows")

        fill(full.data_dir / "ballast")
        wait_until(lambda: not is_serving(full.admin), 10, "relay A says that it serves no clients")
        shown = room(full)
        assert (shown["headroom_permille"], shown["overloaded"]) == (0, True)
        assert "free on the disk" in shown["reason"] or "no space left" in shown["reason"], shown
        assert "takes no mail" in smtpmesh(full, "status").stdout
        wait_until(lambda: overloaded_nodes(other) == {"relay-a"}, 10, "relay B knows")
        begun = load.counts().accepted
        wait_until(lambda: load.counts().accepted >= begun + 60, 20, "clients find relay B")
        node_id = json.loads(smtpmesh(full, "status", "--json").stdout)["node_id"]
        assert calls.waiting("relay A") == 0  # what it had has left: its ends could be recorded
        assert full.server.alive

        (full.data_dir / "ballast").unlink()
        wait_until(lambda: is_serving(full.admin), 20, "relay A takes mail again")
        wait_until(lambda: overloaded_nodes(other) == set(), 10, "relay B knows")
        before = accepted(full)
        wait_until(lambda: accepted(full) > before, 20, "mail at relay A")
        drain(cluster, calls, load)
        ledger = account(cluster, load)
        assert ledger.balanced, to_text(ledger)
        assert ledger.doubled == ()
        began, ended = (stamp(full, event) for event in ("node.overloaded", "node.has_room"))
        attempts = read_attempts({"relay B": other.server.log})
        to_full = [attempt.began_at for attempt in attempts if attempt.hop == f"peer:{node_id}"]
        assert [at for at in to_full if began + HEARD_S < at < ended] == []
