"""The table of steps in PROMISE.md is that of the code: each is tried in every state, and nothing else happens."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from smtp_edge import queue as queue_package
from smtp_edge.dispatch.settlement import Reporting
from smtp_edge.dsn import Reporter
from smtp_edge.queue.entry import Claim, Decision, DeliveryState, Group, Regrouping
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.queue.rows import CORRUPT
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.rulings import Action, Ruling, decide
from smtp_edge.settings import QueueSettings
from tests.unit.smtp_edge.queue.builders import (
    AT,
    IDS,
    build_deferral,
    build_end,
    build_new,
    build_note,
    hold,
)
from tests.unit.smtp_edge.queue.test_sqlite_store import build_store

PROMISE = Path(queue_package.__file__).with_name("PROMISE.md")
ROW = re.compile(r"^\| (?!before)([a-z, -]+) \| ([a-z ]+) \| ([a-z, -]+) \|[^|]*\|$", re.MULTILINE)
NONE = "-"
EARLY = "claimed early"
"""Claimed before its time: given back, it waits for that again."""
STATES = [NONE, EARLY, *(state.value for state in DeliveryState), CORRUPT]
REPORTING = Reporting(
    policy=RetryPolicy.from_settings(QueueSettings()),
    reporter=Reporter(
        hostname="relay.example",
        node_id="relay",
        new_queue_id=IDS.new,
        class_of=lambda recipient: f"mx:{recipient.domain}",
        lifetime=timedelta(days=5),
    ),
)
LATER = AT + timedelta(days=4)

Line = tuple[str, str, str]
"""State before, step, state after."""


def read_table() -> set[Line]:
    """The table of steps; a cell may name several states."""
    rows = re.findall(
        r"^\| ([a-z, -]+) \| ([a-z ]+) \| ([a-z, -]+) \|[^|]*\|$", PROMISE.read_text("utf-8"), re.MULTILINE
    )
    rows = [row for row in rows if row[1] != "step"]
    lines = set()
    for before, step, after in rows:
        lines |= set(itertools.product(before.split(", "), [step], after.split(", ")))
    return lines


class World:
    """A queue with one message, in some state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: SQLiteStore = build_store(folder)
        self.new = build_new(queue_id=IDS.new(AT))
        self.claim: Claim | None = None
        """As it was claimed last; perhaps no more."""

    @property
    def name(self) -> str:
        return self.new.entry.queue_id

    async def bring_to(self, state: str) -> None:
        """From nothing."""
        await self.store.open()
        if state == NONE:
            return
        (self.claim,) = (await self.store.put(self.new)).claims
        match state:
            case "claimed":
                pass
            case "claimed early":
                await self.store.settle([build_deferral(self.claim, 60)])
                (self.claim,) = await self.store.claim_early("default", 1, AT)
            case "held":
                await self.store.settle([build_end(self.claim, DeliveryState.QUEUED)])
                await hold(self.store, self.name)
            case "deferred":
                await self.store.settle([build_deferral(self.claim, 60)])
            case "corrupt":
                await self.store.settle([build_end(self.claim, DeliveryState.QUEUED)])
                self.execute("UPDATE entry SET document = '{'")
                await self.store.claim(1, AT)
            case _:
                await self.store.settle([build_end(self.claim, DeliveryState(state))])
        assert self.state() == state.partition(" ")[0]

    def state(self) -> str:
        """On disk."""
        with sqlite3.connect(self.folder / "queue.db") as connection:
            row = connection.execute("SELECT state FROM delivery WHERE queue_id = ?", (self.name,)).fetchone()
        connection.close()
        return NONE if row is None else str(row[0])

    def execute(self, statement: str) -> None:
        """What a damaged disk does."""
        with sqlite3.connect(self.folder / "queue.db") as connection:
            connection.execute(statement)
        connection.close()

    async def find(self) -> list[Claim]:
        """As an order finds it: what is claimed waits in memory."""
        if self.state() == "claimed":
            assert self.claim is not None
            return [self.claim]
        return list((await self.store.find(Selection((self.name,), states=tuple(DeliveryState)), 10)).found)

    async def restart(self) -> None:
        """The process has ended, another one begins."""
        await self.store.close()
        self.store = build_store(self.folder)
        await self.store.open()


