"""What takes part in a comparison: how it is configured, as a command in the foreground, and why it may be missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HOSTNAME = "relay.example.org"


class RelayError(Exception):
    """A relay cannot be made, does not start, or does not do what is wanted of it; `str()` says what."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a contender runs."""

    folder: Path
    """Its own, empty; configuration and queue go below it."""
    port: int
    """Of 127.0.0.1, where it takes mail for anybody."""
    sink: int
    """Of 127.0.0.1, where all mail goes."""
    pem: Path | None = None
    """Certificate and key with which it offers STARTTLS; None = it does not."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One relay in one configuration."""

    name: str
    missing: Callable[[], str]
    """Why it cannot take part; empty if it can."""
    prepare: Callable[[Place], list[str]]
    """Write its files; the command that runs it in the foreground until SIGTERM."""
    yardstick: bool = False
    """Others are measured by the best of these in the same round."""
    listeners: int = 1
    """Sockets that listen on its port once all of it is there."""
    tls: bool = True
    """It can offer STARTTLS."""
    setuid: bool = False
    """Some of its programs change users by being started: they cannot be traced cheaply."""
