"""Taking an address to listen on: what the text means, what stands in the way, and whether others may share it."""

from __future__ import annotations

import errno
import socket


class ListenerError(Exception):
    """The listener cannot start; `str()` says what is in the way."""


def listen_on(listen: str, *, backlog: int, shared: bool = False) -> socket.socket:
    """A listening socket on `host:port`; `shared`: also if other processes of this user share it. ListenerError."""
    host, port = split_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=backlog, reuse_port=shared)
    except OSError as error:
        raise ListenerError(f"cannot listen on {listen}: {_explain(error)}") from error


def demand_free(listen: str) -> None:
    """ListenerError if anybody listens there, or if this process may not. Nobody is kept from calling meanwhile."""
    try:
        try_address(*split_address(listen))
    except OSError as error:
        raise ListenerError(f"cannot listen on {listen}: {_explain(error)}") from error


def try_address(host: str, port: int) -> None:
    """Take it for a moment. OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((host, port))


def split_address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. ListenerError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ListenerError(f"{text!r} is not host:port")
    return host.strip("[]"), int(port)


def _explain(error: OSError) -> str:
    """The reason with the way out."""
    match error.errno:
        case errno.EADDRINUSE:
            return "the port is in use; stop what listens there (`ss -ltnp` names it) or choose another port"
        case errno.EADDRNOTAVAIL:
            return "this machine does not have that address"
        case errno.EACCES:
            return "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE"
        case _:
            return error.strerror or str(error)
