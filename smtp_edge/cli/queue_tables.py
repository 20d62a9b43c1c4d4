"""Answers about the queue as text for people. Pure: messages in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smtp_edge.cli.tables import count_of, duration, pairs, some, table

REASON_WIDTH = 70
DONE = {
    "hold": "held",
    "release": "released",
    "retry": "due now",
    "bounce": "returned to their senders",
    "remove": "removed",
    "move": "moved",
}


def show_queue(answer: Any) -> str:
    """What waits, and why."""
    totals = [
        (item.class_id, item.count, item.deferred, duration(item.oldest_s) if item.count else "-")
        for item in answer.classes
    ]
    lines = [table(("class", "waiting", "deferred", "oldest"), totals) if totals else "nothing waits"]
    lines.append(
        f"\nheld {answer.held}, damaged {answer.corrupt}, {answer.bytes_stored} bytes; "
        f"finished and remembered: relayed {answer.relayed}, failed {answer.failed}, expired {answer.expired}"
    )
    if answer.deliveries:
        rows = [
            (
                item.queue_id,
                item.stage or item.state,
                item.attempts,
                item.sender or "<>",
                some(item.recipients),
                item.next_attempt_at or "now",
                item.reason[:REASON_WIDTH] or "-",
            )
            for item in answer.deliveries
        ]
        lines.append("\n" + table(("id", "state", "tries", "from", "to", "next", "because"), rows))
    lines += [f"\ndamaged {item.queue_id} of class {item.class_id}: {item.reason}" for item in answer.damaged]
    return "\n".join(lines)


def show_shape(answer: Any) -> str:
    """As qshape shows it: ages in minutes."""
    if not answer.all.total:
        return "nothing waits"
    bounds = [f"{bound / 60:.0f}" for bound in answer.bounds_s]
    head = ("", "total", *bounds, f"{bounds[-1]}+")
    rows = [(row.name, row.total, *row.counts) for row in (answer.all, *answer.rows)]
    more = answer.names - len(answer.rows)
    return table(head, rows) + (f"\n\n{more} more; ages in minutes" if more > 0 else "\n\nages in minutes")


def show_reasons(answer: Any) -> str:
    """Why."""
    parts = [
        f"{answer.queue_id} of {answer.sender or '<>'} at {answer.node_name},"
        f" received {answer.received_at}, expires {answer.expires_at}"
    ]
    parts += [_show_reason(item) for item in answer.deliveries]
    return "\n\n".join(parts)


def _show_reason(item: Any) -> str:
    delivery = item.delivery
    rows = [
        ("to", some(delivery.recipients)),
        ("state", delivery.stage or delivery.state),
        ("because", item.answer),
        ("next", item.next),
    ]
    if not item.HasField("route"):
        return pairs(rows)
    if delivery.state == "deferred":
        rows.append(("if due now", item.route.rule))
    needs = [(need.label or need.hop, need.hop, need.need or "nothing: it would be taken") for need in item.needs]
    return f"{pairs(rows)}\n\n{table(('next hop', 'id', 'needs'), needs)}" if needs else pairs(rows)


def show_done(action: str, done: Mapping[str, Any], *, dry_run: bool) -> str:
    """What an order did."""
    count = done["changed"] + done["damaged"]
    what = f"{count} deliver{'y' if count == 1 else 'ies'} {'would be ' if dry_run else ''}{DONE[action]}"
    lines = [f"{done['node_name']}: {what}"]
    if done["damaged"]:
        lines.append(f"{count_of(done['damaged'], 'damaged one')} among them")
    if done["under_way"]:
        lines.append(f"{done['under_way']} under way at this moment, not changed: ask again")
    if done["unfit"]:
        lines.append(f"{done['unfit']} not in a state for that")
    return "\n".join(lines)
