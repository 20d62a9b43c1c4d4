"""One mail transaction of the command `send`, and what it is about. Blocking."""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from pathlib import Path
from typing import Any

from smtp_edge.networks import from_here

TIMEOUT_S = 30.0
BODY = "This is a test message of `smtpmesh send`."
_LINE_END = re.compile(rb"\r?\n")
_QUEUED = re.compile(r"queued as (\S+)")


class DoorError(ValueError):
    """Nowhere to submit; `str()` says what to say instead."""


class SubmitError(Exception):
    """No transaction came about; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where to submit."""

    host: str
    port: int
    tls: str
    context: ssl.SSLContext | None


@dataclass(slots=True)
class Submission:
    """How a transaction went."""

    server: str
    message_id: str
    replies: list[tuple[str, int, str]] = field(default_factory=list)
    """Step or recipient, code, text."""
    queue_id: str = ""

    @property
    def code(self) -> int:
        """The worst reply: one for good before one for now."""
        codes = [code for _, code, _ in self.replies]
        return next((code for code in codes if code >= 500), next((code for code in codes if code >= 400), codes[-1]))


def submit(
    door: Door,
    sender: str,
    recipients: Sequence[str],
    content: bytes,
    message_id: str,
    login: tuple[str, str] | None,
) -> Submission:
    """One transaction. SubmitError if it did not come about."""
    try:
        return _submit(door, sender, recipients, content, message_id, login)
    except (OSError, smtplib.SMTPException) as error:
        raise SubmitError(f"{door.host}:{door.port}: {_explain(error)}") from error


def _submit(
    door: Door,
    sender: str,
    recipients: Sequence[str],
    content: bytes,
    message_id: str,
    login: tuple[str, str] | None,
) -> Submission:
    done = Submission(f"{door.host}:{door.port}", message_id)
    with _connect(door) as client:
        client.ehlo_or_helo_if_needed()
        if login is not None:
            client.login(*login)
        extended = ["SMTPUTF8"] if not "".join([sender, *recipients]).isascii() else []
        steps: list[tuple[str, int, bytes]] = [(f"MAIL FROM:<{sender}>", *client.mail(sender, extended))]
        if steps[0][1] < 400:
            steps += [(f"RCPT TO:<{recipient}>", *client.rcpt(recipient)) for recipient in recipients]
        if any(code < 400 for _, code, _ in steps[1:]):
            steps.append(("the final dot", *client.data(content)))
        done.replies = [(step, code, text.decode("utf-8", "replace")) for step, code, text in steps]
    match = _QUEUED.search(done.replies[-1][2])
    done.queue_id = match[1] if match is not None else ""
    return done


def _connect(door: Door) -> smtplib.SMTP:
    host = door.host.strip("[]")
    if door.tls == "implicit":
        return smtplib.SMTP_SSL(host, door.port, timeout=TIMEOUT_S, context=door.context)
    client = smtplib.SMTP(host, door.port, timeout=TIMEOUT_S)
    if door.tls == "starttls":
        client.starttls(context=door.context)
    return client


def find_door(settings: Any, server: str | None, tls: str | None) -> Door:
    """The server that is named, else the first listener of the settings. DoorError."""
    if server is not None:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise DoorError(f"{server!r} is not HOST:PORT")
        return Door(host, int(port), tls or "none", ssl.create_default_context())
    if not settings.listener:
        raise DoorError("the configuration has no [[listener]]; say --server HOST:PORT")
    listener = settings.listener[0]
    host, _, port = from_here(listener.listen).rpartition(":")
    return Door(host, int(port), tls or listener.tls, _trust(listener.certificate))


def _trust(certificate: Path | None) -> ssl.SSLContext | None:
    """Exactly the certificate that the node's own configuration names, whoever issued it and for what name."""
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def build_message(
    given: bytes, sender: str, recipients: Sequence[str], subject: str, size: int, hostname: str
) -> tuple[bytes, str]:
    """A message and its Message-ID."""
    if given:
        return _LINE_END.sub(b"\r\n", given), ""
    message = EmailMessage()
    message["From"] = sender or f"postmaster@{hostname}"
    message["To"] = ", ".join(recipients)
    message["Subject"] = subject
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = message_id = make_msgid(domain=hostname)
    message.set_content(BODY)
    content = message.as_bytes(policy=SMTP)
    while len(content) + 72 <= size:
        content += b"x" * 70 + b"\r\n"
    return content, message_id


def _explain(error: Exception) -> str:
    match error:
        case smtplib.SMTPAuthenticationError():
            return f"AUTH was refused: {error.smtp_code} {_text(error.smtp_error)}"
        case smtplib.SMTPResponseException():
            return f"{error.smtp_code} {_text(error.smtp_error)}"
        case ConnectionRefusedError():
            return "connection refused: is the node running, is this its listener?"
    return str(error)


def _text(said: bytes | str) -> str:
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else said
