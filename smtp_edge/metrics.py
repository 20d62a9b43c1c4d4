"""Metrics for Prometheus: `GET /metrics` on `[metrics] listen`, in the text format or OpenMetrics, as the scraper asks.

A scrape reads the node's values on the node's event loop, first into a `Sample`, then into families of metrics: nothing
is counted twice, no thread reads what the loop changes, and between scrapes this costs nothing. The library's server
answers on threads, so there is a small one here, which knows GET and HEAD and closes after each answer.

No label is unbounded: destination classes and next hops are shown by name for the busiest `LABELS_MAX`, and the others
together as `other`. Names follow https://prometheus.io/docs/practices/naming/: base units, `_total` on counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import heapq
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from gossip.status import GossipStats, MemberState
from router.decision import EdgeState, HopKind
from router.edge import Edge
from smtp_edge import __version__
from smtp_edge.admin.view import NodeView
from smtp_edge.counters import Counters
from smtp_edge.pressure import NO_PRESSURE, NOTHING_READ, Pressure, Readings
from smtp_edge.queue.entry import ClassBacklog, QueueSummary
from smtp_edge.reload import NEVER_RELOADED, Configured

log = structlog.get_logger()

PATH = "/metrics"
LABELS_MAX = 50
"""Next hops, and classes, that are shown by name; the others are `OTHER`."""
OTHER = "other"
SLICE = 500
"""Edges read before other work gets its turn on the loop: a few milliseconds."""
CONNECTIONS_MAX = 16
"""Scrapes at once; more are answered 503."""
REQUEST_BYTES_MAX = 8192
REQUEST_TIMEOUT_S = 10.0
"""From the connection to the end of the request's head, and again to the end of the answer."""


class MetricsError(Exception):
    """Metrics cannot be served; `str()` says why."""


# -- what is read ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HopSample:
    """One own edge; or all that have no name of their own: sums, and means of the shares, no latency."""

    next_hop: str
    """Hop id."""
    name: str
    """For people."""
    up: float
    """1 or 0; of several, the share that is up."""
    availability: float
    reliability: float
    capacity_mps: float
    latency_s: float | None
    inflight: int
    window: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The node at one instant."""

    node_id: str
    name: str
    cluster: str
    uptime_s: float
    counters: Counters
    queue: QueueSummary
    at: datetime
    """Of the queue's summary."""
    gossip: GossipStats
    members: Mapping[MemberState, int]
    hops: tuple[HopSample, ...]
    hop_states: Mapping[EdgeState, int]
    watchers: int
    draining: bool = False
    pressure: Pressure = NO_PRESSURE
    readings: Readings = NOTHING_READ
    pinned: int = 0
    """Classes that the operator pinned to a hop."""
    plans: int = 0
    """Joint plans made since the start."""
    shares_moved: int = 0
    """Own shares that changed by a tenth or more from one plan to the next."""
    configured: Configured = NEVER_RELOADED


async def read_sample(view: NodeView) -> Sample:
    """Read it all. Long lists are read in slices, so that mail does not wait for a scrape."""
    hops, states = await _read_hops(view)
    queue = await view.store.summary()
    return Sample(
        node_id=view.identity.node_id,
        name=view.settings.node.name,
        cluster=view.identity.cluster,
        uptime_s=view.uptime_s(),
        counters=dataclasses.replace(view.counters),
        queue=queue,
        at=datetime.now(UTC),
        gossip=view.gossip_stats(),
        members=Counter(member.state for member in view.members()),
        hops=hops,
        hop_states=states,
        watchers=view.events.subscriber_count,
        draining=view.operations.draining,
        pressure=view.room.pressure,
        readings=view.room.readings,
        pinned=len(view.operations.orders.pins),
        plans=view.engine.planning.made,
        shares_moved=view.engine.planning.churn,
        configured=view.configured,
    )


async def _read_hops(view: NodeView) -> tuple[tuple[HopSample, ...], Counter[EdgeState]]:
    edges = view.engine.edges()
    states = Counter(edge.breaker.state for edge in edges)
    shown = heapq.nsmallest(LABELS_MAX, edges, key=_rank)
    names = {edge.hop for edge in shown}
    now = view.now()
    hops = [_read_hop(edge, now) for edge in shown]
    rest: list[HopSample] = []
    for number, edge in enumerate(edges):
        if edge.hop not in names:
            rest.append(_read_hop(edge, now))
        if number % SLICE == SLICE - 1:
            await asyncio.sleep(0)
    return (*hops, *_combine(rest)), states


