"""Listeners: from the configuration to doors, with certificates, users and rules.

`Listener` is for clients and other mail servers; `MeshListener` is the peers' door: implicit TLS, cluster certificates
on both sides, nothing else gets as far as a greeting.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from gossip.identity import Identity, IdentityError
from smtp_edge.auth.api import Authenticator, AuthError
from smtp_edge.auth.backends import load_for
from smtp_edge.auth.guard import Guard
from smtp_edge.auth.senders import SenderMap
from smtp_edge.envelope import Client, Recipient
from smtp_edge.networks import ClientKeys, Networks
from smtp_edge.reply import Reply
from smtp_edge.server.access import compile_rules
from smtp_edge.server.door import MESH, Door, DoorOptions
from smtp_edge.server.intake import IntakeOptions
from smtp_edge.server.listening import ListenerError
from smtp_edge.server.login import Passwords
from smtp_edge.server.options import Acceptor, SessionOptions
from smtp_edge.server.pace import PaceLimits
from smtp_edge.server.pressure import Memory
from smtp_edge.server.relay import RelayPolicy
from smtp_edge.settings_inbound import AccessSettings, LimitsSettings, ListenerSettings
from smtp_edge.sinks.chain import SinkChain

AUTH_TIMEOUT_S = 10.0
MESH_CONNECTIONS_MAX = 2000
MESH_RECIPIENTS_MAX = 50_000
MESH_LIMITS = LimitsSettings(
    command_line_bytes_max=16384,
    header_bytes_max=16 * 1024 * 1024,
    header_fields_max=1_000_000,
    hops_max=500,
    bad_commands_max=1000,
    idle_commands_max=100_000,
    refused_recipients_max=100_000,
    session_s_max=0,
)
"""The relay that took a message from a client has judged it. Loops between relays are seen in their trace."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the listeners of a node share, and what beside its own section a listener goes by."""

    hostname: str
    inline_bytes_max: int
    kept_bytes_max: int = 0
    """See IntakeOptions."""
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    access: Sequence[AccessSettings] = ()
    authenticators: Mapping[str, Authenticator] = field(default_factory=dict)
    """By the name of their [[auth]]."""
    auth_timeouts: Mapping[str, float] = field(default_factory=dict)
    memory: Memory = field(default_factory=lambda: Memory(256 * 1024 * 1024))
    sinks: SinkChain | None = None
    shared: bool = False
    """Other workers listen on the same addresses."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that a listener needs, with its files read; nothing of it counts yet."""

    settings: ListenerSettings
    options: DoorOptions
    guard: Guard | None


class Listener:
    """Where clients submit or other servers deliver. Sessions go by the options that they began with."""

    def __init__(self, settings: ListenerSettings, acceptor: Acceptor, surroundings: Surroundings) -> None:
        self.settings = settings
        self.bound = ""
        """host:port, once the address is taken."""
        self._guard: Guard | None = None
        self._by_hand: bool | None = None
        self._surroundings = surroundings
        shared = surroundings.shared
        self._door = Door(settings.name, settings.listen, acceptor, surroundings.memory, shared=shared)

    def prepare(self, settings: ListenerSettings, surroundings: Surroundings) -> Prepared:
        """Read all the files that a listener needs and build its options. ListenerError. Blocks."""
        context = load_context(settings)
        implicit = settings.tls == "implicit"
        limits = surroundings.limits.overridden_by(settings.limits)
        guard = self._choose_guard(limits)
        try:
            authenticator = load_for(settings, surroundings.authenticators)
            senders = SenderMap.load(settings.senders) if settings.senders is not None else None
        except AuthError as error:
            raise ListenerError(str(error)) from error
        session = SessionOptions(
            listener=settings.name,
            hostname=surroundings.hostname,
            policy=RelayPolicy(settings, surroundings.hostname),
            intake=build_intake(settings, limits, surroundings),
            limits=limits,
            recipients_max=settings.recipients_max,
            pace=build_pace(settings.idle_timeout_s, limits),
            access=compile_rules(surroundings.access, settings.name),
            starttls=None if implicit else context,
            tls_required=settings.tls_required,
            login=self._build_login(authenticator, guard, settings, limits, surroundings),
            auth_required=settings.auth_required,
            senders=senders,
            pipelining=settings.pipelining,
            sinks=surroundings.sinks,
            too_often=self._door.too_often,
        )
        options = DoorOptions(
            session,
            settings.connections_max,
            settings.connections_per_client_max,
            tls=context if implicit else None,
            proxies=Networks(settings.proxy_networks),
        )
        return Prepared(settings, options, guard)

    def _choose_guard(self, limits: LimitsSettings) -> Guard:
        """Failures stay remembered while their bounds stay the same."""
        bounds = limits.auth_failures_per_client, limits.auth_failures_per_user
        if self._guard is not None and self._guard.bounds == bounds:
            return self._guard
        return Guard(per_client=bounds[0], per_user=bounds[1])

    @staticmethod
    def _build_login(
        authenticator: Authenticator | None,
        guard: Guard,
        settings: ListenerSettings,
        limits: LimitsSettings,
        surroundings: Surroundings,
    ) -> Passwords | None:
        if authenticator is None:
            return None
        keys = ClientKeys(limits.client_prefix_v4, limits.client_prefix_v6)
        timeout_s = surroundings.auth_timeouts.get(settings.auth, AUTH_TIMEOUT_S)
        return Passwords(authenticator, guard, keys, timeout_s=timeout_s)

    async def start(self) -> str:
        """Listen; the bound host:port. ListenerError: port in use, certificate or users file unusable."""
        self.configure(self.prepare(self.settings, self._surroundings))
        bound = self.bind()
        await self.serve()
        return bound

    def configure(self, prepared: Prepared) -> bool:
        """Go by this from the next connection on. True if it wants to be served anew."""
        self.settings, self._guard = prepared.settings, prepared.guard
        self._door.name = prepared.settings.name
        self._door.configure(prepared.options)
        before, self._by_hand = self._by_hand, prepared.options.by_hand
        return before is not self._by_hand

    def bind(self) -> str:
        """Take the address, accept nobody yet; the bound host:port. ListenerError."""
        self.bound = self._door.bind()
        return self.bound

    async def serve(self) -> None:
        """Accept, in the way that the options want."""
        await self._door.pause()
        await self._door.serve()

    async def release(self) -> None:
        """Give the address up for now: `bind` and `serve` take it again. Sessions stay."""
        await self._door.release()

    def drain(self, drained: bool) -> None:
        """Greet nobody any more (421), and let sessions end after their transactions; False = open again."""
        self._door.drain(drained)

    async def close(self) -> None:
        """Accept nobody any more; the sessions that are there end by themselves."""
        await self._door.close()

    async def stop(self, grace_s: float) -> None:
        """Accept nobody, let transactions finish within `grace_s`, then hang up."""
        await self._door.stop(grace_s)

    @property
    def session_count(self) -> int:
        """Sessions that are there."""
        return self._door.session_count

    @property
    def present_count(self) -> int:
        """Sessions, and connections that will be ones."""
        return self._door.present_count

    @property
    def stale_count(self) -> int:
        """Those of them that began with other options than those of now."""
        return self._door.stale_count


