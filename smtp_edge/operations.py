"""The operator's orders, carried out: kept first, then applied, then told (one log line and one event each).

    drain of this node    clients are answered 421, peers' mail is refused, gossip says so, the queue goes to others
    drain of a host       this node's edge to it gets nothing new; others see that in gossip, and decide for their own
    pin                   all mail of a class goes by one own hop, for an hour unless the operator says otherwise

Whatever is in force comes back after a restart; a pin ends by itself. An order for what is so already is done, and
changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog

from router.decision import Changes, Hop, HopKind
from smtp_edge.orders import Order, Orders, OrdersError, PinOrder, load_orders, save_orders
from smtp_edge.queue.entry import utc_now

log = structlog.get_logger()

PIN_DEFAULT_S, PIN_MAX_S = 3600.0, 7 * 86400.0
RETIRED = "the supervisor: this worker is no more"
"""Who ordered the drain of a worker above node.workers. It ends with that."""
LOOK_MAX_S = 60.0
"""Pins are looked at this often, whatever the wall clock did meanwhile."""


class OrderError(Exception):
    """It cannot be ordered so; `str()` says why, and what there is."""


class Engine(Protocol):
    """The part of the routing engine that takes orders."""

    def drain_hop(self, hop: Hop, reason: str, now: float) -> Changes: ...
    def undrain_hop(self, hop: Hop, reason: str, now: float) -> Changes: ...
    def pin(self, class_id: str, hop: Hop, until: float, now: float) -> Changes: ...
    def unpin(self, class_id: str, now: float) -> Changes: ...
    def find_pin_fault(self, class_id: str, hop: Hop, now: float) -> str: ...


class Operations:
    """See the module. One event loop.

    `act`: log, advertise and ask again, as the routing shell does. `on_drain`: the rest of the node begins or ends its
    drain. `tell`: a line for the monitor.
    """

    def __init__(
        self,
        path: Path,
        engine: Engine,
        *,
        hosts: Collection[str],
        act: Callable[[Changes], None],
        on_drain: Callable[[bool], Awaitable[None]],
        tell: Callable[[str], None],
        now: Callable[[], float],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._path, self._engine, self._hosts = path, engine, sorted(hosts)
        self._act, self._on_drain, self._tell = act, on_drain, tell
        self._now, self._clock = now, clock
        self._one = asyncio.Lock()
        self._news = asyncio.Event()
        self.orders = Orders()

    @property
    def draining(self) -> bool:
        """This node drains."""
        return self.orders.drain is not None

    # -- life ----------------------------------------------------------------------------------------------------------

    async def restore(self, *, retiring: bool = False) -> None:
        """Apply what was in force when the node stopped; `retiring`: it drains in any case. OrdersError."""
        orders, now = await asyncio.to_thread(load_orders, self._path), self._now()
        if retiring:
            orders = orders.with_drain(self._order(RETIRED))
        elif orders.drain is not None and orders.drain.by == RETIRED:
            orders = orders.with_drain(None)
        for name in orders.hosts.keys() - set(self._hosts):
            log.warning("orders.dropped", order="host-drain", host=name, reason="the configuration has no such host")
            orders = orders.with_host(name, None)
        self.orders = orders
        for name, order in orders.hosts.items():
            self._act(self._engine.drain_hop(_host(name), f"by {order.by}", now))
        for class_id, pin in orders.pins.items():
            left_s = (pin.until_at - self._clock()).total_seconds()
            if left_s > 0:
                self._act(self._engine.pin(class_id, Hop.parse(pin.hop), now + left_s, now))
        if orders != Orders():
            log.warning("orders.restored", draining=self.draining, hosts=sorted(orders.hosts), pins=sorted(orders.pins))
        if self.draining:
            await self._on_drain(True)

    async def adapt(self, hosts: Collection[str]) -> None:
        """The engine goes by another configuration: orders about what is no more are dropped, the others applied."""
        async with self._one:
            self._hosts, orders, now = sorted(hosts), self.orders, self._now()
            for name in orders.hosts.keys() - set(self._hosts):
                orders = orders.with_host(name, None)
                self._note("host-drain-dropped", f"smart host {name} is gone, and its drain with it", "reload")
            for class_id, pin in self.orders.pins.items():
                hop = Hop.parse(pin.hop)
                if hop.kind is HopKind.PEER:
                    continue  # it is gossip's whether there is such a peer
                fault = self._engine.find_pin_fault(class_id, hop, now)
                if fault:
                    orders = orders.with_pin(class_id, None)
                    self._act(self._engine.unpin(class_id, now))
                    self._note("pin-dropped", f"the pin of {class_id} is over: {fault}", "reload")
            for name, order in orders.hosts.items():  # of a host that is another machine now, too
                self._act(self._engine.drain_hop(_host(name), f"by {order.by}", now))
            await self._keep_if_other(orders)

    async def _keep_if_other(self, orders: Orders) -> None:
        if orders == self.orders:
            return
        try:
            await self._keep(orders)
        except OrdersError as error:  # at the next start they are dropped again
            log.error("orders.not_kept", reason=str(error))
            self.orders = orders

    async def run(self) -> None:
        """End pins that are over; ends by cancellation."""
        while True:
            for class_id in self.orders.find_over(self._clock()):
                await self._end_pin(class_id)
            ends = [(pin.until_at - self._clock()).total_seconds() for pin in self.orders.pins.values()]
            self._news.clear()
            try:
                async with asyncio.timeout(max(0.01, min([LOOK_MAX_S, *ends]))):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _end_pin(self, class_id: str) -> None:
        async with self._one:
            self._act(self._engine.unpin(class_id, self._now()))
            await self._keep_if_other(self.orders.with_pin(class_id, None))  # in the file it is over as well
            self._note("pin-ended", f"the pin of {class_id} is over", "time")

    # -- orders --------------------------------------------------------------------------------------------------------

    async def drain_node(self, by: str) -> bool:
        """True if it is news. OrdersError: it cannot be kept, and nothing was changed."""
        return await self._set_drain(self._order(by), by)

    async def undrain_node(self, by: str) -> bool:
        """See `drain_node`. OrderError for a worker that is no more: it drains until it is empty."""
        if self.orders.drain is not None and self.orders.drain.by == RETIRED:
            raise OrderError("this worker is no more (node.workers): it drains until it is empty, and ends")
        return await self._set_drain(None, by)

    async def drain_host(self, name: str, by: str) -> bool:
        """True if it is news. OrderError for a host that this node does not have, OrdersError."""
        return await self._set_host(name, self._order(by), by)

    async def undrain_host(self, name: str, by: str) -> bool:
        """See `drain_host`."""
        return await self._set_host(name, None, by)

    async def pin(self, class_id: str, hop: Hop, for_s: float, by: str) -> PinOrder:
        """Pin a class, or change its pin. OrderError for what makes no sense, OrdersError."""
        if not 0 < for_s <= PIN_MAX_S:
            raise OrderError(f"a pin is for more than 0 s and at most {PIN_MAX_S / 86400:.0f} days, not {for_s:g} s")
        async with self._one:
            fault = self._engine.find_pin_fault(class_id, hop, self._now())
            if fault:
                raise OrderError(fault)
            order = self._order(by)
            pin = PinOrder(hop.id, order.at + timedelta(seconds=for_s), order)
            await self._keep(self.orders.with_pin(class_id, pin))
            self._act(self._engine.pin(class_id, hop, self._now() + for_s, self._now()))
            self._note("pin", f"{class_id} is pinned to {hop.id} until {pin.until_at:%Y-%m-%d %H:%M:%S}Z", by)
            return pin

    async def unpin(self, class_id: str, by: str) -> bool:
        """True if it was pinned. OrdersError."""
        async with self._one:
            if class_id not in self.orders.pins:
                return False
            await self._keep(self.orders.with_pin(class_id, None))
            self._act(self._engine.unpin(class_id, self._now()))
            self._note("unpin", f"{class_id} is no longer pinned", by)
            return True

    # -- private -------------------------------------------------------------------------------------------------------

    async def _set_drain(self, order: Order | None, by: str) -> bool:
        async with self._one:
            if self.draining is (order is not None):
                return False
            await self._keep(self.orders.with_drain(order))
            await self._on_drain(self.draining)
            self._note(*(("drain", "this node drains") if order else ("undrain", "this node takes mail again")), by)
            return True

    async def _set_host(self, name: str, order: Order | None, by: str) -> bool:
        if name not in self._hosts:
            raise OrderError(f"no smart host {name!r} here; there are: {', '.join(self._hosts) or 'none'}")
        async with self._one:
            if (name in self.orders.hosts) is (order is not None):
                return False
            await self._keep(self.orders.with_host(name, order))
            change = self._engine.drain_hop if order is not None else self._engine.undrain_hop
            self._act(change(_host(name), f"by {by}", self._now()))
            words = "is drained" if order is not None else "may be used again"
            self._note("host-drain" if order is not None else "host-undrain", f"smart host {name} {words}", by)
            return True

    def _order(self, by: str) -> Order:
        return Order(self._clock(), by)

    async def _keep(self, orders: Orders) -> None:
        await asyncio.to_thread(save_orders, self._path, orders)
        self.orders = orders
        self._news.set()

    def _note(self, order: str, text: str, by: str) -> None:
        log.warning("order", order=order, what=text, by=by)
        self._tell(f"{text} (by {by})")


def _host(name: str) -> Hop:
    return Hop(HopKind.SMART_HOST, name)
