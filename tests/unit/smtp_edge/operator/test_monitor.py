"""`smtpmesh monitor` and the stream behind it, against a real admin server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result

from gossip.status import Event, EventKind
from smtp_edge.admin import client, server
from smtp_edge.admin.events import BACKLOG_MAX, SUBSCRIBERS_MAX
from smtp_edge.cli import cli
from smtp_edge.cli.tables import show_event
from smtpmesh.admin.v1 import admin_pb2 as pb
from smtpmesh.admin.v1 import admin_pb2_grpc as pb_grpc
from tests.unit.smtp_edge.operator.views import OTHER, PEER, FakeView, Served, make_identity

STORM = 20 * BACKLOG_MAX
EVENTS = (
    Event(EventKind.SESSION_UP, PEER),
    Event(EventKind.SUSPECT, OTHER, "silent for 3.1 s"),
    Event(EventKind.NODE_JOINED, OTHER, "relay-c", PEER),
)
AT = "2026-03-01T12:00:00.000Z"


@pytest.fixture
def stub(served: Served) -> Iterator[pb_grpc.AdminStub]:
    with grpc.insecure_channel(served.address) as channel:
        yield pb_grpc.AdminStub(channel)


def publish(served: Served, *events: Event) -> None:
    async def work() -> None:
        for event in events:
            served.view.events.publish(event)

    served.run(work())


def close(served: Served) -> None:
    """What a node does first when it stops."""

    async def work() -> None:
        served.view.events.close()

    served.run(work())


def watch(served: Served, *words: str) -> Result:
    """A monitor of what has happened, and of the node's end."""
    publish(served, *EVENTS)
    close(served)
    return CliRunner().invoke(cli, ["monitor", "--admin", served.address, *words])


def test_an_event_is_one_line_with_time_kind_name_text_and_through_whom(served: Served) -> None:
    result = watch(served, "--recent", "256")
    assert result.stdout == (
        f"{AT}  session-up          relay-b\n"
        f"{AT}  suspect             relay-c       silent for 3.1 s\n"
        f"{AT}  node-joined         relay-c       relay-c  through relay-b\n"
    )


def test_the_end_of_the_node_is_told(served: Served) -> None:
    result = watch(served)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "watching relay-a; Ctrl-C ends\nsmtpmesh: the node has stopped\n"


def test_kinds_are_chosen_by_name(served: Served) -> None:
    result = watch(served, "--recent", "256", "--kind", "suspect", "--kind", "session-up")
    assert [line.split()[1] for line in result.stdout.splitlines()] == ["session-up", "suspect"]


def test_an_unknown_kind_names_the_known_ones(served: Served) -> None:
    result = watch(served, "--kind", "nonsense")
    known = ", ".join(kind.value for kind in EventKind)
    assert (result.exit_code, result.stderr) == (1, f"smtpmesh: no kind 'nonsense'; there are: {known}\n")


def test_as_json_each_event_is_one_object_on_one_line(served: Served) -> None:
    result = watch(served, "--recent", "1", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {
            "at": AT,
            "kind": "node-joined",
            "node": {"node_id": OTHER, "name": "relay-c"},
            "text": "relay-c",
            "peer": {"node_id": PEER, "name": "relay-b"},
            "lost": 0,
        }
    ]


def test_losses_stand_on_a_line_before_the_event() -> None:
    event = pb.WatchEventsResponse(at=AT, kind="cleared", node=pb.NodeName(node_id=PEER), lost=12)
    assert show_event(event) == f"(12 events lost here: read too slowly)\n{AT}  cleared             bbbbbbbb"


def test_the_longest_kind_fits_its_column() -> None:
    assert max(len(kind.value) for kind in EventKind) == 18


def test_a_node_that_does_not_run_is_one_sentence() -> None:
    result = CliRunner().invoke(cli, ["monitor", "--admin", "unix:/nowhere/admin.sock"])
    assert result.exit_code == 3
    assert result.stderr.startswith("smtpmesh: no answer from unix:/nowhere/admin.sock: is the node running")


def test_a_monitor_over_the_network_is_a_member(folder: Path) -> None:
    served = Served(FakeView(folder, make_identity(folder)), "0.0.0.0:0")
    try:
        publish(served, *EVENTS)
        close(served)
        config = folder / "node.toml"
        config.write_text(f'[node]\nname = "x"\n[[route]]\nvia = ["mx"]\n[admin]\nlisten = "{served.address}"\n')
        result = CliRunner().invoke(cli, ["monitor", "--config", str(config), "--recent", "3"])
        assert len(result.stdout.splitlines()) == 3, result.output
        assert result.stderr.endswith("smtpmesh: the node has stopped\n")
    finally:
        served.close()


def test_a_watcher_asks_no_more_often_than_a_node_permits() -> None:
    asked_ms = dict(client.OPTIONS)["grpc.keepalive_time_ms"]
    assert asked_ms > dict(server.OPTIONS)["grpc.http2.min_recv_ping_interval_without_data_ms"]


def test_events_come_as_they_happen(served: Served, stub: pb_grpc.AdminStub) -> None:
    call = stub.WatchEvents(pb.WatchEventsRequest(), timeout=10)
    call.initial_metadata()  # from here on it gets everything
    publish(served, EVENTS[0])
    assert next(call).kind == "session-up"
    publish(served, EVENTS[1])
    assert next(call).kind == "suspect"
    call.cancel()


def test_a_caller_who_goes_gives_its_place_back(served: Served, stub: pb_grpc.AdminStub) -> None:
    async def nobody_listens() -> None:
        while served.view.events.subscriber_count:  # noqa: ASYNC110  (gRPC tells of the end when it likes)
            await asyncio.sleep(0.01)

    calls = [stub.WatchEvents(pb.WatchEventsRequest(), timeout=10) for _ in range(SUBSCRIBERS_MAX)]
    for call in calls:
        call.initial_metadata()
    refused = CliRunner().invoke(cli, ["monitor", "--admin", served.address])
    assert (refused.exit_code, refused.stderr) == (1, "smtpmesh: 16 monitors watch already; end one of them\n")
    for call in calls:
        call.cancel()
    served.run(nobody_listens())


def test_a_caller_who_does_not_read_loses_events_and_no_count_of_them(served: Served, stub: pb_grpc.AdminStub) -> None:
    """More than all buffers between take: the node keeps a backlog and no more, and the numbers still add up."""

    async def storm() -> None:
        for number in range(STORM):
            served.view.events.publish(Event(EventKind.CHANGED, PEER, f"{number} {'x' * 1000}"))
            if number % 64 == 0:
                await asyncio.sleep(0)

    call = stub.WatchEvents(pb.WatchEventsRequest(), timeout=30)
    call.initial_metadata()
    served.run(storm())
    close(served)
    told = [(int(answer.text.split()[0]), answer.lost) for answer in call]
    assert len(told) + sum(lost for _, lost in told) == STORM
    assert sum(lost for _, lost in told) > 0
    assert [number for number, _ in told] == sorted({number for number, _ in told})
    assert told[-1][0] == STORM - 1
