"""The webhook: a `deliver` sink that hands each message to an HTTP endpoint, by POST.

    [[sink]]
    name = "tickets"
    use = "webhook"
    with = { url = "https://tickets.example.org/mail", secret_file = "/etc/smtpmesh/tickets.secret" }

    [[smart_host]]
    name = "tickets"
    sink = "tickets"
    connections_max = 4

    [[route]]
    domains = ["tickets.example.org"]
    via = ["tickets"]

There is one POST for each recipient, of multipart/form-data with two parts: `envelope`, a JSON object (`queue_id`,
`sender`, `recipient`, `received_at`, `attempts`, `client`), and `message`, the message as it is, as
message/rfc822, streamed from where it is stored. Its header says who sends it and that nobody changed it, as Standard
Webhooks has it:

    Idempotency-Key     the same for a message and a recipient, however often it comes: keep it, and do nothing twice
    Webhook-Id          the same
    Webhook-Timestamp   Unix seconds; refuse what is some minutes off, and nobody can send it again later
    Webhook-Signature   `v1,` and the HMAC-SHA256 in base64 of `ID.TIMESTAMP.BODY` with the secret

    answer                          means
    2yz                             delivered
    408, 425, 429, 5yz, redirect    451: later, and not before the time that Retry-After says (`RETRY_AFTER_MAX_S` at
    none within `timeout_s`,        most); then also without asking again. Redirects are not followed. Recipients behind
    no connection, nonsense         the one that failed so are not asked about in this attempt
    any other                       `refused = "quarantine"`: the message waits for an operator; `"bounce"`: 550

The endpoint has the backlog and the limits of its smart host: a stuck one slows nobody else. https is verified against
the authorities of the system, or those in `ca_file`; http is for loopback only. The secret is a file: what it holds, or
base64 behind `whsec_`. Proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Literal

import aiohttp
import structlog
from yarl import URL

from smtp_edge.applications.secret import load_secret
from smtp_edge.envelope import Recipient
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Delivery, Quarantine, Sink

log = structlog.get_logger()

ANSWER_BYTES_MAX = 4096
"""Of its body: a line of it goes into the log and to the operator."""
TEXT_MAX = 120
RETRY_AFTER_MAX_S = 3600.0
KEEPALIVE_S = 2.0
"""Shorter than servers have it: a POST into a connection that is being closed has no answer."""
NOT_NOW = frozenset({408, 425, 429})
DELIVERED = Reply(250, "delivered", "2.0.0")
UNANSWERED = Reply(451, "the endpoint does not answer", "4.4.1")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint said."""

    status: int
    text: str = ""
    """The first line of its body."""
    wait_s: float = 0.0
    """From Retry-After."""


