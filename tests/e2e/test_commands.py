"""Commands that sinks answer, said by real software: Postfix forwards with XFORWARD, swaks speaks XCLIENT, ETRN flushes
exactly the domain that was asked for."""

from __future__ import annotations

import contextlib
import shutil
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan
from smtp_edge.demo.watch import AdminCalls
from tests.e2e import postfix
from tests.e2e.keeper import Keeper
from tests.e2e.postfix import Postfix
from tests.e2e.scene import admin_calls, wait_until

SINKS = """\
[[sink]]
use = "xclient"
with = { networks = ["127.0.0.0/8"] }
[[sink]]
use = "etrn"
with = { allow = { "127.0.0.0/8" = ["one.test", "*.one.test"] }, pause_s = 0 }
[queue]
retry_first_s = 300
"""


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with Keeper() as keeper:
        yield keeper


@pytest.fixture
def cluster(folder: Path, keeper: Keeper) -> Iterator[Cluster]:
    external = {"keeper": keeper.port}
    with Cluster(folder / "c", relays=("A",), hosts=(), external=external, settings=SINKS) as cluster:
        cluster.start()
        yield cluster


@pytest.mark.peer("postfix")
@pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing() or "postfix is there")
def test_postfix_forwards_its_client_by_xforward(folder: Path, cluster: Cluster, keeper: Keeper) -> None:
    port = cluster.relays["relay A"].ports["smtp"]
    more = "smtp_send_xforward_command = yes\n"
    with Postfix(folder / "postfix", hostname="filter.test", relay_port=port, more=more) as front:
        with smtplib.SMTP("127.0.0.1", front.port, local_hostname="origin.test", timeout=20) as client:
            client.sendmail("sue@example.test", ["ann@elsewhere.test"], "Subject: forwarded\r\n\r\nhello\r\n")
        wait_until(lambda: keeper.messages, 30, "the message")
    data = keeper.messages[0].data
    field = data[: data.index(b"Received:", 10)]
    assert b"(forwarded for origin.test " in field
    assert b"[127.0.0.1]" in field
    assert b"from filter.test " in field


@pytest.mark.peer("swaks")
@pytest.mark.skipif(shutil.which("swaks") is None, reason="needs swaks (apt-get install swaks)")
def test_swaks_is_another_client_by_xclient(cluster: Cluster, keeper: Keeper) -> None:
    host, port = cluster.relays["relay A"].smtp
    command = ["swaks", "--server", f"{host}:{port}", "--helo", "proxy.test", "--from", "sue@example.test"]
    command += ["--to", "ann@elsewhere.test", "--xclient-addr", "127.0.0.9", "--xclient-name", "far.test"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (
        "XCLIENT ADDR=127.0.0.9 NAME=far.test" in done.stdout or "XCLIENT NAME=far.test ADDR=127.0.0.9" in done.stdout
    )
    wait_until(lambda: keeper.messages, 30, "the message")
    assert b"(far.test [127.0.0.9])" in keeper.messages[0].data


@pytest.mark.rfc("1985 3a", "1985 5a", "1985 5b", "1985 5.1a", "1985 5.1b", "1985 5.1d", "1985 5.3a")
def test_etrn_flushes_exactly_that_domain(folder: Path) -> None:
    with Cluster(folder / "c", relays=("A",), hosts=(), external={"dead": 1}, settings=SINKS) as cluster:
        cluster.start()
        calls = admin_calls(cluster)
        with smtplib.SMTP(*cluster.relays["relay A"].smtp, timeout=20) as client:
            client.ehlo()
            assert client.esmtp_features["etrn"] == ""
            for name in ("one.test", "sub.one.test", "two.test"):
                client.sendmail("sue@example.test", [f"ann@{name}"], f"Subject: to {name}\r\n\r\nhello\r\n")
            wait_until(lambda: len(waiting(calls, "deferred")) == 3, 30, "all deferred")
            assert client.docmd("ETRN", "two.test")[0] == 459
            assert client.docmd("ETRN", "one.test") == (253, b"2.0.0 1 pending messages for one.test started")
            assert client.docmd("ETRN", "#queue")[0] == 459
            assert client.docmd("ETRN", "a b")[0] == 501
            assert client.mail("sue@example.test")[0] == 250
            assert client.docmd("ETRN", "one.test")[0] == 503
            assert client.rcpt("ann@one.test")[0] == 250
            assert client.docmd("ETRN", "one.test")[0] == 503
            assert client.rset()[0] == 250
        events = {address: history(calls, queue_id) for address, queue_id in waiting(calls).items()}
        assert "retried" in events["ann@one.test"]
        assert "retried" not in events["ann@two.test"]
        assert "retried" not in events["ann@sub.one.test"]
        with smtplib.SMTP(*cluster.relays["relay A"].smtp, timeout=20) as client:
            client.ehlo()
            assert client.docmd("ETRN", "@two.test")[0] == 459
            assert client.docmd("ETRN", "@one.test")[0] == 253
        events = {address: history(calls, queue_id) for address, queue_id in waiting(calls).items()}
        assert "retried" in events["ann@sub.one.test"]
        assert "retried" not in events["ann@two.test"]


@pytest.mark.rfc("1985 3b", "1985 5.1b")
def test_etrn_has_mail_sent_in_a_session_of_ours(folder: Path) -> None:
    hosts = (HostPlan("S", greylist=("ann",)),)
    with Cluster(folder / "c", relays=("A",), hosts=hosts, settings=SINKS) as cluster:
        cluster.start()
        calls = admin_calls(cluster)
        with smtplib.SMTP(*cluster.relays["relay A"].smtp, timeout=20) as client:
            client.sendmail("sue@example.test", ["ann@one.test"], "Subject: to one.test\r\n\r\nhello\r\n")
            wait_until(lambda: len(waiting(calls, "deferred")) == 1, 30, "it is told to come back later")
            assert not cluster.arrivals()
            for _ in range(10):  # an ETRN may come while an attempt is under way; too many are no mail
                assert client.docmd("ETRN", "one.test")[0] in (250, 251, 253)
                with contextlib.suppress(AssertionError):
                    wait_until(cluster.arrivals, 3, "the mail")
                    break
            assert len(cluster.arrivals()) == 1, "five minutes early"
            assert client.noop() == (250, b"2.0.0 Ok"), "nothing but replies comes by the session that asked"


@pytest.mark.rfc("1985 5.1a")
def test_etrn_is_no_command_for_whom_it_is_not_meant(folder: Path) -> None:
    settings = SINKS.replace('"127.0.0.0/8" = ["one', '"192.0.2.0/24" = ["one')
    with Cluster(folder / "c", relays=("A",), hosts=(), external={"dead": 1}, settings=settings) as cluster:
        cluster.start()
        with smtplib.SMTP(*cluster.relays["relay A"].smtp, timeout=20) as client:
            client.ehlo()
            assert not client.has_extn("etrn")
            assert client.docmd("ETRN", "one.test")[0] == 502


def waiting(calls: AdminCalls, *states: str) -> dict[str, str]:
    """Recipient -> queue id."""
    answer = calls.call("relay A", "GetQueue", limit=10, states=states)
    return {item.recipients[0]: item.queue_id for item in answer.deliveries} if answer is not None else {}


def history(calls: AdminCalls, queue_id: str) -> list[str]:
    answer = calls.call("relay A", "GetMessage", queue_id=queue_id)
    assert answer is not None
    return [note.event for note in answer.history]
