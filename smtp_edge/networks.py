"""Networks of clients: is an address in a list of them, and which addresses count as one client. And where
this machine's own addresses are dialled. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

CACHE_MAX = 10_000
"""Answers remembered; past it the cache starts again, so that strangers cannot grow it."""


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address without its zone, IPv4 out of its IPv6 clothes; None for anything else (a Unix socket)."""
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


def from_here(listen: str) -> str:
    """Where a process of this machine dials what listens on `host:port`: at loopback, if that is all its addresses."""
    host, _, port = listen.rpartition(":")
    address = parse_address(host.strip("[]"))
    if address is None or not address.is_unspecified:
        return listen
    return f"127.0.0.1:{port}" if address.version == 4 else f"[::1]:{port}"


class Networks:
    """A list of networks. Remembers its answers: it is asked for every recipient."""

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network]) -> None:
        self._networks = tuple(networks)
        self._answers: dict[str, bool] = {}

    def __bool__(self) -> bool:
        """False if there is none."""
        return bool(self._networks)

    def hold(self, address: str) -> bool:
        """True if the address is in one of them; what is no address is in none."""
        if not self._networks:
            return False
        answer = self._answers.get(address)
        if answer is None:
            if len(self._answers) >= CACHE_MAX:
                self._answers.clear()
            parsed = parse_address(address)
            answer = parsed is not None and any(parsed in network for network in self._networks)
            self._answers[address] = answer
        return answer


class ClientKeys:
    """Addresses to the name of the client that they count for: those that share a prefix are one."""

    def __init__(self, prefix_v4: int, prefix_v6: int) -> None:
        self._shift_v4, self._shift_v6 = 32 - prefix_v4, 128 - prefix_v6
        self._keys: dict[str, str] = {}

    def key(self, address: str) -> str:
        """`192.0.2.7`, `2001:db8:1:2::/64`; what is no address counts for itself."""
        key = self._keys.get(address)
        if key is None:
            if len(self._keys) >= CACHE_MAX:
                self._keys.clear()
            key = self._keys[address] = self._build(address)
        return key

    def _build(self, address: str) -> str:
        parsed = parse_address(address)
        if parsed is None:
            return address
        shift = self._shift_v4 if parsed.version == 4 else self._shift_v6
        if not shift:
            return str(parsed)
        first = type(parsed)(int(parsed) >> shift << shift)
        return f"{first}/{parsed.max_prefixlen - shift}"
