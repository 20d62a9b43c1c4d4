"""All of SMTP in, of one node: client listeners, the peers' door, who checks passwords, memory for what arrives.

Built from the settings, and changed to other ones in three steps (see listeners.py). The counterpart of
`client/outbound.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossip.identity import Identity
from router.policy import RouteTable
from smtp_edge.auth.api import Authenticator
from smtp_edge.auth.lifecycle import start_authenticators, stop_authenticators
from smtp_edge.queue.cutthrough import PASS_BYTES_MAX
from smtp_edge.routes import limit_sizes
from smtp_edge.server.listener import MeshListener, Surroundings
from smtp_edge.server.listeners import Listeners, Plan
from smtp_edge.server.options import Acceptor
from smtp_edge.server.pressure import Memory
from smtp_edge.settings import Settings
from smtp_edge.sinks.chain import SinkChain

MESH_SIZE_BYTES = 50 * 1024 * 1024
"""Of peers' messages, at a node without listeners."""


@dataclass(frozen=True, slots=True)
class Change:
    """What `prepare` found out, for `switch`."""

    settings: Settings
    hostname: str
    plan: Plan
    authenticators: Mapping[str, Authenticator]
    sinks: SinkChain | None


class Inbound:
    """See the module. `start` it once, `stop` it once; one change at a time."""

    def __init__(
        self,
        settings: Settings,
        clients: Acceptor,
        peers: Acceptor,
        *,
        hostname: str,
        identity: Identity,
        sinks: SinkChain | None = None,
    ) -> None:
        self._memory = Memory(settings.limits.buffer_bytes_max)
        self._listeners = Listeners(clients)
        self._authenticators: Mapping[str, Authenticator] = {}
        self._retired: list[Mapping[str, Authenticator]] = []
        """Of configurations of before, that sessions may still ask."""
        self._mesh = MeshListener(
            settings.mesh.listen,
            identity,
            peers,
            hostname=hostname,
            inline_bytes_max=settings.queue.inline_bytes_max,
            size_bytes_max=find_largest(settings),
            memory=self._memory,
            sinks=sinks,
        )

    async def start_mesh(self) -> str:
        """The peers' door; host:port. ListenerError."""
        return await self._mesh.start()

    async def start(
        self, settings: Settings, table: RouteTable, *, hostname: str, sinks: SinkChain | None = None
    ) -> None:
        """The clients' doors. ListenerError, AuthError: none of them is open."""
        change = await self.prepare(settings, table, hostname=hostname, sinks=sinks)
        self.switch(change)
        await self.finish(change)

    async def prepare(
        self, settings: Settings, table: RouteTable, *, hostname: str, sinks: SinkChain | None = None
    ) -> Change:
        """All that can fail. ListenerError, AuthError: nothing has changed."""
        authenticators = await start_authenticators(settings.auth)
        around = Surroundings(
            hostname=hostname,
            inline_bytes_max=settings.queue.inline_bytes_max,
            kept_bytes_max=PASS_BYTES_MAX if settings.queue.cut_through else 0,
            limits=settings.limits,
            access=settings.access,
            authenticators=authenticators,
            auth_timeouts={section.name: section.timeout_s for section in settings.auth},
            memory=self._memory,
            sinks=sinks,
            shared=settings.node.workers > 1,
        )
        try:
            plan = await self._listeners.prepare(limit_sizes(settings.listener, table), around)
        except BaseException:
            await stop_authenticators(authenticators)
            raise
        return Change(settings, hostname, plan, authenticators, sinks)

    async def discard(self, change: Change) -> None:
        """Instead of `switch`: everything is as it was."""
        await self._listeners.discard(change.plan)
        await stop_authenticators(change.authenticators)

    def switch(self, change: Change) -> None:
        """New sessions go by the new settings, in one step."""
        settings = change.settings
        self._memory.bytes_max = settings.limits.buffer_bytes_max
        size_bytes_max = find_largest(settings)
        self._mesh.configure(change.hostname, settings.queue.inline_bytes_max, size_bytes_max, change.sinks)
        self._listeners.switch(change.plan)
        if self._authenticators:
            self._retired.append(self._authenticators)
        self._authenticators = change.authenticators

    async def finish(self, change: Change) -> None:
        """New listeners accept, old ones accept nobody more."""
        await self._listeners.finish(change.plan)
        await self.tidy()

    async def tidy(self) -> None:
        """Now and then: let go of what no session needs any more."""
        await self._listeners.tidy()
        if self._retired and not self._listeners.stale_count:
            retired, self._retired = self._retired, []
            for authenticators in retired:
                await stop_authenticators(authenticators)

    def drain(self, draining: bool) -> None:
        """See Listener."""
        self._listeners.drain(draining)

    async def stop(self, grace_s: float) -> None:
        """Accept nobody, let transactions finish within `grace_s`, then hang up on clients."""
        await self._listeners.stop(grace_s)
        for authenticators in (*self._retired, self._authenticators):
            await stop_authenticators(authenticators)

    async def stop_mesh(self, grace_s: float) -> None:
        """The same for the peers' door."""
        await self._mesh.stop(grace_s)

    @property
    def bound(self) -> Mapping[str, str]:
        """Name of a listener -> host:port."""
        return self._listeners.bound

    @property
    def session_count(self) -> int:
        """Sessions of clients."""
        return self._listeners.session_count

    @property
    def stale_count(self) -> int:
        """Those that began before the last change."""
        return self._listeners.stale_count


def find_largest(settings: Settings) -> int:
    """The largest message that a listener takes: peers may send as much."""
    return max((section.size_bytes_max for section in settings.listener), default=MESH_SIZE_BYTES)
