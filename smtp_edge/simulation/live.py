"""A running cluster as a mesh to simulate: what one of its nodes says of members, links and arriving mail. Pure.

    relays     members that are not lost; hosts: every smart host that one of them has a link to
    capacity   of a host: the sum of what all relays measured there, as for `smtpmesh what-if`; one that was never seen
               at its limit may carry more
    ways       latency and losses of each link as measured; a link that is down is blocked from the beginning
    routes     one for each destination class, with a domain of its own
    load       what clients submit now, or as much as is asked for, in the same proportions

Not taken: what waits in queues, estimates behind the scores, direct delivery to domains' own exchangers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from router.decision import HopKind
from smtp_edge.simulation.scenario import (
    EventSection,
    HostSection,
    LoadSection,
    MeshFile,
    RelaySection,
    RouteSection,
    WaySection,
)
from smtp_edge.simulation.ways import ROUND_TRIPS
from smtpmesh.admin.v1 import admin_pb2 as pb

LOST = "unreachable"
CLOSED = frozenset({"down", "half-open", "draining"})
LATENCY_DEFAULT_S, LATENCY_MIN_S, LATENCY_MAX_S = 0.002, 0.0002, 0.02
"""One way. What was measured holds the queue at a busy host, too, which the simulation makes itself: hence a bound."""
LOSS_MIN, SAMPLES_MIN = 0.02, 20
"""What is lost less often, or was hardly used, is taken as sound: a young link's reliability is mostly its prior."""
CAPACITY_MIN_MPS = 0.1
RATE_MIN_MPS = 0.01
DURATION_S = 60.0
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


class LiveError(ValueError):
    """The cluster cannot be simulated as it is; `str()` says why, and the way out."""


@dataclass(frozen=True, slots=True)
class LiveMesh:
    """A mesh, and what is down in it from the beginning."""

    mesh: MeshFile
    events: tuple[EventSection, ...]

    def summary(self) -> str:
        """One line for people."""
        mesh = self.mesh
        total = sum(load.rate_mps for load in mesh.load)
        parts = [_count(mesh.relay, "relay"), _count(mesh.host, "host"), _count(mesh.route, "class", "classes")]
        parts += [f"{_count(self.events, 'link')} down"] if self.events else []
        return f"{', '.join(parts)}, {total:.1f} messages/s"


def read_live(nodes: pb.ListNodesResponse, links: pb.ListLinksResponse, load_mps: float | None = None) -> LiveMesh:
    """The mesh that a node's answers describe. LiveError without relays, hosts or mail."""
    names = _name_relays(node for node in nodes.nodes if node.state != LOST)
    known = [link for link in links.links if link.origin in names]
    exits = [link for link in known if link.hop.startswith(f"{HopKind.SMART_HOST.value}:")]
    hosts = _hosts(exits)
    if not names or not hosts:
        raise LiveError("no relay of the cluster has a link to a smart host: there is nothing to simulate")
    classes = _classes(exits)
    peers = {f"{HopKind.PEER.value}:{node_id}": name for node_id, name in names.items()}
    ends = {**peers, **{f"{HopKind.SMART_HOST.value}:{name}": name for name in hosts}}
    ways = [link for link in known if link.hop in ends]
    return LiveMesh(
        MeshFile(
            duration_s=DURATION_S,
            host=tuple(HostSection(name=name, capacity_mps=mps) for name, mps in sorted(hosts.items())),
            relay=tuple(_relay(node_id, name, exits) for node_id, name in sorted(names.items(), key=lambda it: it[1])),
            route=tuple(
                RouteSection(name=name, domains=(_domain(name),), via=via) for name, via in sorted(classes.items())
            ),
            way=tuple(_way(names[link.origin], ends[link.hop], link) for link in ways if link.state not in CLOSED),
            load=tuple(_loads(nodes.nodes, names, classes, load_mps)),
        ),
        tuple(
            EventSection(at=0, do="block", what=names[link.origin], to=ends[link.hop])
            for link in ways
            if link.state in CLOSED
        ),
    )


