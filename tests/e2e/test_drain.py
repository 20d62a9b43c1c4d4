"""A relay is drained under load: mail leaves with age, attempts and times, none is lost or doubled; then it is back."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from smtp_edge.demo.cluster import SOURCE_ROOT, Cluster, HostPlan, Relay, is_serving
from smtp_edge.demo.ledger import to_text
from smtp_edge.demo.submit import Submitter
from smtp_edge.demo.watch import AdminCalls
from tests.e2e.scene import account, admin_calls, drain, events, wait_members, wait_until

LATER = "later@example.test"
SETTINGS = "[queue]\nretry_first_s = 25\nretry_factor = 1\nretry_max_s = 25\n"
"""A greylisted message is due 19 to 25 s after it was refused: long after the drain, and before the test gives up."""
CLOCKS_S = 2.0


def smtpmesh(relay: Relay, *words: str, timeout_s: float = 60, config: bool = True) -> subprocess.CompletedProcess[str]:
    """The command, as an operator runs it on the relay's machine."""
    command = [sys.executable, "-m", "smtp_edge.cli", *words, *(["--config", str(relay.config)] if config else [])]
    return subprocess.run(command, cwd=SOURCE_ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)


def deferred(relay: Relay) -> dict[str, dict[str, Any]]:
    """What waits for its next attempt, by the name that the mesh gave it."""
    answer = json.loads(smtpmesh(relay, "queue", "--state", "deferred", "--json").stdout)
    found = {}
    for item in answer["deliveries"]:
        shown = json.loads(smtpmesh(relay, "queue", "show", item["queue_id"], "--json").stdout)
        found[shown["origin"]] = item
    return found


def seconds_between(one: str, other: str) -> float:
    return abs((datetime.fromisoformat(one) - datetime.fromisoformat(other)).total_seconds())


def is_draining(relay: Relay) -> bool:
    done = smtpmesh(relay, "status", "--json")
    return done.returncode == 0 and "drain" in json.loads(done.stdout)["orders"]


def count_waiting(calls: AdminCalls, name: str) -> int:
    return calls.waiting(name) or 0


def test_drain_restart_undrain_loses_nothing_and_doubles_nothing(folder: Path) -> None:
    hosts = (HostPlan("A", 40, greylist=("later",)), HostPlan("B", 80, greylist=("later",)))
    with Cluster(folder, hosts=hosts, settings=SETTINGS) as cluster:
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls)
        leaving, others = cluster.relays["relay A"], [cluster.relays[name] for name in ("relay B", "relay C")]
        targets = cluster.submission_targets()
        grey = Submitter(
            {"relay A": targets["relay A"]}, rate_mps=50, count_max=8, prefix="grey", recipient=LATER, thread_count=2
        )
        grey.start()
        assert grey.join(20)
        wait_until(lambda: len(deferred(leaving)) == 8, 20, "8 greylisted messages deferred at relay A")
        before = deferred(leaving)
        load = Submitter(targets, rate_mps=40)
        load.start()
        wait_until(lambda: load.counts().accepted >= 40, 20, "mail flows")

        done = smtpmesh(leaving, "node", "drain", "--wait", "--timeout", "30s")
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1].endswith("drained: nothing waits, nothing is in doubt")
        assert count_waiting(calls, "relay A") == 0
        assert not is_serving(leaving.admin)
        after = {origin: item for relay in others for origin, item in deferred(relay).items()}
        assert set(after) == set(before)
        for origin, item in after.items():
            assert item["attempts"] == before[origin]["attempts"] == 1
            assert seconds_between(item["next_attempt_at"], before[origin]["next_attempt_at"]) <= CLOCKS_S
            assert seconds_between(item["received_at"], before[origin]["received_at"]) <= CLOCKS_S
        counted = load.counts().accepted
        wait_until(lambda: load.counts().accepted >= counted + 40, 20, "clients find the other relays")
        assert count_waiting(calls, "relay A") == 0

        leaving.server.stop()
        leaving.server.spawn()
        wait_until(lambda: is_draining(leaving), 20, "relay A is back, and still drains")
        assert not is_serving(leaving.admin)
        assert smtpmesh(leaving, "node", "undrain").returncode == 0
        wait_until(lambda: is_serving(leaving.admin), 10, "relay A takes mail")
        wait_members(cluster, calls)
        wait_until(lambda: (calls.call("relay A", "GetStatus").accepted or 0) > 0, 20, "relay A has mail again")

        drain(cluster, calls, load)
        ledger = account(cluster, load, grey)
        print(to_text(ledger))
        assert ledger.balanced, to_text(ledger)
        assert ledger.doubled == ()
        orders = [line["order"] for line in events(leaving.server.log, "order")]
        assert orders == ["drain", "undrain"]


def test_a_relay_that_is_killed_in_the_middle_of_its_drain_goes_on_with_it(folder: Path) -> None:
    hosts = (HostPlan("A", 25, greylist=("later",)), HostPlan("B", 25, greylist=("later",)))
    with Cluster(folder, hosts=hosts, settings=SETTINGS) as cluster:
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls)
        leaving, target = cluster.relays["relay A"], {"relay A": cluster.submission_targets()["relay A"]}
        grey = Submitter(target, rate_mps=50, count_max=10, prefix="grey", recipient=LATER, thread_count=2)
        load = Submitter(target, rate_mps=400, count_max=400, thread_count=16)
        for submitter in (grey, load):
            submitter.start()
            assert submitter.join(30)
        assert count_waiting(calls, "relay A") > 100
        assert smtpmesh(leaving, "node", "drain").returncode == 0
        wait_until(lambda: count_waiting(calls, "relay B") + count_waiting(calls, "relay C") > 20, 10, "mail moves")
        left = count_waiting(calls, "relay A")
        cluster.kill("relay A")
        assert left > 0
        leaving.server.spawn()
        wait_until(lambda: is_draining(leaving), 20, "relay A is back, and still drains")
        done = smtpmesh(leaving, "node", "drain", "--wait", "--timeout", "40s")
        assert done.returncode == 0, done.stdout + done.stderr
        drain(cluster, calls, load)
        ledger = account(cluster, load, grey)
        print(to_text(ledger))
        assert ledger.balanced, to_text(ledger)
        assert ledger.doubled_in_mesh == 0
