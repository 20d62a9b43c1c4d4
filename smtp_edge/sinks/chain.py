"""All bindings of a node, asked in their order; what a sink that fails, hangs or answers nonsense means.

A binding that failed `BREAK_AFTER` times in a row is not asked for a while: its policy applies at once, and every
`PROBE_S` one question finds out whether it is well again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from smtp_edge.envelope import Recipient
from smtp_edge.sinks.api import (
    BEFORE_250,
    EVENTS,
    PRIORITY_MAX,
    Avoid,
    NodeServices,
    Route,
    RouteRequest,
    Sink,
    Unreachable,
    Verb,
)
from smtp_edge.sinks.concern import Concern
from smtp_edge.sinks.rules import ALWAYS, Facts, Rule
from smtp_edge.sinks.watch import steps

log = structlog.get_logger()

TIMEOUT_BEFORE_250_S, TIMEOUT_AFTER_250_S = 30.0, 300.0
START_S, STOP_S = 30.0, 5.0
"""For one sink."""
FAILURE_RETRY_S = 30.0
"""A delivery whose route sink failed is asked again after this; mail is never dropped because of our own confusion."""
BREAK_AFTER, PROBE_S = 5, 10.0
COMPLAINT_S = 10.0
"""At least between two log lines about a sink that holds the event loop."""
TEMPFAIL, ACCEPT, QUARANTINE = "tempfail", "accept", "quarantine"


class SinkError(Exception):
    """A binding cannot be set up; `str()` is a sentence for the operator."""


class SinkFailure(Exception):
    """A sink gave no answer that can be used; `str()` says why. Its binding says what that means."""


class SinkTimeout(SinkFailure):
    """It did not answer in time: whatever it was to do may be done."""


@dataclass(slots=True)
class Trust:
    """How a binding did lately."""

    failures: int = 0
    """In a row."""
    probe_at: float = 0.0
    complained_at: float = -COMPLAINT_S

    def may_complain(self, now: float) -> bool:
        """Now and then: whoever holds the loop once does it with every message."""
        if now - self.complained_at < COMPLAINT_S:
            return False
        self.complained_at = now
        return True

    def permits(self, now: float) -> bool:
        """It may be asked. Of a broken one every now and then."""
        if self.failures < BREAK_AFTER:
            return True
        if now < self.probe_at:
            return False
        self.probe_at = now + PROBE_S
        return True

    def note(self, failed: bool, now: float) -> None:
        """It was asked."""
        self.failures = self.failures + 1 if failed else 0
        if self.failures == BREAK_AFTER:
            self.probe_at = now + PROBE_S


@dataclass(frozen=True, slots=True)
class Binding:
    """A sink with everything that the configuration says about it."""

    name: str
    sink: Sink
    rule: Rule = ALWAYS
    priority: int = PRIORITY_MAX
    timeout_s: float | None = None
    """For one answer; None = as is usual for the event."""
    on_failure: str = TEMPFAIL
    trust: Trust = field(default_factory=Trust)

    def handles(self, event: str) -> bool:
        """True if the sink overrides the event, and wants it."""
        overridden = getattr(type(self.sink), event) is not getattr(Sink, event)
        return overridden and (not self.sink.events or event in self.sink.events)

    def _held(self, took_s: float) -> None:
        if self.trust.may_complain(asyncio.get_running_loop().time()):
            log.warning("sink.held_loop", sink=self.name, took_s=round(took_s, 3))

    def limit_s(self, event: str) -> float:
        """For one answer."""
        usual_s = TIMEOUT_BEFORE_250_S if event in BEFORE_250 else TIMEOUT_AFTER_250_S
        return usual_s if self.timeout_s is None else self.timeout_s

    async def ask(self, event: str, question: Awaitable[Any], wanted: type | tuple[type, ...]) -> Any:
        """The answer, which is None or of a wanted type. SinkFailure otherwise, in time."""
        now = asyncio.get_running_loop().time()
        failed = True
        try:
            work = steps(question, self._held)
            if not work.begin():
                async with asyncio.timeout(self.limit_s(event)):
                    await work
            answer = work.result
            if answer is not None and not isinstance(answer, wanted):
                log.error("sink.wrong_answer", sink=self.name, event_name=event, answer=type(answer).__name__)
                raise SinkFailure(f"sink {self.name} answered nonsense")
            failed = False
        except SinkFailure:
            raise
        except TimeoutError:
            log.error("sink.timeout", sink=self.name, event_name=event)
            raise SinkTimeout(f"sink {self.name} gave no answer in time") from None
        except Exception as error:
            log.exception("sink.failed", sink=self.name, event_name=event)
            raise SinkFailure(f"sink {self.name} failed: {type(error).__name__}") from error
        except BaseException:  # whoever asked has gone: that says nothing of the sink
            failed = False
            raise
        finally:
            self.trust.note(failed, now)
        return answer


WORDS = {"helo": (b"HELO", b"EHLO"), "mail": (b"MAIL",), "rcpt": (b"RCPT",)}
"""The commands of an event."""


class SinkChain:
    """Bindings of a node in the order in which they are asked: by priority, ties in file order.

    Sessions and questions `hold` it: one that is replaced by a reload stops when nobody does any more.
    """

    def __init__(self, bindings: Sequence[Binding]) -> None:
        self.bindings = tuple(sorted(bindings, key=lambda binding: binding.priority))
        self._by_event = {
            event: tuple(binding for binding in self.bindings if binding.handles(event)) for event in EVENTS
        }
        self._concern = {
            event: Concern(binding.rule for binding in bindings) for event, bindings in self._by_event.items()
        }
        self.owned = frozenset(name.lower() for binding in self._by_event["data"] for name in binding.sink.owns)
        """Header fields, in lower case, that messages may not bring along."""
        self.owned_names = tuple(name.encode() for name in self.owned)
        self.verbs: dict[str, tuple[Binding, Verb]] = {
            verb.name: (binding, verb) for binding in self._by_event["command"] for verb in binding.sink.verbs
        }
        """Commands of sinks, each with its one binding."""
        self.screens = any(self._by_event[event] for event in (*BEFORE_250, "disconnect") if event != "command")
        """A session has something to ask, beside `verbs`."""
        self.asked = frozenset(word for event, words in WORDS.items() if self._by_event[event] for word in words)
        """Commands of which somebody wants to hear once they were right."""
        self._held = 0
        self._idle: asyncio.Event | None = None
        """Somebody waits until nobody holds it."""

    def of(self, event: str) -> tuple[Binding, ...]:
        """Those that handle an event."""
        return self._by_event[event]

    def find(self, event: str, name: str) -> Binding | None:
        """The binding of that name, if it handles the event."""
        return next((binding for binding in self._by_event[event] if binding.name == name), None)

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self, services: Callable[[str], NodeServices] | None = None) -> None:
        """Start every sink. SinkError names the one that does not start; then none is started.

        `services`: what the node does for a binding of that name.
        """
        for number, binding in enumerate(self.bindings):
            if services is not None:
                binding.sink.node = services(binding.name)
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

    def hold(self) -> None:
        """Somebody will ask."""
        self._held += 1

    def release(self) -> None:
        """They have asked their last."""
        self._held -= 1
        if self._idle is not None and not self._held:
            self._idle.set()

    async def retire(self) -> None:
        """Nothing new is asked: stop when nobody holds it any more."""
        self._idle = asyncio.Event()
        if self._held:
            await self._idle.wait()
        await self.stop()

    # -- questions -----------------------------------------------------------------------------------------------------

    def may_concern(self, event: str, recipients: Sequence[Recipient]) -> bool:
        """False: no binding of the event runs for any of them."""
        return self._concern[event].may(recipients)

    def matching(self, event: str, facts: Callable[[], Facts]) -> Iterator[tuple[Binding, Facts]]:
        """Bindings that run now, each with the facts as they are at its turn, narrowed to the recipients it may see."""
        for binding in self._by_event[event]:
            known = facts()
            selected = binding.rule.select(known)
            if selected is not None:
                yield binding, replace(known, recipients=selected)

    def names_of(self, event: str, facts: Facts) -> tuple[str, ...]:
        """The bindings of the event that would be asked, in their order."""
        return tuple(binding.name for binding, _ in self.matching(event, lambda: facts))

    def claimed(self, event: str, facts: Facts) -> frozenset[Recipient]:
        """Recipients that some binding of the event would see."""
        found: set[Recipient] = set()
        if not self.may_concern(event, facts.recipients):
            return frozenset()
        for binding in self._by_event[event]:
            found.update(binding.rule.select(facts) or ())
        return frozenset(found)

    async def route(self, delivery: RouteRequest) -> Route | Unreachable:
        """The first answer that is not None. A sink that fails, hangs or answers nonsense makes the delivery wait."""
        self.hold()
        try:
            facts = Facts(sender=delivery.sender, recipients=delivery.recipients)
            for binding in self._by_event["route"]:
                if binding.rule is not ALWAYS and binding.rule.select(facts) is None:
                    continue
                try:
                    answer = await binding.ask("route", binding.sink.route(delivery), (Route, Unreachable, Avoid))
                except SinkFailure as failure:
                    return Unreachable(str(failure), retry_in_s=FAILURE_RETRY_S)
                if isinstance(answer, Route | Unreachable):
                    return answer
                if isinstance(answer, Avoid):
                    delivery = replace(delivery, avoid=(*delivery.avoid, *answer.hops))
            return Unreachable("no sink routes this", retry_in_s=FAILURE_RETRY_S)
        finally:
            self.release()


async def _stop(bindings: Sequence[Binding]) -> None:
    for binding in reversed(bindings):
        try:
            async with asyncio.timeout(STOP_S):
                await binding.sink.stop()
        except Exception:
            log.exception("sink.stop_failed", sink=binding.name)
