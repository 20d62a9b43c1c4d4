"""From the node's values to messages of the admin API. Pure, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from gossip.linkstate import LinkState, NodeRecord, SessionStatus
from gossip.status import GossipStats, MemberState, MemberStatus
from router.decision import Candidate, Explanation, RouteRow
from router.planning import Planning
from smtp_edge.admin.events import Told
from smtp_edge.orders import Order, Orders, PinOrder
from smtp_edge.queue.entry import Claim, HistoryNote, MessageHistory, QueueSummary
from smtp_edge.queue.survey import Damaged
from smtp_edge.reload import Configured
from smtp_edge.room import Room
from smtpmesh.admin.v1 import admin_pb2 as pb

STATES = {0: "unknown", 1: "up", 2: "suspect", 3: "half-open", 4: "down", 5: "draining"}


def convert_candidate(candidate: Candidate) -> pb.NextHop:
    """One candidate with all terms."""
    message = pb.NextHop(
        hop=candidate.hop.id,
        label=candidate.label,
        verdict=candidate.verdict.value,
        reason=candidate.reason,
        share=candidate.share,
        gain=candidate.gain,
        backlog_here=candidate.backlog_here,
        backlog_there=candidate.backlog_there,
        backlog_source=candidate.backlog_source,
        availability=candidate.availability,
        reliability=candidate.reliability,
        capacity_mps=candidate.capacity_mps,
        capacity_proven=candidate.capacity_proven,
        window=candidate.window,
        inflight=candidate.inflight,
        state=candidate.state.value,
        cost=candidate.cost,
    )
    if candidate.backlog_age_s is not None:
        message.backlog_age_s = candidate.backlog_age_s
    if candidate.rank_here is not None:
        message.rank_here = candidate.rank_here
    if candidate.rank_there is not None:
        message.rank_there = candidate.rank_there
    if candidate.latency_s is not None:
        message.latency_s = candidate.latency_s
    if candidate.plan_share is not None:
        message.plan_share = candidate.plan_share
    return message


def convert_plan(planning: Planning, now: float) -> pb.Plan | None:
    """The joint plan that this node follows."""
    if planning.plan is None or not planning.plan.flows:
        return None
    return pb.Plan(
        digest=planning.plan.problem.digest,
        age_s=now - planning.made_at,
        made=planning.made,
        shares_moved=planning.churn,
    )


def convert_row(row: RouteRow) -> pb.RouteEntry:
    """One class of the routing table."""
    pin = row.decision.pin
    return pb.RouteEntry(
        class_id=row.class_id,
        exits=list(row.exits),
        next_hops=[convert_candidate(candidate) for candidate in row.decision.candidates],
        rule=row.decision.rule,
        backlog=row.backlog,
        pinned_to=pin.hop.id if pin is not None else "",
        pinned_s=pin.until - row.decision.now if pin is not None else 0.0,
    )


def convert_explanation(
    address: str, matched_rule: str, exits: tuple[str, ...], explanation: Explanation
) -> pb.ExplainResponse:
    """Why."""
    decision = explanation.decision
    row = RouteRow(decision.class_id, exits, decision, max((c.backlog_here for c in decision.candidates), default=0))
    return pb.ExplainResponse(
        address=address,
        class_id=decision.class_id,
        matched_rule=matched_rule,
        database_root=decision.view,
        route=convert_row(row),
        chosen=decision.chosen.id if decision.chosen is not None else "",
        bound_mps=explanation.bound_mps,
        bottleneck=list(explanation.bottleneck),
        paths=list(explanation.paths),
    )


def convert_node(
    node: NodeRecord,
    member: MemberStatus,
    *,
    session: SessionStatus | None,
    routes_digest: str,
    sinks_digest: str,
    names: Mapping[str, str],
) -> pb.Node:
    """One member: what it says of itself, and how it is seen from here. `names`: node id -> name."""
    info = node.info
    own = member.state is MemberState.SELF
    return pb.Node(
        node_id=node.node_id,
        name=info.name,
        zone=info.zone,
        gossip_address=info.gossip_address,
        mesh_address=info.mesh_address,
        software=info.software,
        self=own,
        session=session is not None and session.up,
        age_s=0.0 if own else node.age_s,
        version=f"{node.version.epoch}.{node.version.sequence}",
        draining=info.draining,
        overloaded=info.overloaded,
        no_transit=info.no_transit,
        routes_digest=info.routes_digest,
        routes_differ=info.routes_digest != routes_digest,
        sinks_digest=info.sinks_digest,
        sinks_differ=info.sinks_digest != sinks_digest,
        backlogs=[
            pb.ClassBacklog(
                class_id=item.class_id,
                count=item.backlog_count,
                oldest_s=item.oldest_s,
                ingress_mps=item.ingress_mmps / 1000,
            )
            for item in node.load.classes
        ],
        accept_capacity_mps=node.load.accept_capacity_mmps / 1000,
        state=member.state.value,
        since_s=member.since_s,
        sources=[
            pb.NodeName(node_id=source, name=name)
            for name, source in sorted((names.get(source, ""), source) for source in member.sources)
        ],
        reason=member.reason,
        root=member.root,
        in_sync=member.in_sync,
        lag_s=member.lag_ms / 1000 if member.lag_ms is not None else None,
        round_trip_s=member.round_trip_ms / 1000 if member.round_trip_ms is not None else None,
        tags=list(info.tags),
        admin_address=info.admin_address,
    )


def convert_link(node: NodeRecord, link: LinkState, names: Mapping[str, str]) -> pb.Link:
    """One link of the database."""
    return pb.Link(
        origin=node.node_id,
        origin_name=node.info.name,
        hop=link.hop,
        hop_label=names.get(link.hop.partition(":")[2], link.hop.partition(":")[2]),
        state=STATES[int(link.status)],
        availability=link.availability_permille / 1000,
        reliability=link.reliability_permille / 1000,
        capacity_mps=link.capacity_mmps / 1000,
        latency_s=link.latency_us / 1e6,
        samples=link.samples,
        cost=link.cost,
        classes=list(link.classes),
        age_s=node.age_s,
        tags=list(link.tags),
        tls=link.tls.name.lower(),
        size_bytes_max=link.size_bytes_max,
    )


def convert_stats(stats: GossipStats) -> pb.GetGossipStatsResponse:
    """All of it, field by field: the message has the fields of the value."""
    return pb.GetGossipStatsResponse(
        frames_sent=stats.frames_sent,
        frames_received=stats.frames_received,
        bytes_sent=stats.bytes_sent,
        bytes_received=stats.bytes_received,
        records=stats.records,
        originated=stats.originated,
        events=stats.events,
        sessions=stats.sessions,
        sessions_wanted=stats.sessions_wanted,
        members=stats.members,
        unreachable=stats.unreachable,
        database_records=stats.database_records,
        stones=stats.stones,
        outbox_records=stats.outbox_records,
        eager_sessions=stats.eager_sessions,
        own_lag_s=stats.own_lag_s,
        patience=stats.patience,
        damped=stats.damped,
        quarantined=stats.quarantined,
        epoch=stats.epoch,
        root=stats.root,
    )


def convert_event(told: Told) -> pb.WatchEventsResponse:
    """One event for one subscriber."""
    named, event = told.named, told.named.event
    return pb.WatchEventsResponse(
        at=convert_time(named.at),
        kind=event.kind.value,
        node=pb.NodeName(node_id=event.node_id, name=named.node_name),
        text=event.text,
        peer=pb.NodeName(node_id=event.peer, name=named.peer_name) if event.peer is not None else None,
        lost=told.lost,
    )


def convert_summary(summary: QueueSummary, at: datetime) -> pb.GetQueueResponse:
    """Totals of the queue."""
    return pb.GetQueueResponse(
        classes=[
            pb.ClassBacklog(
                class_id=item.class_id,
                count=item.count,
                deferred=item.deferred,
                oldest_s=max(0.0, (at - item.oldest_at).total_seconds()) if item.oldest_at else 0.0,
            )
            for item in summary.classes
        ],
        held=summary.held,
        relayed=summary.relayed,
        failed=summary.failed,
        expired=summary.expired,
        corrupt=summary.corrupt,
        bytes_stored=summary.bytes_stored,
    )


def convert_delivery(claim: Claim) -> pb.QueuedDelivery:
    """One delivery in the queue."""
    entry, delivery = claim.entry, claim.delivery
    return pb.QueuedDelivery(
        queue_id=delivery.queue_id,
        copy=delivery.copy,
        class_id=delivery.class_id,
        state=delivery.state.value,
        sender=entry.envelope.sender,
        recipients=[recipient.address for recipient in delivery.recipients],
        size_bytes=entry.data.size_bytes,
        received_at=convert_time(entry.received_at),
        next_attempt_at=convert_time(delivery.next_attempt_at),
        attempts=delivery.attempts,
        last_hop=delivery.last_hop,
        last_reply=delivery.last_reply,
        in_doubt_hop=delivery.in_doubt_hop,
        trace=list(entry.trace),
    )


def convert_damaged(item: Damaged) -> pb.DamagedDelivery:
    """A delivery that cannot be read."""
    return pb.DamagedDelivery(
        queue_id=item.queue_id,
        copy=item.copy,
        class_id=item.class_id,
        received_at=convert_time(item.received_at),
        reason=item.reason,
    )


def convert_history(history: MessageHistory) -> pb.GetMessageResponse:
    """One message."""
    entry = history.entry
    return pb.GetMessageResponse(
        queue_id=entry.queue_id,
        origin=entry.origin,
        sender=entry.envelope.sender,
        received_at=convert_time(entry.received_at),
        expires_at=convert_time(entry.expires_at),
        size_bytes=entry.data.size_bytes,
        client=entry.client,
        deliveries=[convert_delivery(Claim(entry, delivery, 0)) for delivery in history.deliveries],
        history=[_convert_note(note) for note in history.notes],
    )


def _convert_note(note: HistoryNote) -> pb.HistoryNote:
    return pb.HistoryNote(
        at=convert_time(note.at), event=note.event, hop=note.hop, reply=note.reply, detail=note.detail
    )


def convert_order(order: Order | None) -> pb.Order | None:
    """Who and when."""
    return pb.Order(at=convert_time(order.at), by=order.by) if order is not None else None


def convert_pin(class_id: str, pin: PinOrder) -> pb.PinnedClass:
    """One pin."""
    return pb.PinnedClass(
        class_id=class_id, hop=pin.hop, until=convert_time(pin.until_at), order=convert_order(pin.order)
    )


def convert_orders(orders: Orders) -> pb.Orders:
    """All that is in force."""
    return pb.Orders(
        drain=convert_order(orders.drain),
        hosts=[pb.HostDrain(host=name, order=convert_order(order)) for name, order in sorted(orders.hosts.items())],
        pins=[convert_pin(class_id, pin) for class_id, pin in sorted(orders.pins.items())],
    )


def convert_configured(configured: Configured) -> pb.Configuration:
    """What a node goes by."""
    return pb.Configuration(
        since=convert_time(configured.at), needs_restart=configured.restart, mistakes=configured.mistakes
    )


def convert_room(room: Room) -> pb.Room:
    """How much more mail the node can take."""
    return pb.Room(
        headroom_permille=room.pressure.headroom_permille,
        overloaded=room.pressure.overloaded,
        reason=room.pressure.reason,
        trouble=room.readings.trouble,
        free_bytes=room.readings.free_bytes,
        entries=room.readings.entries,
        memory_bytes=room.readings.memory_bytes,
    )


def convert_time(at: datetime | None) -> str:
    """RFC 3339; empty for None."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if at is not None else ""