def _rank(edge: Edge) -> tuple[object, ...]:
    """Smart hosts first, as the operator named them; then what is busy, then what was used last."""
    return edge.hop.kind is not HopKind.SMART_HOST, -edge.inflight, -edge.used_at, edge.hop.id


def _read_hop(edge: Edge, now: float) -> HopSample:
    return HopSample(
        next_hop=edge.hop.id,
        name=edge.label,
        up=float(edge.breaker.state is EdgeState.UP),
        availability=edge.availability.at(now),
        reliability=edge.reliability.value,
        capacity_mps=edge.capacity.at(now),
        latency_s=edge.latency.peak,
        inflight=edge.inflight,
        window=edge.breaker.slots(edge.window.size, now),
    )


def _combine(hops: list[HopSample]) -> Iterator[HopSample]:
    if hops:
        yield HopSample(
            next_hop=OTHER,
            name=OTHER,
            up=sum(hop.up for hop in hops) / len(hops),
            availability=sum(hop.availability for hop in hops) / len(hops),
            reliability=sum(hop.reliability for hop in hops) / len(hops),
            capacity_mps=sum(hop.capacity_mps for hop in hops),
            latency_s=None,
            inflight=sum(hop.inflight for hop in hops),
            window=sum(hop.window for hop in hops),
        )


# -- what is shown -----------------------------------------------------------------------------------------------------


def build_families(sample: Sample) -> Iterator[Metric]:
    """Every metric of a sample."""
    about = {"version": __version__, "node_id": sample.node_id, "node": sample.name, "cluster": sample.cluster}
    yield InfoMetricFamily("smtpmesh_build", "This node: version, id, name, cluster.", about)
    yield _gauge("smtpmesh_uptime_seconds", "Since the start of the node.", sample.uptime_s)
    yield _gauge("smtpmesh_draining", "1 while the operator drains this node.", float(sample.draining))
    yield _gauge("smtpmesh_pinned_classes", "Classes whose mail the operator sends by one hop.", sample.pinned)
    yield _counter("smtpmesh_plans", "Joint plans of all mail that this node followed.", sample.plans)
    text = "Shares of this node that changed by a tenth or more from one plan to the next."
    yield _counter("smtpmesh_plan_shares_moved", text, sample.shares_moved)
    yield from _build_configuration(sample.configured)
    yield from _build_room(sample.pressure, sample.readings)
    yield from _build_relay(sample.counters)
    yield from _build_queue(sample.queue, sample.at)
    yield from _build_hops(sample)
    yield from _build_gossip(sample.gossip)
    states = {state.value: sample.members.get(state, 0) for state in MemberState}
    yield _gauges("smtpmesh_gossip_members", "Members of the cluster as this node sees them.", "state", states)
    yield _gauge("smtpmesh_event_watchers", "Callers who watch events (smtpmesh monitor).", sample.watchers)


def _build_configuration(configured: Configured) -> Iterator[Metric]:
    text = "When the node began to go by its configuration: its start, or a reload."
    yield _gauge("smtpmesh_configuration_timestamp_seconds", text, configured.at.timestamp())
    text = "1 unless the last reload was refused (smtpmesh status says why)."
    yield _gauge("smtpmesh_configuration_reload_successful", text, float(not configured.mistakes))
    text = "Settings that were changed in the file and wait for a restart."
    yield _gauge("smtpmesh_configuration_restart_needed", text, len(configured.restart))


def _build_room(pressure: Pressure, readings: Readings) -> Iterator[Metric]:
    text = "How much more this node can take, as peers are told; 0: nothing."
    yield _gauge("smtpmesh_headroom_ratio", text, pressure.headroom_permille / 1000)
    yield _gauge("smtpmesh_overloaded", "1 while this node takes no mail.", float(pressure.overloaded))
    text = "1 while the queue's disk takes nothing (smtpmesh status says why)."
    yield _gauge("smtpmesh_queue_trouble", text, float(bool(readings.trouble)))
    yield _gauge("smtpmesh_disk_free_bytes", "Free on the file system of node.data_dir.", readings.free_bytes)
    yield _gauge("smtpmesh_queue_entries", "Undelivered messages.", readings.entries)


