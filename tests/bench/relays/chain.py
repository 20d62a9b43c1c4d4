"""Relays in a row, each of which reaches only the next: namespaces joined by cables, and an exit at the far end.

    generator > relay 1 === relay 2 === relay 3 > sink

The first relay stands in the namespace of the bench itself, the sink in that of the last relay. Each relay has an
address of its own, `10.77.0.N`, and a route to its neighbours' addresses and to nobody else's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.lab.namespaces import Names, ip
from tests.bench.relays.contender import Contender, Place
from tests.bench.relays.load import Sink, sink
from tests.bench.relays.own import init, run_command
from tests.bench.relays.process import SINK_PORT, Relay

CONFIGURATION = """\
[node]
name = "r{number}"
hostname = "relay-{number}.example.org"

[gossip]
listen = "0.0.0.0:7946"
advertise = "{address}:7946"
join = {join}

[mesh]
listen = "0.0.0.0:7925"
advertise = "{address}:7925"

[[listener]]
listen = "127.0.0.1:{port}"
allow_networks = ["127.0.0.0/8"]

[[smart_host]]
name = "sink"
{exit}

[[route]]
name = "default"
domains = ["*"]
via = ["sink"]
"""


@dataclass(frozen=True, slots=True)
class Chain:
    """What runs."""

    relays: list[Relay]
    sink: Sink

    def spent_s(self) -> float:
        """Processor seconds of all relays so far."""
        return sum(relay.spent_s() for relay in self.relays)


@contextlib.contextmanager
def chain(length: int, folder: Path, memory: Path) -> Iterator[Chain]:
    """So many relays, for the time of the block."""
    with Names() as names, contextlib.ExitStack() as stack:
        inside = [""] + [names.add(str(number)) for number in range(2, length + 1)]
        for number, space in enumerate(inside, 1):
            _ip(space, "addr", "replace", f"{address(number)}/32", "dev", "lo")
        for number in range(1, length):
            _lay_cable(number, *inside[number - 1 : number + 1])
            stack.callback(_ip, inside[number - 1], "link", "del", _near_end(number))
        end = stack.enter_context(sink(SINK_PORT, memory, _enter(inside[-1])))
        relays: list[Relay] = []
        for number, space in enumerate(inside, 1):
            member = _member(number, length, relays[0].folder if relays else None)
            place = folder / f"r{number}"
            relay = Relay(member, place, tracer=_enter(space), near=number == 1)
            relays.append(stack.enter_context(relay))
        yield Chain(relays, end)


def address(number: int) -> str:
    """Of a relay."""
    return f"10.77.0.{number}"


def _lay_cable(number: int, left: str, right: str) -> None:
    """Between a relay and the next."""
    near, far, net = _near_end(number), f"west{number + 1}", f"10.77.{number}"
    _ip(left, "link", "add", near, "type", "veth", "peer", "name", far, "netns", right)
    ends = ((left, near, f"{net}.1", f"{net}.2", number), (right, far, f"{net}.2", f"{net}.1", number + 1))
    for space, device, own, other, here in ends:
        there = number + 1 if here == number else number
        _ip(space, "addr", "add", f"{own}/30", "dev", device)
        _ip(space, "link", "set", device, "up")
        _ip(space, "route", "add", f"{address(there)}/32", "via", other, "src", address(here))


def _near_end(number: int) -> str:
    return f"east{number}"


def _ip(space: str, *words: str) -> None:
    ip(*(["-n", space] if space else []), *words)


def _enter(space: str) -> list[str]:
    """Words before a command that is to run there; unlike `ip netns exec` it leaves /sys alone."""
    return ["nsenter", f"--net=/run/netns/{space}"] if space else []


def _member(number: int, length: int, first: Path | None) -> Contender:
    """Joins by the one before it; only the last has an exit of its own."""

    def prepare(place: Place) -> list[str]:
        folder = place.folder / "n"
        init(folder, f"r{number}", *(["--from", str(first / "n")] if first else []))
        join = f'["{address(number - 1)}:7946"]' if number > 1 else "[]"
        last = f'host = "127.0.0.1"\nport = {place.sink}\ntls = "none"'
        text = CONFIGURATION.format(
            number=number,
            address=address(number),
            join=join,
            port=place.port,
            exit=last if number == length else "elsewhere = true",
        )
        (folder / "node.toml").write_text(text)
        return run_command(folder)

    return Contender(f"r{number}", lambda: "", prepare)
