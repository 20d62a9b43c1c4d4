"""The servicer: each call reads the node's view on its event loop and converts. Orders are in `orders.py`, the queue in
`queue.py`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc

from gossip.status import EventKind
from router.decision import Query
from smtp_edge import __version__
from smtp_edge.address import SyntaxFault, parse_mailbox
from smtp_edge.admin import convert
from smtp_edge.admin.client import NODE_HEADER
from smtp_edge.admin.events import FeedError
from smtp_edge.admin.hypotheses import HypothesisError, Names, convert_answer, read_hypothesis
from smtp_edge.admin.orders import fail, node_names
from smtp_edge.admin.queue import QueueService
from smtp_edge.admin.roles import Roles
from smtp_edge.admin.view import NodeView
from smtp_edge.envelope import Recipient
from smtp_edge.sinks.bindings import digest_of
from smtp_edge.sinks.rules import Facts
from smtp_edge.sorting import EXPANSION
from smtpmesh.admin.v1 import admin_pb2 as pb

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[object, object]

_NODE_ID = re.compile(r"[0-9a-f]{32}")


class AdminService(QueueService):
    """Implements smtpmesh.admin.v1.Admin."""

    def __init__(self, view: NodeView, roles: Roles) -> None:
        super().__init__(view, roles)

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:
        """This node."""
        view, counters = self._view, self._view.counters
        return pb.GetStatusResponse(
            node_id=view.identity.node_id,
            name=view.settings.node.name,
            cluster_id=view.identity.cluster,
            version=__version__,
            uptime_s=view.uptime_s(),
            database_root=view.snapshot().root,
            listeners=[f"{name} {address}" for name, address in view.bound.items()],
            accepted=counters.accepted,
            relayed=counters.relayed,
            duplicates_dropped=counters.duplicates_dropped,
            orders=convert.convert_orders(view.operations.orders),
            room=convert.convert_room(view.room),
            configuration=convert.convert_configured(view.configured),
        )

    async def GetRoutes(self, request: pb.GetRoutesRequest, context: Context) -> pb.GetRoutesResponse:
        """The routing table."""
        view = self._view
        rows = view.engine.rows(view.now())
        chosen = [row for row in rows if request.class_id in ("", row.class_id)]
        if request.class_id and not chosen:
            known = ", ".join(row.class_id for row in rows)
            await fail(context, grpc.StatusCode.NOT_FOUND, f"no class {request.class_id!r} here; there are: {known}")
        return pb.GetRoutesResponse(
            node_id=view.identity.node_id,
            node_name=view.settings.node.name,
            database_root=view.snapshot().root,
            routes=[convert.convert_row(row) for row in chosen],
            plan=convert.convert_plan(view.engine.planning, view.now()),
        )

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        """Why mail for an address would go where it would go."""
        view = self._view
        try:
            recipient = Recipient(parse_mailbox(request.address))
        except SyntaxFault as fault:
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, f"{request.address!r} is no address: {fault}")
        domain = recipient.domain or view.settings.node.hostname.lower()
        expanders = view.expanders_of(Facts(recipients=(recipient,), size_bytes=request.size_bytes))
        rule, wanted = view.table.find_rule(domain), view.table.classify(domain, request.size_bytes)
        if (rule is None or wanted is None) and expanders:
            return pb.ExplainResponse(address=request.address, class_id=EXPANSION, expanded_by=expanders)
        if rule is None or wanted is None:
            what = f"mail for {domain}" if domain else "addresses without a domain"
            text = f"{request.address} is unroutable: no [[route]] takes {what}; clients are answered 550"
            await fail(context, grpc.StatusCode.NOT_FOUND, text)
        trace = [await self._find_node(step, context) for step in request.trace]
        explanation = view.engine.explain(Query(wanted.class_id, tuple(trace)), view.now())
        answer = convert.convert_explanation(request.address, rule.name, wanted.exits, explanation)
        answer.expanded_by.extend(expanders)
        return answer

    async def WhatIf(self, request: pb.WhatIfRequest, context: Context) -> pb.WhatIfResponse:
        """Where mail would go if something failed."""
        view, snapshot = self._view, self._view.snapshot()
        nodes = node_names(view)
        linked = {link.hop for node in snapshot.nodes for link in node.links if link.hop.startswith("host:")}
        hosts = {host.name for host in view.settings.smart_host} | {hop.partition(":")[2] for hop in linked}
        names = Names(nodes, hosts)
        try:
            hypothesis = read_hypothesis(request, names)
            at = [names.node(name) for name in request.at]
        except HypothesisError as error:
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answers = view.engine.what_if(hypothesis, view.now(), load_mps=request.load_mps or None, at=at)
        chosen = [answer for answer in answers if request.class_id in ("", answer.class_id)]
        if not chosen:
            known = ", ".join(answer.class_id for answer in answers) or "none but single domains"
            text = f"no class {request.class_id!r} can be asked about; there are: {known}"
            await fail(context, grpc.StatusCode.NOT_FOUND, text)
        return pb.WhatIfResponse(
            node_id=view.identity.node_id,
            node_name=view.settings.node.name,
            database_root=snapshot.root,
            classes=[convert_answer(answer, nodes) for answer in chosen],
        )

    async def _find_node(self, name_or_id: str, context: Context) -> str:
        """A node's id by its name. Ids are taken as they are: a message may have visited a node that left."""
        names = {node.info.name: str(node.node_id) for node in self._view.snapshot().nodes}
        found = name_or_id if _NODE_ID.fullmatch(name_or_id) else names.get(name_or_id, "")
        if not found:
            text = f"no node {name_or_id!r}; there are: {', '.join(sorted(names))}"
            await fail(context, grpc.StatusCode.INVALID_ARGUMENT, text)
        return found

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        """Members."""
        view, snapshot = self._view, self._view.snapshot()
        sessions = {session.node_id: session for session in view.sessions()}
        members = {member.node_id: member for member in view.members()}
        names = {str(node.node_id): node.info.name for node in snapshot.nodes}
        nodes = [
            convert.convert_node(
                node,
                members[node.node_id],
                session=sessions.get(node.node_id),
                routes_digest=view.table.digest(),
                sinks_digest=digest_of(view.settings.sink),
                names=names,
            )
            for node in sorted(snapshot.nodes, key=lambda node: node.info.name)
        ]
        return pb.ListNodesResponse(database_root=snapshot.root, nodes=nodes)

    async def ListLinks(self, request: pb.ListLinksRequest, context: Context) -> pb.ListLinksResponse:
        """The link-state database."""
        snapshot = self._view.snapshot()
        names = {str(node.node_id): node.info.name for node in snapshot.nodes}
        links = [
            convert.convert_link(node, link, names)
            for node in sorted(snapshot.nodes, key=lambda node: node.info.name)
            for link in node.links
        ]
        return pb.ListLinksResponse(database_root=snapshot.root, links=links)

    async def GetGossipStats(self, request: pb.GetGossipStatsRequest, context: Context) -> pb.GetGossipStatsResponse:
        """Gossip in numbers."""
        return convert.convert_stats(self._view.gossip_stats())

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Context
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """Events, until the caller has enough or the node stops."""
        kinds: list[EventKind] = []
        for word in request.kinds:
            try:
                kinds.append(EventKind(word))
            except ValueError:
                known = ", ".join(kind.value for kind in EventKind)
                await fail(context, grpc.StatusCode.INVALID_ARGUMENT, f"no kind {word!r}; there are: {known}")
        try:
            subscription = self._view.events.subscribe(kinds, request.recent)
        except FeedError as error:
            await fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        with subscription:
            await context.send_initial_metadata(((NODE_HEADER, self._view.settings.node.name),))
            async for told in subscription:
                yield convert.convert_event(told)
