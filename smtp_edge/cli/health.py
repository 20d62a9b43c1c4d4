"""`health`: one line and an exit code for monitoring plugins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.

critical    the node does not answer; it takes no mail; its queue's disk fails; a class has mail and no way out
warning     a member is unreachable; an exit is down; little headroom; damaged mail; the node drains
unknown     this command could not ask: no configuration, not permitted
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from smtp_edge.cli.common import ADMIN, CONFIG, EXIT_UNREACHABLE, JSON, Duration
from smtp_edge.cli.everyone import Answer, ask_all

OK, WARNING, CRITICAL, UNKNOWN = range(4)
SEVERITY = (OK, WARNING, UNKNOWN, CRITICAL)
"""From what is well to what is worst."""
WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
LITTLE_HEADROOM_PERMILLE = 500
DOWN = ("down", "half-open")
HOLDS = ("hold: no path",)
"""Rules under which mail of a class goes nowhere until something comes back."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator finds too much; None: it does not matter."""

    waiting_warning: int | None
    waiting_critical: int | None
    oldest_warning_s: float | None
    oldest_critical_s: float | None


@click.command("health")
@click.option("--warn-waiting", type=click.IntRange(0), metavar="COUNT", help="Warn when so many deliveries wait.")
@click.option("--crit-waiting", type=click.IntRange(0), metavar="COUNT")
@click.option("--warn-oldest", type=Duration(), help="Warn when the oldest delivery is as old: 30m, 4h.")
@click.option("--crit-oldest", type=Duration())
@CONFIG
@ADMIN
@JSON
def health(
    warn_waiting: int | None,
    crit_waiting: int | None,
    warn_oldest: float | None,
    crit_oldest: float | None,
    config: Path,
    admin: str | None,
    as_json: bool,
) -> None:
    """Is the node well? One line and performance data; ends with 0, 1, 2 or 3 as monitoring plugins do."""
    try:
        asked = ask_all(config, admin, _ask)
    except SystemExit:  # the configuration was refused, and why has been said
        sys.exit(UNKNOWN)
    bounds = Bounds(warn_waiting, crit_waiting, warn_oldest, crit_oldest)
    found = [finding for answer in asked for finding in _judge_worker(answer, bounds)]
    findings = sorted(found, key=lambda finding: -SEVERITY.index(finding.level))
    level = findings[0].level if findings else OK
    good = [answer.value for answer in asked if answer.value is not None]
    names = ", ".join(answers["GetStatus"].name for answers in good)
    _end(level, findings, names, measure_all(good), as_json=as_json)


def _ask(client: Any) -> dict[str, Any]:
    return {name: client.call(name, {}) for name in ("GetStatus", "GetQueue", "GetRoutes", "ListNodes")}


def _judge_worker(answer: Answer, bounds: Bounds) -> Iterator[Finding]:
    """One that does not answer is a fault of the whole node; what the others find bears their names."""
    if answer.value is None:
        yield Finding(CRITICAL if answer.code == EXIT_UNREACHABLE else UNKNOWN, answer.trouble)
        return
    for finding in find_all(answer.value, bounds):
        yield Finding(finding.level, f"{answer.name}: {finding.text}") if answer.name else finding


def find_all(answers: dict[str, Any], bounds: Bounds) -> Iterator[Finding]:
    """Everything that is not as it should be."""
    status, queue = answers["GetStatus"], answers["GetQueue"]
    yield from _judge_node(status)
    yield from _judge_queue(queue, bounds)
    yield from _judge_routes(answers["GetRoutes"])
    lost = sorted(node.name for node in answers["ListNodes"].nodes if node.state == "unreachable")
    if lost:
        yield Finding(WARNING, f"unreachable: {', '.join(lost)}")


