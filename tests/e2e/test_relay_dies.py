"""Relays are killed at random moments under load: after their restart nothing that they accepted is missing."""

import os
import random
import time
from pathlib import Path

from smtp_edge.demo.cluster import Cluster, HostPlan
from smtp_edge.demo.ledger import to_text
from smtp_edge.demo.submit import Submitter
from tests.e2e.scene import FULL, account, admin_calls, drain, wait_members, wait_until

KILL_COUNT = int(os.environ.get("SMTPMESH_E2E_KILLS", "10" if FULL else "3"))
RATE_MPS = 50.0
HOSTS = (HostPlan("A", 30), HostPlan("B", 60))


def test_nothing_accepted_is_missing_after_kills_at_random_moments(folder: Path) -> None:
    seed = int(os.environ.get("SMTPMESH_E2E_SEED", time.time_ns() % 1_000_000))
    print(f"replay with SMTPMESH_E2E_SEED={seed}")
    rng = random.Random(seed)
    with Cluster(folder, hosts=HOSTS) as cluster:
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls)
        submitter = Submitter(cluster.submission_targets(), rate_mps=RATE_MPS)
        submitter.start()
        for _ in range(KILL_COUNT):
            wait_for_mail(submitter, RATE_MPS * rng.uniform(0.5, 2.5))
            victim = rng.choice(sorted(cluster.relays))
            cluster.kill(victim)
            wait_for_mail(submitter, RATE_MPS * rng.uniform(0.0, 1.0))
            cluster.restart(victim)
        wait_for_mail(submitter, RATE_MPS)
        drain(cluster, calls, submitter)
        ledger = account(cluster, submitter)
        print(to_text(ledger))
        assert ledger.balanced, f"seed {seed}\n{to_text(ledger)}"
        assert ledger.accepted >= RATE_MPS * KILL_COUNT / 2
        assert len(ledger.kills) == KILL_COUNT


def wait_for_mail(submitter: Submitter, count: float) -> None:
    """Wait until so many more messages were accepted: random moments in the life of the mail, not of the clock."""
    goal = submitter.counts().accepted + int(count)
    wait_until(lambda: submitter.counts().accepted >= goal, 30, f"{goal} messages accepted")