def _name_relays(nodes: Iterable[pb.Node]) -> dict[str, str]:
    """Node id -> a name that only it has."""
    found: dict[str, str] = {}
    for node in sorted(nodes, key=lambda node: node.node_id):
        name = node.name or node.node_id[:8]
        found[node.node_id] = name if name not in found.values() else f"{name}-{node.node_id[:8]}"
    return found


def _hosts(exits: Iterable[pb.Link]) -> dict[str, float]:
    found: dict[str, float] = {}
    for link in exits:
        name = link.hop.partition(":")[2]
        found[name] = found.get(name, 0.0) + link.capacity_mps
    return {name: max(CAPACITY_MIN_MPS, round(mps, 1)) for name, mps in found.items()}


def _classes(exits: Iterable[pb.Link]) -> dict[str, tuple[str, ...]]:
    """Class -> hosts that serve it."""
    found: dict[str, set[str]] = {}
    for link in exits:
        for class_id in link.classes:
            found.setdefault(class_id, set()).add(link.hop.partition(":")[2])
    return {class_id: tuple(sorted(via)) for class_id, via in found.items()}


def _domain(class_id: str) -> str:
    return f"{_NOT_IN_NAMES.sub('-', class_id).strip('.-') or 'class'}.test"


def _relay(node_id: str, name: str, exits: Iterable[pb.Link]) -> RelaySection:
    own = sorted({link.hop.partition(":")[2] for link in exits if link.origin == node_id})
    return RelaySection(name=name, exits=tuple(own))


def _way(origin: str, to: str, link: pb.Link) -> WaySection:
    one_way_s = link.latency_s / (2 * ROUND_TRIPS) if link.latency_s else LATENCY_DEFAULT_S
    loss = 1 - link.reliability if link.samples >= SAMPLES_MIN else 0.0
    return WaySection.model_validate(
        {
            "from": origin,
            "to": to,
            "latency_s": round(min(LATENCY_MAX_S, max(LATENCY_MIN_S, one_way_s)), 4),
            "loss": round(loss, 3) if loss >= LOSS_MIN else 0.0,
        }
    )


def _loads(
    nodes: Sequence[pb.Node], names: Mapping[str, str], classes: Mapping[str, tuple[str, ...]], wanted: float | None
) -> Iterable[LoadSection]:
    rates = {
        (node.node_id, item.class_id): item.ingress_mps
        for node in nodes
        for item in node.backlogs
        if node.node_id in names and item.class_id in classes and item.ingress_mps >= RATE_MIN_MPS
    }
    if not rates and wanted is None:
        raise LiveError("no client submits mail to the cluster now; say how much it shall be, like --load 400/s")
    if not rates:
        rates = {(node_id, class_id): 1.0 for node_id in names for class_id in classes}
    factor = wanted / sum(rates.values()) if wanted is not None else 1.0
    for (node_id, class_id), mps in sorted(rates.items(), key=lambda item: (names[item[0][0]], item[0][1])):
        yield LoadSection(relay=names[node_id], rate_mps=max(RATE_MIN_MPS, factor * mps), domain=_domain(class_id))


def write_toml(live: LiveMesh) -> str:
    """The mesh as a file that `smtpmesh simulate` reads, to be changed by hand."""
    values = live.mesh.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
    lines = [f"# Taken from a running cluster: {live.summary()}."]
    if live.events:
        down = ", ".join(f"{event.what} -> {event.to}" for event in live.events)
        lines.append(f"# Down at that moment, and not written here (block them in a scenario): {down}.")
    lines.append(f"duration_s = {live.mesh.duration_s:g}")
    for table, sections in values.items():
        if not isinstance(sections, tuple | list):
            continue
        for section in sections:
            lines += ["", f"[[{table}]]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def _count(items: Sequence[object], one: str, many: str = "") -> str:
    return f"{len(items)} {one if len(items) == 1 else many or one + 's'}"


def _toml(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)
