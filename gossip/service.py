"""The grpc.aio shell of the gossip machine: sockets, sessions, dials, one timer, the state file.

One stream for each pair of nodes. Both ends may dial at once; of two sessions with one peer the one dialled by the
smaller node id stays, and a newer one by the same end replaces an older one (the peer was restarted). A seed's node id
is not known before the first contact: a plain TLS handshake shows its certificate, and gives a readable reason when it
is not one of ours.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import enum
import json
import os
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import structlog

from gossip.effects import Effects
from gossip.fit import shard_links
from gossip.frames import Frame
from gossip.identity import Identity, IdentityError, Member, server_name
from gossip.linkstate import Kind, LinkState, Load, NodeId, NodeInfo, SessionStatus, Snapshot
from gossip.machine import Machine
from gossip.repeats import Repeats
from gossip.settings import GossipSettings
from gossip.status import Event, EventKind, GossipStats, MemberState, MemberStatus
from gossip.wire import WireError, decode_frame, decode_record, encode_frame, frame_kind
from smtpmesh.gossip.v1 import gossip_pb2 as pb
from smtpmesh.gossip.v1 import gossip_pb2_grpc as pb_grpc

log = structlog.get_logger()

FRAME_BYTES_MAX = 4 * 1024 * 1024
OUTBOX_MAX = 1000
"""Frames waiting for one peer; one that does not read at all is dropped and gets a digest when it is back."""
OUTBOX_BLOCKED = 32
"""Frames waiting for one peer above which the machine keeps what is new, newest version for each key."""
OUTBOX_OPEN = 4
SNAPSHOT_SHARE = 0.1
"""Of the time, at most, that goes into telling what changed."""
SAVE_S = 10.0
AFTER_BUG_S = 1.0
MOVES = frozenset(
    {
        EventKind.SESSION_UP,
        EventKind.SESSION_DOWN,
        EventKind.SUSPECT,
        EventKind.CLEARED,
        EventKind.NODE_JOINED,
        EventKind.NODE_REACHABLE,
        EventKind.NODE_UNREACHABLE,
        EventKind.NODE_EXPIRED,
        EventKind.NODE_REVOKED,
    }
)
"""Events after which a member may be in another state."""
OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class GossipError(Exception):
    """Gossip cannot start; `str()` says why."""


@dataclass(eq=False)
class Link:
    """One live stream with a peer."""

    peer: NodeId
    name: str
    """Of the peer, by its certificate."""
    address: str
    dialled: bool
    not_after: datetime
    """End of the peer's certificate, and of this session."""
    outbox: asyncio.Queue[pb.Frame | None] = field(default_factory=lambda: asyncio.Queue(OUTBOX_MAX))
    on_open: Callable[[], None] = lambda: None
    """The peer reads again."""
    blocked: bool = False
    closed: str = ""
    """Reason of our own closing."""

    def close(self, reason: str) -> None:
        """End the stream from this side."""
        self.closed = self.closed or reason
        while not self.outbox.empty():
            self.outbox.get_nowait()
        self.outbox.put_nowait(None)

    async def frames(self) -> AsyncIterator[pb.Frame]:
        """What is to be sent, until the link is closed."""
        while (frame := await self.outbox.get()) is not None:
            yield frame
            if self.blocked and self.outbox.qsize() <= OUTBOX_OPEN:
                self.blocked = False
                self.on_open()


class Failure(enum.Enum):
    """Why a dial came to nothing."""

    REFUSED = "refused"
    """The machine is there, and nobody listens."""
    OTHER = "other"


@dataclass
class Dial:
    """Attempts to reach one seed."""

    pause_s: float
    due: float
    task: asyncio.Task[None] | None = None


