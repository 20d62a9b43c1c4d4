"""swaks submits what people send: attachments, 8-bit text, addresses in UTF-8. It arrives byte-equal in the body.

What swaks sent is read from its own transcript, so the comparison does not depend on us building the message.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan
from tests.e2e.scene import records, wait_until

pytestmark = [
    pytest.mark.peer("swaks"),
    pytest.mark.skipif(shutil.which("swaks") is None, reason="needs swaks (apt-get install swaks)"),
]


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder / "c", relays=("A",), hosts=(HostPlan("S"),)) as cluster:
        cluster.start()
        yield cluster


def swaks(cluster: Cluster, *arguments: str) -> tuple[str, str]:
    """Send one mail; its Message-Id and the digest of its body, as swaks sent them."""
    host, port = cluster.relays["relay A"].smtp
    command = ["swaks", "--server", f"{host}:{port}", "--helo", "swaks.test", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    sent = [line[4:].rstrip(b"\r") for line in done.stdout.split(b"\n") if line.startswith(b" -> ")]
    data = sent[sent.index(b"DATA") + 1 : sent.index(b".")]
    message_id = next(line.partition(b":")[2].strip() for line in data if line.lower().startswith(b"message-id:"))
    body = [line[1:] if line.startswith(b"..") else line for line in data[data.index(b"") + 1 :]]
    return message_id.decode(), hashlib.sha256(b"".join(line + b"\r\n" for line in body)).hexdigest()


def arrival(cluster: Cluster, message_id: str) -> dict[str, Any]:
    ledger = cluster.hosts["smart host S"].ledger

    def found() -> list[dict[str, Any]]:
        return [record for record in records(ledger) if record["id"] == message_id]

    wait_until(found, 20, f"{message_id} at the smart host")
    return found()[0]


def test_an_attachment_arrives_byte_equal(cluster: Cluster, folder: Path) -> None:
    attachment = folder / "photo.bin"
    attachment.write_bytes(bytes(range(256)) * 4000)
    message_id, digest = swaks(
        cluster,
        "--from",
        "a@example.test",
        "--to",
        "b@example.test",
        "--attach",
        f"@{attachment}",
        "--body",
        "see there",
    )
    record = arrival(cluster, message_id)
    assert record["body_sha256"] == digest
    assert record["size_bytes"] > attachment.stat().st_size


@pytest.mark.rfc("5321 4.5.2b", "6152 3a")
def test_eight_bit_text_with_dots_and_blanks_arrives_byte_equal(cluster: Cluster, folder: Path) -> None:
    text = folder / "body.txt"
    text.write_bytes("Grüße\n.dot\n..\n\nblanks  \nein Zeichen: \u20ac\n".encode())
    message_id, digest = swaks(
        cluster, "--from", "a@example.test> BODY=8BITMIME ENVID=<", "--to", "b@example.test", "--body", f"@{text}"
    )
    assert arrival(cluster, message_id)["body_sha256"] == digest


@pytest.mark.rfc("6531 3.3")
def test_addresses_in_utf8_keep_their_letters(cluster: Cluster) -> None:
    # swaks knows no SMTPUTF8; the text between the brackets goes out as it is given, and so carries the parameters.
    message_id, digest = swaks(
        cluster,
        *("--from", "jörg@exämple.test> SMTPUTF8 BODY=8BITMIME ENVID=<", "--to", "bücher@exämple.test"),
        *("--h-From", "jörg@exämple.test", "--h-Subject", "Grüße", "--body", "schöne Grüße"),
    )
    record = arrival(cluster, message_id)
    assert (record["sender"], record["recipients"]) == ("jörg@exämple.test", ["bücher@exämple.test"])
    assert (record["subject"], record["body_sha256"]) == ("Grüße", digest)