def _build_relay(counters: Counters) -> Iterator[Metric]:
    for name, text, value in (
        ("smtpmesh_messages_accepted", "Messages answered 250.", counters.accepted),
        ("smtpmesh_messages_passed", "Messages relayed before they were answered, and not stored.", counters.passed),
        ("smtpmesh_deliveries_relayed", "Deliveries answered 2yz by a next hop.", counters.relayed),
        ("smtpmesh_deliveries_deferred", "Times that a delivery went back to wait.", counters.deferred),
        ("smtpmesh_deliveries_failed", "Deliveries refused for good, or expired.", counters.failed),
        (
            "smtpmesh_transfers_repeated",
            "Transfers from peers that were recognised and not stored again.",
            counters.duplicates_dropped,
        ),
    ):
        yield _counter(name, text, value)


def _build_queue(queue: QueueSummary, at: datetime) -> Iterator[Metric]:
    classes = list(_bound_classes(queue.classes))
    waiting = {item.class_id: item.count for item in classes}
    deferred = {item.class_id: item.deferred for item in classes}
    oldest = {item.class_id: max(0.0, (at - item.oldest_at).total_seconds()) for item in classes if item.oldest_at}
    yield _gauges("smtpmesh_queue_deliveries", "Undelivered deliveries, deferred ones included.", "class", waiting)
    yield _gauges("smtpmesh_queue_deferred_deliveries", "Deliveries waiting for their next attempt.", "class", deferred)
    yield _gauges("smtpmesh_queue_oldest_age_seconds", "Age of the oldest undelivered delivery.", "class", oldest)
    yield _gauge("smtpmesh_queue_held_deliveries", "Deliveries held by the operator.", queue.held)
    yield _gauge("smtpmesh_queue_corrupt_deliveries", "Deliveries that cannot be read.", queue.corrupt)
    finished = {"relayed": queue.relayed, "failed": queue.failed, "expired": queue.expired}
    text = "Finished deliveries still remembered (queue.history_s)."
    yield _gauges("smtpmesh_queue_finished_deliveries", text, "outcome", finished)
    yield _gauge("smtpmesh_queue_stored_bytes", "Mail data in the queue.", queue.bytes_stored)


def _bound_classes(classes: Iterable[ClassBacklog]) -> Iterator[ClassBacklog]:
    """The classes with most mail, the others as one."""
    ordered = sorted(classes, key=lambda item: (-item.count, item.class_id))
    yield from ordered[:LABELS_MAX]
    if rest := ordered[LABELS_MAX:]:
        count, deferred = sum(item.count for item in rest), sum(item.deferred for item in rest)
        yield ClassBacklog(
            OTHER, count, deferred, min((item.oldest_at for item in rest if item.oldest_at), default=None)
        )


def _build_hops(sample: Sample) -> Iterator[Metric]:
    states = {state.value: sample.hop_states.get(state, 0) for state in EdgeState}
    yield _gauges("smtpmesh_next_hops", "Own links to exits and peers, by state.", "state", states)
    rest = f"; next_hop={OTHER!r} is"
    for name, text, field in (
        ("up", f"1 if it is up{rest} the share that is", "up"),
        ("availability_ratio", f"Share of time that it accepts a session{rest} the mean", "availability"),
        ("reliability_ratio", f"Share of attempts that end in a final 2yz reply{rest} the mean", "reliability"),
        ("capacity_messages_per_second", f"What it was seen to carry, or is assumed to{rest} the sum", "capacity_mps"),
        ("latency_seconds", "From MAIL to the final reply, lately; absent before the first", "latency_s"),
        ("inflight_transactions", f"Transactions under way{rest} the sum", "inflight"),
        ("window_transactions", f"Transactions that may be under way at once{rest} the sum", "window"),
    ):
        family = GaugeMetricFamily(f"smtpmesh_next_hop_{name}", f"{text}.", labels=["next_hop", "name"])
        for hop in sample.hops:
            value = getattr(hop, field)
            if value is not None:
                family.add_metric([hop.next_hop, hop.name], value)
        yield family


