"""The part of the servicer that takes orders, and tells what was ordered and how far a drain is.

An order that was begun is carried out, whether or not its caller waits for the answer: half of one (kept on disk, not
applied) would be the worst.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import structlog

from router.decision import Hop, HopKind
from smtp_edge.admin import convert
from smtp_edge.admin.drain import read_progress
from smtp_edge.admin.hypotheses import HypothesisError, Names
from smtp_edge.admin.roles import NotAllowedError, Roles
from smtp_edge.admin.view import NodeView
from smtp_edge.operations import PIN_DEFAULT_S, OrderError
from smtp_edge.orders import OrdersError
from smtpmesh.admin.v1 import admin_pb2 as pb
from smtpmesh.admin.v1 import admin_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[object, object]

log = structlog.get_logger()
T = TypeVar("T")


class OrdersService(pb_grpc.AdminServicer):
    """Orders of smtpmesh.admin.v1.Admin."""

    def __init__(self, view: NodeView, roles: Roles) -> None:
        self._view, self._roles = view, roles
        self._running: set[asyncio.Task[Any]] = set()

    async def GetOrders(self, request: pb.GetOrdersRequest, context: Context) -> pb.GetOrdersResponse:
        """What is in force."""
        view = self._view
        return pb.GetOrdersResponse(
            node_id=view.identity.node_id,
            node_name=view.settings.node.name,
            orders=convert.convert_orders(view.operations.orders),
        )

    async def GetDrain(self, request: pb.GetDrainRequest, context: Context) -> pb.GetDrainResponse:
        """How far the drain is."""
        return await read_progress(self._view, datetime.now(UTC))

    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> pb.DrainNodeResponse:
        """Take no mail any more, give the queue to others."""
        by = await self._demand_operator(context)
        changed = await self._carry_out(self._view.operations.drain_node(by), context)
        return pb.DrainNodeResponse(node_name=self._name, changed=changed)

    async def UndrainNode(self, request: pb.UndrainNodeRequest, context: Context) -> pb.UndrainNodeResponse:
        """Take mail again."""
        by = await self._demand_operator(context)
        changed = await self._carry_out(self._view.operations.undrain_node(by), context)
        return pb.UndrainNodeResponse(node_name=self._name, changed=changed)

    async def DrainHost(self, request: pb.DrainHostRequest, context: Context) -> pb.DrainHostResponse:
        """Send nothing new to a smart host from here."""
        by = await self._demand_operator(context)
        changed = await self._carry_out(self._view.operations.drain_host(_bare(request.host), by), context)
        return pb.DrainHostResponse(node_name=self._name, changed=changed)

    async def UndrainHost(self, request: pb.UndrainHostRequest, context: Context) -> pb.UndrainHostResponse:
        """Use it again."""
        by = await self._demand_operator(context)
        changed = await self._carry_out(self._view.operations.undrain_host(_bare(request.host), by), context)
        return pb.UndrainHostResponse(node_name=self._name, changed=changed)

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinResponse:
        """All mail of a class by one own hop."""
        by = await self._demand_operator(context)
        hop = await self._find_hop(request.hop, context)
        order = self._view.operations.pin(request.class_id, hop, request.for_s or PIN_DEFAULT_S, by)
        pin = await self._carry_out(order, context)
        return pb.PinResponse(node_name=self._name, pin=convert.convert_pin(request.class_id, pin))

    async def Unpin(self, request: pb.UnpinRequest, context: Context) -> pb.UnpinResponse:
        """By the rule again."""
        by = await self._demand_operator(context)
        changed = await self._carry_out(self._view.operations.unpin(request.class_id, by), context)
        return pb.UnpinResponse(node_name=self._name, changed=changed)

    async def Reload(self, request: pb.ReloadRequest, context: Context) -> pb.ReloadResponse:
        """Read the configuration again."""
        by = await self._demand_operator(context)
        report = await self._carry_out(self._view.reload(by, dry_run=request.dry_run), context)
        return pb.ReloadResponse(
            node_name=self._name,
            applied=report.applied,
            needs_restart=report.restart,
            warnings=report.warnings,
            mistakes=report.mistakes,
            sessions_before=report.sessions,
            dry_run=request.dry_run,
        )

    # -- private -------------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self._view.settings.node.name

    async def _demand_operator(self, context: Context) -> str:
        try:
            return self._roles.demand_operator(context)
        except NotAllowedError as error:
            log.warning("order.refused", client=context.peer(), reason=str(error))
            await fail(context, grpc.StatusCode.PERMISSION_DENIED, str(error))

    async def _carry_out(self, order: Coroutine[Any, Any, T], context: Context) -> T:
        task = asyncio.ensure_future(order)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except OrderError as error:
            await fail(context, grpc.StatusCode.NOT_FOUND, str(error))
        except OrdersError as error:
            log.error("order.failed", reason=str(error))
            await fail(context, grpc.StatusCode.FAILED_PRECONDITION, str(error))

    async def _find_hop(self, name: str, context: Context) -> Hop:
        """A smart host or node by its name, or a hop id with a name or id of a node in it."""
        view = self._view
        names = Names(node_names(view), {host.name for host in view.settings.smart_host})
        kind, _, rest = name.partition(":")
        try:
            if kind == HopKind.MX.value and rest:
                return Hop(HopKind.MX, rest.lower())
            if kind == HopKind.PEER.value and rest:
                return Hop(HopKind.PEER, names.node(rest))
            found = names.either(name)
        except HypothesisError as error:
            await fail(context, grpc.StatusCode.NOT_FOUND, str(error))
        return found if isinstance(found, Hop) else Hop(HopKind.PEER, found)


def node_names(view: NodeView) -> dict[str, str]:
    """Node id -> name, of all that are known."""
    nodes = {str(node.node_id): node.info.name for node in view.snapshot().nodes}
    nodes[view.identity.node_id] = view.settings.node.name
    return nodes


async def fail(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    """End the call with a sentence."""
    await context.abort(code, text)
    raise AssertionError("abort returns never")


def _bare(host: str) -> str:
    return host.removeprefix(f"{HopKind.SMART_HOST.value}:")
