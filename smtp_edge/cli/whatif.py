"""The words of `smtpmesh what-if`, and its answer as tables."""

from __future__ import annotations

from typing import Any

import click

PER_S = "/s"


class Rate(click.ParamType):  # type: ignore[type-arg]
    """`400/s` or `400`: messages a second."""

    name = "RATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As a number."""
        text = str(value).removesuffix(PER_S)
        try:
            found = float(text)
        except ValueError:
            found = -1.0
        if not 0 < found < float("inf"):
            self.fail(f"{value!r} is no rate; say how many messages a second, like 400/s", param, ctx)
        return found


class Slow(click.ParamType):  # type: ignore[type-arg]
    """`HOST=FACTOR`."""

    name = "HOST=FACTOR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Host and factor."""
        host, separator, factor = str(value).partition("=")
        try:
            found = float(factor)
        except ValueError:
            found = -1.0
        if not (separator and host) or not 0 <= found < float("inf"):
            self.fail(f"{value!r} is no change; say HOST=FACTOR, like s1=0.5 for half its speed", param, ctx)
        return host, found


def show_what_if(answer: Any) -> str:
    """Each class now and then, side by side."""
    return "\n\n".join(
        [
            f"as {answer.node_name} sees the mesh, database {answer.database_root[:8]}; messages a second",
            *(_show_class(item) for item in answer.classes),
        ]
    )


def _show_class(item: Any) -> str:
    rows = [("class " + item.class_id, "now", "then")]
    rows += [
        ("offered", f"{item.now.offered_mps:.1f}", f"{item.then.offered_mps:.1f}"),
        ("delivered", f"{item.now.delivered_mps:.1f}", f"{item.then.delivered_mps:.1f}"),
        ("piles up", _piles_up(item.now), _piles_up(item.then)),
        ("at most", f"{item.now.bound_mps:.1f}", f"{item.then.bound_mps:.1f}"),
    ]
    now, then = ({exit_.hop: exit_ for exit_ in part.exits} for part in (item.now, item.then))
    rows += [(hop, _show_exit(now.get(hop)), _show_exit(then.get(hop))) for hop in sorted({*now, *then})]
    now, then = ({_pair(move): f"{move.mps:.1f}" for move in part.transfers} for part in (item.now, item.then))
    rows += [(pair, now.get(pair, "-"), then.get(pair, "-")) for pair in sorted({*now, *then})]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if item.then.stranded:
        lines.append(f"no way out then: mail of {', '.join(_name(node) for node in item.then.stranded)} waits")
    return "\n".join(lines)


def _piles_up(part: Any) -> str:
    waiting = part.offered_mps - part.delivered_mps
    return f"{waiting:.1f}" if waiting >= 0.05 else "nothing"


def _show_exit(exit_: Any) -> str:
    if exit_ is None:
        return "down"
    return f"{exit_.delivered_mps:.1f} ({exit_.share:.0%}) of {exit_.capacity_mps:.1f}"


def _pair(move: Any) -> str:
    return f"{_name(move.sender)} -> {_name(move.receiver)}"


def _name(node: Any) -> str:
    return str(node.name or node.node_id[:8])
