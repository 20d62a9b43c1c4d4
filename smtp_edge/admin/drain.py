"""How far a drain is, and why the rest is still here. Reads only."""

from __future__ import annotations

from datetime import datetime

from router.decision import Query
from router.engine import RoutingEngine
from smtp_edge.admin import convert
from smtp_edge.admin.view import NodeView
from smtp_edge.queue.entry import Claim, ClassBacklog, DeliveryState
from smtpmesh.admin.v1 import admin_pb2 as pb

READ_MAX = 1000
"""Deliveries looked at for what is in doubt."""
SHOWN_MAX = 20
HELD = "held by an operator"


async def read_progress(view: NodeView, at: datetime) -> pb.GetDrainResponse:
    """All that is left."""
    summary = await view.store.summary()
    oldest = await view.store.list(limit=READ_MAX)
    waiting = sum(item.count for item in summary.classes)
    sessions = view.client_sessions()
    engine, now = view.engine, view.now()
    names = {f"peer:{node.node_id}": node.info.name for node in view.snapshot().nodes}
    return pb.GetDrainResponse(
        node_id=view.identity.node_id,
        node_name=view.settings.node.name,
        drain=convert.convert_order(view.operations.orders.drain),
        done=not (waiting or summary.held or summary.corrupt or sessions),
        waiting=waiting,
        deferred=sum(item.deferred for item in summary.classes),
        held=summary.held,
        corrupt=summary.corrupt,
        in_flight=sum(edge.inflight for edge in engine.edges()),
        in_doubt=sum(bool(claim.delivery.in_doubt_hop) for claim in oldest),
        sessions=sessions,
        classes=[
            pb.LeftClass(
                class_id=item.class_id,
                waiting=item.count,
                deferred=item.deferred,
                reason=_explain_class(engine, item, names, now),
            )
            for item in summary.classes
        ],
        deliveries=[
            pb.LeftDelivery(
                queue_id=claim.delivery.queue_id,
                copy=claim.delivery.copy,
                class_id=claim.delivery.class_id,
                state=claim.delivery.state.value,
                next_attempt_at=convert.convert_time(claim.delivery.next_attempt_at),
                reason=explain_left(engine, claim, names, now, at),
            )
            for claim in oldest[:SHOWN_MAX]
        ],
    )


def _explain_class(engine: RoutingEngine, item: ClassBacklog, names: dict[str, str], now: float) -> str:
    return _explain(engine, Query(item.class_id, peers_only=item.deferred == item.count), names, now)


def explain_left(engine: RoutingEngine, claim: Claim, names: dict[str, str], now: float, at: datetime) -> str:
    """What becomes of a delivery now, or what keeps it here."""
    delivery = claim.delivery
    if delivery.state is DeliveryState.HELD:
        return HELD
    early = delivery.next_attempt_at is not None and delivery.next_attempt_at > at
    return _explain(engine, Query(delivery.class_id, claim.entry.trace, peers_only=early), names, now)


def _explain(engine: RoutingEngine, query: Query, names: dict[str, str], now: float) -> str:
    hop, rule = engine.pick(query, now)
    if hop is not None:
        return f"goes to {names.get(hop.id, hop.id)}"
    return rule + (", and its next attempt is not due" if query.peers_only else "")
