"""A smart host refuses a recipient for good: the sender gets a report, and nobody does for a null reverse-path."""

import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan
from smtp_edge.demo.watch import AdminCalls
from tests.e2e.scene import admin_calls, events, records, wait_until

SENDER = "sender@example.test"


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder, relays=("A",), hosts=(HostPlan("S", refuse=("nobody",)),)) as cluster:
        cluster.start()
        yield cluster


def send(cluster: Cluster, sender: str, recipients: list[str], subject: str) -> None:
    with smtplib.SMTP(*cluster.relays["relay A"].smtp, timeout=20) as client:
        refused = client.sendmail(sender, recipients, f"Subject: {subject}\r\nFrom: x@example.test\r\n\r\ntext\r\n")
    assert refused == {}


def arrivals(cluster: Cluster) -> list[dict[str, Any]]:
    return records(cluster.hosts["smart host S"].ledger)


def empty(calls: AdminCalls) -> bool:
    return calls.waiting("relay A") == 0


@pytest.mark.rfc("5321 4.2.5")
def test_a_refused_recipient_is_reported_to_the_sender_and_the_other_gets_the_mail(cluster: Cluster) -> None:
    send(cluster, SENDER, ["nobody@example.test", "reader@example.test"], "for two")
    wait_until(lambda: len(arrivals(cluster)) >= 2, 30, "the mail and the report")
    calls = admin_calls(cluster)
    wait_until(lambda: empty(calls), 30, "an empty queue")
    mail, report = sorted(arrivals(cluster), key=lambda record: record["sender"] == "")
    assert (mail["recipients"], mail["subject"]) == (["reader@example.test"], "for two")
    assert (report["sender"], report["recipients"]) == ("", [SENDER])
    assert len(arrivals(cluster)) == 2


@pytest.mark.rfc("5321 4.5.5b")
def test_nobody_is_told_about_a_refused_message_with_a_null_reverse_path(cluster: Cluster) -> None:
    send(cluster, "", ["nobody@example.test"], "no answer please")
    log = cluster.relays["relay A"].server.log
    wait_until(lambda: any("5.1.1" in line["reply"] for line in events(log, "attempt")), 30, "the refusal")
    calls = admin_calls(cluster)
    wait_until(lambda: empty(calls), 30, "an empty queue")
    send(cluster, SENDER, ["reader@example.test"], "after it")
    wait_until(lambda: arrivals(cluster), 30, "the next mail")
    assert [record["subject"] for record in arrivals(cluster)] == ["after it"]
