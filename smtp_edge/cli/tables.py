"""Answers of the admin service as plain tables for people, or as JSON. Pure: messages in, text out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

ROOT_SHOWN = 8
"""Digits of a database's root: enough to see that two differ."""
ID_SHOWN = 8
NAMES_SHOWN = 3
PAIR_WIDTH = 13
KIND_WIDTH = 18
"""Of an event; the longest is as long."""
NAME_WIDTH = 12
"""Of an event's node; events come one by one, so that a longer name moves its line."""


def to_json(answer: Message) -> str:
    """Every field, by its name in the API."""
    return json.dumps(_to_plain(answer), indent=2, ensure_ascii=False)


def to_json_of(answers: Mapping[str, Message]) -> str:
    """Those of several workers, by their names."""
    whole = {"workers": {name: _to_plain(answer) for name, answer in answers.items()}}
    return json.dumps(whole, indent=2, ensure_ascii=False)


def to_json_line(answer: Message) -> str:
    """The same without line breaks."""
    return json.dumps(_to_plain(answer), ensure_ascii=False)


def _to_plain(answer: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def show_status(answer: Any) -> str:
    """Who and how much."""
    rows = [
        ("node", f"{answer.name}  {answer.node_id}"),
        ("cluster", answer.cluster_id),
        ("version", answer.version),
        ("up for", duration(answer.uptime_s)),
        ("database", answer.database_root),
        ("accepted", count_of(answer.accepted, "message")),
        ("relayed", f"{answer.relayed} {'delivery' if answer.relayed == 1 else 'deliveries'}"),
        ("repeats", f"{count_of(answer.duplicates_dropped, 'transfer')} recognised and not stored again"),
        *(("listens", listener) for listener in answer.listeners),
        ("room", _room(answer.room)),
        *_configuration_rows(answer.configuration),
        *_order_rows(answer.orders),
    ]
    return "\n".join(f"{name:<10}{value}" for name, value in rows)


def _room(room: Any) -> str:
    """How much more it can take, and what there is."""
    words = "takes no mail" if room.overloaded else f"headroom {room.headroom_permille / 10:.0f} %"
    there = f"{_size(room.free_bytes)} of disk free, {_size(room.memory_bytes)} of memory in use"
    return f"{words}{f': {room.reason}' if room.reason else ''} ({there})"


def _configuration_rows(configuration: Any) -> list[tuple[str, str]]:
    """What a reload left open; mostly nothing."""
    rows = [("config", f"of {configuration.since}")]
    if configuration.needs_restart:
        rows.append(("", f"needs restart: {', '.join(configuration.needs_restart)}"))
    if configuration.mistakes:
        rows.append(("", "the last reload was refused:"))
        rows += [("", f"  {mistake}") for mistake in configuration.mistakes]
    return rows


def _order_rows(orders: Any) -> list[tuple[str, str]]:
    """What the operator ordered; mostly nothing."""
    rows = [("draining", f"since {orders.drain.at}, by {orders.drain.by}")] if orders.HasField("drain") else []
    rows += [("drained", f"host {item.host} since {item.order.at}, by {item.order.by}") for item in orders.hosts]
    rows += [
        ("pinned", f"{item.class_id} to {item.hop} until {item.until}, by {item.order.by}") for item in orders.pins
    ]
    return rows


def show_progress(answer: Any) -> str:
    """How far a drain is, in one line."""
    if answer.done:
        return "drained: nothing waits, nothing is in doubt"
    words = [f"{answer.waiting} waiting ({answer.deferred} deferred)", f"{answer.in_flight} in flight"]
    words += [f"{answer.in_doubt} in doubt"]
    words += [f"{answer.held} held"] if answer.held else []
    words += [f"{answer.corrupt} damaged"] if answer.corrupt else []
    words += [f"{count_of(answer.sessions, 'client')} still submitting"] if answer.sessions else []
    return ", ".join(words)


def show_left(answer: Any) -> str:
    """What a drain could not move, and why."""
    lines = [f"class {item.class_id}: {item.waiting} waiting: {item.reason}" for item in answer.classes]
    lines += [f"{answer.held} held by an operator"] if answer.held else []
    lines += [f"{answer.corrupt} damaged: they cannot be read, look into the log"] if answer.corrupt else []
    lines += [f"{count_of(answer.sessions, 'client')} still submitting"] if answer.sessions else []
    lines += [
        f"  {item.queue_id} {item.state}, next attempt {item.next_attempt_at or 'now'}: {item.reason}"
        for item in answer.deliveries
    ]
    return "\n".join(lines)


def show_routes(answer: Any) -> str:
    """The routing table."""
    parts = [f"routing table of {answer.node_name}, database {answer.database_root}{_plan(answer)}"]
    for route in answer.routes:
        parts.append(f"\nclass {route.class_id}: {route.backlog} waiting, {route.rule}{_pinned(route)}")
        parts.append(_hopstable(route.next_hops))
    if not answer.routes:
        parts.append("\nno class yet: classes of direct delivery appear with their first mail")
    parts += _footnote(hop for route in answer.routes for hop in route.next_hops)
    return "\n".join(parts)


def _plan(answer: Any) -> str:
    return f", plan {answer.plan.digest} of {answer.plan.age_s:.0f} s ago" if answer.HasField("plan") else ""


def _pinned(route: Any) -> str:
    return f" (pinned to {route.pinned_to} for {duration(route.pinned_s)} more)" if route.pinned_to else ""


def show_explanation(answer: Any) -> str:
    """Why."""
    first = []
    if answer.expanded_by:
        who = " or ".join(answer.expanded_by)
        first = [f"mail to {answer.address} is for sink {who} first, which says who gets it (a list, an alias)"]
        if not answer.HasField("route"):
            return f"{first[0]}\nno route takes what it leaves as it is"
        first.append("what it leaves as it is:")
    chosen = next((hop for hop in answer.route.next_hops if hop.hop == answer.chosen), None)
    where = f"{chosen.label} ({chosen.hop})" if chosen is not None else "nowhere now: it waits"
    lines = [
        *first,
        f"{answer.address} is of the class {answer.class_id} (route {answer.matched_rule})",
        f"next hop now: {where}; rule: {answer.route.rule}{_pinned(answer.route)}",
        "",
        _hopstable(answer.route.next_hops),
        *_footnote(answer.route.next_hops),
        "",
        f"at most {answer.bound_mps:.1f} msg/s from here to the exits"
        + (f"; narrow: {', '.join(answer.bottleneck)}" if answer.bottleneck else ""),
        *(f"path  {path}" for path in answer.paths),
        f"database {answer.database_root}",
    ]
    return "\n".join(lines)


def show_nodes(answer: Any) -> str:
    """Members, in 120 columns while names are short."""
    return _show_nodes(answer, (), [() for _ in answer.nodes])


def show_nodes_wide(answer: Any) -> str:
    """Members with their ids and addresses."""
    more = [
        (node.node_id, node.zone, ",".join(node.tags) or "-", node.gossip_address, node.mesh_address)
        for node in answer.nodes
    ]
    return _show_nodes(answer, ("id", "zone", "tags", "gossip", "mesh"), more)


def _show_nodes(answer: Any, more_head: Sequence[str], more: Sequence[Sequence[str]]) -> str:
    rows = [
        (
            node.name,
            node.state,
            duration(node.since_s),
            *extra,
            node.software.removeprefix("smtpmesh/") or "-",
            (answer.database_root if node.self else node.root)[:ROOT_SHOWN] or "-",
            {True: "yes", False: "no"}[node.in_sync] if node.HasField("in_sync") else "-",
            _latency(node.lag_s if node.HasField("lag_s") else None),
            _round_trip(node.round_trip_s if node.HasField("round_trip_s") else None),
            "-" if node.self else duration(node.age_s),
            sum(backlog.count for backlog in node.backlogs),
            _names(node.sources),
        )
        for node, extra in zip(answer.nodes, more, strict=True)
    ]
    head = (
        "name", "state", "since", *more_head, "version", "database",
        "in sync", "lag", "rtt", "heard", "waiting", "according to",
    )  # fmt: skip
    notes = [f"{node.name}: {note}" for node in answer.nodes if (note := _note(node))]
    return "\n".join([table(head, rows), "", *notes, *([""] if notes else []), f"database {answer.database_root}"])


def show_gossip_stats(answer: Any) -> str:
    """Gauges first, then counters, each kind from the most frequent."""
    sent, received = sum(answer.frames_sent.values()), sum(answer.frames_received.values())
    kinds = sorted(
        {*answer.frames_sent, *answer.frames_received}, key=lambda kind: (-answer.frames_sent.get(kind, 0), kind)
    )
    health = [
        ("own timer", f"{_latency(answer.own_lag_s)} late; patience with others x {answer.patience:.1f}"),
        ("damped", f"{count_of(answer.damped, 'link')} held back because they flap"),
        ("quarantined", f"{count_of(answer.quarantined, 'peer')} not listened to"),
    ]
    state = [
        ("members", f"{answer.members}, {answer.unreachable} of them unreachable"),
        ("sessions", f"{answer.sessions} of {answer.sessions_wanted} wanted; {answer.eager_sessions} carry bodies"),
        (
            "database",
            f"{count_of(answer.database_records, 'record')}, {count_of(answer.stones, 'stone')}, root {answer.root}",
        ),
        ("outbox", f"{count_of(answer.outbox_records, 'record')} waiting to be sent"),
        ("epoch", str(answer.epoch)),
    ]
    frames = [(kind, answer.frames_sent.get(kind, 0), answer.frames_received.get(kind, 0)) for kind in kinds]
    frames += [("all", sent, received), ("bytes", answer.bytes_sent, answer.bytes_received)]
    return "\n\n".join(
        [
            pairs(state),
            pairs(health),
            table(("frames", "sent", "received"), frames),
            _tally("records offered by others", answer.records),
            _tally("own versions issued", answer.originated),
            _tally("events", answer.events),
        ]
    )


def show_event(answer: Any) -> str:
    """One line; one more before it if events were lost."""
    lost = f"({count_of(answer.lost, 'event')} lost here: read too slowly)\n" if answer.lost else ""
    through = f"through {_name(answer.peer)}" if answer.HasField("peer") else ""
    words = "  ".join(word for word in (answer.text, through) if word)
    return f"{lost}{answer.at}  {answer.kind:<{KIND_WIDTH}}  {_name(answer.node):<{NAME_WIDTH}}  {words}".rstrip()


def show_links(answer: Any) -> str:
    """The link-state database."""
    rows = [
        (
            link.origin_name,
            link.hop_label,
            link.hop.partition(":")[0],
            link.state,
            _percent(link.availability),
            _percent(link.reliability),
            f"{link.capacity_mps:.1f}/s",
            _latency(link.latency_s if link.latency_s else None),
            link.samples,
            ",".join(link.classes) or "-",
        )
        for link in answer.links
    ]
    head = ("from", "to", "kind", "state", "available", "reliable", "capacity", "latency", "samples", "classes")
    return f"{table(head, rows)}\n\ndatabase {answer.database_root}"


def show_message(answer: Any) -> str:
    """One message's story."""
    lines = [
        f"message {answer.queue_id} of {answer.sender or '<>'}, {answer.size_bytes} bytes, from {answer.client}",
        f"received {answer.received_at}, expires {answer.expires_at}, origin {answer.origin}",
    ]
    for item in answer.deliveries:
        waits = f", next attempt {item.next_attempt_at}" if item.next_attempt_at else ""
        lines.append(f"  {item.state:<9} {some(item.recipients)}  ({count_of(item.attempts, 'attempt')}{waits})")
    lines.append("")
    rows = [(note.at, note.event, note.hop or "-", note.reply or note.detail) for note in answer.history]
    lines.append(table(("at", "event", "hop", "what"), rows))
    return "\n".join(lines)


def _share(hop: Any) -> float:
    """Of the class' mail: the plan says how much leaves by relays, capacities what each exit gets of the rest."""
    if not hop.HasField("plan_share"):
        return float(hop.share)
    return float(hop.plan_share if hop.hop.startswith("peer:") else hop.plan_share * hop.share)


def _hopstable(hops: Iterable[Any]) -> str:
    rows = [
        (
            hop.label,
            hop.hop.partition(":")[0],
            hop.verdict,
            hop.state,
            _percent(_share(hop)) if _share(hop) else "-",
            _percent(hop.availability),
            _percent(hop.reliability),
            f"{hop.capacity_mps:.1f}/s{'' if hop.capacity_proven else '?'}",
            _latency(hop.latency_s if hop.HasField("latency_s") else None),
            f"{hop.inflight}/{hop.window}",
            "-" if hop.backlog_source == "exit" else str(hop.backlog_there),
            f"{hop.gain:.1f}",
            hop.reason,
        )
        for hop in hops
    ]
    head = (
        "next hop", "kind", "verdict", "state", "share", "available", "reliable",
        "capacity", "latency", "in use", "backlog", "gain", "because",
    )  # fmt: skip
    return table(head, rows)


def _footnote(hops: Iterable[Any]) -> list[str]:
    return ["", "? = assumed, not measured yet"] if any(not hop.capacity_proven for hop in hops) else []


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; the last one runs free."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one on each line."""
    return "\n".join(f"{name:<{PAIR_WIDTH}}{value}" for name, value in rows)


def _tally(head: str, counts: Mapping[str, int]) -> str:
    """Counts by name, the largest first."""
    if not counts:
        return f"{head}: none"
    width = max(len(name) for name in counts)
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join([head, *(f"  {name:<{width}}  {count}" for name, count in rows)])


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.9995 else "100%"


def _latency(latency_s: float | None) -> str:
    if latency_s is None:
        return "-"
    return f"{latency_s * 1000:.0f} ms" if latency_s < 10 else f"{latency_s:.1f} s"


def _round_trip(round_trip_s: float | None) -> str:
    """Inside a machine or a rack it is less than a millisecond."""
    return (
        f"{round_trip_s * 1000:.1f} ms" if round_trip_s is not None and round_trip_s < 0.01 else _latency(round_trip_s)
    )


def duration(seconds: float) -> str:
    """In the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def _size(size_bytes: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes / 1024:.0f} KiB"


def count_of(number: int, noun: str) -> str:
    """`1 link`, `2 links`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _note(node: Any) -> str:
    """What is unusual about a member; mostly nothing, so it gets no column."""
    words = [word.replace("_", " ") for word in ("draining", "overloaded", "no_transit") if getattr(node, word)]
    if node.routes_differ:
        words.append("routes differ")
    if node.sinks_differ:
        words.append("sinks differ")
    if node.reason:
        words.append(f"its session ended: {node.reason}")
    return ", ".join(words)


def _name(node: Any) -> str:
    return str(node.name or node.node_id[:ID_SHOWN])


def _names(nodes: Sequence[Any]) -> str:
    """Up to `NAMES_SHOWN` of them."""
    shown = [_name(node) for node in nodes[:NAMES_SHOWN]]
    more = f" and {len(nodes) - NAMES_SHOWN} more" if len(nodes) > NAMES_SHOWN else ""
    return f"{', '.join(shown)}{more}" if shown else "-"


def some(addresses: Sequence[str]) -> str:
    """The first of some addresses, and how many more."""
    more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
    return f"{addresses[0]}{more}" if addresses else "-"
