"""What the demo prints: a live table on a terminal, plain lines everywhere else.

The story (`say`) is the same in both. The table has a row for each relay and next hop, straight from the admin call.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from smtp_edge.demo.watch import HopView, RelayView

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Moment:
    """Everything that is shown of one instant."""

    elapsed_s: float
    offered_mps: float
    accepted: int
    delivered: int
    recent_shares: Mapping[str, float]
    """Share of each smart host among what arrived since the last moment."""
    recent_mps: float
    relays: Mapping[str, RelayView | None]


class Screen(Protocol):
    """Where the story goes."""

    period_s: float
    """Seconds between two moments."""

    def say(self, text: str) -> None:
        """A line of the story."""
        ...

    def show(self, moment: Moment) -> None:
        """The state of things."""
        ...

    def close(self) -> None:
        """Leave the terminal in order."""
        ...


class PlainScreen:
    """Lines: no colour, no cursor, one line for each moment."""

    period_s = 3.0

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def say(self, text: str) -> None:
        """A line of the story."""
        self._out.write(text + "\n")
        self._out.flush()

    def show(self, moment: Moment) -> None:
        """One line."""
        self.say(describe_moment(moment))

    def close(self) -> None:
        """Nothing to do."""


class LiveScreen:
    """The story scrolls above a table that stays."""

    period_s = 1.0

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        self._live: Live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def say(self, text: str) -> None:
        """A line of the story, above the table."""
        self._console.print(text, markup=False)

    def show(self, moment: Moment) -> None:
        """The table."""
        self._live.update(build_table(moment), refresh=True)

    def close(self) -> None:
        """Take the table away."""
        self._live.stop()


def choose_screen(json_output: bool) -> Screen:
    """On a terminal the live table; in pipes plain lines; beside JSON, plain lines on standard error."""
    if json_output:
        return PlainScreen(sys.stderr)
    return LiveScreen() if sys.stdout.isatty() else PlainScreen(sys.stdout)


def describe_moment(moment: Moment) -> str:
    """One line: time, counters, where mail went since the last one, what waits where."""
    shares = " ".join(f"{host.removeprefix('smart host ')} {share:.0%}" for host, share in moment.recent_shares.items())
    queues = " ".join(
        f"{relay.removeprefix('relay ')} {view.backlog if view else '-'}" for relay, view in moment.relays.items()
    )
    return (
        f"{moment.elapsed_s:5.1f} s  offered {moment.offered_mps:3.0f}/s  accepted {moment.accepted:5d}  "
        f"delivered {moment.delivered:5d} ({moment.recent_mps:3.0f}/s)  shares {shares:<18}  queued {queues}"
    )


def describe_routes(view: RelayView) -> list[str]:
    """A relay's routing table as lines."""
    lines = [f"    routing table of {view.relay} (smtpmesh routes): {view.backlog} waiting"]
    lines.append(f"    {'next hop':<10} {'state':<10} {'verdict':<10} {'capacity':>9} {'latency':>8} {'window':>7}")
    return lines + ["    " + " ".join(_cells(hop)) for hop in view.hops]


def _cells(hop: HopView) -> tuple[str, ...]:
    latency = "-" if hop.latency_s is None else f"{hop.latency_s * 1000:.0f} ms"
    return (
        f"{hop.label[:10]:<10}",
        f"{hop.state:<10}",
        f"{hop.verdict:<10}",
        f"{hop.capacity_mps:>7.0f}/s",
        f"{latency:>8}",
        f"{hop.inflight:>3}/{hop.window:<3}",
    )


def build_table(moment: Moment) -> Table:
    """The live table."""
    from rich.table import Table

    table = Table(title=describe_moment(moment), title_justify="left", expand=False)
    for name in ("relay", "waiting", "next hop", "state", "verdict", "capacity", "latency", "in use"):
        table.add_column(name, no_wrap=True)
    for relay, view in moment.relays.items():
        if view is None:
            table.add_row(relay, "-", "no answer", style="red")
            continue
        for index, hop in enumerate(view.hops):
            first = (relay, str(view.backlog)) if index == 0 else ("", "")
            style = {"down": "red", "half-open": "yellow", "suspect": "yellow"}.get(hop.state, "")
            table.add_row(*first, *_cells(hop), style=style)
        table.add_section()
    return table
