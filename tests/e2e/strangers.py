"""Callers who do not belong to a cluster: without a certificate, or with one of another authority."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from gossip.identity import Authority

TIMEOUT_S = 5.0


def call(port: int, *, authority: Authority | None = None, protocol: str = "h2") -> bytes:
    """One TLS connection; what the other side said before it closed. `authority` issues the caller's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    if authority is not None:
        _present(context, authority)
    heard = b""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT_S))
        wrapped = stack.enter_context(context.wrap_socket(plain))
        while chunk := wrapped.recv(4096):
            heard += chunk
    return heard


def _present(context: ssl.SSLContext, authority: Authority) -> None:
    certificate, key = authority.issue("stranger", at=datetime.now(UTC))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stranger.pem"
        path.write_bytes(certificate + key)
        context.load_cert_chain(path)
