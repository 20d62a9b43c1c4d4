"""The part of the servicer that is about the queue: lists, one message, why, the shape, and orders for what waits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import grpc

from router.decision import Hop, HopKind, Query, Verdict
from smtp_edge.admin import convert
from smtp_edge.admin.hypotheses import HypothesisError, Names
from smtp_edge.admin.orders import OrdersService, fail, node_names
from smtp_edge.admin.selecting import SelectionError, read_selection, read_words
from smtp_edge.admin.why import Moment, explain_damage, explain_delivery
from smtp_edge.postmaster import Order, QueueOrderError
from smtp_edge.queue.entry import Claim, Delivery, DeliveryState, MessageHistory
from smtp_edge.queue.errors import StoreError
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.shape import BOUNDS_S, ShapeBy, ShapeRow
from smtp_edge.queue.survey import FIRST, Place
from smtp_edge.rulings import Action
from smtp_edge.sinks.mesh import build_query
from smtp_edge.sinks.message import read
from smtp_edge.sinks.rules import Facts
from smtp_edge.sorting import EXPANSION, REFUSED
from smtpmesh.admin.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[object, object]

LISTED_DEFAULT, LISTED_MAX = 100, 10_000
DAMAGED_MAX = 20
SHAPE_DEFAULT, SHAPE_MAX = 50, 10_000
OPEN_TO_MOVES = frozenset({Verdict.CHOSEN, Verdict.OUTRANKED, Verdict.NO_SLOT, Verdict.NO_GAIN, Verdict.NOT_DUE})
"""Verdicts on a peer that do not keep an operator from moving mail there."""


class QueueService(OrdersService):
    """Calls of smtpmesh.admin.v1.Admin about the queue."""

    async def GetQueue(self, request: pb.GetQueueRequest, context: Context) -> pb.GetQueueResponse:
        """Totals, and the oldest deliveries of what is selected."""
        at, store = datetime.now(UTC), self._view.store
        asked = pb.Selection()
        asked.CopyFrom(request.selection)
        asked.states.extend(request.states)
        asked.class_ids.extend([request.class_id] if request.class_id else [])
        selection = await self._select(asked, at, context)
        response = convert.convert_summary(await store.summary(), at)
        for claim in await self._list(selection, min(LISTED_MAX, request.limit or LISTED_DEFAULT)):
            response.deliveries.append(self._show(claim))
        if response.corrupt:
            response.damaged.extend(convert.convert_damaged(item) for item in await store.damaged(DAMAGED_MAX))
        return response

    async def GetMessage(self, request: pb.GetMessageRequest, context: Context) -> pb.GetMessageResponse:
        """One message's history."""
        return convert.convert_history(await self._find_history(request.queue_id, context))

    async def Why(self, request: pb.WhyRequest, context: Context) -> pb.WhyResponse:
        """Why a message is still here."""
        at = datetime.now(UTC)
        history = await self._find_history(request.queue_id, context)
        entry, store = history.entry, self._view.store
        damaged = [item for item in await store.damaged(LISTED_MAX) if item.queue_id == entry.queue_id]
        return pb.WhyResponse(
            queue_id=entry.queue_id,
            node_name=self._name,
            sender=entry.envelope.sender,
            received_at=convert.convert_time(entry.received_at),
            expires_at=convert.convert_time(entry.expires_at),
            deliveries=[
                explain_delivery(history, delivery, self._take_moment(history, delivery, at))
                for delivery in history.deliveries
            ]
            + [explain_damage(item) for item in damaged],
        )

    async def GetShape(self, request: pb.GetShapeRequest, context: Context) -> pb.GetShapeResponse:
        """How many deliveries wait, by name and age."""
        try:
            (by,) = read_words([request.by or ShapeBy.RECIPIENT.value], ShapeBy, "kind of row")
            states = read_words(request.states, DeliveryState, "state")
        except SelectionError as error:
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        shape = await self._view.store.shape(by, states, datetime.now(UTC))
        return pb.GetShapeResponse(
            bounds_s=BOUNDS_S,
            rows=[_convert_row(row) for row in shape.rows(min(SHAPE_MAX, request.limit or SHAPE_DEFAULT))],
            all=_convert_row(shape.all),
            names=shape.name_count,
        )

    async def ChangeQueue(self, request: pb.ChangeQueueRequest, context: Context) -> pb.ChangeQueueResponse:
        """One page of an order about what waits."""
        by = await self._demand_operator(context)
        try:
            (action,) = read_words([request.action], Action, "order")
        except SelectionError as error:
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        selection = await self._select(request.selection, datetime.now(UTC), context)
        order = Order(action, selection, by, request.reason, all=request.all, dry_run=request.dry_run)
        if action is Action.MOVE:
            order = await self._find_target(order, request, context)
        after = Place(request.after_id, request.after_copy) if request.after_id else FIRST
        try:
            done = await self._carry_out(self._view.postmaster.carry_out(order, after), context)
        except QueueOrderError as error:
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except StoreError as error:
            await fail(context, grpc.StatusCode.ABORTED, f"{error}; nothing was changed, ask again")
        if (
            after == FIRST
            and selection.queue_ids
            and not (done.changed or done.under_way or done.unfit or done.damaged)
        ):
            await fail(context, grpc.StatusCode.NOT_FOUND, f"no undelivered message here is {selection.queue_ids[0]!r}")
        return pb.ChangeQueueResponse(
            node_name=self._name,
            changed=len(done.changed),
            under_way=done.under_way,
            unfit=done.unfit,
            damaged=done.damaged,
            queue_ids=[queue_id for queue_id, _ in done.changed],
            after_id=done.after.queue_id if done.after is not None else "",
            after_copy=done.after.copy if done.after is not None else 0,
        )

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _select(self, asked: pb.Selection, at: datetime, context: Context) -> Selection:
        try:
            return read_selection(asked, at)
        except SelectionError as error:
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _list(self, selection: Selection, limit: int) -> list[Claim]:
        """Page by page, as a selection may leave out much of a page."""
        found: list[Claim] = []
        after: Place | None = FIRST
        while after is not None and len(found) < limit:
            page = await self._view.store.find(selection, limit, after=after)
            found += page.found
            after = page.after
        return found[:limit]

    def _show(self, claim: Claim) -> pb.QueuedDelivery:
        shown = convert.convert_delivery(claim)
        standing = self._view.standing(claim.delivery.queue_id, claim.delivery.copy)
        if standing is not None:
            shown.stage, shown.reason = standing.stage, standing.reason
        else:
            shown.reason = claim.delivery.last_reply
        return shown

    async def _find_history(self, name: str, context: Context) -> MessageHistory:
        try:
            history = await self._view.store.history(name)
        except StoreError as error:
            way_out = f"put back what is missing and `smtpmesh queue retry {name}`, or `smtpmesh queue remove {name}`"
            await fail(context, grpc.StatusCode.DATA_LOSS, f"{error}; {way_out}")
        if history is None:
            text = f"no message {name!r} here: unknown, or finished longer ago than queue.history_s"
            await fail(context, grpc.StatusCode.NOT_FOUND, text)
        return history

    def _take_moment(self, history: MessageHistory, delivery: Delivery, at: datetime) -> Moment:
        view, decision = self._view, None
        waits = delivery.state is not DeliveryState.HELD and not delivery.state.final
        if waits and delivery.class_id not in (EXPANSION, REFUSED):  # these go to no hop
            query = build_query(view.request_of(Claim(history.entry, delivery, 0)))
            decision = view.engine.decide(replace(query, peers_only=False), view.now())
        standing = view.standing(delivery.queue_id, delivery.copy)
        expanders = self._find_expanders(history, delivery) if delivery.class_id == EXPANSION else ()
        return Moment(at, standing, decision, view.count_in_memory(delivery.class_id), expanders)

    def _find_expanders(self, history: MessageHistory, delivery: Delivery) -> tuple[str, ...]:
        entry = history.entry
        headers = partial(read, entry.data)
        facts = Facts(None, entry.envelope.sender, delivery.recipients, entry.data.size_bytes, headers)
        return self._view.expanders_of(facts)

    # -- moves ---------------------------------------------------------------------------------------------------------

    async def _find_target(self, order: Order, request: pb.ChangeQueueRequest, context: Context) -> Order:
        """Another class here, or a peer that takes mail now."""
        if bool(request.to_class) == bool(request.to_node):
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, "say where to: another class, or a node")
        if request.to_class:
            known = sorted({row.class_id for row in self._view.engine.rows(self._view.now())})
            if request.to_class not in known and not request.to_class.startswith(f"{HopKind.MX.value}:"):
                text = f"no class {request.to_class!r} here; there are: {', '.join(known)}, and mx:DOMAIN"
                await fail(context, grpc.StatusCode.NOT_FOUND, text)
            return replace(order, class_id=request.to_class)
        try:
            node_id = Names(node_names(self._view), ()).node(request.to_node)
        except HypothesisError as error:
            await fail(context, grpc.StatusCode.NOT_FOUND, str(error))
        hop = Hop(HopKind.PEER, node_id)
        await self._demand_open(hop, request.to_node, context)
        return replace(order, hop=hop.id)

    async def _demand_open(self, hop: Hop, name: str, context: Context) -> None:
        """A peer that takes mail of no class at all now is no target."""
        view, reason = self._view, ""
        for row in view.engine.rows(view.now()):
            decision = view.engine.decide(Query(row.class_id), view.now())
            found = next((candidate for candidate in decision.candidates if candidate.hop == hop), None)
            if found is not None and found.verdict in OPEN_TO_MOVES:
                return
            reason = found.reason if found is not None else "it is this node, or has no link with it"
        await fail(context, grpc.StatusCode.FAILED_PRECONDITION, f"{name} takes no mail from here now: {reason}")


def _convert_row(row: ShapeRow) -> pb.ShapeRow:
    return pb.ShapeRow(name=row.name, total=row.total, counts=row.counts)
