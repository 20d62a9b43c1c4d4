"""A report as a picture: delivered throughput against what the mesh could carry, with the failures marked.

Needs matplotlib (`pip install smtpmesh[plot]`).
"""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smtp_edge.simulation.report import Report, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISSING = "plots need matplotlib: pip install 'smtpmesh[plot]'"
LABEL_ROOM = 0.025
"""Share of the width that a marked failure's name needs."""
STYLE = "body{font:16px sans-serif;margin:2em auto;max-width:60em}pre{font-size:13px;overflow-x:auto}"


class PlotError(Exception):
    """There can be no picture; `str()` says why."""


def draw(report: Report, title: str) -> Figure:
    """The figure. PlotError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError(MISSING) from error
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    above, hosts, below = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1])
    middles = [(window.since + window.until) / 2 for window in report.windows]
    edges = [at for at, _ in report.bounds] + [report.duration_s]
    above.stairs(
        [bound for _, bound in report.bounds], edges, baseline=None, color="0.6", label="max-flow bound", linewidth=2
    )
    above.plot(middles, [w.offered_mps for w in report.windows], color="tab:blue", linestyle=":", label="accepted")
    above.plot(middles, [w.delivered_mps for w in report.windows], color="tab:green", label="delivered")
    above.set_ylabel("messages a second")
    above.set_ylim(bottom=0)
    for host in report.windows[0].hosts_mps if report.windows else ():
        hosts.plot(middles, [window.hosts_mps[host] for window in report.windows], label=host, drawstyle="steps-mid")
    hosts.set_ylabel("by host")
    hosts.set_ylim(bottom=0)
    hosts.legend(loc="center left", ncols=8, fontsize=8)
    below.fill_between(middles, [w.queued for w in report.windows], color="tab:orange", alpha=0.5)
    below.set_ylabel("queued")
    below.set_ylim(bottom=0)
    below.set_xlabel("virtual seconds")
    _mark(above, report)
    above.legend(loc="lower right")
    above.set_title(f"{title}: accepted {report.accepted}, lost {report.lost}, doubled {report.doubled}")
    return figure


def _mark(axes: Any, report: Report) -> None:
    top, room_s = axes.get_ylim()[1], LABEL_ROOM * report.duration_s
    labelled = -room_s
    for window in report.windows:
        for event in window.events:
            at, _, what = event.partition(" s ")
            moment = float(at)
            if moment - labelled < room_s:  # too near to the last one: a thin line, no words over words
                axes.axvline(moment, color="tab:red", linewidth=0.5, alpha=0.3)
                continue
            labelled = moment
            axes.axvline(moment, color="tab:red", linewidth=1, alpha=0.7)
            axes.text(moment, top, f" {what}", rotation=90, va="top", ha="right", fontsize=8, color="tab:red")


def save(report: Report, path: Path, title: str) -> None:
    """Write it: a picture by its suffix (.png, .svg, .pdf), or a page that needs nothing else (.html)."""
    figure = draw(report, title)
    if path.suffix == ".html":
        path.write_text(_page(report, figure, title), "utf-8")
        return
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise PlotError(f"{path}: {error}") from error


def _page(report: Report, figure: Figure, title: str) -> str:
    picture = io.StringIO()
    figure.savefig(picture, format="svg")
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :]
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><style>{STYLE}</style>'
        f"<h1>{name}</h1>{svg}<pre>{html.escape(render(report))}</pre></html>\n"
    )
