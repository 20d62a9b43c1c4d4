"""The envelope and mail data of a message, as values.

Mail data is kept dot-stuffed (RFC 5321 section 4.5.2), without the terminating dot line: what came by DATA goes out
again without a copy or a scan, what came by BDAT is stuffed on its way in. It ends in CRLF and holds no bare CR or LF,
but for `BodyType.BINARY_MIME`, which may hold anything and end anywhere. Dots are stuffed after CRLF and at the very
beginning, nowhere else, in binary data too: to undo it gives the bytes that were sent. Small data is inline bytes,
larger data a spool file.
"""

from __future__ import annotations

import base64
import enum
import hmac
from dataclasses import dataclass
from pathlib import Path

from smtp_edge.reply import Reply


class BodyType(enum.StrEnum):
    """BODY parameter of MAIL (RFC 6152, RFC 3030)."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT_MIME = "8BITMIME"
    BINARY_MIME = "BINARYMIME"
    """May hold NUL and bare CR or LF: goes on by BDAT only. Dot-stuffed after each CRLF like any other mail data."""


class Notify(enum.Flag):
    """NOTIFY parameter of RCPT (RFC 3461 section 4.1). The default, absent NOTIFY, is FAILURE | DELAY."""

    NEVER = 0
    SUCCESS = enum.auto()
    FAILURE = enum.auto()
    DELAY = enum.auto()
    STATED = enum.auto()
    """The client said the default in so many words, and a next hop must hear it again (RFC 3461 section 5.2.1)."""


NOTIFY_DEFAULT = Notify.FAILURE | Notify.DELAY
"""A constant, because combining flags costs more than a recipient may."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """A forward-path with its DSN parameters. `address` is the mailbox as given, without angle brackets."""

    address: str
    orcpt: str = ""
    notify: Notify = NOTIFY_DEFAULT

    @property
    def domain(self) -> str:
        """Lower-case domain; empty for a bare local part (`postmaster`)."""
        return self.address.rpartition("@")[2].lower() if "@" in self.address else ""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class MailData:
    """Dot-stuffed mail data; exactly one of `inline` and `path` is set."""

    size_bytes: int
    """Length on the wire (dot-stuffed), without the terminating dot line."""
    inline: bytes | None = None
    path: Path | None = None
    header: bytes = b""
    """The header block with its blank line, at most `HEADER_KEPT_MAX` bytes of it: for DSNs and loop counting."""


HEADER_KEPT_MAX = 64 * 1024


@dataclass(frozen=True, slots=True)
class Envelope:
    """MAIL and RCPT of one transaction. `sender` is the reverse-path, empty for the null reverse-path."""

    sender: str
    recipients: tuple[Recipient, ...]
    body_type: BodyType = BodyType.SEVEN_BIT
    smtputf8: bool = False
    envid: str = ""
    ret: str = ""
    """RET parameter: `FULL`, `HDRS` or empty."""
    requiretls: bool = False
    """REQUIRETLS (RFC 8689): only over verified TLS, to hops that promise the same."""
    verp: bool = False
    """Each recipient has a reverse-path of its own, made of `sender` (`own_sender`); kept to ourselves."""
    verp_key: str = ""
    """With it, and `verp`, that reverse-path has the recipient's tag instead of the address; a secret."""


LOCAL_PART_BYTES_MAX = 64
"""RFC 5321 section 4.5.3.1.1."""
TAG_BYTES = 10
"""Of a MAC; 16 characters."""


def own_sender(sender: str, recipient: str, key: str = "") -> str:
    """The reverse-path of one recipient (VERP): `local+user=domain@sender-domain`, or `local+TAG@...` with a key.

    `sender` itself where that would be no local part: too long, or of a user that has to be quoted.
    """
    local, _, domain = sender.rpartition("@")
    own = f"{local}+{verp_tag(key, recipient) if key else recipient.replace('@', '=')}"
    if len(own.encode("utf-8", "surrogateescape")) > LOCAL_PART_BYTES_MAX or '"' in own:
        return sender
    return f"{own}@{domain}"


def verp_tag(key: str, recipient: str) -> str:
    """16 letters and digits that stand for an address, whatever its case, and that nobody makes who has not the key."""
    mac = hmac.digest(key.encode(), recipient.lower().encode("utf-8", "surrogateescape"), "sha256")
    return base64.b32encode(mac[:TAG_BYTES]).decode().lower()


@dataclass(frozen=True, slots=True)
class Transfer:
    """What travels between peers beside the envelope (`XSMTPMESH`): identity, trace and age of a message.

    `token` names one (message, recipient set) for its whole life in the mesh: a relay that has stored it once answers a
    repeat with success and stores nothing, so a lost final reply never doubles a message between peers.
    """

    token: str
    """`ORIGIN_NODE_ID/QUEUE_ID/COPY`, printable ASCII without space, `=` or `+`."""
    trace: tuple[str, ...] = ()
    """Node ids visited, oldest first, the sender of this transfer last."""
    age_s: int = 0
    """Seconds since the first relay accepted the message: its lifetime does not start again at each hop."""
    attempts: int = 0
    """Attempts so far: the pauses between them go on growing where they were."""
    due_s: int = 0
    """Seconds until the next attempt; 0 = now. Only a relay that drains hands over what is not due."""
    delay_notified: bool = False
    """The sender was told of the delay."""


@dataclass(frozen=True, slots=True)
class Forwarded:
    """XFORWARD: the client of the server before a filter. Empty = unknown."""

    name: str = ""
    address: str = ""
    port: str = ""
    protocol: str = ""
    helo: str = ""
    ident: str = ""
    """Queue id there."""
    source: str = ""
    """LOCAL or REMOTE."""

    def __str__(self) -> str:
        """For the log and the Received field: `helo name [address] ident`, what there is of it."""
        address = f"[{self.address}]" if self.address else ""
        return " ".join(word for word in (self.helo, self.name, address, self.ident, self.source) if word)


NOT_FORWARDED = Forwarded()


@dataclass(frozen=True, slots=True)
class Client:
    """The other end of an inbound session."""

    address: str
    port: int = 0
    name: str = ""
    """Host name, where somebody trusted told it (XCLIENT)."""
    helo: str = ""
    protocol: str = "SMTP"
    """`with` word of the Received field (RFC 3848): SMTP, ESMTP, ESMTPS, ESMTPSA, UTF8SMTP..."""
    user: str = ""
    """Authenticated user, empty if none."""
    peer_id: str = ""
    """Node id of an authenticated peer, empty for anyone else."""
    listener: str = ""
    tls: str = ""
    """`TLSv1.3 TLS_AES_256_GCM_SHA384`, empty in the clear."""
    forwarded: Forwarded = NOT_FORWARDED
    """Whom a filter in front of us had as its client: for the log and the Received field of the next message."""


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A complete transaction, nothing durable yet: what a session hands to the acceptor."""

    client: Client
    envelope: Envelope
    data: MailData
    transfer: Transfer | None = None
    held: tuple[tuple[Recipient, str], ...] = ()
    """Recipients whose mail waits for an operator, and why: what sinks put into quarantine."""
    refused: tuple[tuple[Recipient, Reply], ...] = ()
    """Recipients who do not get it although the reply was 250: the sender, whom we know, gets a report."""
