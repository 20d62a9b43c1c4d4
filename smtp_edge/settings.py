"""The configuration of a node: one TOML file, checked as a whole.

Every field has its unit, bounds and default; the comments in `deploy/node.example.toml` say what is traded for what.
Paths are relative to the folder of the file. Secrets are named by file, never written here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from smtp_edge.setting_kinds import (
    LOCAL_NETWORKS,
    Domain,
    Host,
    Hostname,
    Name,
    Network,
    Port,
    Seconds,
    Section,
    Server,
    Tags,
    TlsWord,
    Word,
)
from smtp_edge.settings_inbound import AccessSettings, AuthSettings, LimitsSettings, ListenerSettings

WORKERS_MAX = 64


class NodeSettings(Section):
    """[node]"""

    name: Name
    hostname: Hostname = ""
    """Name in EHLO, Received and the 220 banner; the machine's own name when empty."""
    zone: Name = "default"
    tags: Tags = ()
    """What this relay is (a region, a provider), for the policies of routes on all nodes."""
    data_dir: Path = Path("data")
    workers: Annotated[int, Field(ge=1, le=WORKERS_MAX)] = 1
    """Processes that share the client listeners; each is a relay of its own (smtp_edge/workers.py)."""


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


class SmartHostSettings(Section):
    """[[smart_host]]: an exit. Nodes that use the same name mean the same host."""

    name: Name
    host: Host = ""
    """Name or address; or `socket`."""
    port: Port = 25
    socket: Path | None = None
    """A Unix socket instead of host and port."""
    sink: str = ""
    """Name of a [[sink]] on `deliver` instead: the mail ends here."""
    elsewhere: bool = False
    """An exit of other relays only, which routes here may name."""
    protocol: Literal["smtp", "lmtp"] = "smtp"
    tls: TlsWord = "opportunistic"
    """`encrypted` demands TLS with whatever certificate; `starttls` and `implicit` verify it by an authority, `dane` by
    TLSA records; `opportunistic` takes what is offered."""
    tls_ca: Path | None = None
    user: Word = ""
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
    """Smart hosts that promise less are outside; with `mx`, sessions with exchangers have it at least."""
    transit: bool = True
    """False: own exits only, never through other relays."""


class DnsSettings(Section):
    """[dns]"""

    servers: tuple[Server, ...] = ()
    """Addresses of resolvers, asked in order; empty = those of /etc/resolv.conf."""
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 5
    """For one question with all its repetitions."""
    trust_ad: bool = False
    """The resolvers validate DNSSEC, and nobody can change their answers on the way: DANE rests on it."""
    cache_max: Annotated[int, Field(ge=0, le=1_000_000)] = 10_000
    """Answers remembered, as long as they say."""


class MxSettings(Section):
    """[mx]: delivery to the exchangers of a domain (`via = ["mx"]`)."""

    port: Port = 25
    hosts_max: Annotated[int, Field(ge=1, le=100)] = 10
    """Exchangers tried in one attempt."""
    addresses_max: Annotated[int, Field(ge=1, le=100)] = 20
    """Addresses of all of them that are tried in one attempt."""
    family: Literal["any", "ipv4", "ipv6"] = "any"
    own_names: tuple[Host, ...] = ()
    """Names of this machine in MX records, besides node.hostname."""
    refuse_networks: tuple[Network, ...] = tuple(ip_network(network) for network in LOCAL_NETWORKS)
    """Addresses of exchangers that are never called."""
    connections_max: Annotated[int, Field(ge=1, le=1000)] = 20
    """To the exchangers of one domain."""
    messages_per_connection_max: Annotated[int, Field(ge=1)] = 100
    dane: bool = True
    """Use TLSA records where `dns.trust_ad` allows it."""