Step = Callable[[World], Awaitable[object]]


async def put(world: World) -> None:
    await world.store.put(world.new)


async def put_unclaimed(world: World) -> None:
    await world.store.put(world.new, claim=False)


async def put_deferred(world: World) -> None:
    (delivery,) = world.new.deliveries
    later = delivery.but(state=DeliveryState.DEFERRED, next_attempt_at=LATER)
    await world.store.put(type(world.new)(world.new.entry, (later,)), claim=False)


async def claim(world: World) -> None:
    await world.store.claim(1, LATER)


async def claim_these(world: World) -> None:
    await world.store.claim_these([(world.name, 0)], AT)


async def claim_early(world: World) -> None:
    await world.store.claim_early("default", 1, AT)


async def claim_damaged(world: World) -> None:
    world.execute("DELETE FROM body")
    await world.store.claim(1, LATER)


def settle(after: DeliveryState) -> Step:
    async def step(world: World) -> None:
        if world.claim is not None:
            await world.store.settle([build_end(world.claim, after)])

    return step


def order(action: Action) -> Step:
    async def step(world: World) -> None:
        ruling = Ruling(action, "sue", AT, class_id="two" if action is Action.MOVE else "")
        decided = [decide(ruling, item, REPORTING) for item in await world.find()]
        await world.store.change([one for one in decided if one is not None])

    return step


def force(after: DeliveryState) -> Step:
    """An order that nobody's rules allow, for what is over."""

    async def step(world: World) -> None:
        for item in await world.find():
            if item.delivery.state.final:
                await world.store.change([Decision(item.delivery.state, build_end(item, after))])

    return step


async def reroute(world: World) -> None:
    (delivery,) = world.new.deliveries
    token = world.claim.token if world.claim is not None and world.state() == "claimed" else 0
    groups = (Group("two", delivery.recipients, "token"),)
    await world.store.regroup([Regrouping(world.name, 0, token, delivery.recipients, groups)])


async def revive(world: World) -> None:
    await world.store.revive([world.name], build_note("retried"))


async def bury(world: World) -> None:
    await world.store.bury([world.name], build_note("removed"))


async def wake(world: World) -> None:
    await world.store.wake(["default"], AT)


async def prune(world: World) -> None:
    await world.store.prune(LATER)


STEPS: dict[str, list[Step]] = {
    "put": [put, put_unclaimed, put_deferred],
    "claim": [claim, claim_these, claim_early],
    "set aside": [claim_damaged],
    "settle": [settle(state) for state in DeliveryState if state is not DeliveryState.CLAIMED],
    "start": [World.restart],
    **{action.value: [order(action)] for action in Action},
    "reroute": [reroute],
    "damaged retry": [revive],
    "damaged remove": [bury],
    "prune": [prune],
    "none": [wake, *(force(state) for state in DeliveryState)],
}


def test_the_table_knows_every_state_and_every_step() -> None:
    lines = read_table()
    assert {state for before, _, after in lines for state in (before, after)} == {*STATES} - {EARLY}
    assert {step for _, step, _ in lines} == {*STEPS} - {"none"}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.rfc("5321 6.1a")
async def test_every_step_in_every_state_does_what_the_table_says(tmp_path: Path, step: str) -> None:
    seen: set[Line] = set()
    states = [NONE] if step == "put" else STATES[1:]
    for number, (before, act) in enumerate(itertools.product(states, STEPS[step])):
        world = World(tmp_path / str(number))
        await world.bring_to(before)
        found = world.state()
        await act(world)
        if world.state() != found:
            seen.add((found, step, world.state()))
        await world.store.close()
    assert seen == {line for line in read_table() if line[1] == step}
