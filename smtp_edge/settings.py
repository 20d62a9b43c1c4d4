"""The configuration of a node: one TOML file, checked as a whole.

Every field has its unit, bounds and default; the comments in `deploy/node.example.toml` say what is traded for what.
Paths are relative to the folder of the file. Secrets are named by file, never written here.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gossip.linkstate import TAG_PATTERN, TAGS_MAX

_DOMAIN = re.compile(r"(?:\*|(?:\*\.)?[^\s@*.:/,]+(?:\.[^\s@*.:/,]+)*|\[[0-9A-Fa-f.:IPv]+\])")
_TAG = re.compile(TAG_PATTERN)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


def parse_network(given: object) -> IPv4Network | IPv6Network:
    """A network as `192.0.2.0/24` or `2001:db8::/32`, or one address. ValueError says what else it may have meant."""
    try:
        return ip_network(str(given))
    except ValueError:
        pass
    try:
        meant = ip_network(str(given), strict=False)
    except ValueError:
        raise ValueError(f"{given!r} is no network; write it like 192.0.2.0/24 or 2001:db8::/32") from None
    raise ValueError(f"{given!r} is an address in a network; did you mean {meant}?")


def parse_domain(given: str) -> str:
    """A domain in lower case, `*.example.org`, or `*`. ValueError."""
    if not _DOMAIN.fullmatch(given):
        raise ValueError(f"{given!r} is no domain; write example.org, *.example.org for all below it, or *")
    return given.lower()


def parse_host(given: str) -> str:
    """A host name or address without port. ValueError."""
    if not given or re.search(r"[\s/@]", given):
        raise ValueError(f"{given!r} is no host name or address")
    if given.count(":") == 1 or given.startswith("["):
        raise ValueError(f"{given!r}: the port has a key of its own, and addresses stand without brackets")
    return given


def parse_tag(given: str) -> str:
    """A tag. ValueError."""
    if not _TAG.fullmatch(given):
        raise ValueError(f"{given!r} is no tag; write up to 32 of a-z 0-9 . _ - beginning with a letter or digit")
    return given


Seconds = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(parse_network)]
Domain = Annotated[str, AfterValidator(parse_domain)]
Tags = Annotated[tuple[Annotated[str, AfterValidator(parse_tag)], ...], Field(max_length=TAGS_MAX)]
Host = Annotated[str, AfterValidator(parse_host)]


class Section(BaseModel):
    """A table of the file: frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NodeSettings(Section):
    """[node]"""

    name: Name
    hostname: str = ""
    """Name in EHLO, Received and the 220 banner; the machine's own name when empty."""
    zone: Name = "default"
    tags: Tags = ()
    """What this relay is (a region, a provider), for the policies of routes on all nodes."""
    data_dir: Path = Path("data")


class ClusterSettings(Section):
    """[cluster]: who belongs to it."""

    ca: Path = Path("ca.crt")
    certificate: Path = Path("node.crt")
    key: Path = Path("node.key")
    revocations: Path | None = None
    """Folder of `*.revoked` files (`smtpmesh revoke`); `revocations` beside the ca file if absent."""

    @property
    def revocations_folder(self) -> Path:
        """Where revocations are read, whether or not there is such a folder."""
        return self.revocations if self.revocations is not None else self.ca.parent / "revocations"


class GossipSection(Section):
    """[gossip]"""

    listen: str = "127.0.0.1:7946"
    advertise: str = ""
    join: tuple[str, ...] = ()


class MeshSection(Section):
    """[mesh]: SMTP between peers, implicit TLS, cluster certificates only."""

    listen: str = "127.0.0.1:7925"
    advertise: str = ""
    transit: bool = True


class ListenerSettings(Section):
    """[[listener]]: where clients submit or other servers deliver."""

    name: Name = "smtp"
    listen: str = "127.0.0.1:2525"
    tls: Literal["none", "starttls", "implicit"] = "none"
    certificate: Path | None = None
    key: Path | None = None
    allow_networks: tuple[Network, ...] = ()
    """Clients that may relay anywhere without authentication. Empty = none."""
    relay_domains: tuple[Domain, ...] = ()
    """Destinations accepted from anybody (`*.example.org` matches below it)."""
    auth_users: Path | None = None
    """File of `user:hash` lines (`smtpmesh hash-password`); AUTH is offered under TLS only."""
    size_bytes_max: Annotated[int, Field(ge=1024)] = 50 * 1024 * 1024
    recipients_max: Annotated[int, Field(ge=1, le=50_000)] = 1000
    connections_max: Annotated[int, Field(ge=1)] = 1000
    connections_per_client_max: Annotated[int, Field(ge=1)] = 100
    idle_timeout_s: Annotated[float, Field(gt=0)] = 300
    bare_newlines: Literal["refuse", "normalise"] = "refuse"


