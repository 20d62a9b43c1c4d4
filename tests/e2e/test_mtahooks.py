"""A relay asks an HTTP service, a process of its own, at every stage; and what that being away means to a client.

smtplib -> relay A ──POST──> hook;  ──SMTP──> keeper
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import SOURCE_ROOT, find_port
from tests.e2e.one_relay import POLICIES, check_policy, one_relay, send, wait_kept
from tests.e2e.scene import records, wait_until

SINK = """
[[sink]]
use = "mtahooks"
timeout = "2s"
on_failure = "{policy}"
with = {{ url = "http://127.0.0.1:{port}/hook", stages = [{stages}] }}
"""
ALL = ("connect", "ehlo", "mail", "rcpt", "data")


class Hook:
    """The process, on a port that stays its own."""

    def __init__(self, folder: Path) -> None:
        self.port, self.ledger = find_port(set()), folder / "ledger"
        self.start()

    def start(self, mode: str = "well") -> None:
        words = [sys.executable, "-m", "tests.e2e.hook", str(self.port), str(self.ledger), mode]
        self.process = subprocess.Popen(words, cwd=SOURCE_ROOT)
        wait_until(self._listens, 30, "the hook")

    def _listens(self) -> bool:
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def settings(self, policy: str, *stages: str) -> str:
        return SINK.format(policy=policy, port=self.port, stages=", ".join(f'"{stage}"' for stage in stages))


@contextlib.contextmanager
def hook(folder: Path) -> Iterator[Hook]:
    running = Hook(folder)
    try:
        yield running
    finally:
        running.kill()


def mail(subject: str, body: bytes = b"hello\r\n.dot\r\n") -> bytes:
    return f"Subject: {subject}\r\n\r\n".encode() + body


def test_a_hook_is_asked_at_every_stage_and_its_answers_count(folder: Path) -> None:
    with hook(folder) as service, one_relay(folder / "c", service.settings("tempfail", *ALL)) as (relay, keeper):
        assert send(relay, mail("fine"))[0] == 250
        assert send(relay, mail("spam")) == (554, "5.7.1 no spam")
        assert send(relay, mail("fine"), "nobody") == (550, "5.1.1 nobody here")
        large = b"y" * 78 + (b"\r\n" + b"y" * 78) * 20_000 + b"\r\n"
        assert send(relay, mail("large", large))[0] == 250
        kept = wait_kept(keeper, 2)
        assert [line["stage"] for line in records(service.ledger)][:5] == ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"]
        assert [one.data.count(b"X-Checked: yes\r\n") for one in kept] == [1, 1]
        assert all(sorted(one.recipients) == ["ann@demo.test", "bob@demo.test"] for one in kept)
        assert kept[1].body == large


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stage", ["rcpt", "data"])
def test_a_hook_that_is_stopped_down_or_mad_means_what_the_binding_says(folder: Path, policy: str, stage: str) -> None:
    with hook(folder) as service, one_relay(folder / "c", service.settings(policy, stage)) as (relay, keeper):
        service.process.send_signal(signal.SIGSTOP)
        replies = [send(relay, mail("while it is stopped"))]
        service.process.send_signal(signal.SIGCONT)
        service.kill()
        replies.append(send(relay, mail("while it is down")))
        service.start("mad")
        replies.append(send(relay, mail("while it is mad")))
        service.kill()
        service.start()
        assert send(relay, mail("when it is well"))[0] == 250
        check_policy(relay, keeper, policy, replies, well=1)
        assert sum(b"X-Checked" in kept.data for kept in keeper.messages) == (1 if stage == "data" else 0)
