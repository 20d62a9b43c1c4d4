"""What the commands of `smtpmesh` share: where the node is, asking it, showing the answer, exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

EXIT_NOT_DONE = 1
EXIT_UNREACHABLE = 3
EXIT_TRY_AGAIN = 75
EXIT_BAD_CONFIGURATION = 78

UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")

Shower = Callable[[Any], str]
"""An answer of the admin service as text."""

CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("node.toml"),
    show_default=True,
    help="The node's configuration.",
)
WORKER_KEY = "smtp_edge.cli.worker"
"""In click's notes of a command: what --worker said."""


def _note_worker(context: click.Context, _option: click.Parameter, number: int | None) -> None:
    if number is not None:
        context.meta[WORKER_KEY] = number


_ADMIN = click.option(
    "--admin",
    metavar="ADDRESS",
    envvar="SMTPMESH_ADMIN",
    help="Where the node's admin service is: unix:PATH or HOST:PORT. [env SMTPMESH_ADMIN; else from --config]",
)
_WORKER = click.option(
    "--worker",
    type=click.IntRange(1),
    metavar="K",
    expose_value=False,
    callback=_note_worker,
    help="Ask this worker alone. [default: all where the whole machine is meant, else the first]",
)


def ADMIN(command: Callable[..., None]) -> Callable[..., None]:
    """Which process is asked."""
    return _ADMIN(_WORKER(command))


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")


class Duration(click.ParamType):  # type: ignore[type-arg]
    """`90s`, `30m`, `2h`, `1d`; a number alone is seconds."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """As seconds."""
        if isinstance(value, float):
            return value
        match = _DURATION.fullmatch(str(value))
        found = float(match[1]) * UNITS_S[match[2] or "s"] if match is not None else 0.0
        if found <= 0:
            self.fail(f"{value!r} is no duration; say 90s, 30m, 2h or 1d", param, ctx)
        return found


def show(
    config: Path, admin: str | None, as_json: bool, method: str, request: dict[str, Any], shower: str | Shower
) -> None:
    """One call and its answer; what goes wrong ends the process."""
    from smtp_edge.admin.client import CallError, UnreachableError
    from smtp_edge.cli import tables

    try:
        with open_client(config, admin) as client:
            answer = client.call(method, request)
    except UnreachableError as error:
        fail(str(error), EXIT_UNREACHABLE)
    except CallError as error:
        fail(str(error), EXIT_NOT_DONE)
    click.echo(tables.to_json(answer) if as_json else find_shower(shower)(answer))


def find_shower(shower: str | Shower) -> Shower:
    """A function, or the one of that name in tables.py."""
    from smtp_edge.cli import tables

    found: Shower = getattr(tables, shower) if isinstance(shower, str) else shower
    return found


@dataclass(frozen=True, slots=True)
class Door:
    """Where a process of the node is asked."""

    name: str
    """The worker's; empty for a node of one process, or where `--admin` said it."""
    address: str
    cluster: Any = None
    """Its certificates, if they are to be shown."""

    def open(self) -> Any:
        """A client. CallError, UnreachableError."""
        from smtp_edge.admin.client import AdminClient

        return AdminClient(self.address, self.cluster)


def open_client(config: Path, admin: str | None, *, hint: str = "--admin") -> Any:
    """A client of the process in question. CallError, UnreachableError. `hint`: the option that named the address."""
    return find_doors(config, admin, hint=hint)[0].open()


def find_doors(config: Path, admin: str | None, *, hint: str = "--admin") -> list[Door]:
    """All processes of the node, in their order; or the one that `--worker` or `--admin` names."""
    from smtp_edge.admin.address import find_fault, needs_certificates

    context = click.get_current_context(silent=True)
    chosen = context.meta.get(WORKER_KEY) if context is not None else None
    if admin is None:
        return _find_doors(load_for_reading(config), chosen)
    if chosen is not None:
        raise click.UsageError(f"{hint} names one process, --worker another way to do that: leave one out")
    if fault := find_fault(admin):
        raise click.BadParameter(f"{admin!r}: {fault}", param_hint=f"'{hint}'")
    return [Door("", admin, load_for_reading(config).cluster if needs_certificates(admin) else None)]


def _find_doors(settings: Any, chosen: int | None) -> list[Door]:
    from smtp_edge.admin.address import needs_certificates
    from smtp_edge.shards import find_stranded
    from smtp_edge.workers import Worker, list_workers

    count = settings.node.workers
    workers = [*list_workers(count), *(item.worker for item in find_stranded(settings))]
    if chosen is not None:
        workers = [Worker(chosen, count)]
    doors = []
    for worker in workers:
        own = worker.derive(settings)
        cluster = own.cluster if needs_certificates(own.admin.listen) else None
        doors.append(Door(own.node.name if len(workers) > 1 else "", admin_address(own), cluster))
    return doors


def admin_address(settings: Any) -> str:
    """Where the node of a configuration listens, as seen from its own machine."""
    from smtp_edge.networks import from_here

    listen: str = settings.admin.listen
    if listen.startswith("unix:"):
        return f"unix:{settings.node.data_dir / listen.removeprefix('unix:')}"
    return from_here(listen)


def load_settings(config: Path, *, warn: bool = True) -> Any:
    """What a node needs: everything is checked, warnings are shown."""
    from smtp_edge.configuration import ConfigurationError, load_configuration

    try:
        settings, warnings = load_configuration(config)
    except ConfigurationError as error:
        fail(str(error), EXIT_BAD_CONFIGURATION)
    for warning in warnings if warn else ():
        click.echo(f"smtpmesh: {config}: warning: {warning}", err=True)
    return settings


def load_for_reading(config: Path) -> Any:
    """What a question needs: the address and perhaps certificates. Other files may be closed to who asks."""
    from smtp_edge.configuration import ConfigurationError, load_configuration

    try:
        return load_configuration(config, files=False)[0]
    except ConfigurationError as error:
        fail(str(error), EXIT_BAD_CONFIGURATION)


def fail(text: str, code: int) -> NoReturn:
    """Say why, and end with this exit code."""
    for line in text.splitlines():
        click.echo(f"smtpmesh: {line}", err=True)
    sys.exit(code)
