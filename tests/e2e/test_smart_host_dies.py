"""A smart host is killed under load: mail goes elsewhere within a second, nothing is lost, and it is used again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from smtp_edge.demo.cluster import Cluster, HostPlan
from smtp_edge.demo.ledger import to_text
from smtp_edge.demo.submit import Submitter
from smtp_edge.demo.watch import DownWatch, measure_reroute, read_attempts
from tests.e2e.scene import account, admin_calls, drain, wait_members, wait_until

HOSTS = (HostPlan("A", 60), HostPlan("B", 60))
REROUTE_S = 1.0
SEEN_S = 1.5
"""The table is polled every 50 ms on busy cores: seeing it takes a little longer than it being so."""


def test_mail_leaves_a_killed_smart_host_within_a_second_and_returns_later(folder: Path) -> None:
    with Cluster(folder, hosts=HOSTS) as cluster:
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls)
        submitter = Submitter(cluster.submission_targets(), rate_mps=40, thread_count=6)
        submitter.start()
        wait_until(lambda: {"smart host A", "smart host B"} <= {a.host for a in cluster.arrivals()}, 20, "both in use")

        simulated = simulate_from_live(cluster)
        assert min(simulated["shares"].values()) > 0.2, simulated
        assert simulated["lost"] == 0, simulated

        watch = DownWatch(calls, cluster.relays, "host:b")
        watch.start()
        killed_at = cluster.kill("smart host B")
        watch.finish(10)
        reroute = measure_reroute("smart host B", "host:b", killed_at, watch.seen_at, read_attempts(cluster.logs()))

        cluster.restart("smart host B")
        back_at = cluster.kills[-1].back_at or 0.0
        wait_until(
            lambda: any(a.host == "smart host B" and a.at > back_at for a in cluster.arrivals()), 20, "used again"
        )
        drain(cluster, calls, submitter)
        ledger = account(cluster, submitter)
        assert ledger.balanced, to_text(ledger)
        assert ledger.accepted == ledger.submitted
        assert reroute.everywhere_s is not None, reroute
        assert reroute.everywhere_s <= SEEN_S, reroute
        assert (reroute.last_use_s or 0.0) <= REROUTE_S, reroute


def simulate_from_live(cluster: Cluster) -> dict[str, Any]:
    """Ten virtual seconds of the running cluster."""
    address = next(iter(cluster.relays.values())).admin
    words = [sys.executable, "-m", "smtp_edge.cli", "simulate", "--from-live", address, "--duration", "10", "--json"]
    found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 0, found.stderr
    assert "3 relays, 2 hosts" in found.stderr
    answer: dict[str, Any] = json.loads(found.stdout)
    return answer
