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
import json
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import structlog

from gossip.fit import shard_links
from gossip.identity import Identity, IdentityError, Member, server_name
from gossip.linkstate import Kind, LinkState, LinkStatus, Load, NodeId, NodeInfo, SessionStatus, Snapshot
from gossip.machine import Effects, Machine
from gossip.repeats import Repeats
from gossip.settings import GossipSettings
from gossip.wire import WireError, decode_record
from smtpmesh.gossip.v1 import gossip_pb2 as pb
from smtpmesh.gossip.v1 import gossip_pb2_grpc as pb_grpc

log = structlog.get_logger()

FRAME_BYTES_MAX = 4 * 1024 * 1024
OUTBOX_MAX = 1000
"""Frames waiting for one peer; a peer that does not read is dropped and gets a digest when it is back."""
SAVE_S = 10.0
AFTER_BUG_S = 1.0
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
    address: str
    dialled: bool
    outbox: asyncio.Queue[pb.Frame | None] = field(default_factory=lambda: asyncio.Queue(OUTBOX_MAX))
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


@dataclass
class Dial:
    """Attempts to reach one node or seed."""

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
    ) -> None:
        self._identity, self._settings, self._state_path = identity, settings, state_path
        self._on_change, self._on_session = on_change, on_session
        self._links: dict[NodeId, Link] = {}
        self._lost: dict[NodeId, tuple[float, str]] = {}
        self._dials: dict[str, Dial] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._server: grpc.aio.Server | None = None
        self._timer: asyncio.Task[None] | None = None
        self._saved_at = 0.0
        self._states: tuple[tuple[str, LinkStatus], ...] | None = None
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
        credentials = grpc.ssl_server_credentials(
            [(identity.key_pem, identity.certificate_pem)], identity.ca_pem, require_client_auth=True
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
        for link in list(self._links.values()):
            link.close("stopping")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(0)
        _save_state(self._state_path, _encode_state(self._machine))

    # -- own records ---------------------------------------------------------------------------------------------------

    def publish_info(self, info: NodeInfo) -> None:
        """Advertise who this node is."""
        self._act(self._machine.publish(Kind.NODE, [info], time.monotonic(), int(time.time()), urgent=True))

    def publish_links(self, links: Sequence[LinkState]) -> None:
        """Advertise the own links; a change of a link's state goes out at once, others within moments."""
        states = tuple((link.hop, link.status) for link in links)
        urgent = states != self._states
        self._states = states
        payloads, complaints = shard_links(links)
        self._act(Effects(complaints=complaints))
        self._act(self._machine.publish(Kind.LINKS, payloads, time.monotonic(), int(time.time()), urgent=urgent))

    def publish_load(self, load: Load) -> None:
        """Advertise what waits here; bounded to a few times a second."""
        self._act(self._machine.publish(Kind.LOAD, [load], time.monotonic(), int(time.time())))

    def snapshot(self) -> Snapshot:
        """The database."""
        return self._machine.snapshot(time.monotonic())

    def sessions(self) -> tuple[SessionStatus, ...]:
        """Every known peer, with or without a session."""
        now = time.monotonic()
        return tuple(self._status(node, now) for node in sorted({*self._links, *self._lost, *self._known_peers()}))

    def _known_peers(self) -> list[NodeId]:
        return [node for node in self._machine.database.nodes() if node != self._identity.node_id]

    def _status(self, node: NodeId, now: float) -> SessionStatus:
        info = self._machine.database.info(node)
        address = info.gossip_address if info is not None else ""
        times = self._machine.session_times(node)
        if times is not None:
            since, heard = times
            return SessionStatus(node, address, True, now - since, now - heard)
        lost_at, reason = self._lost.get(node, (self._saved_at, "no session yet"))
        return SessionStatus(node, address, False, now - lost_at if lost_at else 0.0, None, reason)

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
        link = Link(member.node_id, context.peer(), dialled=False)
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
                self._act(self._machine.on_frame(link.peer, frame, time.monotonic(), int(time.time())))
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            reason = _describe(error)
        except Exception:
            log.exception("gossip.bug", peer=link.peer)
            reason = "a fault of our own"
        self._lose(link, link.closed or reason)
        link.close(reason)

    # -- dialling ------------------------------------------------------------------------------------------------------

    def _plan_dials(self, now: float) -> None:
        """Known nodes without a session, and seeds while nobody is known."""
        wanted: dict[str, NodeId | None] = {
            address: node for node, address in self._machine.dials() if address != self._bound
        }
        known = {info.gossip_address for node in self._known_peers() if (info := self._machine.database.info(node))}
        for seed in self._seeds:
            answered = self._answered.get(seed)
            met = answered is not None and (answered in self._links or answered == self._identity.node_id)
            if not met and seed not in known and seed not in (self._bound, self._settings.advertise):
                wanted.setdefault(seed, None)
        for address in [address for address in self._dials if address not in wanted]:
            if self._dials[address].task is None:
                del self._dials[address]
        for address, node in wanted.items():
            dial = self._dials.get(address)
            if dial is None:
                patience_s = self._settings.dial_anyway_s if node is not None and node < self._identity.node_id else 0.0
                dial = self._dials[address] = Dial(self._settings.redial_first_s, now + patience_s)
            if dial.task is None and now >= dial.due:
                dial.task = self._spawn(self._dial(address, node, dial))

    async def _dial(self, address: str, node: NodeId | None, dial: Dial) -> None:
        try:
            await self._dial_once(address, node)
            dial.pause_s = self._settings.redial_first_s
        except (OSError, ssl.SSLError, TimeoutError, grpc.RpcError) as error:
            log.debug("gossip.dial_failed", address=address, reason=_describe(error))
        except IdentityError as error:
            if self._said.is_new(("address", address, str(error)), time.monotonic()):
                log.warning("gossip.peer_refused", address=address, reason=str(error))
        finally:
            dial.task = None
            jitter = 1 + 0.2 * (random.random() * 2 - 1)
            dial.due = time.monotonic() + dial.pause_s * jitter
            dial.pause_s = min(self._settings.redial_max_s, dial.pause_s * 2)
            self._wake.set()

    async def _dial_once(self, address: str, expected: NodeId | None) -> None:
        async with asyncio.timeout(self._settings.dial_timeout_s):
            member = await self._look(address)
        if address in self._seeds:
            self._answered[address] = member.node_id
        if member.node_id == self._identity.node_id:
            return
        if expected is not None and member.node_id != expected:
            raise IdentityError(f"{address} is the node {member.name} now, expected {expected}")
        if member.node_id in self._links:
            return
        identity = self._identity
        credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.certificate_pem)
        options = [*OPTIONS, ("grpc.ssl_target_name_override", server_name(member.node_id))]
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            async with asyncio.timeout(self._settings.dial_timeout_s):
                await channel.channel_ready()
            link = Link(member.node_id, address, dialled=True)
            if not self._adopt(link):
                return
            call = pb_grpc.GossipStub(channel).Session(link.frames())
            try:
                await self._read(link, aiter(call))
            finally:
                self._lose(link, link.closed or "the session ended")
                call.cancel()

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
        current = self._links.get(link.peer)
        if current is not None:
            if current.dialled != link.dialled and self._is_preferred(current) and not self._is_preferred(link):
                return False
            current.close("replaced by a newer session")
        self._links[link.peer] = link
        self._lost.pop(link.peer, None)
        self._act(self._machine.on_session(link.peer, time.monotonic()))
        if current is None:
            self._on_session(link.peer, True, "dialled" if link.dialled else "accepted")
        self._wake.set()
        return True

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
        self._machine.on_session_lost(link.peer)
        if not self._stopping:
            self._on_session(link.peer, False, reason)
            self._on_change(self.snapshot())
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
            link = self._links.get(peer)
            if link is None:
                continue
            if link.outbox.full():
                effects.drops.append((peer, "it does not read"))
            else:
                link.outbox.put_nowait(frame)
        for peer, reason in effects.drops:
            link = self._links.get(peer)
            if link is not None:
                self._lose(link, reason)
                link.close(reason)
        if effects.changed:
            self._wake.set()
            self._on_change(self.snapshot())

    def _member_of(self, certificate_der: bytes) -> Member:
        return self._identity.member(certificate_der, at=datetime.now(UTC))

    def _remember(self, state: SavedState) -> None:
        """The nodes known before a restart: whom to dial, and where mail may go while nobody answers yet."""
        for body, signature, expires_at in state.records:
            with contextlib.suppress(WireError):
                record = decode_record(body, signature)
                if record.key.origin == self._identity.node_id:
                    continue
                age_s = record.lifetime_s - (expires_at - time.time())
                self._machine.database.offer(record, time.monotonic(), age_s)
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


def _load_state(path: Path) -> SavedState:
    """The saved state; an empty one if there is none, or none that can be read (the cluster knows better soon)."""
    try:
        raw = json.loads(path.read_text("ascii"))
        records = ((base64.b64decode(body), base64.b64decode(sign), int(end)) for body, sign, end in raw["records"])
        return SavedState(int(raw["epoch"]), tuple(records))
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
        if record.key.kind is Kind.NODE
    ]
    return json.dumps({"epoch": machine.epoch, "records": records})


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


def _certificate_of(context: grpc.aio.ServicerContext[pb.Frame, pb.Frame]) -> bytes:
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii")) if pem else b""


def _describe(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name.lower()}: {error.details()}"
    return str(error) or type(error).__name__