def _build_gossip(stats: GossipStats) -> Iterator[Metric]:
    for name, text, label, counts in (
        ("frames_sent", "Frames sent.", "kind", stats.frames_sent),
        ("frames_received", "Frames received.", "kind", stats.frames_received),
        ("records", "Records offered by other nodes.", "verdict", stats.records),
        ("records_originated", "Versions of own records issued.", "kind", stats.originated),
        ("events", "Events, as smtpmesh monitor shows them.", "kind", stats.events),
    ):
        yield _counters(f"smtpmesh_gossip_{name}", text, label, counts)
    yield _counter("smtpmesh_gossip_sent_bytes", "Frames sent, without TLS and TCP.", stats.bytes_sent)
    yield _counter("smtpmesh_gossip_received_bytes", "Frames received, without TLS and TCP.", stats.bytes_received)
    for name, text, value in (
        ("sessions", "Sessions with peers.", stats.sessions),
        ("sessions_wanted", "Peers that this node is to have a session with.", stats.sessions_wanted),
        ("eager_sessions", "Sessions that carry bodies; the others carry announcements.", stats.eager_sessions),
        ("database_records", "Records of the link-state database.", stats.database_records),
        ("stones", "What is left of expired records.", stats.stones),
        ("outbox_records", "Records waiting to be sent, over all sessions.", stats.outbox_records),
        ("timer_lag_seconds", "How late the own timer was of late.", stats.own_lag_s),
        ("patience_ratio", "Factor on the silence allowed to others, because of the own lag.", stats.patience),
        ("damped_links", "Links held back because they flap.", stats.damped),
        ("quarantined_peers", "Peers not listened to because of what they sent.", stats.quarantined),
        ("epoch", "Of the own records; grows with each restart.", stats.epoch),
    ):
        yield _gauge(f"smtpmesh_gossip_{name}", text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    """The text format adds `_total` to its name."""
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class _OneScrape(Collector):
    """A sample, for the registry of one scrape."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample

    def collect(self) -> Iterable[Metric]:
        return build_families(self._sample)


# -- the server --------------------------------------------------------------------------------------------------------


class MetricsServer:
    """Answers scrapes of one node on `listen` (host:port)."""

    def __init__(self, view: NodeView, listen: str) -> None:
        self._view, self._listen = view, listen
        self._server: asyncio.Server | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._process = ProcessCollector(registry=None)

    async def start(self) -> str:
        """Listen; the bound host:port. MetricsError if the address cannot be had."""
        host, _, port = self._listen.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host.strip("[]"), int(port)), family=family)
        except OSError as error:
            raise MetricsError(f"cannot listen on {self._listen}: {_explain(error, port)}") from error
        self._server = await asyncio.start_server(self._admit, sock=listening, limit=REQUEST_BYTES_MAX)
        return f"{host}:{listening.getsockname()[1]}"

    async def stop(self) -> None:
        """Close; a scrape under way is cut off, and tried again by the scraper."""
        if self._server is not None:
            self._server.close()
        for task in list(self._answering):
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        crowded = len(self._answering) >= CONNECTIONS_MAX
        self._answering.add(task)
        try:
            await self._serve(reader, writer, crowded=crowded)
        finally:
            self._answering.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, crowded: bool) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):  # the scraper went, or sleeps
            if crowded:
                answer = _refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    answer = await self._answer(reader)
            writer.write(answer)
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        request, _, fields = head.decode("latin-1").partition("\r\n")
        words = request.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _refuse(HTTPStatus.BAD_REQUEST)
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        if target.partition("?")[0] != PATH:
            return _refuse(HTTPStatus.NOT_FOUND)
        try:
            body, kind = await self._scrape(_find_field(fields, "accept"))
        except Exception:
            log.exception("metrics.bug")
            return _refuse(HTTPStatus.INTERNAL_SERVER_ERROR)
        return _build_answer(HTTPStatus.OK, kind, body, with_body=method == "GET")

    async def _scrape(self, accept: str) -> tuple[bytes, str]:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_OneScrape(await read_sample(self._view)))
        registry.register(self._process)
        encode, kind = choose_encoder(accept)
        return encode(registry), kind


def _find_field(fields: str, wanted: str) -> str:
    """A field of the head, several of its name joined (RFC 9110 section 5.3)."""
    pairs = (line.partition(":") for line in fields.split("\r\n"))
    return ", ".join(value.strip() for name, _, value in pairs if name.strip().lower() == wanted)


def _refuse(status: HTTPStatus) -> bytes:
    text = f"{status.value} {status.phrase}; metrics are at {PATH}\n"
    return _build_answer(status, "text/plain; charset=utf-8", text.encode("ascii"))


def _build_answer(status: HTTPStatus, kind: str, body: bytes, *, with_body: bool = True) -> bytes:
    allow = ["Allow: GET, HEAD"] if status is HTTPStatus.METHOD_NOT_ALLOWED else []
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *allow,
        "Connection: close",
        "",
        "",
    ]
    return "\r\n".join(lines).encode("ascii") + (body if with_body else b"")


def _explain(error: OSError, port: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"is the port {port} in use?"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case _:
            return error.strerror or str(error)
