"""A relay whose own way out is dead sends all through its peer, and one of them is killed: no transfer is doubled."""

import random
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan
from smtp_edge.demo.ledger import to_text
from smtp_edge.demo.submit import Submitter
from tests.e2e.scene import FULL, account, admin_calls, cut_off, drain, events, wait_members, wait_until

KILLS = 10 if FULL else 3
RATE_MPS = 60.0


@pytest.mark.parametrize("victim", ["relay A", "relay B"])
@pytest.mark.rfc("5321 6.1c")
def test_a_lost_answer_between_relays_never_doubles_a_message(folder: Path, victim: str) -> None:
    rng = random.Random(7)
    with Cluster(folder, relays=("A", "B"), hosts=(HostPlan("S", 200),)) as cluster:
        cut_off(cluster, "relay A")
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls)
        targets = {"relay A": cluster.submission_targets()["relay A"]}
        submitter = Submitter(targets, rate_mps=RATE_MPS)
        submitter.start()
        for _ in range(KILLS):
            goal = submitter.counts().accepted + int(RATE_MPS * rng.uniform(0.5, 1.5))
            wait_until(lambda goal=goal: submitter.counts().accepted >= goal, 30, f"{goal} messages accepted")
            cluster.kill(victim)
            cluster.restart(victim)
        drain(cluster, calls, submitter)
        ledger = account(cluster, submitter)
        print(to_text(ledger))
        assert ledger.balanced, to_text(ledger)
        assert ledger.doubled_in_mesh == 0
        attempts = events(cluster.relays["relay A"].server.log, "attempt")
        accepted = [line for line in attempts if line["outcome"] == "accepted"]
        assert accepted
        assert all(line["next_hop"].startswith("peer:") for line in accepted)
