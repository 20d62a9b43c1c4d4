"""What a listener's sessions offer and how far they go, and what they ask of others. Values and protocols.

A session keeps the options that it began with: a reload makes new ones for the sessions that begin after it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from smtp_edge.auth.senders import SenderMap
from smtp_edge.envelope import Client, ReceivedMessage, Recipient
from smtp_edge.reply import Reply
from smtp_edge.server.access import AccessRules
from smtp_edge.server.crowd import Event
from smtp_edge.server.intake import IntakeOptions, SpoolWriter
from smtp_edge.server.pace import PaceLimits
from smtp_edge.settings_inbound import LimitsSettings
from smtp_edge.sinks.chain import SinkChain


class Acceptor(Protocol):
    """Who takes over responsibility for mail (`smtp_edge.acceptor.QueueAcceptor`)."""

    def admit(self, size_bytes: int) -> Reply | None:
        """At MAIL: None to go on, else a 452 or 421."""
        ...

    def check_recipient(self, client: Client, recipient: Recipient, size_bytes: int = 0) -> Reply | None:
        """At RCPT, after the relay policy. `size_bytes`: as MAIL declared it, 0 = not."""
        ...

    async def accept(self, message: ReceivedMessage) -> Reply:
        """After the end of the mail data; 250 only when durable."""
        ...

    def spool(self) -> SpoolWriter:
        """A new spool file."""
        ...


class Permits(Protocol):
    """The relay policy."""

    def permits(self, client: Client, recipient: Recipient) -> Reply | None:
        """None, or the refusal."""
        ...


class Login(Protocol):
    """Who checks passwords, with what bounds guessing (`smtp_edge.server.login.Passwords`)."""

    async def check(self, user: str, password: str, client: Client) -> tuple[Reply, str]:
        """The reply (235, 535, 454), and the user's name if it is 235."""
        ...


def no_rate(_event: Event, _address: str) -> Reply | None:
    """Nobody comes too often."""
    return None


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """See the module."""

    listener: str
    hostname: str
    policy: Permits
    intake: IntakeOptions
    limits: LimitsSettings
    recipients_max: int
    pace: PaceLimits
    access: AccessRules = field(default_factory=AccessRules)
    starttls: ssl.SSLContext | None = None
    tls_required: bool = False
    login: Login | None = None
    auth_required: bool = False
    senders: SenderMap | None = None
    pipelining: Literal["strict", "lenient"] = "strict"
    mesh: bool = False
    """Peers only: `XSMTPMESH`, and `peer_of` names the peer or refuses the connection."""
    peer_of: Callable[[bytes], str] | None = None
    sinks: SinkChain | None = None
    """Who is asked before each 250 and answers commands; None = nobody. With `mesh`, peers' commands alone."""
    too_often: Callable[[Event, str], Reply | None] = no_rate
    """Counts something that a client did; the refusal if it does so too often."""
