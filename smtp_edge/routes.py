"""From the configuration's routes, smart hosts and tags to what the router works with. Pure.

A smart host promises TLS if its connections cannot do without: `starttls`, `implicit` and `dane` check the certificate,
`encrypted` does not, and `opportunistic` goes on in the clear where there is none.
"""

from __future__ import annotations

from collections.abc import Iterable

from gossip.linkstate import TlsLevel
from router.decision import ExitHop, Hop, HopKind
from router.policy import RouteRule, RouteTable, split_class_id
from router.terms import NO_TERMS, Policy, Terms
from smtp_edge.settings import RouteSettings, Settings, SmartHostSettings
from smtp_edge.settings_inbound import ListenerSettings

TRACE_ROOM_BYTES = 2048
"""What the trace fields of relays may add to a message on its way: a client's mail this near to a limit is above it."""
LEVELS = {"none": TlsLevel.NONE, "encrypted": TlsLevel.ENCRYPTED, "verified": TlsLevel.VERIFIED}
PROMISED = {
    "none": TlsLevel.NONE,
    "opportunistic": TlsLevel.NONE,
    "encrypted": TlsLevel.ENCRYPTED,
    "starttls": TlsLevel.VERIFIED,
    "dane": TlsLevel.VERIFIED,
    "implicit": TlsLevel.VERIFIED,
}


def build_terms(host: SmartHostSettings) -> Terms:
    """What a smart host is and promises."""
    promised = (
        TlsLevel.VERIFIED if host.sink else PROMISED[host.tls]
    )  # what does not leave this machine is seen by nobody
    return Terms(tuple(sorted(set(host.tags))), promised, host.size_bytes_max)


def build_policy(route: RouteSettings) -> Policy:
    """What a route asks of the ways of its mail."""
    return Policy(
        require_tags=tuple(sorted(set(route.require_tags))),
        forbid_tags=tuple(sorted(set(route.forbid_tags))),
        tls_min=LEVELS[route.tls_min],
        transit=route.transit,
    )


def build_table(settings: Settings) -> RouteTable:
    """All routes."""
    hosts = {host.name: build_terms(host) for host in settings.smart_host}
    return RouteTable([_build_rule(route, hosts) for route in settings.route])


def build_exits(settings: Settings) -> list[ExitHop]:
    """The smart hosts as exits of this node."""
    return [
        ExitHop(
            Hop(HopKind.SMART_HOST, host.name),
            host.name,
            host.cost,
            host.connections_max,
            build_terms(host),
            host.reserve,
        )
        for host in settings.smart_host
        if not host.elsewhere
    ]


def find_other_machines(before: Settings, after: Settings) -> tuple[Hop, ...]:
    """Smart hosts that are elsewhere now under the same name: what was measured of them is of no use."""
    old = {host.name: _place(host) for host in before.smart_host}
    others = [host.name for host in after.smart_host if host.name in old and old[host.name] != _place(host)]
    return tuple(Hop(HopKind.SMART_HOST, name) for name in others)


def _place(host: SmartHostSettings) -> tuple[object, ...]:
    return host.host, host.port, host.socket, host.protocol, host.sink


def limit_sizes(listeners: Iterable[ListenerSettings], table: RouteTable) -> list[ListenerSettings]:
    """The listeners as they can keep their word: none takes mail that is too large for every exit of every route."""
    largest = table.size_bytes_max() - TRACE_ROOM_BYTES
    if largest <= 0:
        return list(listeners)
    return [item.model_copy(update={"size_bytes_max": min(item.size_bytes_max, largest)}) for item in listeners]


def find_classes(table: RouteTable, hop: Hop, waiting: Iterable[str]) -> tuple[str, ...]:
    """Classes whose mail may move again when a hop is back; `waiting`: those that have mail here."""
    match hop.kind:
        case HopKind.PEER:
            return tuple(waiting)
        case HopKind.SMART_HOST:
            names = {rule.name for rule in table.rules if hop.name in rule.via}
            return tuple(class_id for class_id in waiting if split_class_id(class_id)[0] in names)
        case HopKind.MX:
            return (hop.id,)


def _build_rule(route: RouteSettings, hosts: dict[str, Terms]) -> RouteRule:
    terms = tuple(hosts.get(name, NO_TERMS) for name in route.via)
    return RouteRule(route.name, route.domains, route.via, build_policy(route), terms)
