"""Postfix submits to a relay and Postfix is its smart host: bodies arrive byte-equal, with a correct Received chain.

smtplib -> Postfix (client) -> relay A -> Postfix (smart host) -> a server that writes down digests
"""

import base64
import contextlib
import os
import random
import re
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan, find_port
from smtp_edge.demo.ledger import to_text
from smtp_edge.demo.smart_host import ID_HEADER
from smtp_edge.demo.submit import Submitter
from tests.e2e.postfix import Postfix, missing
from tests.e2e.scene import FULL, account, records, wait_until

MESSAGE_COUNT = int(os.environ.get("SMTPMESH_E2E_MESSAGES", "1000" if FULL else "60"))
SIZE_BYTES_MIN, SIZE_BYTES_MAX = 1024, 10 * 1024 * 1024
LARGE_EVERY = 1 if FULL else 20
"""In the short form one message in so many may be larger than 256 KiB."""
TIMEOUT_S = 1800.0 if FULL else 120.0

RECEIVED = re.compile(
    r"^from (?P<helo>\S+) \((?P<client>.+)\) by (?P<by>\S+)(?: \([^)]*\))? with (?P<protocol>E?SMTPS?A?) "
    r"id (?P<id>[0-9A-Za-z]+)(?: for <[^>]+>)?; \w{3}, [ \d]?\d \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}(?: \(\w+\))?$"
)


def message_of_mixed_size(message_id: str) -> bytes:
    """Sizes spread evenly over their logarithm, 8-bit text, dots, blanks at line ends, empty lines."""
    rng = random.Random(message_id)
    number = int(message_id.rpartition("-")[2])
    top = SIZE_BYTES_MAX if number % LARGE_EVERY == 0 else 256 * 1024
    size = SIZE_BYTES_MAX if number == LARGE_EVERY else int(SIZE_BYTES_MIN * (top / SIZE_BYTES_MIN) ** rng.random())
    header = f"{ID_HEADER}: {message_id}\r\nFrom: <client@demo.test>\r\nTo: <reader@example.test>\r\n"
    header += f"Subject: {message_id}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    header += "Content-Transfer-Encoding: 8bit\r\n\r\n"
    oddities = ".\r\n..\r\n.dot\r\n\r\nGrüße, 中文, \u00a0\r\nblanks at the end  \t\r\n"
    filling = base64.encodebytes(rng.randbytes(max(0, size - 200) * 3 // 4)).replace(b"\n", b"\r\n")
    return header.encode() + oddities.encode() + filling


@pytest.mark.peer("postfix")
@pytest.mark.skipif(bool(missing()), reason=missing() or "postfix")
def test_mail_of_all_sizes_passes_between_two_postfixes_byte_equal(folder: Path) -> None:
    exit_port = find_port(set())
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Cluster(folder / "s", relays=(), hosts=(HostPlan("S"),)))
        sink.start()
        smart_host = Postfix(
            folder / "exit", hostname="exit.postfix.test", port=exit_port, relay_port=sink.hosts["smart host S"].port
        )
        stack.enter_context(smart_host)
        cluster = stack.enter_context(Cluster(folder / "c", relays=("A",), hosts=(), external={"postfix": exit_port}))
        cluster.start()
        _, relay_port = cluster.relays["relay A"].smtp
        client = Postfix(folder / "client", hostname="client.postfix.test", relay_port=relay_port)
        stack.enter_context(client)

        submitter = Submitter(
            {"client": ("127.0.0.1", client.port)},
            rate_mps=1000,
            thread_count=3,
            count_max=MESSAGE_COUNT,
            message=message_of_mixed_size,
        )
        submitter.start()
        assert submitter.join(TIMEOUT_S)
        ledger_file = sink.hosts["smart host S"].ledger
        wait_until(lambda: count_lines(ledger_file) >= MESSAGE_COUNT, TIMEOUT_S, f"{MESSAGE_COUNT} messages at the end")

        ledger = account(sink, submitter)
        assert ledger.balanced, to_text(ledger)
        assert (ledger.accepted, ledger.delivered, ledger.doubled) == (MESSAGE_COUNT, MESSAGE_COUNT, ())
        assert max(record["size_bytes"] for record in records(ledger_file)) > SIZE_BYTES_MAX
        for record in records(ledger_file):
            assert_received_chain(record["received"])


def count_lines(path: Path) -> int:
    """Complete lines of a file."""
    return path.read_bytes().count(b"\n")


def assert_received_chain(received: list[str]) -> None:
    """Newest first: each server names itself, and the one before it as it introduced itself (RFC 5321 section 4.4)."""
    fields = [RECEIVED.match(value) for value in received]
    assert all(fields), received
    found = [field for field in fields if field]
    assert [field["by"] for field in found] == ["exit.postfix.test", "relay-a.demo.test", "client.postfix.test"]
    assert [field["helo"] for field in found] == ["relay-a.demo.test", "client.postfix.test", "client.demo.test"]
    ours = found[1]
    assert "127.0.0.1" in ours["client"]
    assert ours["protocol"] == "ESMTP"
