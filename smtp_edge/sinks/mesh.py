"""The mesh's own routing, as an ordinary `route` sink.

It has no private door: whatever this class may do, a user's sink may do. It answers for every delivery that no earlier
binding took, from the engine's live view; an `Unreachable` without a time means "ask again when something changed".
"""

from __future__ import annotations

from collections.abc import Callable

from router.decision import Hop, Query
from router.engine import RoutingEngine
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Sink, Unreachable

TOO_LARGE, TOO_LARGE_STATUS = "no exit takes a message of this size", "5.3.4"
"""Enhanced status code: message too big for system (RFC 3463)."""


def build_query(delivery: RouteRequest) -> Query:
    """The engine's question for a delivery."""
    return Query(
        class_id=delivery.class_id,
        trace=delivery.trace,
        avoid=tuple(Hop.parse(hop) for hop in delivery.avoid),
        prefer=Hop.parse(delivery.prefer) if delivery.prefer else None,
        size_bytes=delivery.size_bytes,
        peers_only=delivery.hand_over,
    )


class MeshRouter(Sink):
    """Route by the engine. `now` is the monotonic clock of the node."""

    def __init__(self, engine: RoutingEngine, now: Callable[[], float]) -> None:
        self._engine = engine
        self._now = now

    async def route(self, delivery: RouteRequest) -> Route | Unreachable:
        """One next hop with a free slot, or hold."""
        hop, rule = self._engine.pick(build_query(delivery), self._now())
        if hop is not None:
            return Route((NextHop(hop.id),))
        if self._engine.is_too_large(delivery.class_id):
            return Unreachable(TOO_LARGE, for_good=True, status=TOO_LARGE_STATUS)
        return Unreachable(rule)
