"""The PROXY protocol, versions 1 and 2: what a load balancer says of its client before the client's first byte. Pure.

    "PROXY TCP4 192.0.2.7 198.51.100.1 56324 25\\r\\n"                             at most 107 bytes
    signature (12), version and command, family, length (2), addresses, TLVs        16 bytes, at most `LENGTH_MAX` more

A header is believed only from `proxy_networks`, and demanded there. LOCAL, UNKNOWN and Unix sockets say nothing about a
client: the connection counts as the load balancer's own (its health checks). TLVs are skipped. `needed` tells how many
bytes may be read next, so that not one byte of what follows (perhaps a TLS handshake) is taken with the header.

Specification: https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
PREFIX_BYTES = 12
"""Of the signature; a line of version 1 is never shorter."""
V2_HEAD_BYTES = 16
V1_BYTES_MAX = 107
LENGTH_MAX = 4096
"""Of the addresses and TLVs of version 2."""

_V1 = re.compile(rb"PROXY (TCP4|TCP6) (\S{1,39}) (\S{1,39}) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})\r\n")
_LOCAL, _PROXY = 0, 1
_INET, _INET6, _UNIX, _UNSPECIFIED = 1, 2, 3, 0
_STREAM = 1


class ProxyFault(ValueError):
    """What came is no PROXY header; `str()` is for the log."""


@dataclass(frozen=True, slots=True)
class ProxiedClient:
    """The client behind a load balancer."""

    address: str
    port: int


def needed(received: bytes) -> int:
    """How many bytes of the header are to be read next; 0 = it is complete. ProxyFault as soon as it cannot be one."""
    if not (SIGNATURE.startswith(received[:PREFIX_BYTES]) or b"PROXY ".startswith(received[:6])):
        raise ProxyFault("no PROXY header")
    if len(received) < PREFIX_BYTES:
        return PREFIX_BYTES - len(received)
    if received.startswith(SIGNATURE):
        return _needed_v2(received)
    if received.endswith(b"\n"):
        return 0
    if len(received) >= V1_BYTES_MAX:
        raise ProxyFault("the PROXY line is too long")
    return 1


def _needed_v2(received: bytes) -> int:
    if len(received) < V2_HEAD_BYTES:
        return V2_HEAD_BYTES - len(received)
    length = int.from_bytes(received[14:16])
    if length > LENGTH_MAX:
        raise ProxyFault(f"{length} bytes of PROXY header are too many")
    return V2_HEAD_BYTES + length - len(received)


def parse_proxy(header: bytes) -> ProxiedClient | None:
    """The client that a complete header names; None if it names none. ProxyFault for nonsense."""
    return _parse_v2(header) if header.startswith(SIGNATURE) else _parse_v1(header)


def _parse_v1(line: bytes) -> ProxiedClient | None:
    if re.fullmatch(rb"PROXY UNKNOWN(?: [ -~]*)?\r\n", line):
        return None
    match = _V1.fullmatch(line)
    if match is None:
        raise ProxyFault("bad PROXY line")
    kind = IPv4Address if match[1] == b"TCP4" else IPv6Address
    try:
        source, _ = kind(match[2].decode("ascii")), kind(match[3].decode("ascii"))
    except ValueError as error:
        raise ProxyFault("bad address in the PROXY line") from error
    if max(int(match[4]), int(match[5])) > 65535:
        raise ProxyFault("bad port in the PROXY line")
    return ProxiedClient(str(source), int(match[4]))


def _parse_v2(header: bytes) -> ProxiedClient | None:
    version, command = header[12] >> 4, header[12] & 15
    family, transport = header[13] >> 4, header[13] & 15
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise ProxyFault(f"PROXY version {version}, command {command}")
    if command == _LOCAL or family in (_UNSPECIFIED, _UNIX):
        return None
    body = header[V2_HEAD_BYTES:]
    size = {_INET: 4, _INET6: 16}.get(family)
    if size is None or transport != _STREAM or len(body) < 2 * size + 4:
        raise ProxyFault(f"PROXY family {family}, transport {transport}, {len(body)} bytes")
    address = IPv4Address(body[:size]) if family == _INET else IPv6Address(body[:size])
    return ProxiedClient(str(address), int.from_bytes(body[2 * size : 2 * size + 2]))
