"""Relations between the keys of a configuration, and the files that it names: each rule yields what is wrong. Pure but
for opening the files.

A rule that reads more than its own section says so in `rests_on`: what it says is held back while those sections have
mistakes of their own, so that one slip of the pen is not reported three times.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from router.policy import MX_VIA
from router.terms import KEEPS_ANY_FLOOR, Terms
from smtp_edge import relations_inbound, relations_workers
from smtp_edge.mistake import Mistake
from smtp_edge.relations_workers import MEMORY_BYTES_MIN
from smtp_edge.routes import TRACE_ROOM_BYTES, build_policy, build_table, build_terms
from smtp_edge.settings import RouteSettings, Settings, SmartHostSettings, sink_names

PORT_MAX = 65535
SMTP_PORT = 25
DANE_NEEDS_TRUST = '"dane" needs a resolver that validates DNSSEC: name it in dns.servers and set dns.trust_ad = true'
SIZE_BYTES_MIN = 65536
"""RFC 5321 section 4.5.3.1.7 asks every server for as much."""


def find_mistakes(settings: Settings, *, files: bool) -> Iterator[Mistake]:
    """All broken relations; with `files`, unreadable files too."""
    yield from _check_names(settings)
    yield from _check_routes(settings)
    yield from _check_addresses(settings)
    yield from _check_advertised(settings)
    yield from _check_policies(settings)
    yield from _check_queue(settings)
    yield from _check_direct(settings)
    yield from relations_inbound.find_mistakes(settings.listener, settings.auth, settings.access)
    yield from relations_workers.find_mistakes(settings, files=files)
    for number, host in enumerate(settings.smart_host):
        yield from _check_smart_host(f"smart_host[{number}]", host)
    if files:
        yield from _check_files(settings)


def find_warnings(settings: Settings) -> Iterator[str]:
    """What runs, but surely not as meant."""
    if not settings.listener:
        yield "there is no [[listener]]: this node takes mail from peers only"
    yield from relations_inbound.find_warnings(settings.listener, settings.auth, settings.access, settings.limits)
    yield from _warn_routes(settings.route)
    yield from _warn_policies(settings)
    yield from _warn_sizes(settings)
    yield from _warn_operators(settings)
    used = {name for route in settings.route for name in route.via}
    for host in settings.smart_host:
        if host.name not in used:
            yield f"smart host {host.name} is in no route: it carries nothing"
    metrics = settings.metrics.listen
    if metrics and not ip_address(_host(metrics)).is_loopback:
        yield f"metrics.listen {metrics} is not loopback: whoever reaches it reads next hops, classes and queue totals"
    yield from relations_workers.find_warnings(settings)
    yield from _warn_passwords(settings.smart_host)
    yield from _warn_direct(settings)


# -- names and routes --------------------------------------------------------------------------------------------------


def _check_names(settings: Settings) -> Iterator[Mistake]:
    for key, names in (
        ("listener", [section.name for section in settings.listener]),
        ("auth", [section.name for section in settings.auth]),
        ("smart_host", [section.name for section in settings.smart_host]),
        ("route", [section.name for section in settings.route]),
        ("sink", sink_names(settings.sink)),
    ):
        for number, name in enumerate(names):
            if name in names[:number]:
                first = names.index(name)
                text = f"{name!r} is the name of {key}[{first}] too; give each its own"
                yield Mistake(f"{key}[{number}].name", text, rests_on=(f"{key}[{first}]",))
    for number, host in enumerate(settings.smart_host):
        if host.sink and host.sink not in (names := sink_names(settings.sink)):
            text = f"no [[sink]] is named {host.sink!r}; there are: {', '.join(names) or 'none'}"
            yield Mistake(f"smart_host[{number}].sink", text, rests_on=("sink",))
    for number, listener in enumerate(settings.listener):
        if listener.name in ("mesh", "gossip", "admin", "metrics"):
            yield Mistake(f"listener[{number}].name", f"{listener.name!r} is the name of the node's own door")
    for number, host in enumerate(settings.smart_host):
        if host.name == "mx":
            yield Mistake(f"smart_host[{number}].name", '"mx" means direct delivery in a route; choose another name')


def _check_routes(settings: Settings) -> Iterator[Mistake]:
    if not settings.route:
        yield Mistake("route", 'no [[route]] says where mail goes; add one with via = smart-host names or ["mx"]')
    known = sorted(host.name for host in settings.smart_host)
    for number, route in enumerate(settings.route):
        yield from _check_route(f"route[{number}]", route, known)


def _check_route(key: str, route: RouteSettings, known: list[str]) -> Iterator[Mistake]:
    if not route.via:
        yield Mistake(f"{key}.via", 'is empty; name smart hosts, or "mx" for direct delivery')
    if not route.domains:
        yield Mistake(f"{key}.domains", 'is empty, so nothing would match; "*" is everything')
    if "mx" in route.via and route.via != ("mx",):
        yield Mistake(f"{key}.via", '"mx" stands alone: a route uses smart hosts, or the domains\' own exchangers')
    for name in route.via:
        if name != "mx" and name not in known:
            text = f"no smart host is named {name!r}; there are: {', '.join(known) or 'none'}"
            yield Mistake(f"{key}.via", text, rests_on=("smart_host",))


def _warn_routes(routes: tuple[RouteSettings, ...]) -> Iterator[str]:
    first: dict[str, str] = {}
    for route in routes:
        for domain in route.domains:
            if domain in first:
                yield f"route {route.name} never sees {domain}: route {first[domain]} takes it before"
            first.setdefault(domain, route.name)


# -- policies ----------------------------------------------------------------------------------------------------------


def _check_policies(settings: Settings) -> Iterator[Mistake]:
    """What a route asks must be possible. What own exits lack, those of others may have, if mail may go there."""
    for number, route in enumerate(settings.route):
        key = f"route[{number}]"
        both = sorted(set(route.require_tags) & set(route.forbid_tags))
        if both:
            yield Mistake(f"{key}.forbid_tags", f"{', '.join(both)} is required as well: nothing can be both")
        if not route.transit and not both and (reasons := _refusals(settings, route)):
            text = f"no own exit meets the policy, and transit = false forbids others: {reasons}"
            yield Mistake(key, text, rests_on=("smart_host", "node"))


def _warn_policies(settings: Settings) -> Iterator[str]:
    for route in settings.route:
        if route.transit and (reasons := _refusals(settings, route)):
            yield f"mail of route {route.name} leaves only through other relays whose exits meet its policy: {reasons}"


def _refusals(settings: Settings, route: RouteSettings) -> str:
    """Why none of its own exits may be used; empty if one may, or if it names none."""
    hosts = {host.name: build_terms(host) for host in settings.smart_host}
    hosts[MX_VIA] = Terms(tuple(sorted(settings.node.tags)), KEEPS_ANY_FLOOR)  # exchangers: the tags of who delivers
    policy = build_policy(route)
    found = {name: policy.refuse_exit(hosts[name]) for name in route.via if name in hosts}
    if not found or None in found.values():
        return ""
    return "; ".join(f"{name}: {refusal}" for name, refusal in found.items())


def _warn_sizes(settings: Settings) -> Iterator[str]:
    largest = build_table(settings).size_bytes_max() - TRACE_ROOM_BYTES
    for listener in settings.listener:
        if 0 < largest < listener.size_bytes_max:
            yield f"listener {listener.name} takes {largest} bytes at most: no exit of any route takes more"


def _warn_operators(settings: Settings) -> Iterator[str]:
    admin = settings.admin
    if admin.operators and (admin.listen.startswith("unix:") or ip_address(_host(admin.listen)).is_loopback):
        yield f"admin.operators is of no use with admin.listen {admin.listen}: certificates are shown over the network"


# -- addresses ---------------------------------------------------------------------------------------------------------


def _check_addresses(settings: Settings) -> Iterator[Mistake]:
    places = [("gossip", settings.gossip.listen), ("mesh", settings.mesh.listen)]
    places += [(f"listener[{number}]", section.listen) for number, section in enumerate(settings.listener)]
    if settings.metrics.listen:
        places.append(("metrics", settings.metrics.listen))
    if not settings.admin.listen.startswith("unix:"):
        places.append(("admin", settings.admin.listen))
    elif settings.admin.listen == "unix:":
        yield Mistake("admin.listen", '"unix:" names no path; the default is "unix:admin.sock", in node.data_dir')
    taken: dict[str, str] = {}
    for section, address in places:
        key = f"{section}.listen"
        if not _is_address(address):
            or_path = " or unix:PATH" if section == "admin" else ""
            text = f"{address!r} is not ADDRESS:PORT{or_path}: an IP address of this machine, a port up to 65535"
            yield Mistake(key, text)
        elif address in taken and not address.endswith(":0"):
            yield Mistake(key, f"{address} is taken by {taken[address]}.listen", rests_on=(taken[address],))
        taken.setdefault(address, section)


def _check_advertised(settings: Settings) -> Iterator[Mistake]:
    for section, listen, advertise in (
        ("gossip", settings.gossip.listen, settings.gossip.advertise),
        ("mesh", settings.mesh.listen, settings.mesh.advertise),
    ):
        if advertise and not _has_port(advertise):
            yield Mistake(f"{section}.advertise", f"{advertise!r} is not HOST:PORT")
        elif not advertise and _is_address(listen) and ip_address(_host(listen)).is_unspecified:
            text = f"is required when {section}.listen is {listen}: it is the HOST:PORT that peers dial"
            yield Mistake(f"{section}.advertise", text)
    if settings.admin.advertise and not _has_port(settings.admin.advertise):
        yield Mistake("admin.advertise", f"{settings.admin.advertise!r} is not HOST:PORT")
    for number, seed in enumerate(settings.gossip.join):
        if not _has_port(seed):
            yield Mistake(f"gossip.join[{number}]", f"{seed!r} is not HOST:PORT")


def _is_address(text: str) -> bool:
    if not _has_port(text):
        return False
    host = _host(text)
    try:
        return ip_address(host).version == 4 or text.startswith("[")
    except ValueError:
        return False


def _has_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and int(port) <= PORT_MAX


def _host(text: str) -> str:
    return text.rpartition(":")[0].strip("[]")


# -- sections of their own ---------------------------------------------------------------------------------------------


def _check_queue(settings: Settings) -> Iterator[Mistake]:
    queue = settings.queue
    if queue.retry_first_s > queue.retry_max_s:
        yield Mistake("queue.retry_first_s", "must not be greater than queue.retry_max_s")
    if 0 < queue.memory_bytes_max < MEMORY_BYTES_MIN:
        text = f"{queue.memory_bytes_max} is less than a node needs for itself; {MEMORY_BYTES_MIN} or more, or 0"
        yield Mistake("queue.memory_bytes_max", text)
    if queue.retry_max_s > queue.lifetime_s:
        yield Mistake("queue.retry_max_s", "must not be greater than queue.lifetime_s: mail would expire untried")


def _check_smart_host(key: str, host: SmartHostSettings) -> Iterator[Mistake]:
    if host.user and host.password_file is None:
        yield Mistake(f"{key}.password_file", "is required with user: a file that holds the password alone")
    if host.password_file is not None and not host.user:
        yield Mistake(f"{key}.user", "is required with password_file")
    if host.user and host.tls == "none":
        text = 'is "none", so the password would travel in the clear; set "starttls" or "implicit"'
        yield Mistake(f"{key}.tls", text)
    given = [name for name in ("host", "socket", "sink", "elsewhere") if getattr(host, name)]
    if not given:
        yield Mistake(
            f"{key}.host", "is required, or `socket`: the path of a Unix socket, or `sink`: the name of a [[sink]]"
        )
    for name in given[1:]:
        yield Mistake(f"{key}.{name}", f"and {given[0]}: a host is reached by one of them")
    if host.socket is not None and host.tls not in ("none", "opportunistic"):
        yield Mistake(f"{key}.tls", f'is "{host.tls}", but a Unix socket has no TLS; leave the key out')
    if host.protocol == "lmtp" and host.socket is None and host.port == SMTP_PORT:
        text = "is 25, SMTP's, where LMTP must never be spoken (RFC 2033 section 5): name the store's, often 24"
        yield Mistake(f"{key}.port", text)
    if host.socket is not None and host.user:
        yield Mistake(f"{key}.user", "is of no use with socket: a password only goes over TLS")
    if 0 < host.size_bytes_max < SIZE_BYTES_MIN:
        text = f"{host.size_bytes_max} is less than every server must take; {SIZE_BYTES_MIN} or more, or 0 for any size"
        yield Mistake(f"{key}.size_bytes_max", text)
    if host.tls_ca is not None and host.tls not in ("starttls", "implicit"):
        yield Mistake(f"{key}.tls_ca", f'is of no use with tls = "{host.tls}"; only "starttls" and "implicit" verify')


# -- direct delivery ---------------------------------------------------------------------------------------------------


def _check_direct(settings: Settings) -> Iterator[Mistake]:
    """DNS, DANE, MTA-STS, floors, reports."""
    trusted = settings.dns.trust_ad
    for number, host in enumerate(settings.smart_host):
        if host.tls == "dane" and not trusted:
            yield Mistake(f"smart_host[{number}].tls", DANE_NEEDS_TRUST, rests_on=("dns",))
    for number, table in enumerate(settings.tls):
        key = f"tls[{number}]"
        if not table.domains:
            yield Mistake(f"{key}.domains", 'is empty, so nothing would match; "*" is everything')
        if table.level == "dane" and not trusted:
            yield Mistake(f"{key}.level", DANE_NEEDS_TRUST, rests_on=("dns",))
        if table.names and table.level != "verified":
            yield Mistake(f"{key}.names", f'are of no use with level = "{table.level}"; only "verified" looks at them')
        if table.ca is not None and table.level in ("none", "dane"):
            yield Mistake(f"{key}.ca", f'is of no use with level = "{table.level}"')
    address = settings.dsn.double_bounces_to
    if address and not (address.isascii() and address.isprintable() and " " not in address and "@" in address[1:-1]):
        yield Mistake("dsn.double_bounces_to", f"{address!r} is no mailbox; write postmaster@example.org")


def _warn_passwords(hosts: tuple[SmartHostSettings, ...]) -> Iterator[str]:
    for host in hosts:
        if host.user and host.tls in ("opportunistic", "encrypted"):
            text = f'tls = "{host.tls}" shows the password to whoever answers; "starttls" verifies'
            yield f"smart host {host.name}: {text}"


def _warn_direct(settings: Settings) -> Iterator[str]:
    direct = any(route.via == (MX_VIA,) for route in settings.route)
    for server in settings.dns.servers if settings.dns.trust_ad else ():
        host = server.rpartition(":")[0].strip("[]") if server.count(":") == 1 or server.startswith("[") else server
        if not ip_address(host).is_loopback:
            yield f"dns.trust_ad: whoever is between here and {server} can forge what DANE rests on; loopback is safe"
    if settings.dns.trust_ad and not settings.dns.servers:
        yield "dns.trust_ad rests on /etc/resolv.conf: name your validating resolvers in dns.servers"
    for table in settings.tls if not direct else ():
        yield f'[[tls]] for {", ".join(table.domains)} is never used: no route delivers to exchangers ("mx")'


# -- files -------------------------------------------------------------------------------------------------------------


def _check_files(settings: Settings) -> Iterator[Mistake]:
    for name in ("ca", "certificate", "key"):
        yield from _check_file(f"cluster.{name}", getattr(settings.cluster, name), "; `smtpmesh init` makes it")
    revocations = settings.cluster.revocations
    if revocations is not None and not revocations.is_dir():
        yield Mistake("cluster.revocations", f"{revocations} is no folder; make it, or leave the key out")
    for number, listener in enumerate(settings.listener):
        for name in ("certificate", "key", "auth_users", "senders"):
            yield from _check_file(f"listener[{number}].{name}", getattr(listener, name))
    for number, host in enumerate(settings.smart_host):
        for name in ("password_file", "tls_ca"):
            yield from _check_file(f"smart_host[{number}].{name}", getattr(host, name))
    for number, table in enumerate(settings.tls):
        yield from _check_file(f"tls[{number}].ca", table.ca)
    yield from _check_file("mta_sts.ca", settings.mta_sts.ca)


def _check_file(key: str, path: Path | None, way_out: str = "") -> Iterator[Mistake]:
    if path is None:
        return
    try:
        with path.open("rb"):
            return
    except OSError as error:
        yield Mistake(key, f"{path}: {error.strerror}{way_out}")