class GossipService(pb_grpc.GossipServicer):
    """See the module. Callbacks run on the event loop."""

    def __init__(
        self,
        identity: Identity,
        settings: GossipSettings,
        *,
        state_path: Path,
        on_change: Callable[[Snapshot], None],
        on_session: Callable[[NodeId, bool, str], None],
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._identity, self._settings, self._state_path = identity, settings, state_path
        self._on_change, self._on_session, self._on_event = on_change, on_session, on_event
        self._telling: asyncio.TimerHandle | None = None
        self._told_cost_s = 0.0
        self._told_at = 0.0
        self._frames_sent: Counter[str] = Counter()
        self._frames_received: Counter[str] = Counter()
        self._bytes_sent = self._bytes_received = 0
        self._states: dict[NodeId, tuple[MemberState, float]] = {identity.node_id: (MemberState.SELF, time.monotonic())}
        """Since when each member is what it is: noted when it changes, not when somebody asks."""
        self._links: dict[NodeId, Link] = {}
        self._lost: dict[NodeId, tuple[float, str]] = {}
        self._dials: dict[str, Dial] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._server: grpc.aio.Server | None = None
        self._timer: asyncio.Task[None] | None = None
        self._saved_at = 0.0
        self._bound = ""
        self._said = Repeats()
        self._seeds = list(settings.join)
        self._answered: dict[str, NodeId] = {}
        """Which node answered at a seed: its advertised address may be another."""
        state = _load_state(state_path)
        wall = int(time.time())
        self._machine = Machine(
            node_id=identity.node_id,
            cluster=identity.cluster,
            certificate=identity.certificate_der,
            sign=identity.sign,
            member_of=self._member_of,
            check_revocation=self._check_revocation,
            settings=settings,
            epoch=max(state.epoch + 1, wall),
            rng=random.Random(),
            now=time.monotonic(),
        )
        self._remember(state)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Listen and begin to dial; the bound host:port. GossipError if the address cannot be had."""
        identity = self._identity
        shown = ShownCertificates(identity)
        credentials = grpc.dynamic_ssl_server_credentials(
            shown.configuration(),
            shown.renewed,  # type: ignore[arg-type]  # None is in the documentation, and not in the stubs
            require_client_authentication=True,
        )
        self._server = grpc.aio.server(options=OPTIONS)
        pb_grpc.add_GossipServicer_to_server(self, self._server)
        host, _, port_wanted = self._settings.listen.rpartition(":")
        try:
            port = self._server.add_secure_port(self._settings.listen, credentials)
        except RuntimeError as error:
            raise GossipError(f"cannot listen on {self._settings.listen}: is the port {port_wanted} in use?") from error
        if port == 0:
            raise GossipError(f"cannot listen on {self._settings.listen}: is the port {port_wanted} in use?")
        await self._server.start()
        _save_state(self._state_path, _encode_state(self._machine))
        self._bound = f"{host}:{port}"
        self._timer = asyncio.create_task(self._run())
        return self._bound

    async def stop(self) -> None:
        """Close all sessions; peers see it at once."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._telling is not None:
            self._telling.cancel()
        for link in list(self._links.values()):
            link.close("stopping")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(0)
        _save_state(self._state_path, _encode_state(self._machine))

    def revoke(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Revocations from files (`revocation.load_revocations`); every member hears of them."""
        self._act(self._machine.revoke(items, time.monotonic(), int(time.time())))

    def renewed(self) -> None:
        """The identity was renewed in place: advertise the new certificate. Sessions stay."""
        now, wall = time.monotonic(), int(time.time())
        self._act(self._machine.rotate(self._identity.certificate_der, self._identity.sign, now, wall))

    # -- own records ---------------------------------------------------------------------------------------------------

    def publish_info(self, info: NodeInfo) -> None:
        """Advertise who this node is."""
        self._act(self._machine.publish(Kind.NODE, [info], time.monotonic(), int(time.time())))

    def publish_links(self, links: Sequence[LinkState]) -> None:
        """Advertise the own links; bad news goes out at once, other news when its hold is over (`gossip.holds`)."""
        payloads, complaints = shard_links(links)
        self._act(Effects(complaints=complaints))
        self._act(self._machine.publish(Kind.LINKS, payloads, time.monotonic(), int(time.time())))

    def publish_load(self, load: Load) -> None:
        """Advertise what waits here; bounded to a few times a second."""
        self._act(self._machine.publish(Kind.LOAD, [load], time.monotonic(), int(time.time())))

    def snapshot(self) -> Snapshot:
        """The database."""
        return self._machine.snapshot(time.monotonic())

    @property
    def joining(self) -> bool:
        """There are others, and this node does not hold what they hold yet: its view is no basis for their mail."""
        return not self._machine.synced and bool(self._seeds or self._known_peers())

    def sessions(self) -> tuple[SessionStatus, ...]:
        """Every known peer, with or without a session."""
        now = time.monotonic()
        return tuple(self._status(node, now) for node in sorted({*self._links, *self._lost, *self._known_peers()}))

    def _known_peers(self) -> list[NodeId]:
        return [node for node in self._machine.database.nodes() if node != self._identity.node_id]

    def _status(self, node: NodeId, now: float) -> SessionStatus:
        info = self._machine.database.info(node)
        address = info.gossip_address if info is not None else ""
        session = self._machine.session(node)
        if session is not None:
            return SessionStatus(node, address, True, now - session.since, now - session.silence.heard_at)
        lost_at, reason = self._lost.get(node, (self._saved_at, "no session yet"))
        return SessionStatus(node, address, False, now - lost_at if lost_at else 0.0, None, reason)

    def members(self) -> tuple[MemberStatus, ...]:
        """Every member as seen from here."""
        now, database = time.monotonic(), self._machine.database
        nodes = database.nodes()
        listed_by: dict[NodeId, list[NodeId]] = {node: [] for node in nodes}
        for peer in nodes:  # what this node would say itself may still be held back
            own = peer == self._identity.node_id
            for node in self._machine.peers() if own else database.sessions(peer):
                if node in listed_by:
                    listed_by[node].append(peer)
        return tuple(self._member_status(node, listed_by[node], now) for node in nodes)

    def name_of(self, node: NodeId) -> str:
        """What a node calls itself, or its certificate before its record is here; empty if it is not known here."""
        info, link = self._machine.database.info(node), self._links.get(node)
        return info.name if info is not None else link.name if link is not None else ""

    def stats(self) -> GossipStats:
        """Counters and gauges."""
        return dataclasses.replace(
            self._machine.stats(time.monotonic()),
            frames_sent=dict(self._frames_sent),
            frames_received=dict(self._frames_received),
            bytes_sent=self._bytes_sent,
            bytes_received=self._bytes_received,
        )

    def _member_status(self, node: NodeId, listed_by: Sequence[NodeId], now: float) -> MemberStatus:
        machine = self._machine
        state, reason = self._member_state(node)
        sources = listed_by
        if state is MemberState.UNREACHABLE:
            own = [self._identity.node_id] if machine.lost_reason(node) is not None else []
            sources = sorted({*machine.database.sessions(node), *own}.difference(listed_by))
        session = machine.session(node)
        hello = session.hello if session is not None else None
        round_trip_s = session.round_trip_s if session is not None else None
        return MemberStatus(
            node,
            self.name_of(node),
            state,
            now - self._note_state(node, state, now),
            tuple(sources),
            reason,
            f"{hello.root:016x}" if hello is not None else "",
            machine.in_sync(node),
            hello.lag_ms if hello is not None else None,
            round_trip_s * 1000 if round_trip_s is not None else None,
        )

    def _note_state(self, node: NodeId, state: MemberState, now: float) -> float:
        """Since when it is in this state."""
        before = self._states.get(node)
        if before is None or before[0] is not state:
            self._states[node] = before = (state, now)
        return before[1]

    def _look_again(self, node: NodeId, now: float) -> None:
        """Something happened to a node: note its state, or forget one that is no member any more."""
        if self._machine.database.info(node) is not None:
            self._note_state(node, self._member_state(node)[0], now)
        else:
            self._states.pop(node, None)

    def _member_state(self, node: NodeId) -> tuple[MemberState, str]:
        machine = self._machine
        if node == self._identity.node_id:
            return MemberState.SELF, ""
        lost = machine.lost_reason(node)
        reason = lost[1] if lost is not None else ""
        if machine.is_suspect(node):
            return MemberState.SUSPECT, reason
        if machine.session(node) is not None:
            return MemberState.UP, ""
        return (MemberState.REACHABLE if node in machine.reached() else MemberState.UNREACHABLE), reason

    # -- accepting -----------------------------------------------------------------------------------------------------

    async def Session(
        self, request_iterator: AsyncIterator[pb.Frame], context: grpc.aio.ServicerContext[pb.Frame, pb.Frame]
    ) -> AsyncIterator[pb.Frame]:
        """A peer dialled us."""
        try:
            member = self._member_of(_certificate_of(context))
        except IdentityError as error:
            client = context.peer()
            if self._said.is_new(("client", client.rpartition(":")[0], str(error)), time.monotonic()):
                log.warning("gossip.peer_refused", client=client, reason=str(error))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a member of this cluster")
            return
        link = Link(member.node_id, member.name, context.peer(), dialled=False, not_after=member.not_after)
        if not self._adopt(link):
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "there is a session already")
            return
        reader = self._spawn(self._read(link, request_iterator))
        try:
            async for frame in link.frames():
                yield frame
        finally:
            reader.cancel()
            self._lose(link, link.closed or "the peer closed the session")

    async def _read(self, link: Link, frames: AsyncIterator[pb.Frame]) -> None:
        reason = "the peer closed the session"
        try:
            async for frame in frames:
                if not self._is_current(link):
                    break
                self._receive(link, frame)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            reason = _describe(error)
        except Exception:
            log.exception("gossip.bug", peer=link.peer)
            reason = "a fault of our own"
        self._lose(link, link.closed or reason)
        link.close(reason)

    # -- dialling ------------------------------------------------------------------------------------------------------

    def _plan_dials(self, now: float) -> None:
        """Seeds that nobody known answers at. Members are dialled when the machine says so."""
        known = {info.gossip_address for node in self._known_peers() if (info := self._machine.database.info(node))}
        wanted: set[str] = set()
        for seed in self._seeds:
            answered = self._answered.get(seed)
            met = answered is not None and (answered in self._known_peers() or answered == self._identity.node_id)
            if not met and seed not in known and seed not in (self._bound, self._settings.advertise):
                wanted.add(seed)
        if not self._links:  # nobody at all: any of them will do, also one that is known
            wanted |= {seed for seed in self._seeds if self._answered.get(seed) != self._identity.node_id}
        for address in [address for address in self._dials if address not in wanted]:
            if self._dials[address].task is None:
                del self._dials[address]
        for address in sorted(wanted):
            dial = self._dials.setdefault(address, Dial(self._settings.redial_first_s, now))
            if dial.task is None and now >= dial.due:
                dial.task = self._spawn(self._dial_seed(address, dial))

    async def _dial_seed(self, address: str, dial: Dial) -> None:
        try:
            await self._dial(address, None)
            dial.pause_s = self._settings.redial_first_s
        finally:
            dial.task = None
            jitter = 1 + 0.2 * (random.random() * 2 - 1)
            dial.due = time.monotonic() + dial.pause_s * jitter
            dial.pause_s = min(self._settings.redial_late_s, dial.pause_s * 2)
            self._wake.set()

    async def _dial_member(self, node: NodeId, address: str) -> None:
        failed = await self._dial(address, node)
        if failed is not None:
            now, wall = time.monotonic(), int(time.time())
            self._act(self._machine.on_dial_failed(node, now, wall, refused=failed is Failure.REFUSED))

    async def _dial(self, address: str, node: NodeId | None) -> Failure | None:
        """Hold a session with whoever should be there until it ends; why there was none."""
        try:
            return None if await self._dial_once(address, node) else Failure.OTHER
        except ConnectionRefusedError:
            return Failure.REFUSED
        except (OSError, ssl.SSLError, TimeoutError, grpc.RpcError) as error:
            log.debug("gossip.dial_failed", address=address, reason=_describe(error))
        except IdentityError as error:
            if self._said.is_new(("address", address, str(error)), time.monotonic()):
                log.warning("gossip.peer_refused", address=address, reason=str(error))
        return Failure.OTHER

    async def _dial_once(self, address: str, expected: NodeId | None) -> bool:
        """True if there is a session now, or was until just now."""
        async with asyncio.timeout(self._settings.dial_timeout_s):
            member = await self._look(address)
        if address in self._seeds:
            self._answered[address] = member.node_id
        if member.node_id == self._identity.node_id:
            return False
        if expected is not None and member.node_id != expected:
            raise IdentityError(f"{address} is the node {member.name} now, expected {expected}")
        if member.node_id in self._links:
            return True
        identity = self._identity
        credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.certificate_pem)
        options = [*OPTIONS, ("grpc.ssl_target_name_override", server_name(member.node_id))]
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            async with asyncio.timeout(self._settings.dial_timeout_s):
                await channel.channel_ready()
            link = Link(member.node_id, member.name, address, dialled=True, not_after=member.not_after)
            if not self._adopt(link):
                return member.node_id in self._links
            call = pb_grpc.GossipStub(channel).Session(link.frames())
            try:
                await self._read(link, aiter(call))
            finally:
                self._lose(link, link.closed or "the session ended")
                call.cancel()
        return True

    async def _look(self, address: str) -> Member:
        """Who is there, by its certificate. IdentityError if it is none of ours.

        The handshake itself checks nothing here, so that a node of another cluster is refused by both sides, and both
        logs say so: this one by `member`, the other one when it sees our certificate.
        """
        context = self._identity.client_context()
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context, server_hostname="")
        try:
            return self._member_of(writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
        finally:
            writer.close()  # and nobody waits for the other side's farewell: uvloop would, for 30 s

    # -- sessions ------------------------------------------------------------------------------------------------------

    def _adopt(self, link: Link) -> bool:
        """Take a new stream as the session with its peer, or leave the one that is there."""
        if self._stopping or link.peer == self._identity.node_id:
            return False
        if self._machine.shut_out(link.peer, time.monotonic()):
            return False
        current = self._links.get(link.peer)
        if current is not None:
            if current.dialled != link.dialled and self._is_preferred(current) and not self._is_preferred(link):
                return False
            current.close("replaced by a newer session")
        self._links[link.peer] = link
        self._lost.pop(link.peer, None)
        link.on_open = lambda: self._open(link)
        self._act(self._machine.on_session(link.peer, time.monotonic(), int(time.time())))
        self._wake.set()
        return True

    def _open(self, link: Link) -> None:
        if self._is_current(link):
            self._act(self._machine.on_blocked(link.peer, time.monotonic(), int(time.time()), blocked=False))

    def _receive(self, link: Link, message: pb.Frame) -> None:
        """One frame of a peer. Nonsense is its fault, and ends the session."""
        self._bytes_received += message.ByteSize()
        try:
            frame = decode_frame(message)
        except WireError as error:
            log.warning("gossip.bad_frame", peer=link.peer, reason=str(error))
            self._lose(link, f"a bad frame: {error}")
            link.close("a bad frame")
            return
        if frame is not None:  # else a newer peer's
            self._frames_received[frame_kind(frame)] += 1
            self._act(self._machine.on_frame(link.peer, frame, time.monotonic(), int(time.time())))

    def _is_preferred(self, link: Link) -> bool:
        """Dialled by the node with the smaller id."""
        return link.dialled == (self._identity.node_id < link.peer)

    def _is_current(self, link: Link) -> bool:
        return self._links.get(link.peer) is link

    def _lose(self, link: Link, reason: str) -> None:
        if not self._is_current(link):
            return
        del self._links[link.peer]
        self._lost[link.peer] = (time.monotonic(), reason)
        if not self._stopping:
            now = time.monotonic()
            self._act(self._machine.on_session_lost(link.peer, now, int(time.time()), reason))
            self._look_again(link.peer, now)
        self._wake.set()

    # -- the loop ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._run_once()
            except Exception:  # without the timer this node would fall silent: whatever it was, go on
                log.exception("gossip.bug", task="timer")
                await asyncio.sleep(AFTER_BUG_S)

    async def _run_once(self) -> None:
        now = time.monotonic()
        self._act(self._machine.on_timer(now, int(time.time())))
        self._plan_dials(now)
        self._end_expired()
        if now - self._saved_at > SAVE_S:
            self._saved_at = now
            await asyncio.to_thread(_save_state, self._state_path, _encode_state(self._machine))
        dues = [dial.due for dial in self._dials.values() if dial.task is None]
        due = min([self._machine.next_timer(now), *dues], default=now + 1.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, due - time.monotonic())):
                await self._wake.wait()
        self._wake.clear()

    def _act(self, effects: Effects) -> None:
        now = time.monotonic()
        for refusal in effects.refusals:
            if self._said.is_new(refusal, now):
                log.warning(
                    "gossip.advertisement_refused", peer=refusal.peer, origin=refusal.origin, reason=refusal.reason
                )
        for complaint in effects.complaints:
            if self._said.is_new(complaint, now):
                log.warning("gossip.not_advertised", reason=complaint)
        for peer, frame in effects.frames:
            self._send(peer, frame)
        for peer, reason in effects.drops:
            link = self._links.pop(peer, None)
            if link is not None:
                self._lost[peer] = (now, reason)
                link.close(reason)
        for node, address in effects.dials:
            self._spawn(self._dial_member(node, address))
        for change in effects.peers:
            self._on_session(change.node_id, change.up, change.reason)
        for event in effects.events:
            if event.kind in MOVES:
                self._look_again(event.node_id, now)
            self._on_event(event)
        if effects.changed or effects.peers:
            self._tell()
        if effects.changed or effects.dials or effects.drops:
            self._wake.set()

    def _end_expired(self) -> None:
        at = datetime.now(UTC)
        for link in [link for link in self._links.values() if link.not_after <= at]:
            log.warning("gossip.peer_expired", peer=link.peer, not_after=link.not_after.isoformat())
            self._lose(link, "its certificate has expired")
            link.close("its certificate has expired")

    def _check_revocation(self, body: bytes, signature: bytes) -> NodeId:
        revocation = self._identity.check_revocation(body, signature)
        self._identity.apply_revocation(revocation)
        if revocation.node_id == self._identity.node_id:
            log.error("gossip.revoked", reason=revocation.reason or "this node's certificate was taken back")
        else:
            log.warning("gossip.node_revoked", node=revocation.node_id, reason=revocation.reason)
        return revocation.node_id

    def _send(self, peer: NodeId, frame: Frame) -> None:
        link = self._links.get(peer)
        if link is None:
            return
        message = encode_frame(frame)
        if link.outbox.full():
            self._lose(link, "it does not read")
            link.close("it does not read")
            return
        self._frames_sent[frame_kind(frame)] += 1
        self._bytes_sent += message.ByteSize()
        link.outbox.put_nowait(message)
        if not link.blocked and link.outbox.qsize() > OUTBOX_BLOCKED:
            link.blocked = True
            self._act(self._machine.on_blocked(peer, time.monotonic(), int(time.time()), blocked=True))

    def _tell(self) -> None:
        """Show the new database: at once, but so that telling takes a bounded share of the time."""
        if self._telling is not None or self._stopping:
            return
        rest_s = self._told_at + self._told_cost_s / SNAPSHOT_SHARE - time.monotonic()
        if rest_s <= 0:
            self._tell_now()
        else:
            self._telling = asyncio.get_running_loop().call_later(rest_s, self._tell_now)

    def _tell_now(self) -> None:
        self._telling = None
        began = time.monotonic()
        self._on_change(self.snapshot())
        self._told_at = time.monotonic()
        self._told_cost_s = self._told_at - began

    def _member_of(self, certificate_der: bytes) -> Member:
        return self._identity.member(certificate_der, at=datetime.now(UTC))

    def _remember(self, state: SavedState) -> None:
        """The nodes known before a restart: whom to dial, and where mail may go while nobody answers yet."""
        self._machine.revoke(state.revocations, time.monotonic(), int(time.time()))
        for body, signature, expires_at in state.records:
            with contextlib.suppress(WireError):
                record = decode_record(body, signature)
                if record.key.origin == self._identity.node_id:
                    continue
                age_s = record.lifetime_s - (expires_at - time.time())
                self._machine.remember(record, time.monotonic(), age_s)
                if age_s >= record.lifetime_s and isinstance(record.payload, NodeInfo):
                    self._seeds.append(record.payload.gossip_address)  # too old to believe, good enough to ask

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


# -- the state file ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SavedState:
    """What survives a restart."""

    epoch: int = 0
    records: tuple[tuple[bytes, bytes, int], ...] = ()
    """Body, signature, end of life (Unix seconds)."""
    revocations: tuple[tuple[bytes, bytes], ...] = ()


def _load_state(path: Path) -> SavedState:
    """The saved state; an empty one if there is none, or none that can be read (the cluster knows better soon)."""
    try:
        raw = json.loads(path.read_text("ascii"))
        records = ((base64.b64decode(body), base64.b64decode(sign), int(end)) for body, sign, end in raw["records"])
        taken = ((base64.b64decode(body), base64.b64decode(sign)) for body, sign in raw.get("revocations", []))
        return SavedState(int(raw["epoch"]), tuple(records), tuple(taken))
    except FileNotFoundError:
        return SavedState()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("gossip.state_unreadable", path=str(path), reason=str(error))
        return SavedState()


def _encode_state(machine: Machine) -> str:
    now, wall, database = time.monotonic(), time.time(), machine.database
    records = [
        [
            base64.b64encode(record.body).decode(),
            base64.b64encode(record.signature).decode(),
            int(wall + record.lifetime_s - database.age_s(record.key, now)),
        ]
        for record in database.records()
        if record.key.kind == Kind.NODE
    ]
    revocations = [[base64.b64encode(part).decode() for part in item] for item in machine.revocations.values()]
    return json.dumps({"epoch": machine.epoch, "records": records, "revocations": revocations})


def _save_state(path: Path, text: str) -> None:
    """Write it beside and rename: a crash leaves the old one."""
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        log.error("gossip.state_not_saved", path=str(path), reason=str(error))


class ShownCertificates:
    """What gRPC's server shows and trusts. It asks at each handshake, on threads of its own.

    An answer exchanges what all handshakes use, and handshakes of that moment may then crash the process (grpcio 1.85,
    sixteen clients at once: within a thousand). So there is one for each renewal, and None otherwise.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._given = self._current()

    def _current(self) -> tuple[bytes, bytes]:
        return self._identity.certificate_pem, self._identity.ca_pem

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What to begin with."""
        certificate_pem, ca_pem = self._given
        return grpc.ssl_server_certificate_configuration(
            [(self._identity.key_pem, certificate_pem)], root_certificates=ca_pem
        )

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to go on with, if it was renewed since the last answer."""
        current = self._current()
        if current == self._given:
            return None
        self._given = current
        return self.configuration()


def _certificate_of(context: grpc.aio.ServicerContext[pb.Frame, pb.Frame]) -> bytes:
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii")) if pem else b""


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error) or type(error).__name__