class SmartHostSettings(Section):
    """[[smart_host]]: an exit. Nodes that use the same name mean the same host."""

    name: Name
    host: Host
    port: Annotated[int, Field(ge=1, le=65535)] = 25
    tls: Literal["none", "opportunistic", "starttls", "implicit"] = "opportunistic"
    """`starttls` and `implicit` verify the certificate; `opportunistic` takes what is offered."""
    tls_ca: Path | None = None
    user: str = ""
    password_file: Path | None = None
    cost: Annotated[int, Field(ge=0, le=1000)] = 0
    tags: Tags = ()
    size_bytes_max: Annotated[int, Field(ge=0)] = 0
    """Larger messages never go there; 0 = any, else at least 65536."""
    reserve: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of its capacity that planning leaves alone."""
    connections_max: Annotated[int, Field(ge=1, le=1000)] = 20
    messages_per_connection_max: Annotated[int, Field(ge=1)] = 1000


class RouteSettings(Section):
    """[[route]]: which exits serve which destinations; the first match wins."""

    name: Name = "default"
    domains: tuple[Domain, ...] = ("*",)
    via: tuple[str, ...]
    """Smart-host names, or the one word `mx`."""
    require_tags: Tags = ()
    """An exit or relay that lacks one is outside: mail neither leaves by it nor passes through it."""
    forbid_tags: Tags = ()
    tls_min: Literal["none", "encrypted", "verified"] = "none"
    transit: bool = True
    """False: own exits only, never through other relays."""


class QueueSettings(Section):
    """[queue]"""

    inline_bytes_max: Annotated[int, Field(ge=0, le=16 * 1024 * 1024)] = 100 * 1024
    """Larger mail data goes to spool files."""
    lifetime_s: Annotated[float, Field(ge=60)] = 5 * 86400
    delay_notice_s: Seconds = 4 * 3600
    retry_first_s: Annotated[float, Field(gt=0)] = 10
    retry_factor: Annotated[float, Field(ge=1, le=10)] = 2
    retry_max_s: Annotated[float, Field(gt=0)] = 3600
    history_s: Seconds = 86400
    """Finished messages and transfer tokens are remembered this long."""
    in_doubt_hold_s: Seconds = 30
    """After a lost final reply only the same next hop is tried for this long, if it comes back."""
    free_bytes_min: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Below this free space on data_dir new mail is answered 452."""
    entries_max: Annotated[int, Field(ge=1)] = 1_000_000
    active_max: Annotated[int, Field(ge=1)] = 2000
    """Deliveries claimed at once; the rest wait on disk."""
    attempt_timeout_s: Annotated[float, Field(gt=0)] = 300
    connect_timeout_s: Annotated[float, Field(gt=0)] = 10


class RouterSection(Section):
    """[router]: see router/settings.py for what each constant does."""

    beta_messages: Annotated[float, Field(ge=0)] = 12
    window_max: Annotated[int, Field(ge=1, le=1000)] = 20
    probe_interval_s: Annotated[float, Field(gt=0)] = 60


class AdminSettings(Section):
    """[admin]"""

    listen: str = "unix:admin.sock"
    """`unix:PATH`, or host:port; anything but loopback demands a cluster certificate from the caller."""
    advertise: str = ""
    """host:port under which other nodes' operators reach it; empty: as it listens, if that is no wildcard."""
    operators: tuple[str, ...] = ()
    """Names or node ids of certificates that may order changes over the network; others may only look."""


class MetricsSettings(Section):
    """[metrics]"""

    listen: str = ""
    """host:port of an HTTP server for Prometheus; empty = none. It asks nobody who he is: loopback, or a closed net."""


class LogSettings(Section):
    """[log]"""

    format: Literal["json", "console"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class SinkSettings(Section):
    """[[sink]]: a binding."""

    use: str
    rule: str = ""
    priority: Annotated[int, Field(ge=0, le=32767)] = 24575
    timeout: str = ""
    on_failure: Literal["tempfail", "accept", "quarantine"] = "tempfail"
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")


class Settings(Section):
    """The whole file."""

    node: NodeSettings
    cluster: ClusterSettings = ClusterSettings()
    gossip: GossipSection = GossipSection()
    mesh: MeshSection = MeshSection()
    listener: tuple[ListenerSettings, ...] = (ListenerSettings(),)
    smart_host: tuple[SmartHostSettings, ...] = ()
    route: tuple[RouteSettings, ...] = ()
    queue: QueueSettings = QueueSettings()
    router: RouterSection = RouterSection()
    admin: AdminSettings = AdminSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    sink: tuple[SinkSettings, ...] = ()
