"""One relay with sinks, a server behind it that keeps what arrives, and the three things that a session can tell.

smtplib -> relay A (sinks) -> keeper
"""

from __future__ import annotations

import contextlib
import json
import smtplib
from collections.abc import Iterator
from pathlib import Path

from smtp_edge.demo.cluster import Cluster, Relay
from tests.e2e.keeper import Keeper, Kept
from tests.e2e.scene import wait_until
from tests.e2e.test_drain import smtpmesh

FAILED = (451, "4.3.0 local error in processing")
POLICIES = ("tempfail", "accept", "quarantine")


@contextlib.contextmanager
def one_relay(folder: Path, settings: str) -> Iterator[tuple[Relay, Keeper]]:
    """`settings`: TOML, as `[[sink]]`."""
    with Keeper() as keeper:
        cluster = Cluster(folder, relays=("A",), hosts=(), external={"k": keeper.port}, settings=settings)
        with cluster:
            cluster.start()
            yield cluster.relays["relay A"], keeper


def send(
    relay: Relay, content: bytes, *names: str, sender: str = "sender@demo.test", helo: str = "client.demo.test"
) -> tuple[int, str]:
    """The reply to the final dot, or the first refusal before it."""
    with smtplib.SMTP(*relay.smtp, local_hostname=helo, timeout=60) as client:
        client.ehlo()
        code, reply = client.mail(sender)
        if code != 250:
            return code, reply.decode()
        for name in names or ("ann",):
            code, reply = client.rcpt(f"{name}@demo.test")
            if code != 250:
                return code, reply.decode()
        code, reply = client.data(content)
        return code, reply.decode()


def wait_kept(keeper: Keeper, count: int) -> list[Kept]:
    """So many messages arrive."""
    wait_until(lambda: len(keeper.messages) >= count, 20, f"{count} messages")
    return list(keeper.messages)


def count_held(relay: Relay) -> int:
    """Deliveries that wait for an operator."""
    return len(json.loads(smtpmesh(relay, "queue", "--state", "held", "--json").stdout)["deliveries"])


def check_policy(relay: Relay, keeper: Keeper, policy: str, replies: list[tuple[int, str]], well: int = 0) -> None:
    """What was said while a sink could not do its work, and where that mail is; `well`: mail that it could."""
    if policy == "tempfail":
        assert replies == [FAILED] * len(replies)
    else:
        assert [code for code, _ in replies] == [250] * len(replies), replies
    arrived = well + (len(replies) if policy == "accept" else 0)
    assert len(wait_kept(keeper, arrived)) == arrived
    assert count_held(relay) == (len(replies) if policy == "quarantine" else 0)
