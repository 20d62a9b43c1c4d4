"""A relay is killed, and an operator sees it everywhere: in `nodes`, `monitor`, `gossip stats` and the metrics."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from smtp_edge.demo.cluster import SOURCE_ROOT, Cluster, HostPlan, Relay
from tests.e2e.scene import admin_calls, wait_members, wait_until

METRICS = '[metrics]\nlisten = "127.0.0.1:0"\n'
ENVIRONMENT = dict(os.environ, PYTHONPATH=f"{SOURCE_ROOT}{os.pathsep}{SOURCE_ROOT / 'proto'}")
WAIT_S = 30.0


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder, hosts=(HostPlan("S"),), settings=METRICS) as cluster:
        cluster.start()
        wait_members(cluster, admin_calls(cluster))
        yield cluster


def command(relay: Relay, *words: str) -> list[str]:
    return [sys.executable, "-m", "smtp_edge.cli", *words, "--admin", relay.admin]


def ask(relay: Relay, *words: str) -> str:
    done = subprocess.run(
        command(relay, *words), env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def member(relay: Relay, name: str) -> dict[str, Any]:
    """One row of `nodes --json`."""
    nodes: list[dict[str, Any]] = json.loads(ask(relay, "nodes", "--json"))["nodes"]
    return next(node for node in nodes if node["name"] == name)


def sources(node: dict[str, Any]) -> list[str]:
    return sorted(source["name"] for source in node["sources"])


def scrape(relay: Relay) -> dict[str, float]:
    """Every metric, by its name with labels as they stand in the text."""
    listeners = json.loads(ask(relay, "status", "--json"))["listeners"]
    address = next(line.split()[1] for line in listeners if line.startswith("metrics "))
    with build_opener(ProxyHandler({})).open(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        f"{found.name}{sorted(found.labels.values())}": found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
    }


@dataclass
class Monitor:
    """A `smtpmesh monitor` in a process of its own."""

    process: subprocess.Popen[bytes]
    out: Path
    errors: Path

    def shows(self, *words: str) -> bool:
        """Some line has all these words."""
        return any(all(word in line for word in words) for line in self.out.read_text().splitlines())

    def end(self) -> tuple[int, str]:
        """Exit code, and the last of what it said on standard error."""
        return self.process.wait(WAIT_S), (self.errors.read_text().splitlines() or [""])[-1]


@contextmanager
def monitoring(relay: Relay, folder: Path, name: str, *words: str) -> Iterator[Monitor]:
    """A monitor that sees everything from here on."""
    out, errors = folder / f"{name}.out", folder / f"{name}.err"
    with out.open("wb") as stdout, errors.open("wb") as stderr:
        process = subprocess.Popen(command(relay, "monitor", *words), env=ENVIRONMENT, stdout=stdout, stderr=stderr)
    try:
        wait_until(lambda: "watching" in errors.read_text(), WAIT_S, f"the monitor {name} watches")
        yield Monitor(process, out, errors)
    finally:
        process.kill()
        process.wait()


def test_a_killed_relay_is_seen_in_nodes_monitor_stats_and_metrics(cluster: Cluster, folder: Path) -> None:
    relay = cluster.relays["relay A"]
    before = member(relay, "relay-c")
    assert (before["state"], before["session"]) == ("up", True)
    wait_until(
        lambda: all("relay-c" in sources(member(relay, name)) for name in ("relay-a", "relay-b")),
        WAIT_S,
        "relay C has told that it has sessions with both",
    )
    with monitoring(relay, folder, "all") as everything, monitoring(relay, folder, "some", "--json", "--kind",
                                                                    "node-unreachable") as some:  # fmt: skip
        cluster.kill("relay C")
        wait_until(lambda: sources(member(relay, "relay-c")) == ["relay-a", "relay-b"], WAIT_S, "both say so")
        gone = member(relay, "relay-c")
        assert (gone["state"], gone["session"]) == ("unreachable", False)
        assert gone["reason"]
        assert {"in_sync", "lag_s", "round_trip_s"}.isdisjoint(gone)
        row = next(line for line in ask(relay, "nodes").splitlines() if line.startswith("relay-c "))
        assert "unreachable" in row
        assert row.endswith("relay-a, relay-b")
        wait_until(lambda: everything.shows("session-down", "relay-c"), WAIT_S, "the lost session")
        wait_until(lambda: everything.shows("node-unreachable", "relay-c"), WAIT_S, "the lost relay")
        wait_until(lambda: some.shows(gone["node_id"]), WAIT_S, "the lost relay as JSON")
        for monitor in (everything, some):
            monitor.process.send_signal(signal.SIGINT)
            assert monitor.end() == (0, "watching relay-a; Ctrl-C ends")
        told = [json.loads(line) for line in some.out.read_text().splitlines()]
        assert {(event["kind"], event["node"]["name"]) for event in told} == {("node-unreachable", "relay-c")}

    stats = json.loads(ask(relay, "gossip", "stats", "--json"))
    assert (stats["members"], stats["unreachable"], stats["sessions"]) == (3, 1, 1)
    assert "members      3, 1 of them unreachable" in ask(relay, "gossip", "stats")
    metrics = scrape(relay)
    assert metrics["smtpmesh_gossip_members['unreachable']"] == 1
    assert metrics["smtpmesh_gossip_members['up']"] == 1
    assert metrics["smtpmesh_gossip_events_total['node-unreachable']"] >= 1
    assert metrics["smtpmesh_next_hop_up['host:s', 's']"] in (0, 1)
    assert metrics["smtpmesh_queue_stored_bytes[]"] == 0


def test_a_monitor_says_when_its_node_is_killed_and_when_it_stops(cluster: Cluster, folder: Path) -> None:
    killed, stopped = cluster.relays["relay A"], cluster.relays["relay B"]
    with monitoring(killed, folder, "killed") as first, monitoring(stopped, folder, "stopped") as second:
        cluster.kill("relay A")
        assert first.end() == (
            3,
            f"smtpmesh: {killed.admin} is gone: the node was killed, or the connection broke",
        )
        stopped.server.stop()
        assert second.end() == (3, "smtpmesh: the node has stopped")


def test_a_monitor_that_comes_later_is_shown_what_was(cluster: Cluster, folder: Path) -> None:
    relay = cluster.relays["relay A"]
    with monitoring(relay, folder, "late", "--recent", "256", "--kind", "session-up") as late:
        wait_until(lambda: late.shows("relay-b") and late.shows("relay-c"), WAIT_S, "the sessions of the start")
