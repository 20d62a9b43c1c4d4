"""Settings of SMTP in: listeners, limits of sessions, access rules, where passwords are checked.

`[limits]` holds for every listener; a listener's own `limits = { ... }` replaces what it names and nothing else. 0
means "no limit" only where the field says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from smtp_edge.setting_kinds import Domain, Name, Network, Pattern, Section

MIB = 1024 * 1024
PerMinute = Annotated[int, Field(ge=0, le=10_000_000)]
"""Events in a minute, in bursts of as many; 0 = no limit."""


class LimitsSettings(Section):
    """[limits]: how far a session and a client may go."""

    command_line_bytes_max: Annotated[int, Field(ge=512, le=65536)] = 4096
    """512 of RFC 5321 and what the extensions add."""
    mail_line_bytes_max: Annotated[int, Field(ge=0, le=16 * MIB)] = 0
    """Of a line of mail data with its CRLF; longer ones are refused, never folded. 0 = any length passes unchanged."""
    header_bytes_max: Annotated[int, Field(ge=1024, le=16 * MIB)] = 256 * 1024
    header_fields_max: Annotated[int, Field(ge=10, le=1_000_000)] = 2000
    hops_max: Annotated[int, Field(ge=5, le=500)] = 50
    """Received fields at which a message counts as looping."""
    bad_commands_max: Annotated[int, Field(ge=1, le=1000)] = 20
    """Refused commands in a session."""
    idle_commands_max: Annotated[int, Field(ge=5, le=100_000)] = 100
    """Commands without a message between them: NOOP, RSET, EHLO, VRFY, HELP, AUTH, MAIL without mail data."""
    refused_recipients_max: Annotated[int, Field(ge=1, le=100_000)] = 100
    """In a session; who guesses addresses is sent away."""
    messages_per_session_max: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Transactions in a session, told as MAILMAX (RFC 9422). 0 = no limit."""
    session_s_max: Annotated[float, Field(ge=0, le=7 * 86400)] = 7200
    """Between two transactions the session is ended after this. 0 = no limit."""
    greeting_delay_s: Annotated[float, Field(ge=0, le=60)] = 0
    """Before the greeting; with strict pipelining who talks meanwhile is sent away, as robots do."""
    data_bytes_per_s_min: Annotated[int, Field(ge=0, le=MIB)] = 100
    """Mail data that arrives more slowly, on average over `data_window_s`, ends the session. 0 = no limit."""
    data_window_s: Annotated[float, Field(gt=0, le=3600)] = 60
    handshakes_max: Annotated[int, Field(ge=1, le=10_000)] = 200
    """TLS handshakes under way at once, with implicit TLS; further callers wait in the kernel's backlog."""
    handshake_timeout_s: Annotated[float, Field(gt=0, le=300)] = 30
    proxy_timeout_s: Annotated[float, Field(gt=0, le=60)] = 5
    """For the PROXY header of a client in proxy_networks."""
    client_prefix_v4: Annotated[int, Field(ge=8, le=32)] = 32
    client_prefix_v6: Annotated[int, Field(ge=16, le=128)] = 64
    """Addresses that share a prefix of so many bits count as one client."""
    connections_per_minute: PerMinute = 0
    messages_per_minute: PerMinute = 0
    recipients_per_minute: PerMinute = 0
    handshakes_per_minute: PerMinute = 0
    """Of one client. STARTTLS and implicit TLS."""
    exempt_networks: tuple[Network, ...] = ()
    """Clients for whom the numbers per minute and connections_per_client_max do not hold."""
    auth_failures_per_session_max: Annotated[int, Field(ge=1, le=100)] = 3
    auth_failures_per_client: Annotated[int, Field(ge=0, le=100_000)] = 30
    """Wrong passwords from one client within an hour; then passwords are not looked at. 0 = no limit."""
    auth_failures_per_user: Annotated[int, Field(ge=0, le=100_000)] = 100
    """Wrong passwords for one user within an hour, from clients where he has not been of late. 0 = no limit."""
    buffer_bytes_max: Annotated[int, Field(ge=MIB, le=1024 * 1024 * MIB)] = 256 * MIB
    """Of all sessions of the node together, for what is arriving. Near it MAIL is answered 452."""

    def overridden_by(self, own: LimitsSettings | None) -> LimitsSettings:
        """These limits with what a listener says itself."""
        if own is None:
            return self
        return self.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


class ListenerSettings(Section):
    """[[listener]]: where clients submit or other servers deliver."""

    name: Name = "smtp"
    listen: str = "127.0.0.1:2525"
    tls: Literal["none", "starttls", "implicit"] = "none"
    tls_required: bool = False
    """With starttls: no mail before it."""
    certificate: Path | None = None
    key: Path | None = None
    allow_networks: tuple[Network, ...] = ()
    """Clients that may relay anywhere without authentication. Empty = none."""
    relay_domains: tuple[Domain, ...] = ()
    """Destinations accepted from anybody (`*.example.org` matches below it)."""
    auth_users: Path | None = None
    """File of `user:hash` lines (`smtpmesh hash-password`); AUTH is offered under TLS only."""
    auth: str = ""
    """Name of an [[auth]], instead of auth_users."""
    auth_required: bool = False
    """No mail without AUTH, also from allow_networks: for submission."""
    senders: Path | None = None
    """File of `user: address, @domain` lines: which reverse-paths a user may use. Absent = any."""
    proxy_networks: tuple[Network, ...] = ()
    """Load balancers: their connections begin with a PROXY header (v1 or v2), those of others must not."""
    size_bytes_max: Annotated[int, Field(ge=1024, le=1024**4)] = 50 * MIB
    recipients_max: Annotated[int, Field(ge=1, le=50_000)] = 1000
    connections_max: Annotated[int, Field(ge=1)] = 1000
    connections_per_client_max: Annotated[int, Field(ge=1)] = 100
    idle_timeout_s: Annotated[float, Field(gt=0)] = 300
    bare_newlines: Literal["refuse", "normalise"] = "refuse"
    pipelining: Literal["strict", "lenient"] = "strict"
    """`strict` ends the session of a client that talks out of turn: behind EHLO, DATA, AUTH, before the greeting."""
    limits: LimitsSettings | None = None


class AuthSettings(Section):
    """[[auth]]: where passwords are checked."""

    name: Name
    use: str
    """`file`, `dovecot`, an entry point of the group smtpmesh.auth, or module:Class."""
    path: Path | None = None
    """The users file, or Dovecot's socket; handed to the constructor as `path`."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10
    """For one answer; then the client is told to come again (454)."""
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    """The constructor's other arguments."""


class AccessSettings(Section):
    """[[access]]: a rule; all that it names must fit, and the first rule that fits decides."""

    listener: tuple[Name, ...] = ()
    client: tuple[Network, ...] = ()
    helo: tuple[Pattern, ...] = ()
    user: tuple[Pattern, ...] = ()
    """Names of authenticated users; "*" = any of them."""
    sender: tuple[Pattern, ...] = ()
    """Addresses, domains, patterns; "<>" = the null reverse-path."""
    recipient: tuple[Pattern, ...] = ()
    action: Literal["permit", "reject", "defer"]
    code: Annotated[int, Field(ge=400, le=599)] | None = None
    """550 for reject and 450 for defer if absent."""
    status: Annotated[str, Field(pattern=r"^([45]\.\d{1,3}\.\d{1,3})?$")] = ""
    """Enhanced status code; 5.7.1 or 4.7.1 if absent."""
    text: Annotated[str, Field(pattern=r"^[ -~]{0,200}$")] = ""
    """For the client: one line of ASCII."""
