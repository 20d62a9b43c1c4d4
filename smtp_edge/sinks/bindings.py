"""Bindings: which sink runs for what, in which order, how long, and what its failure means.

`load_bindings` builds them from the configuration; `SinkChain` asks them. In this version the `route` event is wired; a
sink that overrides only other events is refused at load instead of being ignored.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import structlog

from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.api import EVENTS, PRIORITY_MAX, Route, RouteRequest, Sink, Unreachable
from smtp_edge.sinks.rules import ALWAYS, Rule, RuleError, parse_rule

log = structlog.get_logger()

ENTRY_POINTS = "smtpmesh.sinks"
WIRED_EVENTS = ("route",)
TIMEOUT_AFTER_250_S = 300.0
START_S, STOP_S = 30.0, 5.0
"""For one sink."""
FAILURE_RETRY_S = 30.0
"""A delivery whose route sink failed is asked again after this; mail is never dropped because of our own confusion."""

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, None: 1.0}


class SinkError(Exception):
    """A binding cannot be set up; `str()` is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A sink with everything that the configuration says about it."""

    name: str
    sink: Sink
    rule: Rule = ALWAYS
    priority: int = PRIORITY_MAX
    timeout_s: float = TIMEOUT_AFTER_250_S

    def handles(self, event: str) -> bool:
        """True if the sink overrides the event."""
        return getattr(type(self.sink), event) is not getattr(Sink, event)


class SinkChain:
    """Bindings of a node in the order in which they are asked: by priority, ties in file order."""

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self.bindings = tuple(sorted(bindings, key=lambda binding: binding.priority))
        self._route = tuple(binding for binding in self.bindings if binding.handles("route"))
        self._asked_count = 0
        """Questions under way."""
        self._idle: asyncio.Event | None = None
        """Somebody waits until there are none."""

    async def start(self) -> None:
        """Start every sink. SinkError names the one that does not start; then none is started."""
        for number, binding in enumerate(self.bindings):
            try:
                async with asyncio.timeout(START_S):
                    await binding.sink.start()
            except Exception as error:
                await _stop(self.bindings[:number])
                reason = str(error) or type(error).__name__
                raise SinkError(f"sink {binding.name} does not start: {reason}") from error

    async def stop(self) -> None:
        """Stop every sink, last first. What goes wrong is logged."""
        await _stop(self.bindings)

    async def retire(self) -> None:
        """Nothing new is asked: stop when the questions under way have their answers."""
        self._idle = asyncio.Event()
        if self._asked_count:
            await self._idle.wait()
        await self.stop()

    async def route(self, delivery: RouteRequest) -> Route | Unreachable:
        """The first answer that is not None. A sink that fails, hangs or answers nonsense makes the delivery wait."""
        self._asked_count += 1
        try:
            return await self._ask(delivery)
        finally:
            self._asked_count -= 1
            if self._idle is not None and not self._asked_count:
                self._idle.set()

    async def _ask(self, delivery: RouteRequest) -> Route | Unreachable:
        for binding in self._route:
            if not binding.rule.matches(lambda key: _route_facts(delivery, key)):
                continue
            try:
                async with asyncio.timeout(binding.timeout_s):
                    answer = await binding.sink.route(delivery)
            except Exception as error:
                log.exception("sink.failed", sink=binding.name, event_name="route", queue_id=delivery.queue_id)
                return Unreachable(f"sink {binding.name} failed: {type(error).__name__}", retry_in_s=FAILURE_RETRY_S)
            if isinstance(answer, Route | Unreachable):
                return answer
            if answer is not None:
                log.error("sink.wrong_answer", sink=binding.name, event_name="route", answer=type(answer).__name__)
                return Unreachable(f"sink {binding.name} answered nonsense", retry_in_s=FAILURE_RETRY_S)
        return Unreachable("no sink routes this", retry_in_s=FAILURE_RETRY_S)


async def _stop(bindings: Sequence[Binding]) -> None:
    for binding in reversed(bindings):
        try:
            async with asyncio.timeout(STOP_S):
                await binding.sink.stop()
        except Exception:
            log.exception("sink.stop_failed", sink=binding.name)


def _route_facts(delivery: RouteRequest, key: str) -> Sequence[str]:
    if key == "mail from":
        return (delivery.sender,)
    return tuple(recipient.address for recipient in delivery.recipients)


def load_bindings(sections: Sequence[SinkSettings]) -> list[Binding]:
    """Build the bindings of the configuration. SinkError names the binding and what is wrong with it."""
    return [_load(number, section) for number, section in enumerate(sections)]


def _load(number: int, section: SinkSettings) -> Binding:
    where = f"sink[{number}] ({section.use})"
    factory = _find(where, section.use)
    try:
        sink = factory(**section.with_)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(factory).parameters) or "nothing"
        raise SinkError(f"{where}: the settings in `with` do not fit: {error}; it takes: {accepted}") from None
    events = [event for event in EVENTS if getattr(factory, event) is not getattr(Sink, event)]
    unwired = [event for event in events if event not in WIRED_EVENTS]
    if unwired or not events:
        raise SinkError(
            f"{where}: it handles {', '.join(unwired) or 'no event'}; this version calls: {', '.join(WIRED_EVENTS)}"
        )
    try:
        rule = parse_rule(section.rule, events=events)
    except RuleError as error:
        raise SinkError(f"{where}: {error}") from None
    return Binding(section.use, sink, rule, section.priority, _parse_duration(where, section.timeout))


def _find(where: str, use: str) -> type[Sink]:
    module_name, separator, class_name = use.partition(":")
    try:
        if separator:
            found = getattr(importlib.import_module(module_name), class_name)
        else:
            (entry,) = metadata.entry_points(group=ENTRY_POINTS, name=use)
            found = entry.load()
    except (ImportError, AttributeError, ValueError) as error:
        raise SinkError(
            f"{where}: no such sink: neither an entry point of {ENTRY_POINTS} nor module:Class ({error})"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Sink)):
        raise SinkError(f"{where}: it is not a class derived from smtp_edge.sinks.api.Sink")
    return found


def _parse_duration(where: str, text: str) -> float:
    if not text:
        return TIMEOUT_AFTER_250_S
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise SinkError(f"{where}: timeout {text!r} is not a duration like 500ms, 20s or 2m")
    return float(match[1]) * _UNIT_S[match[2]]