def load_context(settings: ListenerSettings) -> ssl.SSLContext | None:
    """The TLS context of a listener; None without TLS. ListenerError."""
    certificate, key = settings.certificate, settings.key
    if settings.tls == "none" or certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ListenerError(f"certificate {certificate} with key {key or certificate}: {error}") from error
    return context


def build_intake(settings: ListenerSettings, limits: LimitsSettings, surroundings: Surroundings) -> IntakeOptions:
    """The bounds of mail data."""
    return IntakeOptions(
        settings.size_bytes_max,
        surroundings.inline_bytes_max,
        settings.bare_newlines,
        line_bytes_max=limits.mail_line_bytes_max,
        header_bytes_max=limits.header_bytes_max,
        header_fields_max=limits.header_fields_max,
        hops_max=limits.hops_max,
        kept_bytes_max=surroundings.kept_bytes_max,
    )


def build_pace(idle_s: float, limits: LimitsSettings) -> PaceLimits:
    """The bounds of time."""
    return PaceLimits(idle_s, limits.session_s_max, limits.data_bytes_per_s_min, limits.data_window_s)


class _PeersMayAll:
    """Between peers the ingress relay has judged already."""

    def permits(self, client: Client, recipient: Recipient) -> Reply | None:
        """Peers relay anything."""
        return None


class MeshListener:
    """The peers' door."""

    def __init__(
        self,
        listen: str,
        identity: Identity,
        acceptor: Acceptor,
        *,
        hostname: str,
        inline_bytes_max: int,
        size_bytes_max: int,
        memory: Memory,
        sinks: SinkChain | None = None,
    ) -> None:
        self._identity, self._context = identity, identity.server_context()
        self._door = Door(MESH, listen, acceptor, memory)
        self.configure(hostname, inline_bytes_max, size_bytes_max, sinks)

    def configure(
        self, hostname: str, inline_bytes_max: int, size_bytes_max: int, sinks: SinkChain | None = None
    ) -> None:
        """For connections from now on."""
        session = SessionOptions(
            listener=MESH,
            hostname=hostname,
            policy=_PeersMayAll(),
            intake=IntakeOptions(size_bytes_max, inline_bytes_max, hops_max=MESH_LIMITS.hops_max),
            limits=MESH_LIMITS,
            recipients_max=MESH_RECIPIENTS_MAX,
            pace=build_pace(300, MESH_LIMITS),
            mesh=True,
            peer_of=self._peer_of,
            sinks=sinks,
        )
        self._door.configure(DoorOptions(session, MESH_CONNECTIONS_MAX, MESH_CONNECTIONS_MAX, tls=self._context))

    async def start(self) -> str:
        """Listen; the bound host:port. ListenerError if the port is in use."""
        bound = self._door.bind()
        await self._door.serve()
        return bound

    def drain(self, drained: bool) -> None:
        """See Listener."""
        self._door.drain(drained)

    @property
    def session_count(self) -> int:
        """Sessions that are there."""
        return self._door.session_count

    async def stop(self, grace_s: float) -> None:
        """See Listener."""
        await self._door.stop(grace_s)

    def _peer_of(self, certificate_der: bytes) -> str:
        try:
            return self._identity.member(certificate_der, at=datetime.now(UTC)).node_id
        except IdentityError as error:
            raise ValueError(str(error)) from error