def _judge_node(status: Any) -> Iterator[Finding]:
    room = status.room
    if room.trouble:
        yield Finding(CRITICAL, room.trouble)
    elif room.overloaded:
        yield Finding(CRITICAL, f"takes no mail: {room.reason}")
    elif room.headroom_permille < LITTLE_HEADROOM_PERMILLE:
        yield Finding(WARNING, f"headroom {room.headroom_permille / 10:.0f} %: {room.reason}")
    if status.orders.HasField("drain"):
        yield Finding(WARNING, f"draining, by {status.orders.drain.by}")


def _judge_queue(queue: Any, bounds: Bounds) -> Iterator[Finding]:
    waiting = sum(item.count for item in queue.classes)
    oldest_s = max((item.oldest_s for item in queue.classes), default=0.0)
    if queue.corrupt:
        yield Finding(WARNING, f"{queue.corrupt} damaged (`smtpmesh queue`)")
    yield from _compare(waiting, bounds.waiting_warning, bounds.waiting_critical, f"{waiting} deliveries wait")
    text = f"the oldest delivery waits for {oldest_s / 60:.0f} min"
    yield from _compare(oldest_s, bounds.oldest_warning_s, bounds.oldest_critical_s, text)


def _compare(value: float, warning: float | None, critical: float | None, text: str) -> Iterator[Finding]:
    if critical is not None and value >= critical:
        yield Finding(CRITICAL, text)
    elif warning is not None and value >= warning:
        yield Finding(WARNING, text)


def _judge_routes(answer: Any) -> Iterator[Finding]:
    down: set[str] = set()
    for route in answer.routes:
        if route.backlog and route.rule in HOLDS:
            yield Finding(CRITICAL, f"class {route.class_id}: {route.backlog} wait and have no way out")
        down |= {hop.label for hop in route.next_hops if hop.state in DOWN and hop.hop.startswith("host:")}
    if down:
        yield Finding(WARNING, f"down: {', '.join(sorted(down))}")


def measure_all(workers: list[dict[str, Any]]) -> dict[str, float]:
    """Performance data of all workers together: sums, but for the worst of what is no count, and for the cluster."""
    measured = [measure(answers) for answers in workers]
    joined = dict(measured[0]) if measured else {}
    for more in measured[1:]:
        for name, value in more.items():
            joined[name] = WORST[name](joined[name], value) if name in WORST else joined[name] + value
    return joined


WORST: dict[str, Callable[[float, float], float]] = {"oldest": max, "headroom": min, "members": max}


def measure(answers: dict[str, Any]) -> dict[str, float]:
    """Performance data."""
    status, queue = answers["GetStatus"], answers["GetQueue"]
    return {
        "waiting": sum(item.count for item in queue.classes),
        "deferred": sum(item.deferred for item in queue.classes),
        "held": queue.held,
        "damaged": queue.corrupt,
        "oldest": round(max((item.oldest_s for item in queue.classes), default=0.0)),
        "headroom": status.room.headroom_permille / 10,
        "accepted": status.accepted,
        "relayed": status.relayed,
        "members": len(answers["ListNodes"].nodes),
    }


UNITS = {"oldest": "s", "headroom": "%", "accepted": "c", "relayed": "c"}


def _end(level: int, findings: list[Finding], node: str, measured: dict[str, float], *, as_json: bool) -> NoReturn:
    if as_json:
        shown = [{"level": WORDS[finding.level], "text": finding.text} for finding in findings]
        click.echo(
            json.dumps({"status": WORDS[level], "node": node, "findings": shown, "measured": measured}, indent=2)
        )
        sys.exit(level)
    text = "; ".join(finding.text for finding in findings) or f"{measured['waiting']:.0f} waiting, nothing is amiss"
    data = " ".join(f"{name}={value:g}{UNITS.get(name, '')}" for name, value in measured.items())
    click.echo(f"SMTPMESH {WORDS[level]} - {f'{node}: ' if node else ''}{text}{f' | {data}' if data else ''}")
    sys.exit(level)
