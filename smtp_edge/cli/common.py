"""What the commands of `smtpmesh` share: where the node is, asking it, showing the answer, exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
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
ADMIN = click.option(
    "--admin",
    metavar="ADDRESS",
    envvar="SMTPMESH_ADMIN",
    help="Where the node's admin service is: unix:PATH or HOST:PORT. [env SMTPMESH_ADMIN; else from --config]",
)
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
    chosen: Shower = getattr(tables, shower) if isinstance(shower, str) else shower
    click.echo(tables.to_json(answer) if as_json else chosen(answer))


def open_client(config: Path, admin: str | None, *, hint: str = "--admin") -> Any:
    """A client of the node in question. CallError, UnreachableError. `hint`: the option that named the address."""
    from smtp_edge.admin.address import find_fault, needs_certificates
    from smtp_edge.admin.client import AdminClient

    if admin is not None and (fault := find_fault(admin)):
        raise click.BadParameter(f"{admin!r}: {fault}", param_hint=f"'{hint}'")
    settings = load_for_reading(config) if admin is None or needs_certificates(admin) else None
    address = admin if admin is not None else admin_address(settings)
    secured = settings is not None and needs_certificates(admin or settings.admin.listen)
    return AdminClient(address, settings.cluster if settings is not None and secured else None)


def admin_address(settings: Any) -> str:
    """Where the node of a configuration listens, as seen from its own machine."""
    listen: str = settings.admin.listen
    if listen.startswith("unix:"):
        return f"unix:{settings.node.data_dir / listen.removeprefix('unix:')}"
    host, _, port = listen.rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host) + f":{port}"


def load_settings(config: Path) -> Any:
    """What a node needs: everything is checked, warnings are shown."""
    from smtp_edge.configuration import ConfigurationError, load_configuration

    try:
        settings, warnings = load_configuration(config)
    except ConfigurationError as error:
        fail(str(error), EXIT_BAD_CONFIGURATION)
    for warning in warnings:
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
