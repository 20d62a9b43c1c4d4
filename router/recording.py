"""What an engine was told and what it answered, so that the same can be asked again. Pure; a recording is JSON lines.

    recorder = Recorder(Origin(...))          engine = recorder.engine       used like any other
    recorder.lines()                          the recording
    replay(lines)                             a fresh engine, the same calls: every answer that differs

An engine is a function of its settings, its seed and what it is told, `now` included: equal calls, equal answers. What
only looks (`rows`, `explain`, `what_if`) is told, too: it may be the first to ask for a class.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gossip import linkstate
from router import decision, policy, settings, terms, whatif
from router.decision import Changes, Decision, ExitHop
from router.engine import RoutingEngine
from router.policy import RouteRule, RouteTable
from router.settings import RouterSettings

TOLD = (
    "apply", "peer_session", "set_backlog", "note_arrivals", "hear_backlog", "ensure_class", "pick", "decide", "begin",
    "record", "on_timer", "probes_due", "begin_plan", "plan_step", "links", "load", "rows", "explain", "what_if",
    "drain_hop", "undrain_hop", "pin", "unpin", "reconfigure",
)  # fmt: skip
DRAINING = "draining"
DIGEST_SHOWN = 16
KNOWN = {
    kind.__name__: kind
    for module in (linkstate, decision, policy, settings, terms, whatif)
    for kind in vars(module).values()
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum))
}
"""What a recording may be made of; nothing else is ever built from one."""


class RecordingError(ValueError):
    """The lines are no recording; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How the engine began."""

    node_id: str
    node_name: str
    rules: tuple[RouteRule, ...]
    exits: tuple[ExitHop, ...]
    settings: RouterSettings
    seed: int
    now: float
    tags: tuple[str, ...] = ()

    def build(self) -> RoutingEngine:
        """A fresh engine."""
        return RoutingEngine(
            node_id=self.node_id,
            node_name=self.node_name,
            table=RouteTable(self.rules),
            exits=self.exits,
            settings=self.settings,
            rng=random.Random(self.seed),
            now=self.now,
            tags=self.tags,
        )


KNOWN[Origin.__name__] = Origin


@dataclass(frozen=True, slots=True)
class Call:
    """One call and its answer."""

    method: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    answer: str


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that is another one this time."""

    line: int
    """Of the recording, from 1; the first line is the origin."""
    method: str
    recorded: str
    replayed: str


class Recorder:
    """An engine of which every call is kept."""

    def __init__(self, origin: Origin) -> None:
        self.origin, self.calls = origin, list[Call]()
        self._within = self._draining = False
        self.engine = origin.build()
        for method in TOLD:
            setattr(self.engine, method, self._wrap(method, getattr(self.engine, method)))

    def _wrap(self, method: str, asked: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(asked)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            if self._within:  # a call that a recorded call makes is part of it
                return asked(*arguments, **named)
            self._note_draining()
            self._within = True
            try:
                answer = asked(*arguments, **named)
            finally:
                self._within = False
            kept = tuple(dict(item) if isinstance(item, Mapping) else item for item in arguments)
            self.calls.append(Call(method, kept, named, describe(answer)))
            return answer

        return wrapper

    def _note_draining(self) -> None:
        if self.engine.draining is not self._draining:
            self._draining = self.engine.draining
            self.calls.append(Call(DRAINING, (self._draining,), {}, ""))

    def lines(self) -> Iterator[str]:
        """The recording: the origin, then one line for each call."""
        yield json.dumps(_encode(self.origin))
        for call in self.calls:
            yield json.dumps([call.method, _encode(call.arguments), _encode(call.named), call.answer])


def replay(lines: Iterable[str]) -> tuple[int, list[Difference]]:
    """Calls made, and the answers that differ. RecordingError for what is no recording."""
    found: list[Difference] = []
    engine: RoutingEngine | None = None
    count = 0
    for number, line in enumerate(lines, start=1):
        try:
            if engine is None:
                engine = _origin(_decode(json.loads(line))).build()
                continue
            method, arguments, named, recorded = json.loads(line)
            if method == DRAINING:
                (engine.draining,) = _decode(arguments)
                continue
            if method not in TOLD:
                raise ValueError(f"there is no call {method!r}")
            answer = describe(getattr(engine, method)(*_decode(arguments), **_decode(named)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordingError(f"line {number}: {error}") from error
        count += 1
        if answer != recorded:
            found.append(Difference(number, method, recorded, answer))
    return count, found


def describe(answer: object) -> str:
    """What has to be equal."""
    if isinstance(answer, Decision):
        return f"{answer.chosen.id if answer.chosen is not None else '-'} {answer.rule}"
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], str):  # of `pick`
        return f"{answer[0].id if answer[0] is not None else '-'} {answer[1]}"
    if isinstance(answer, Changes):
        moves = ", ".join(f"{move.hop.id} {move.before} {move.after}" for move in answer.transitions)
        opened = " ".join(hop.id for hop in answer.opened)
        woken = f"; {' '.join(answer.woken)}" if answer.woken else ""
        return f"{moves}; {opened}; {answer.routes_changed:d}{answer.links_changed:d}{woken}"
    return "" if answer is None else hashlib.sha256(repr(answer).encode()).hexdigest()[:DIGEST_SHOWN]


def _origin(value: object) -> Origin:
    if not isinstance(value, Origin):
        raise RecordingError("the first line does not say how the engine began")
    return value


def _encode(value: Any) -> Any:
    match value:
        case enum.Enum():
            return {"$": type(value).__name__, "value": value.value}
        case None | bool() | int() | float() | str():
            return value
        case tuple() | list() | frozenset() | set():
            kind = "frozenset" if isinstance(value, set | frozenset) else "tuple"
            return {"$": kind, "value": [_encode(item) for item in value]}
        case Mapping():
            return {"$": "dict", "value": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if type(value).__name__ in KNOWN and dataclasses.is_dataclass(value):
        given = (field.name for field in dataclasses.fields(value) if field.init)
        return {"$": type(value).__name__, "value": {name: _encode(getattr(value, name)) for name in given}}
    raise TypeError(f"a {type(value).__name__} cannot be recorded")


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kind, inner = value["$"], value["value"]
    match kind:
        case "tuple":
            return tuple(_decode(item) for item in inner)
        case "frozenset":
            return frozenset(_decode(item) for item in inner)
        case "dict":
            return {_decode(key): _decode(item) for key, item in inner}
    known = KNOWN[kind]
    if issubclass(known, enum.Enum):
        return known(inner)
    return known(**{name: _decode(item) for name, item in inner.items()})
