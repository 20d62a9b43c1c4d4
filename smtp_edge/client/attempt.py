"""Values of an outbound attempt: where it goes and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from router.decision import Hop, OutcomeKind
from smtp_edge.envelope import Envelope, MailData, Recipient, Transfer
from smtp_edge.reply import Reply


@dataclass(frozen=True, slots=True)
class Target:
    """How to reach a next hop. For an MX hop `host` is the domain and the client resolves it."""

    hop: Hop
    host: str
    port: int
    tls: Literal["none", "opportunistic", "encrypted", "starttls", "dane", "implicit", "mesh"] = "opportunistic"
    """`mesh`: implicit TLS with the cluster's certificates; the certificate must name `hop.name` as node id.

    For an MX hop the `[[tls]]` table counts instead."""
    protocol: Literal["smtp", "lmtp"] = "smtp"
    socket: Path | None = None
    """A Unix socket instead of host and port."""
    sink: str = ""
    """Name of a binding on `deliver` instead of all that."""
    tls_ca: Path | None = None
    user: str = ""
    password_file: Path | None = None
    connections_max: int = 20
    messages_per_connection_max: int = 1000


@dataclass(frozen=True, slots=True)
class Job:
    """One delivery to be attempted on one target."""

    queue_id: str
    envelope: Envelope
    """With just the recipients of this delivery."""
    data: MailData
    prefix: bytes = b""
    """Trace fields to send before the mail data, CRLF-terminated, dot-stuffed."""
    transfer: Transfer | None = None
    """Sent to peers only."""


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """How an attempt ended. A value, never an exception: refusals and lost connections are the world, not bugs."""

    kind: OutcomeKind
    """For the whole attempt; ACCEPTED if at least one recipient was."""
    replies: tuple[Reply | None, ...] = ()
    """One for each recipient, in order: the RCPT reply if that was negative, else the final reply; None = no answer.

    LMTP has a final reply for each recipient."""
    reply: Reply | None = None
    """The reply that ended the attempt, if one came."""
    reason: str = ""
    """For people: error or reply text, with the stage (`connect`, `EHLO`, `MAIL`, ...)."""
    latency_s: float = 0.0
    """MAIL to final reply."""
    remote: str = ""
    """`host[address]:port` that was used."""
    tls: str = ""
    """`TLSv1.3 TLS_AES_256_GCM_SHA384 verified`: version, cipher, and how the certificate was checked, if it was."""
    new_connection: bool = False
    peer_backlogs: dict[str, int] = field(default_factory=dict)
    """Class -> stored messages, from the acknowledgement of a peer."""
    left_out: tuple[int, ...] = ()
    """Recipients (by index) that the remote's limits left for another transaction."""
    takes_reports: bool = False
    """The hop offers DSN: from its 250 on it is the one that reports."""
    delivered: bool = False
    """Acceptance was final delivery (LMTP)."""
    own_reply: bool = False
    """`reply` and `replies` are our own words: no remote has said them."""
    held: tuple[tuple[Recipient, str], ...] = ()
    """Recipients whose mail waits for an operator from now on, and why."""
    unable: bool = False
    """Nothing was sent: this hop does not offer what the message needs. Another one may."""
