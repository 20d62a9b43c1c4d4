"""What a simulated mesh did, for people: a timeline, the balance of its mail, the figures of its failovers. Pure."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from smtp_edge.simulation.mesh import Mesh

WINDOW_S = 4.0
"""Of the timeline: throughput of shorter ones is noise at the rates of a mail relay."""
BAR_CHARACTERS = 30


@dataclass(frozen=True, slots=True)
class Window:
    """Some seconds of the run."""

    since: float
    until: float
    delivered_mps: float
    offered_mps: float
    bound_mps: float
    queued: int
    events: tuple[str, ...]
    hosts_mps: dict[str, float]
    """Delivered to each host."""


@dataclass(frozen=True, slots=True)
class Report:
    """See the module."""

    duration_s: float
    windows: tuple[Window, ...]
    bounds: tuple[tuple[float, float], ...]
    """(since, messages a second): each change of the max-flow bound."""
    accepted: int
    refused: int
    delivered: int
    queued: int
    lost: int
    doubled: int
    """Second copies at hosts, whoever is to blame."""
    doubled_inside: int
    """Those of them that the mesh is to blame for."""
    revisits: int
    steps_back: int
    transfers: int
    p50_s: float
    p95_s: float
    shares: dict[str, float]
    rerouted: tuple[tuple[float, str, str, float], ...]
    """(failed at, what, relay, seconds until it was left)."""

    def values(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def build_report(mesh: Mesh) -> Report:
    """Look at a mesh that has run."""
    delays = sorted(mesh.ledger.delays_s)
    return Report(
        duration_s=mesh.now,
        windows=tuple(_windows(mesh)),
        bounds=tuple(_bounds(mesh)),
        accepted=mesh.accepted,
        refused=mesh.ledger.refused,
        delivered=mesh.delivered,
        queued=mesh.queued,
        lost=mesh.lost,
        doubled=mesh.doubled,
        doubled_inside=mesh.doubled_inside,
        revisits=mesh.ledger.revisits,
        steps_back=mesh.ledger.steps_back,
        transfers=mesh.ledger.transfers,
        p50_s=statistics.median(delays) if delays else 0.0,
        p95_s=delays[int(0.95 * (len(delays) - 1))] if delays else 0.0,
        shares=mesh.shares(),
        rerouted=tuple((item.failed_at, item.hop, item.relay, item.after_s) for item in mesh.rerouted),
    )


def _bounds(mesh: Mesh) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for sample in mesh.samples:
        if not found or found[-1][1] != sample.bound_mps:
            found.append((sample.at, sample.bound_mps))
    return found


def _windows(mesh: Mesh) -> list[Window]:
    found = []
    offered = sorted(mesh.ledger.accepted.values())
    since = 0.0
    while since < mesh.now - 1e-9:
        until = min(since + WINDOW_S, mesh.now)
        samples = [sample for sample in mesh.samples if since <= sample.at < until]
        found.append(
            Window(
                since,
                until,
                mesh.throughput_mps(since, until),
                sum(since <= at < until for at in offered) / (until - since),
                statistics.fmean(sample.bound_mps for sample in samples) if samples else 0.0,
                samples[-1].queued if samples else 0,
                tuple(f"{at:.1f} s {what}" for at, what in mesh.events if since <= at < until),
                mesh.rates(since, until),
            )
        )
        since = until
    return found


def render(report: Report) -> str:
    """Lines of at most 120 characters."""
    most = max((max(w.delivered_mps, w.bound_mps) for w in report.windows), default=1.0) or 1.0
    lines = ["   time      accepted  delivered      bound   queued  (messages a second; # delivered, | bound)"]
    for window in report.windows:
        filled = round(BAR_CHARACTERS * min(1.0, window.delivered_mps / most))
        mark = min(BAR_CHARACTERS, round(BAR_CHARACTERS * window.bound_mps / most))
        bar = "#" * filled + " " * (BAR_CHARACTERS - filled + 1)
        bar = bar[:mark] + "|" + bar[mark + 1 :]
        lines.append(
            f"{window.since:6.1f} s   {window.offered_mps:9.1f}  {window.delivered_mps:9.1f}  {window.bound_mps:9.1f}"
            f"  {window.queued:7d}  {bar}"
        )
        lines += [f"           {event}" for event in window.events]
    lines += ["", *_balance(report)]
    return "\n".join(lines)


def _balance(report: Report) -> list[str]:
    lines = [
        f"accepted  {report.accepted}   delivered {report.delivered}   still queued {report.queued}   "
        f"refused at the door {report.refused}",
        f"lost      {report.lost}",
        f"doubled   {report.doubled_inside} inside the mesh, {report.doubled - report.doubled_inside} outside",
        f"delay     median {report.p50_s:.2f} s, 95 % within {report.p95_s:.2f} s; "
        f"{report.transfers} transfers between relays",
        f"loops     {report.revisits} transfers to a relay again, and {report.steps_back} steps back out of dead ends",
        "shares    " + "   ".join(f"{host} {share:.1%}" for host, share in report.shares.items()),
    ]
    for failed_at, hop, relay, after_s in report.rerouted:
        lines.append(f"rerouted  {failed_at:.1f} s {hop}: {relay} left it after {after_s * 1000:.0f} ms")
    return lines
