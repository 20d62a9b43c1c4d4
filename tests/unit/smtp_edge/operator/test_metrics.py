"""Metrics: every value under its name, names by the conventions, labels bounded, the small HTTP server."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import socket
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from gossip.status import MemberState
from router.decision import EdgeState, Hop, HopKind, Outcome, OutcomeKind
from smtp_edge import __version__
from smtp_edge.counters import Counters
from smtp_edge.metrics import (
    CONNECTIONS_MAX,
    LABELS_MAX,
    REQUEST_BYTES_MAX,
    HopSample,
    MetricsError,
    MetricsServer,
    Sample,
    build_families,
    read_sample,
)
from smtp_edge.queue.entry import ClassBacklog, QueueSummary
from smtp_edge.reload import Configured
from tests.unit.smtp_edge.operator.views import NOW, STATS, FakeView, make_identity
from tests.unit.smtp_edge.queue.builders import build_new

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SAMPLE = Sample(
    node_id="a" * 32,
    name="relay-a",
    cluster="test",
    uptime_s=120.5,
    counters=Counters(accepted=101, passed=100, relayed=102, deferred=103, failed=104, duplicates_dropped=105),
    queue=QueueSummary(
        classes=(ClassBacklog("default", 111, 112, AT - timedelta(seconds=113)), ClassBacklog("idle", 0, 0, None)),
        held=114,
        relayed=115,
        failed=116,
        expired=117,
        corrupt=118,
        bytes_stored=119,
    ),
    at=AT,
    gossip=STATS,
    members={MemberState.SELF: 1, MemberState.UP: 2},
    hops=(
        HopSample("host:up", "up", 1.0, 0.25, 0.5, 121.5, 0.125, 122, 123),
        HopSample("mx:new.example", "new.example", 0.0, 1.0, 1.0, 1.0, None, 0, 1),
    ),
    hop_states={EdgeState.UP: 3},
    watchers=4,
    draining=True,
    pinned=124,
    plans=125,
    shares_moved=126,
    configured=Configured(datetime.fromtimestamp(127, UTC), ("metrics.listen",) * 128, ("a mistake",)),
)
"""Every number is another one."""

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def expose(sample: Sample) -> str:
    """The text that a scraper gets."""

    class OneSample(Collector):
        def collect(self) -> Iterable[Metric]:
            return build_families(sample)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OneSample())
    return generate_latest(registry).decode()


def values(text: str) -> Values:
    """Value by name and labels."""
    return {
        (found.name, frozenset(found.labels.items())): found.value
        for family in parse_text(text)
        for found in family.samples
    }


def value(text: str, name: str, /, **labels: str) -> float:
    return values(text)[name, frozenset(labels.items())]


def label_values(text: str, name: str, label: str) -> list[str]:
    return [found.labels[label] for family in parse_text(text) for found in family.samples if found.name == name]


# -- names and values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("smtpmesh_uptime_seconds", {}, 120.5),
        ("smtpmesh_draining", {}, 1),
        ("smtpmesh_pinned_classes", {}, 124),
        ("smtpmesh_configuration_timestamp_seconds", {}, 127),
        ("smtpmesh_configuration_reload_successful", {}, 0),
        ("smtpmesh_configuration_restart_needed", {}, 128),
        ("smtpmesh_plans_total", {}, 125),
        ("smtpmesh_plan_shares_moved_total", {}, 126),
        ("smtpmesh_messages_accepted_total", {}, 101),
        ("smtpmesh_messages_passed_total", {}, 100),
        ("smtpmesh_deliveries_relayed_total", {}, 102),
        ("smtpmesh_deliveries_deferred_total", {}, 103),
        ("smtpmesh_deliveries_failed_total", {}, 104),
        ("smtpmesh_transfers_repeated_total", {}, 105),
        ("smtpmesh_queue_deliveries", {"class": "default"}, 111),
        ("smtpmesh_queue_deliveries", {"class": "idle"}, 0),
        ("smtpmesh_queue_deferred_deliveries", {"class": "default"}, 112),
        ("smtpmesh_queue_oldest_age_seconds", {"class": "default"}, 113),
        ("smtpmesh_queue_held_deliveries", {}, 114),
        ("smtpmesh_queue_finished_deliveries", {"outcome": "relayed"}, 115),
        ("smtpmesh_queue_finished_deliveries", {"outcome": "failed"}, 116),
        ("smtpmesh_queue_finished_deliveries", {"outcome": "expired"}, 117),
        ("smtpmesh_queue_corrupt_deliveries", {}, 118),
        ("smtpmesh_queue_stored_bytes", {}, 119),
        ("smtpmesh_next_hops", {"state": "up"}, 3),
        ("smtpmesh_next_hops", {"state": "down"}, 0),
        ("smtpmesh_next_hop_up", {"next_hop": "host:up", "name": "up"}, 1),
        ("smtpmesh_next_hop_up", {"next_hop": "mx:new.example", "name": "new.example"}, 0),
        ("smtpmesh_next_hop_availability_ratio", {"next_hop": "host:up", "name": "up"}, 0.25),
        ("smtpmesh_next_hop_reliability_ratio", {"next_hop": "host:up", "name": "up"}, 0.5),
        ("smtpmesh_next_hop_capacity_messages_per_second", {"next_hop": "host:up", "name": "up"}, 121.5),
        ("smtpmesh_next_hop_latency_seconds", {"next_hop": "host:up", "name": "up"}, 0.125),
        ("smtpmesh_next_hop_inflight_transactions", {"next_hop": "host:up", "name": "up"}, 122),
        ("smtpmesh_next_hop_window_transactions", {"next_hop": "host:up", "name": "up"}, 123),
        ("smtpmesh_gossip_members", {"state": "up"}, 2),
        ("smtpmesh_gossip_members", {"state": "unreachable"}, 0),
        ("smtpmesh_gossip_frames_sent_total", {"kind": "push"}, 5),
        ("smtpmesh_gossip_frames_received_total", {"kind": "fetch"}, 1),
        ("smtpmesh_gossip_sent_bytes_total", {}, 2048),
        ("smtpmesh_gossip_received_bytes_total", {}, 1024),
        ("smtpmesh_gossip_records_total", {"verdict": "stored"}, 30),
        ("smtpmesh_gossip_records_originated_total", {"kind": "links"}, 4),
        ("smtpmesh_gossip_events_total", {"kind": "session-up"}, 2),
        ("smtpmesh_gossip_sessions", {}, 6),
        ("smtpmesh_gossip_eager_sessions", {}, 7),
        ("smtpmesh_gossip_sessions_wanted", {}, 8),
        ("smtpmesh_gossip_database_records", {}, 13),
        ("smtpmesh_gossip_stones", {}, 14),
        ("smtpmesh_gossip_outbox_records", {}, 15),
        ("smtpmesh_gossip_damped_links", {}, 16),
        ("smtpmesh_gossip_quarantined_peers", {}, 17),
        ("smtpmesh_gossip_timer_lag_seconds", {}, 0.25),
        ("smtpmesh_gossip_patience_ratio", {}, 1.5),
        ("smtpmesh_gossip_epoch", {}, 1_800_000_000),
        ("smtpmesh_event_watchers", {}, 4),
    ],
)
def test_a_value_has_its_name_and_its_labels(name: str, labels: dict[str, str], expected: float) -> None:
    assert value(expose(SAMPLE), name, **labels) == expected


def test_the_build_is_shown_as_labels_of_a_one() -> None:
    labels = {"version": __version__, "node_id": "a" * 32, "node": "relay-a", "cluster": "test"}
    assert value(expose(SAMPLE), "smtpmesh_build_info", **labels) == 1


def test_what_is_not_known_is_absent() -> None:
    shown = {(name, dict(labels).get("next_hop", dict(labels).get("class"))) for name, labels in values(expose(SAMPLE))}
    assert ("smtpmesh_next_hop_latency_seconds", "mx:new.example") not in shown
    assert ("smtpmesh_queue_oldest_age_seconds", "idle") not in shown


def test_names_follow_the_conventions() -> None:
    for family in parse_text(expose(SAMPLE)):
        assert re.fullmatch(r"smtpmesh(_[a-z]+)+", family.name), family.name
        assert family.documentation.endswith("."), family.name
        assert len(family.documentation) > 10
        assert not re.search(r"_(ms|milliseconds|minutes|kib|percent|count)(_|$)", family.name), family.name
        assert ("_bytes" in family.name) == ("_bytes" in family.name.removesuffix("_total"))
        for found in family.samples:
            assert found.name.endswith("_total") == (family.type == "counter"), found.name


def test_every_counter_and_gauge_of_gossip_is_shown() -> None:
    """All but the root, which is no number, and the counts of members, which `members` shows by state."""
    numbers = {name: item for name, item in dataclasses.asdict(STATS).items() if isinstance(item, int | float)}
    shown = {found for (name, _), found in values(expose(SAMPLE)).items() if name.startswith("smtpmesh_gossip_")}
    assert {item for name, item in numbers.items() if name not in ("members", "unreachable")} <= shown


# -- reading a node ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def view(folder: Path) -> AsyncIterator[FakeView]:
    view = FakeView(folder, make_identity(folder))
    await view.store.open()
    yield view
    await view.store.close()


async def test_a_sample_is_what_the_node_says(view: FakeView) -> None:
    await view.store.put(build_new("default"))
    view.engine.begin(Hop(HopKind.SMART_HOST, "a"), "default", NOW)
    sample = await read_sample(view)
    assert (sample.node_id, sample.name, sample.cluster) == (view.identity.node_id, "relay-a", "test")
    assert (sample.counters.accepted, sample.uptime_s) == (7, 120.0)
    assert [(item.class_id, item.count) for item in sample.queue.classes] == [("default", 1)]
    assert sample.members == {MemberState.SELF: 1, MemberState.UP: 1, MemberState.UNREACHABLE: 1}
    assert sample.hop_states[EdgeState.UNKNOWN] == 4
    assert [hop.name for hop in sample.hops[:2]] == ["a", "b"]
    assert {hop.name for hop in sample.hops[2:]} == {"relay-b", "relay-c"}
    assert [hop.inflight for hop in sample.hops] == [1, 0, 0, 0]
    view.counters.accepted += 1
    assert sample.counters.accepted == 7


async def test_next_hops_have_a_bounded_number_of_names_and_the_rest_is_summed(view: FakeView) -> None:
    for number in range(2000):
        view.engine.begin(Hop(HopKind.MX, f"d{number}.example"), "default", NOW + number)
    busy = Hop(HopKind.MX, "d3.example")
    view.engine.begin(busy, "default", NOW)
    view.engine.record(Outcome(Hop(HopKind.MX, "d0.example"), OutcomeKind.ACCEPTED, NOW, 0.1), "default", NOW)
    sample = await read_sample(view)
    names = [hop.next_hop for hop in sample.hops]
    assert names[:4] == ["host:a", "host:b", "mx:d3.example", "mx:d1999.example"]
    assert names[-1] == "other"
    assert len(names) == LABELS_MAX + 1
    assert sum(hop.inflight for hop in sample.hops) == 2000
    assert sample.hops[-1].inflight == 2000 - 2 - (LABELS_MAX - 3)
    assert 0 < sample.hops[-1].up <= 1 / 1000
    assert len(label_values(expose(sample), "smtpmesh_next_hop_up", "next_hop")) == LABELS_MAX + 1


async def test_few_next_hops_have_no_other(view: FakeView) -> None:
    assert "other" not in [hop.next_hop for hop in (await read_sample(view)).hops]


async def test_other_work_gets_its_turn_while_many_next_hops_are_read(view: FakeView) -> None:
    for number in range(2000):
        view.engine.begin(Hop(HopKind.MX, f"d{number}.example"), "default", NOW)
    reading = asyncio.create_task(read_sample(view))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 2000 // 500


def test_classes_have_a_bounded_number_of_names_and_the_rest_is_summed() -> None:
    classes = tuple(
        ClassBacklog(f"mx:d{number}.example", number, 1, AT - timedelta(seconds=number)) for number in range(1, 1001)
    )
    text = expose(dataclasses.replace(SAMPLE, queue=QueueSummary(classes)))
    shown = label_values(text, "smtpmesh_queue_deliveries", "class")
    assert len(shown) == LABELS_MAX + 1
    assert shown[0] == "mx:d1000.example"
    assert value(text, "smtpmesh_queue_deliveries", **{"class": "other"}) == sum(range(1, 1001 - LABELS_MAX))
    assert value(text, "smtpmesh_queue_deferred_deliveries", **{"class": "other"}) == 1000 - LABELS_MAX
    assert value(text, "smtpmesh_queue_oldest_age_seconds", **{"class": "other"}) == 1000 - LABELS_MAX


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def address(view: FakeView) -> AsyncIterator[str]:
    server = MetricsServer(view, "127.0.0.1:0")
    yield await server.start()
    await server.stop()


async def get(address: str, path: str = "/metrics", method: str = "GET", accept: str = "") -> tuple[int, str, str]:
    """Status, content type and body, by the standard library's client."""

    def work() -> tuple[int, str, str]:
        request = Request(f"http://{address}{path}", method=method, headers={"Accept": accept} if accept else {})
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read().decode()

    return await asyncio.to_thread(work)


