"""Orders carried out: kept before they are applied, back after a restart, told once; and pins end by themselves."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from router.decision import Changes, EdgeState, ExitHop, Hop
from router.engine import RoutingEngine
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings
from smtp_edge import operations as operations_module
from smtp_edge.operations import Operations, OrderError
from smtp_edge.orders import Orders, OrdersError, load_orders
from tests.unit.smtp_edge.dispatch.fakes import until

A, B = Hop.parse("host:a"), Hop.parse("host:b")
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class Desk:
    """Operations on a real engine; its clock is moved by hand."""

    def __init__(self, folder: Path, *, at: datetime = START) -> None:
        self.at, self.time = at, 100.0
        self.path = folder / "orders.json"
        self.engine = RoutingEngine(
            node_id="a" * 32,
            node_name="a",
            table=RouteTable([RouteRule("default", ("*",), ("a", "b"))]),
            exits=[ExitHop(A, "a"), ExitHop(B, "b")],
            settings=RouterSettings(),
            rng=random.Random(1),
            now=self.time,
        )
        self.acts: list[Changes] = []
        self.drains: list[tuple[bool, bool]] = []
        """What the rest of the node was told, and whether the file said the same by then."""
        self.told: list[str] = []
        self.operations = Operations(
            self.path,
            self.engine,
            hosts=("b", "a"),
            act=self.acts.append,
            on_drain=self.on_drain,
            tell=self.told.append,
            now=lambda: self.time,
            clock=lambda: self.at,
        )

    async def on_drain(self, draining: bool) -> None:
        self.drains.append((draining, (load_orders(self.path).drain is not None) is draining))

    def pass_time(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        self.time += seconds


async def test_an_order_is_on_disk_before_it_is_carried_out_and_told_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with capture_logs() as lines:
        assert await desk.operations.drain_node("root")
        assert not await desk.operations.drain_node("sue")
        assert await desk.operations.undrain_node("sue")
        assert not await desk.operations.undrain_node("sue")
    assert desk.drains == [(True, True), (False, True)]
    assert desk.told == ["this node drains (by root)", "this node takes mail again (by sue)"]
    orders = [(line["order"], line["by"]) for line in lines if line["event"] == "order"]
    assert orders == [("drain", "root"), ("undrain", "sue")]


async def test_a_host_is_drained_here_and_by_its_name(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert await desk.operations.drain_host("a", "root")
    assert not await desk.operations.drain_host("a", "root")
    assert desk.engine.state_of(A) is EdgeState.DRAINING
    assert [change.transitions[0].after for change in desk.acts] == [EdgeState.DRAINING]
    assert await desk.operations.undrain_host("a", "root")
    assert desk.engine.state_of(A) is EdgeState.HALF_OPEN
    assert desk.told[0] == "smart host a is drained (by root)"
    with pytest.raises(OrderError, match="no smart host 'c' here; there are: a, b"):
        await desk.operations.drain_host("c", "root")


async def test_all_orders_are_back_after_a_restart(tmp_path: Path) -> None:
    before = Desk(tmp_path)
    await before.operations.drain_node("root")
    await before.operations.drain_host("a", "root")
    await before.operations.pin("default", B, 600, "root")
    after = Desk(tmp_path, at=START + timedelta(seconds=200))
    await after.operations.restore()
    assert after.operations.orders == before.operations.orders
    assert after.drains == [(True, True)]
    assert after.engine.state_of(A) is EdgeState.DRAINING
    assert after.engine.pins["default"].until == pytest.approx(500.0)
    assert after.told == []


async def test_a_pin_that_ended_while_the_node_was_down_stays_over(tmp_path: Path) -> None:
    before = Desk(tmp_path)
    await before.operations.pin("default", B, 600, "root")
    after = Desk(tmp_path, at=START + timedelta(seconds=601))
    await after.operations.restore()
    assert after.engine.pins == {}
    task = asyncio.create_task(after.operations.run())
    await until(lambda: load_orders(after.path) == Orders())
    task.cancel()


async def test_a_host_that_left_the_configuration_is_no_order_any_more(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.operations.drain_host("a", "root")
    other = Desk(tmp_path)
    other.operations = Operations(
        other.path,
        other.engine,
        hosts=("b",),
        act=other.acts.append,
        on_drain=other.on_drain,
        tell=other.told.append,
        now=lambda: other.time,
        clock=lambda: other.at,
    )
    await other.operations.restore()
    assert other.operations.orders == Orders()


async def test_orders_follow_a_configuration_that_changes(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.operations.drain_host("a", "root")
    await desk.operations.drain_host("b", "root")
    await desk.operations.pin("default", B, 600, "root")
    desk.engine.reconfigure([RouteRule("default", ("*",), ("a",))], [ExitHop(A, "a")], desk.time, anew=[A])
    await desk.operations.adapt(["a"])
    assert desk.engine.state_of(A) is EdgeState.DRAINING  # another machine now, and the order is about the name
    assert desk.engine.pins == {}
    assert load_orders(desk.path) == desk.operations.orders
    assert (list(desk.operations.orders.hosts), desk.operations.orders.pins) == (["a"], {})
    assert desk.told[-2:] == [
        "smart host b is gone, and its drain with it (by reload)",
        "the pin of default is over: host:b is no exit of the class default here; there are: host:a (by reload)",
    ]
    with pytest.raises(OrderError, match="no smart host 'b' here; there are: a"):
        await desk.operations.drain_host("b", "root")


async def test_a_damaged_file_keeps_the_node_from_starting(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.path.write_text("{")
    with pytest.raises(OrdersError):
        await desk.operations.restore()


async def test_what_cannot_be_kept_is_not_carried_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path)

    def fail(path: Path, orders: Orders) -> None:
        raise OrdersError("disk full; nothing was changed")

    monkeypatch.setattr(operations_module, "save_orders", fail)
    for order in (
        desk.operations.drain_node("root"),
        desk.operations.drain_host("a", "root"),
        desk.operations.pin("default", A, 60, "root"),
    ):
        with pytest.raises(OrdersError):
            await order
    assert (desk.operations.orders, desk.drains, desk.acts, desk.told) == (Orders(), [], [], [])


async def test_a_pin_is_changed_by_another_and_taken_back(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    await desk.operations.pin("default", A, 60, "root")
    pin = await desk.operations.pin("default", B, 7200, "sue")
    assert (pin.hop, pin.until_at, pin.order.by) == ("host:b", START + timedelta(hours=2), "sue")
    assert {class_id: found.hop for class_id, found in desk.engine.pins.items()} == {"default": B}
    assert await desk.operations.unpin("default", "sue")
    assert not await desk.operations.unpin("default", "sue")
    assert desk.engine.pins == {}
    assert desk.told == [
        "default is pinned to host:a until 2026-03-01 12:01:00Z (by root)",
        "default is pinned to host:b until 2026-03-01 14:00:00Z (by sue)",
        "default is no longer pinned (by sue)",
    ]


@pytest.mark.parametrize("for_s", [0, -1, 7 * 86400 + 1, float("inf"), float("nan")])
async def test_a_pin_has_an_end_within_seven_days(tmp_path: Path, for_s: float) -> None:
    with pytest.raises(OrderError, match="at most 7 days"):
        await Desk(tmp_path).operations.pin("default", A, for_s, "root")


async def test_a_pin_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    with pytest.raises(OrderError, match="there is no class 'nope' here; there are: default"):
        await desk.operations.pin("nope", A, 60, "root")
    assert desk.operations.orders == Orders()


async def test_a_pin_ends_by_itself(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    task = asyncio.create_task(desk.operations.run())
    await desk.operations.pin("default", A, 60, "root")
    await desk.operations.pin("default", A, 0.02, "root")
    desk.pass_time(0.03)
    await until(lambda: desk.operations.orders == Orders())
    await until(lambda: len(desk.told) == 3)
    assert desk.told[-1] == "the pin of default is over (by time)"
    assert desk.engine.pins == {}
    assert load_orders(desk.path) == Orders()
    task.cancel()


async def test_a_pin_ends_also_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path)
    await desk.operations.pin("default", A, 60, "root")
    kept: list[Orders] = []

    def fail(path: Path, orders: Orders) -> None:
        kept.append(orders)
        raise OrdersError("disk full")

    monkeypatch.setattr(operations_module, "save_orders", fail)
    desk.pass_time(61)
    task = asyncio.create_task(desk.operations.run())
    await until(lambda: desk.operations.orders == Orders())
    assert desk.engine.pins == {}
    task.cancel()


async def test_orders_given_at_once_are_carried_out_one_after_the_other(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    done = await asyncio.gather(*(desk.operations.drain_host(name, "root") for name in "abab"))
    assert sorted(done) == [False, False, True, True]
    assert set(load_orders(desk.path).hosts) == {"a", "b"}
