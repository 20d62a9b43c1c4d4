"""The mesh's router has no private door: a sink with a static table, bound before it, routes all mail of a node."""

from __future__ import annotations

import json
import smtplib
import subprocess
import sys
from pathlib import Path

from smtp_edge.demo.cluster import Cluster
from tests.e2e.keeper import Keeper
from tests.e2e.scene import admin_calls, wait_until

SINK = """\
[[sink]]
use = "tests.e2e.mesh_sinks:Table"
priority = 0
with = { table = { "one.test" = "one", "two.test" = "two", "gone.test" = "gone", "sue.test" = "one" } }
"""


def test_a_table_of_twelve_lines_takes_the_place_of_the_router(folder: Path) -> None:
    with Keeper() as one, Keeper() as two:
        external = {"one": one.port, "two": two.port}
        with Cluster(folder / "mesh", relays=("A",), hosts=(), external=external, settings=SINK) as cluster:
            cluster.start()
            calls = admin_calls(cluster)
            relay = cluster.relays["relay A"]
            with smtplib.SMTP(*relay.smtp, timeout=20) as client:
                for number in range(20):
                    for domain in ("one.test", "two.test"):
                        client.sendmail("sue@sue.test", [f"a{number}@{domain}"], f"Subject: {number}\r\n\r\n")
                client.sendmail("sue@sue.test", ["a@gone.test"], "Subject: gone\r\n\r\n")
                client.sendmail("sue@sue.test", ["a@waits.test"], "Subject: waits\r\n\r\n")
            wait_until(lambda: len(two.messages) == 20 and len(one.messages) == 21, 30, "all mail by the table")
            assert {address.rpartition("@")[2] for message in two.messages for address in message.recipients} == {
                "two.test"
            }
            (report,) = [message for message in one.messages if not message.sender]
            assert b"that domain is gone" in report.data
            assert b"Status: 5.1.2" in report.data
            wait_until(lambda: calls.waiting("relay A") == 1, 10, "one that waits")
            command = [sys.executable, "-m", "smtp_edge.cli", "queue", "list", "--json", "--config", str(relay.config)]
            (left,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["deliveries"]
            assert left["attempts"] == 0, "what is unreachable for now counts no attempt"