async def send(address: str, raw: bytes) -> bytes:
    """Whatever comes back for these bytes."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def test_a_scrape_gets_the_text_format(address: str) -> None:
    status, kind, text = await get(address)
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert value(text, "smtpmesh_messages_accepted_total") == 7
    assert value(text, "process_open_fds") > 0


async def test_a_scraper_that_knows_openmetrics_gets_it(address: str) -> None:
    status, kind, text = await get(address, accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert status == 200
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert {"smtpmesh_messages_accepted", "smtpmesh_build"} <= {family.name for family in parse_openmetrics(text)}


async def test_each_scrape_reads_anew(address: str, view: FakeView) -> None:
    await get(address)
    view.counters.accepted += 5
    assert value((await get(address))[2], "smtpmesh_messages_accepted_total") == 12


async def test_a_query_changes_nothing(address: str) -> None:
    assert (await get(address, "/metrics?x=1"))[0] == 200


@pytest.mark.parametrize(("path", "method", "status"), [("/", "GET", 404), ("/metrics/", "GET", 404),
                                                        ("/metrics", "POST", 405)])  # fmt: skip
async def test_other_questions_are_told_where_metrics_are(address: str, path: str, method: str, status: int) -> None:
    found, _, text = await get(address, path, method)
    assert found == status
    assert text.endswith("; metrics are at /metrics\n")


async def test_head_is_answered_without_a_body(address: str) -> None:
    answer = await send(address, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert re.search(rb"Content-Length: [1-9]", head)
    assert body == b""


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (b"\xff\x00\xfe\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /metrics SMTP/1.0\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 3 * REQUEST_BYTES_MAX, b"HTTP/1.1 431 "),
    ],
)
async def test_what_is_no_request_is_refused(address: str, raw: bytes, status: bytes) -> None:
    assert (await send(address, raw)).startswith(status)


async def test_a_fault_of_our_own_is_answered_500_and_the_next_scrape_works(
    address: str, view: FakeView, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(view, "members", lambda: 1 / 0)
        assert (await get(address))[0] == 500
    assert (await get(address))[0] == 200


async def test_connections_that_say_nothing_take_a_bounded_number_of_places(address: str) -> None:
    host, _, port = address.rpartition(":")
    silent = [await asyncio.open_connection(host, int(port)) for _ in range(CONNECTIONS_MAX)]
    assert (await send(address, b"")).startswith(b"HTTP/1.1 503 ")
    for _, writer in silent:
        writer.close()
    async with asyncio.timeout(10):
        while (await get(address))[0] != 200:  # noqa: ASYNC110  (the server tells nobody that a place is free)
            await asyncio.sleep(0.01)


async def test_an_address_in_use_is_named(view: FakeView) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MetricsError) as caught:
            await MetricsServer(view, listen).start()
    assert str(caught.value) == f"cannot listen on {listen}: is the port {listen.rpartition(':')[2]} in use?"


async def test_an_address_of_another_machine_is_named(view: FakeView) -> None:
    with pytest.raises(MetricsError, match=r"^cannot listen on 192\.0\.2\.1:9427: this machine has no such address$"):
        await MetricsServer(view, "192.0.2.1:9427").start()


async def test_it_stops_while_somebody_is_connected(view: FakeView) -> None:
    server = MetricsServer(view, "127.0.0.1:0")
    host, _, port = (await server.start()).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metr")
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await server.stop()
        assert await reader.read() == b""
    writer.close()
