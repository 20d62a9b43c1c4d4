"""Admin addresses: `unix:PATH` or `HOST:PORT`, and which of them need certificates. Light: the command imports it."""

from __future__ import annotations

from ipaddress import ip_address

UNIX = "unix:"


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def needs_certificates(address: str) -> bool:
    """True for addresses that are reached over a network: both sides show certificates of the cluster."""
    return not address.startswith(UNIX) and not is_loopback(address.rpartition(":")[0])


def find_advertised(listen: str, advertise: str) -> str:
    """Where other nodes' operators reach an admin service; empty if they cannot."""
    if advertise or not needs_certificates(listen):
        return advertise
    host = listen.rpartition(":")[0].strip("[]")
    try:
        return "" if ip_address(host).is_unspecified else listen
    except ValueError:
        return listen


def find_fault(address: str) -> str:
    """Why nobody can dial it; empty for a good address."""
    if address.startswith(UNIX):
        return "" if address != UNIX else "it names no path"
    host, _, port = address.rpartition(":")
    good = bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    return "" if good else "expected unix:PATH or HOST:PORT"
