"""Relations between the keys of a node with several workers: ports that follow each other, names, certificates.

Each worker has gossip, mail between peers, metrics and (over TCP) admin on ports of its own: those of the file, and as
many more behind them as there are further workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from smtp_edge.mistake import Mistake
from smtp_edge.setting_kinds import NAME_CHARACTERS_MAX
from smtp_edge.settings import Settings
from smtp_edge.workers import Worker, list_workers, number_file

PORT_MAX = 65535
MEMORY_BYTES_MIN = 128 * 1024 * 1024
"""What a process needs for itself."""
OWN_DOORS = ("gossip", "mesh", "metrics", "admin")


def find_mistakes(settings: Settings, *, files: bool) -> Iterator[Mistake]:
    """What keeps the workers from running side by side; with `files`, certificates that are not there, too."""
    if settings.node.workers == 1:
        return
    yield from _check_name(settings)
    yield from _check_any_port(settings)
    yield from _check_ports(settings)
    yield from _check_memory(settings)
    if files:
        yield from _check_identities(settings)


def find_warnings(settings: Settings) -> Iterator[str]:
    """Limits that cannot be shared out."""
    count = settings.node.workers
    for host in settings.smart_host:
        if host.connections_max < count and not host.elsewhere:
            yield (
                f"smart host {host.name}: connections_max {host.connections_max} is one for each of {count} workers: "
                f"{count} connections at once"
            )


def _check_name(settings: Settings) -> Iterator[Mistake]:
    last = list_workers(settings.node.workers)[-1].name_of(settings.node.name)
    if len(last) > NAME_CHARACTERS_MAX:
        text = f"is too long for {settings.node.workers} workers: {last} has more than {NAME_CHARACTERS_MAX} characters"
        yield Mistake("node.name", text)


def _check_any_port(settings: Settings) -> Iterator[Mistake]:
    """Siblings must know them."""
    places = [("gossip", settings.gossip.listen, "siblings dial it")]
    places += [
        (f"listener[{number}]", listener.listen, "all workers listen on the same one")
        for number, listener in enumerate(settings.listener)
    ]
    for section, listen, why in places:
        if listen.endswith(":0"):
            text = f"{listen} is any port, but with workers = {settings.node.workers} {why}: name one"
            yield Mistake(f"{section}.listen", text, rests_on=("node",))


def _check_ports(settings: Settings) -> Iterator[Mistake]:
    """The ports of the first worker are checked with all other settings; here: those that follow from them."""
    count = settings.node.workers
    taken = [(listener.listen, f"listener[{number}].listen") for number, listener in enumerate(settings.listener)]
    taken += [(listen, f"{section}.listen") for section, listen in _doors(settings)]
    for worker in list_workers(count)[1:]:
        derived = worker.derive(settings)
        for section, listen in _doors(derived):
            holder = next((name for other, name in taken if _same(listen, other)), None)
            first = str(getattr(settings, section).listen)
            if _port(listen) > PORT_MAX:
                text = f"{first} leaves no port for worker {worker.number} of {count}: choose a lower one"
                yield Mistake(f"{section}.listen", text, rests_on=("node",))
            elif holder is not None:
                text = (
                    f"worker {worker.number} would listen on {listen}, which is taken by {holder}: "
                    f"with workers = {count} it needs {count} free ports from {first} on"
                )
                yield Mistake(f"{section}.listen", text, rests_on=("node", holder.partition(".")[0]))
            else:
                taken.append((listen, f"{section}.listen of worker {worker.number}"))


def _doors(settings: Settings) -> list[tuple[str, str]]:
    """Addresses that each worker has alone."""
    found = [(section, str(getattr(settings, section).listen)) for section in OWN_DOORS]
    return [(section, listen) for section, listen in found if _port(listen) > 0]


def _port(listen: str) -> int:
    """0 for a path, for any port and for what is no address: others report that."""
    host, _, port = listen.rpartition(":")
    return int(port) if host and port.isascii() and port.isdigit() else 0


def _same(one: str, other: str) -> bool:
    """Both cannot be listened on."""
    hosts = {address.rpartition(":")[0].strip("[]") for address in (one, other)}
    return _port(one) == _port(other) and (len(hosts) == 1 or any(_is_wildcard(host) for host in hosts))


def _is_wildcard(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _check_memory(settings: Settings) -> Iterator[Mistake]:
    count, memory_bytes_max = settings.node.workers, settings.queue.memory_bytes_max
    if MEMORY_BYTES_MIN <= memory_bytes_max < MEMORY_BYTES_MIN * count:
        text = f"{memory_bytes_max} is too little for {count} workers; {MEMORY_BYTES_MIN * count} or more, or 0"
        yield Mistake("queue.memory_bytes_max", text, rests_on=("node",))


def _check_identities(settings: Settings) -> Iterator[Mistake]:
    """Every worker is a node of its own: with a certificate and a key that no other one has."""
    cluster = settings.cluster
    missing = find_missing(settings)
    if missing:
        names, count = ", ".join(path.name for path in missing), settings.node.workers
        text = (
            f"{names} in {cluster.certificate.parent}: not there, and each worker needs its own; "
            f"`smtpmesh workers {count} --config node.toml --from FOLDER` issues them (FOLDER holds ca.key)"
        )
        yield Mistake("node.workers", text, rests_on=("cluster",))
    seen: dict[bytes, Path] = {}
    for number in range(1, settings.node.workers + 1):
        key = number_file(cluster.key, number)
        content = _read(key)
        if content and content in seen:
            text = (
                f"{key.name} is a copy of {seen[content].name}, but each worker is a node of its own: "
                f"remove it with its certificate, and `smtpmesh workers` issues new ones"
            )
            yield Mistake("node.workers", text, rests_on=("cluster",))
        elif content:
            seen[content] = key


def find_missing(settings: Settings) -> list[Path]:
    """Certificates and keys of workers but the first that are not there."""
    derived = [Worker(number, settings.node.workers).derive(settings) for number in range(2, settings.node.workers + 1)]
    paths = [path for one in derived for path in (one.cluster.certificate, one.cluster.key)]
    return [path for path in paths if not path.is_file()]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
