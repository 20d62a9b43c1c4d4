"""The signer: a `data` sink that adds a DKIM-Signature (RFC 6376, RFC 8463), with RSA or Ed25519 as the key has it.

    [[sink]]
    use = "dkim"
    priority = 32767
    rule = "listener=submission"
    with = { domain = "example.org", selector = "mesh", key = "/etc/smtpmesh/dkim.pem" }

Signed is mail whose From is of the domain or of one below it; other mail is left alone. The body is hashed as it
streams by. From, Subject, Date and the other fields of `SIGNED` are signed as often as they are there, and once more,
so that none can be added. It has to be the last sink at `data`: what another changed after it would break the
signature.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterable, Callable, Sequence
from email.utils import getaddresses
from pathlib import Path

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from smtp_edge.sinks.api import Message, Sink
from smtp_edge.sinks.fields import Field

log = structlog.get_logger()

SIGNED = (
    *("from", "sender", "reply-to", "subject", "date", "message-id", "to", "cc", "mime-version", "content-type"),
    *("content-transfer-encoding", "in-reply-to", "references", "list-id", "list-unsubscribe", "list-unsubscribe-post"),
)
"""RFC 6376 section 5.4.1, without what relays change on the way."""
RSA_BITS_MIN = 1024
LINE_MAX = 72
NAME = "DKIM-Signature"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)*")
_BLANKS = re.compile(rb"[ \t]+")


class DKIM(Sink):
    """See the module. ValueError for settings that mean nothing, OSError for a key that cannot be read."""

    signs = True

    def __init__(self, domain: str, selector: str, key: str, now: Callable[[], float] = time.time) -> None:
        for name, value in (("domain", domain), ("selector", selector)):
            if not _NAME.fullmatch(value):
                raise ValueError(f"{name} = {value!r} is no name in the DNS")
        self._domain, self._selector, self._now = domain.lower(), selector, now
        self._algorithm, self._sign = load_key(Path(key))

    async def data(self, message: Message) -> None:
        """Add the signature."""
        author = find_domain(message.headers.all("from"))
        if author != self._domain and not author.endswith(f".{self._domain}"):
            return
        body_hash = await hash_body(message.body())
        chosen = choose_fields(message.fields)
        value = "; ".join(
            (
                f"v=1; a={self._algorithm}; c=relaxed/relaxed; d={self._domain}; s={self._selector}",
                f"t={int(self._now())}",
                f"h={':'.join(name for name, _ in chosen)}",
                f"bh={base64.b64encode(body_hash).decode()}",
                "b=",
            )
        )
        value = fold(value)
        signed = b"".join(canonical_field(field) for _, field in chosen if field is not None)
        signed += canonical_field(Field(f"{NAME}: {value}\r\n".encode())).removesuffix(b"\r\n")
        signature = base64.b64encode(await asyncio.to_thread(self._sign, signed)).decode()
        message.add_header(NAME, value + fold_tail(signature))


def load_key(path: Path) -> tuple[str, Callable[[bytes], bytes]]:
    """The algorithm's name, and what signs. ValueError, OSError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no private key without a password, in PEM: {error}") from None
    if isinstance(key, Ed25519PrivateKey):
        signer = key
        return "ed25519-sha256", lambda data: signer.sign(hashlib.sha256(data).digest())
    if isinstance(key, RSAPrivateKey):
        if key.key_size < RSA_BITS_MIN:
            raise ValueError(
                f"{path} has {key.key_size} bits; verifiers want {RSA_BITS_MIN} at least, and 2048 is usual"
            )
        rsa = key
        return "rsa-sha256", lambda data: rsa.sign(data, PKCS1v15(), hashes.SHA256())
    raise ValueError(f"{path} is neither an RSA nor an Ed25519 key")


def find_domain(values: Sequence[str]) -> str:
    """Of the author's address, in lower case; empty if there is not exactly one From with one address."""
    addresses = getaddresses(values)
    if len(values) != 1 or len(addresses) != 1:
        return ""
    return addresses[0][1].rpartition("@")[2].lower().rstrip(".")


def choose_fields(fields: Sequence[Field]) -> list[tuple[str, Field | None]]:
    """What is signed: each field from the bottom up (section 5.4.2), then once more as missing."""
    chosen: list[tuple[str, Field | None]] = []
    for name in SIGNED:
        chosen += [(name, field) for field in reversed(fields) if field.is_named(name)]
        chosen.append((name, None))
    return chosen


def canonical_field(field: Field) -> bytes:
    """Section 3.4.2."""
    name, _, value = field.raw.partition(b":")
    value = _BLANKS.sub(b" ", value.replace(b"\r\n", b"")).strip(b" \t")
    return name.rstrip(b" \t").lower() + b":" + value + b"\r\n"


async def hash_body(chunks: AsyncIterable[bytes]) -> bytes:
    """SHA-256 of the body, canonical as section 3.4.4 has it; in constant memory but for one line."""
    digest, line, empty_count = hashlib.sha256(), bytearray(), 0

    def take(text: bytes) -> None:
        nonlocal empty_count
        text = _BLANKS.sub(b" ", text).rstrip(b" \t")
        if not text:
            empty_count += 1
            return
        digest.update(b"\r\n" * empty_count + text + b"\r\n")
        empty_count = 0

    async for chunk in chunks:
        line += chunk
        *whole, rest = bytes(line).split(b"\r\n")
        line = bytearray(rest)
        for text in whole:
            take(text)
    if line:
        take(bytes(line))
    return digest.digest()


def fold(value: str) -> str:
    """At blanks and colons, so that lines stay short."""
    lines: list[str] = []
    line, room = "", LINE_MAX - len(NAME)
    for word in re.split(r"(?<=[;:]) ?", value):
        if line and len(line) + len(word) > room:
            lines.append(line)
            line, room = "", LINE_MAX
        line += (" " if line and line.endswith(";") else "") + word
    return "\r\n ".join([*lines, line])


def fold_tail(signature: str) -> str:
    """The value of b=, on lines of its own."""
    return "".join(f"\r\n {signature[at : at + LINE_MAX]}" for at in range(0, len(signature), LINE_MAX))
