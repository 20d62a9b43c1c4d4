"""All client listeners of a node: opened together, changed together while sessions go on, closed together.

A change has two steps, so that it is done whole or not at all:

    prepare    files are read, new addresses are taken; what cannot be is an error, and nothing has changed
    switch     every listener goes by its new settings, in one step of the event loop
    finish     new ones accept, old ones accept nobody any more; their sessions go on to their own end

A listener is the same one before and after if it has the same address (or, with port 0, the same name). An address
that an old listener holds in another form (0.0.0.0 for 127.0.0.1) is given up for the new one, and taken back if the
change is not made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from smtp_edge.server.listener import Listener, Prepared, Surroundings
from smtp_edge.server.listening import ListenerError, split_address
from smtp_edge.server.options import Acceptor
from smtp_edge.settings_inbound import ListenerSettings

log = structlog.get_logger()


@dataclass(slots=True)
class Plan:
    """What a change consists of."""

    kept: list[tuple[Listener, Prepared]] = field(default_factory=list)
    fresh: list[tuple[Listener, Prepared]] = field(default_factory=list)
    leaving: list[Listener] = field(default_factory=list)
    released: list[Listener] = field(default_factory=list)
    """Of those that leave: they gave their address up already."""
    again: list[Listener] = field(default_factory=list)
    """Of those that are kept: they accept in another way now."""


class Listeners:
    """See the module. One event loop; one change at a time."""

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self._open: list[Listener] = []
        self._closing: list[Listener] = []
        """Sessions of theirs are still there."""
        self._drained = False

    # -- changing ------------------------------------------------------------------------------------------------------

    async def start(self, sections: Sequence[ListenerSettings], around: Surroundings) -> None:
        """Open them. ListenerError names the listener; then none is open."""
        plan = await self.prepare(sections, around)
        self.switch(plan)
        await self.finish(plan)

    async def prepare(self, sections: Sequence[ListenerSettings], around: Surroundings) -> Plan:
        """The first step. ListenerError names the listener, and nothing has changed."""
        plan = Plan()
        partners = _match(self._open, sections)
        plan.leaving = [listener for listener in self._open if listener not in partners.values()]
        try:
            for number, section in enumerate(sections):
                await self._prepare(plan, section, partners.get(number), around)
            await self._bind_all(plan)
        except ListenerError:
            await self.discard(plan)
            raise
        return plan

    async def _prepare(
        self, plan: Plan, section: ListenerSettings, partner: Listener | None, around: Surroundings
    ) -> None:
        listener = partner or Listener(section, self._acceptor, around)
        with _naming(section):
            prepared = await asyncio.to_thread(listener.prepare, section, around)
        (plan.kept if partner is not None else plan.fresh).append((listener, prepared))

    async def _bind_all(self, plan: Plan) -> None:
        for listener, prepared in plan.fresh:
            with _naming(prepared.settings):
                listener.configure(prepared)
                await self._bind(plan, listener)

    async def _bind(self, plan: Plan, listener: Listener) -> None:
        try:
            listener.bind()
            return
        except ListenerError:
            rivals = [other for other in plan.leaving if other not in plan.released and _same_port(other, listener)]
            if not rivals:
                raise
        for rival in rivals:
            await rival.release()
            plan.released.append(rival)
        listener.bind()

    def switch(self, plan: Plan) -> None:
        """The second step. It cannot fail."""
        plan.again = [listener for listener, prepared in plan.kept if listener.configure(prepared)]
        self._open = [listener for listener, _ in (*plan.kept, *plan.fresh)]
        self._closing += plan.leaving
        if self._drained:
            for listener, _ in plan.fresh:
                listener.drain(True)

    async def finish(self, plan: Plan) -> None:
        """The third step."""
        for listener in (*plan.again, *(listener for listener, _ in plan.fresh)):
            await listener.serve()
        for listener in plan.leaving:
            await listener.close()
        await self.tidy()

    async def discard(self, plan: Plan) -> None:
        """Instead of the second step: addresses that were taken are given up, those given up are taken back."""
        for listener, _ in plan.fresh:
            await listener.release()
        for listener in plan.released:
            try:
                listener.bind()
                await listener.serve()
            except ListenerError as error:  # somebody else was faster
                log.error("listener.lost", listener=listener.settings.name, reason=str(error))

    # -- the rest of their life ----------------------------------------------------------------------------------------

    @property
    def bound(self) -> Mapping[str, str]:
        """Name -> host:port."""
        return {listener.settings.name: listener.bound for listener in self._open}

    @property
    def session_count(self) -> int:
        """Sessions that are there."""
        return sum(listener.session_count for listener in (*self._open, *self._closing))

    @property
    def stale_count(self) -> int:
        """Those that began before the last change."""
        return sum(item.stale_count for item in self._open) + sum(item.present_count for item in self._closing)

    def drain(self, drained: bool) -> None:
        """Greet nobody any more (421), and let sessions end after their transactions; False = open again."""
        self._drained = drained
        for listener in (*self._open, *self._closing):
            listener.drain(drained)

    async def tidy(self) -> None:
        """Forget closed listeners whose last session has ended."""
        over = [listener for listener in self._closing if not listener.present_count]
        self._closing = [listener for listener in self._closing if listener not in over]
        for listener in over:
            await listener.stop(0)

    async def stop(self, grace_s: float) -> None:
        """Accept nobody, let transactions finish within `grace_s`, then hang up."""
        await asyncio.gather(*(listener.stop(grace_s) for listener in (*self._open, *self._closing)))
        self._open, self._closing = [], []


@contextmanager
def _naming(section: ListenerSettings) -> Iterator[None]:
    """Errors inside name the listener."""
    try:
        yield
    except ListenerError as error:
        raise ListenerError(f"listener {section.name}: {error}") from error


def _match(listeners: Sequence[Listener], sections: Sequence[ListenerSettings]) -> dict[int, Listener]:
    """Number of a section -> the listener that goes on as it."""
    found: dict[int, Listener] = {}
    for same_name in (True, False):
        for number, section in enumerate(sections):
            for listener in listeners:
                before = listener.settings
                fits = section.listen == before.listen
                fits &= section.name == before.name if same_name else not section.listen.endswith(":0")
                if fits and number not in found and listener not in found.values():
                    found[number] = listener
    return found


def _same_port(one: Listener, other: Listener) -> bool:
    return split_address(one.settings.listen)[1] == split_address(other.settings.listen)[1]