class TlsSettings(Section):
    """[[tls]]: what the sessions with exchangers of some domains must have at least; the first match wins."""

    domains: tuple[Domain, ...]
    """Domains of recipients."""
    level: Literal["none", "opportunistic", "encrypted", "verified", "dane"]
    """`verified`: by an authority, DANE or MTA-STS; `dane`: by TLSA records only."""
    names: tuple[Host, ...] = ()
    """Names of which the certificate must hold one (`*.example.org` allowed); empty = that of the exchanger."""
    ca: Path | None = None
    """PEM of the authority; absent = the system's."""


class OutboundSettings(Section):
    """[outbound]: all sessions with next hops outside of the mesh."""

    tls_version_min: Literal["1.2", "1.3"] = "1.2"
    tls_ciphers: str = ""
    """OpenSSL's list for TLS 1.2; empty = the library's own choice."""


class MtaStsSettings(Section):
    """[mta_sts]: policies of recipients' domains (RFC 8461)."""

    enabled: bool = True
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10
    """For fetching a policy; the first mail to a domain waits so long at most."""
    policies_max: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Domains remembered; beyond it those used least recently are forgotten."""
    port: Port = 443
    ca: Path | None = None
    """PEM of the authority that policy hosts are verified by; absent = the system's."""


class DsnSettings(Section):
    """[dsn]: delivery status notifications."""

    return_bytes_max: Annotated[int, Field(ge=0, le=16 * 1024 * 1024)] = 1024 * 1024
    """With RET=FULL, messages up to this size come back whole, of larger ones the header."""
    double_bounces_to: str = ""
    """Mailbox that gets reports which cannot be delivered to the sender; empty = they are logged and dropped."""


class QueueSettings(Section):
    """[queue]"""

    inline_bytes_max: Annotated[int, Field(ge=0, le=16 * 1024 * 1024)] = 100 * 1024
    """Larger mail data goes to spool files."""
    cut_through: bool = True
    """Mail that the next hop takes at once, while its client waits, is not written to disk (queue/cutthrough.py)."""
    lifetime_s: Annotated[float, Field(ge=60)] = 5 * 86400
    delay_notice_s: Seconds = 4 * 3600
    retry_first_s: Annotated[float, Field(gt=0)] = 10
    retry_factor: Annotated[float, Field(ge=1, le=10)] = 2
    retry_max_s: Annotated[float, Field(gt=0)] = 3600
    history_s: Seconds = 86400
    """Finished messages and transfer tokens are remembered this long."""
    history_max: Annotated[int, Field(ge=0)] = 1_000_000
    """And no more of them than this."""
    in_doubt_hold_s: Seconds = 30
    """After a lost final reply only the same next hop is tried for this long, if it comes back."""
    free_bytes_min: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """Below this free space on data_dir new mail is answered 452."""
    memory_bytes_max: Annotated[int, Field(ge=0)] = 0
    """Resident memory above which new mail is answered 452; 0 = nine tenths of what the machine or its group allows."""
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
    name: str = ""
    """Unique; empty = `use`, with a number if there are more of that."""
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
    limits: LimitsSettings = LimitsSettings()
    access: tuple[AccessSettings, ...] = ()
    auth: tuple[AuthSettings, ...] = ()
    smart_host: tuple[SmartHostSettings, ...] = ()
    route: tuple[RouteSettings, ...] = ()
    tls: tuple[TlsSettings, ...] = ()
    queue: QueueSettings = QueueSettings()
    dns: DnsSettings = DnsSettings()
    mx: MxSettings = MxSettings()
    outbound: OutboundSettings = OutboundSettings()
    mta_sts: MtaStsSettings = MtaStsSettings()
    dsn: DsnSettings = DsnSettings()
    router: RouterSection = RouterSection()
    admin: AdminSettings = AdminSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    sink: tuple[SinkSettings, ...] = ()


def sink_names(sections: Sequence[SinkSettings]) -> list[str]:
    """What the bindings are called: as they say, or as they use, numbered from the second on."""
    names: list[str] = []
    for section in sections:
        name = section.name or section.use
        if not section.name and name in names:
            name = next(f"{name}-{number}" for number in itertools.count(2) if f"{name}-{number}" not in names)
        names.append(name)
    return names
