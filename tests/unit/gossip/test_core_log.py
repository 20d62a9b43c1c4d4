"""What gRPC's core writes to descriptor 2: refused handshakes become events, the rest passes, chatter ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gossip.core_log import parse_refusal

REFUSED = (
    b"I0000 00:00:1.0 7 ssl_transport_security.cc:1884] Handshake failed with error SSL_ERROR_SSL: "
    b"error:0A000086:SSL routines::CERTIFICATE_VERIFY_FAILED: unable to get local issuer"
)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (REFUSED, "the caller's certificate is not of this cluster's authority"),
        (
            b"x] Handshake failed with error SSL_ERROR_SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE",
            "the caller showed no certificate",
        ),
        (b"x] Handshake failed with error 17", "17"),
        (b"E0000 something else failed", None),
        (b"", None),
    ],
)
def test_reasons_are_in_our_words(line: bytes, reason: str | None) -> None:
    assert parse_refusal(line) == reason


def test_the_pump_sorts_what_the_core_writes() -> None:
    """In a process of its own, because it takes over descriptor 2."""
    code = (
        "import os, time\n"
        "from gossip.core_log import install_core_log\n"
        "install_core_log()\n"
        f"os.write(2, {REFUSED!r} + b'\\n')\n"
        "os.write(2, b'I1124 03:03:16.8 1 chttp2_transport.cc:1403] Got goaway\\n')\n"
        "os.write(2, b'E1124 a real error\\n')\n"
        "time.sleep(0.5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    shown = done.stdout + done.stderr
    assert shown.count("gossip.handshake_refused") == 1
    assert "E1124 a real error" in shown
    assert "goaway" not in shown