class Webhook(Sink):
    """See the module. ValueError for settings that mean nothing, OSError for files that cannot be read."""

    def __init__(
        self,
        url: str,
        secret_file: str,
        refused: Literal["quarantine", "bounce"] = "quarantine",
        timeout_s: float = 30,
        ca_file: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        if refused not in ("quarantine", "bounce"):
            raise ValueError(f"refused = {refused!r} is neither quarantine nor bounce")
        if timeout_s <= 0:
            raise ValueError("timeout_s is a number of seconds above 0")
        self._url, self._secret = parse_url(url), load_secret(secret_file)
        self._tls = ssl.create_default_context(cafile=ca_file or None)
        self._refused, self._timeout_s, self._now = refused, timeout_s, now
        self._wait_until = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Nothing is connected yet."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )

    async def stop(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

    async def deliver(self, delivery: Delivery) -> Sequence[Reply | Quarantine]:
        """One POST for each recipient. MailDataLost."""
        answers: list[Reply | Quarantine] = []
        for recipient in delivery.envelope.recipients:
            answer = await self._deliver(delivery, recipient)
            answers.append(answer)
            if isinstance(answer, Reply) and answer.transient:
                break
        return answers + [answers[-1]] * (len(delivery.envelope.recipients) - len(answers))

    async def _deliver(self, delivery: Delivery, recipient: Recipient) -> Reply | Quarantine:
        loop = asyncio.get_running_loop()
        if (left_s := self._wait_until - loop.time()) > 0:
            return Reply(451, f"the endpoint wants to be asked again in {left_s:.0f} s", "4.3.2")
        try:
            answer = await self._post(delivery, recipient)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = (
                "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"[:200]
            )
            log.warning("webhook.unanswered", queue_id=delivery.queue_id, reason=reason)
            return UNANSWERED
        log.debug("webhook.answered", queue_id=delivery.queue_id, status=answer.status, text=answer.text)
        if answer.wait_s:
            self._wait_until = loop.time() + answer.wait_s
        return decide(answer, self._refused)

    async def _post(self, delivery: Delivery, recipient: Recipient) -> Answer:
        assert self._session is not None
        key, at = delivery.key_of(recipient), str(int(self._now()))
        key = key if key.isascii() and key.isprintable() else hashlib.sha256(key.encode()).hexdigest()
        boundary = secrets.token_hex(16)
        signing = hmac.new(self._secret, f"{key}.{at}.".encode(), hashlib.sha256)
        length = 0
        async for chunk in build_body(delivery, recipient, boundary):
            signing.update(chunk)
            length += len(chunk)
        header = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(length),
            "User-Agent": "smtpmesh",
            "Idempotency-Key": key,
            "Webhook-Id": key,
            "Webhook-Timestamp": at,
            "Webhook-Signature": "v1," + base64.b64encode(signing.digest()).decode(),
        }
        body = build_body(delivery, recipient, boundary)
        async with self._session.post(self._url, data=body, headers=header, allow_redirects=False) as answer:
            text = (await answer.content.read(ANSWER_BYTES_MAX)).decode("utf-8", "replace").partition("\n")[0]
            wait_s = parse_retry_after(answer.headers.get("Retry-After", ""), self._now())
            return Answer(answer.status, "".join(filter(str.isprintable, text))[:TEXT_MAX].strip(), wait_s)


def decide(answer: Answer, refused: str) -> Reply | Quarantine:
    """See the table of the module."""
    if 200 <= answer.status < 300:
        return DELIVERED
    if not 400 <= answer.status < 500 or answer.status in NOT_NOW:
        return Reply(451, f"the endpoint answered {answer.status}", "4.3.2")
    if refused == "bounce":
        return Reply(550, f"the endpoint answered {answer.status}", "5.7.1")
    return Quarantine(f"the endpoint answered {answer.status} {answer.text}".strip())


def parse_retry_after(text: str, now: float) -> float:
    """Seconds, of what RFC 9110 section 10.2.3 allows: seconds or a date; 0 for anything else."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return min(float(text[:10]), RETRY_AFTER_MAX_S)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(0.0, at.timestamp() - now), RETRY_AFTER_MAX_S)


async def build_body(delivery: Delivery, recipient: Recipient, boundary: str) -> AsyncIterator[bytes]:
    """The two parts (RFC 7578), the same bytes each time. MailDataLost."""
    envelope = {
        "queue_id": delivery.queue_id,
        "sender": delivery.envelope.sender,
        "recipient": recipient.address,
        "received_at": _timestamp(delivery.received_at),
        "attempts": delivery.attempts,
        "client": delivery.client,
    }
    yield (
        f'--{boundary}\r\nContent-Disposition: form-data; name="envelope"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(envelope)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="message"; filename="message.eml"\r\n'
        "Content-Type: message/rfc822\r\n\r\n"
    ).encode()
    async for chunk in delivery.content():
        if chunk:
            yield chunk
    yield f"\r\n--{boundary}--\r\n".encode()


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def parse_url(text: str) -> URL:
    """https, or http to this machine. ValueError."""
    try:
        url = URL(text)
    except ValueError as error:
        raise ValueError(f"url = {text!r} is no URL: {error}") from None
    if url.scheme not in ("https", "http") or not url.host or url.fragment:
        raise ValueError(f"url = {text!r} is no https://host/path")
    if url.user or url.password:
        raise ValueError("url holds a user or a password: what authenticates us is the signature")
    if url.scheme == "http" and not _is_loopback(url.host):
        raise ValueError(f"url: http is for loopback only, and {url.host} is not; write https")
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
