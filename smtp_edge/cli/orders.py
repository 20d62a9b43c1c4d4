"""The commands that change something on a running node: drains (`node`, `host`), `pin`, `unpin`, `reload`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from smtp_edge.cli.common import (
    ADMIN,
    CONFIG,
    EXIT_BAD_CONFIGURATION,
    EXIT_NOT_DONE,
    EXIT_UNREACHABLE,
    JSON,
    Door,
    Duration,
    fail,
    find_doors,
    load_for_reading,
)
from smtp_edge.cli.everyone import ask_all, ask_one, end_with_troubles, show_all, show_answers

POLL_S = 1.0
RELOAD_MAX_S = 120.0
"""Sinks and authenticators of the user's own may take their time to start."""
SAID_S = 10.0
"""A line of progress at least this often while one waits."""
EVERYWHERE = click.option(
    "--everywhere", is_flag=True, help="Ask every node of the cluster whose admin service can be reached from here."
)


# -- nodes -------------------------------------------------------------------------------------------------------------


@click.group("node")
def node_group() -> None:
    """Take a node out of the cluster's work and back: `node drain`, `node undrain`."""


@node_group.command("drain")
@click.option("--wait", is_flag=True, help="Show how far it is, and end when nothing is left.")
@click.option("--timeout", type=Duration(), default="10m", show_default=True, help="With --wait: at most so long.")
@CONFIG
@ADMIN
@JSON
def drain_node(wait: bool, timeout: float, config: Path, admin: str | None, as_json: bool) -> None:
    """Take no mail any more, and give all that waits to other relays and exits.

    Clients are answered 421, peers are told, health says NOT_SERVING. It stays so over restarts, until `node undrain`.
    """
    if not wait:
        show_all(config, admin, as_json, "DrainNode", {}, _show_drain, headings=False)
        return
    doors, deadline = find_doors(config, admin), time.monotonic() + timeout
    end_with_troubles([ask_one(door, lambda client: client.call("DrainNode", {})) for door in doors])
    for door in doors:
        with _asking(door) as client:
            _wait(client, deadline, timeout, as_json)


@node_group.command("undrain")
@CONFIG
@ADMIN
@JSON
def undrain_node(config: Path, admin: str | None, as_json: bool) -> None:
    """Take mail again."""
    show_all(config, admin, as_json, "UndrainNode", {}, _show_undrain, headings=False)


def _show_drain(answer: Any) -> str:
    if not answer.changed:
        return f"{answer.node_name} drains already; `smtpmesh node drain --wait` shows how far it is"
    return f"{answer.node_name} drains; `smtpmesh node drain --wait` shows how far it is"


def _show_undrain(answer: Any) -> str:
    return f"{answer.node_name} takes mail {'again' if answer.changed else 'already'}"


def _wait(client: Any, deadline: float, timeout_s: float, as_json: bool) -> None:
    """Ends the process unless the drain came to its end before `deadline`, `timeout_s` after the order."""
    from smtp_edge.cli import tables

    said, said_at = "", 0.0
    while True:
        found = client.call("GetDrain", {})
        now = time.monotonic()
        line = tables.show_progress(found)
        if not as_json and ((line != said and now - said_at >= POLL_S) or now - said_at >= SAID_S or found.done):
            click.echo(f"{time.strftime('%H:%M:%S')}  {line}")
            said, said_at = line, now
        if not found.HasField("drain"):
            fail(f"{found.node_name} does not drain any more: somebody took the order back", EXIT_NOT_DONE)
        if found.done or now >= deadline:
            break
        time.sleep(POLL_S)
    if as_json:
        click.echo(tables.to_json(found))
    if not found.done:
        left = "" if as_json else f"; this is left:\n{tables.show_left(found)}"
        fail(f"{found.node_name} is not drained after {timeout_s:.0f} s{left}", EXIT_NOT_DONE)


# -- hosts -------------------------------------------------------------------------------------------------------------


@click.group("host")
def host_group() -> None:
    """Take a smart host out of use and back: `host drain NAME`, `host undrain NAME`."""


@host_group.command("drain")
@click.argument("name")
@EVERYWHERE
@CONFIG
@ADMIN
@JSON
def drain_host(name: str, everywhere: bool, config: Path, admin: str | None, as_json: bool) -> None:
    """Send nothing new to the smart host NAME from this node; what is under way ends by itself.

    Other nodes hear that this one drains it, and go on using it: each is told by its own operator, or by --everywhere.
    """
    _order_host("DrainHost", name, everywhere, config, admin, as_json, _show_host_drain)


@host_group.command("undrain")
@click.argument("name")
@EVERYWHERE
@CONFIG
@ADMIN
@JSON
def undrain_host(name: str, everywhere: bool, config: Path, admin: str | None, as_json: bool) -> None:
    """Use the smart host NAME again, after a trial."""
    _order_host("UndrainHost", name, everywhere, config, admin, as_json, _show_host_undrain)


def _show_host_drain(name: str, answer: Any) -> str:
    return f"{answer.node_name}: {name} gets nothing new" + ("" if answer.changed else ", as before")


def _show_host_undrain(name: str, answer: Any) -> str:
    return f"{answer.node_name}: {name} may be used" + (" again" if answer.changed else ", as before")


def _order_host(
    method: str,
    name: str,
    everywhere: bool,
    config: Path,
    admin: str | None,
    as_json: bool,
    shower: Callable[[str, Any], str],
) -> None:
    if not everywhere:
        request = {"host": name}
        show_all(config, admin, as_json, method, request, lambda answer: shower(name, answer), headings=False)
        return
    told: list[dict[str, str]] = []
    for door in find_doors(config, admin):
        with _asking(door) as client:
            answer = client.call("ListNodes", {})
            own = next(item for item in answer.nodes if item.self)
            told.append(_tell(client, own.name, method, name, shower))
    mine = {item["node"] for item in told}
    told += [_tell_other(item, config, method, name, shower) for item in answer.nodes if item.name not in mine]
    if as_json:
        import json

        click.echo(json.dumps({"nodes": told}, indent=2))
    for item in told if not as_json else ():
        click.echo(item["text"])
    missed = [item["node"] for item in told if item["outcome"] == "not told"]
    if missed:
        fail(f"not told: {', '.join(missed)}; run the same command there", EXIT_NOT_DONE)


def _tell_other(item: Any, config: Path, method: str, name: str, shower: Callable[[str, Any], str]) -> dict[str, str]:
    from smtp_edge.admin.client import AdminClient, CallError, UnreachableError

    if not item.admin_address:
        why = "its admin service is for its own machine only (admin.listen)"
        return {"node": item.name, "outcome": "not told", "text": f"{item.name}: not told: {why}"}
    try:
        with AdminClient(item.admin_address, load_for_reading(config).cluster) as client:
            return _tell(client, item.name, method, name, shower)
    except (UnreachableError, CallError) as error:
        return {"node": item.name, "outcome": "not told", "text": f"{item.name}: not told: {error}"}


def _tell(client: Any, node: str, method: str, name: str, shower: Callable[[str, Any], str]) -> dict[str, str]:
    """Of one node; one that does not have the host has nothing to do."""
    from smtp_edge.admin.client import NOT_FOUND, CallError

    try:
        answer = client.call(method, {"host": name})
    except CallError as error:
        if error.code == NOT_FOUND:
            return {"node": node, "outcome": "has no such host", "text": f"{node}: {error}"}
        return {"node": node, "outcome": "not told", "text": f"{node}: not told: {error}"}
    return {"node": node, "outcome": "changed" if answer.changed else "unchanged", "text": shower(name, answer)}


# -- pins --------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("class_id", metavar="CLASS")
@click.argument("hop")
@click.option("--for", "for_s", type=Duration(), default="1h", show_default=True, help="At most 7 days.")
@CONFIG
@ADMIN
@JSON
def pin(class_id: str, hop: str, for_s: float, config: Path, admin: str | None, as_json: bool) -> None:
    """Send all mail of CLASS by HOP, a smart host or node by its name; while that is down, the mail waits.

    CLASS is a route's name, ROUTE>LIMIT for larger mail, or mx:DOMAIN. It ends by itself; `routes` shows it.
    """
    request = {"class_id": class_id, "hop": hop, "for_s": for_s}
    show_all(config, admin, as_json, "Pin", request, _show_pin, headings=False)


def _show_pin(answer: Any) -> str:
    found = answer.pin
    return f"{answer.node_name}: all mail of {found.class_id} goes by {found.hop} until {found.until}"


@click.command()
@click.argument("class_id", metavar="CLASS")
@CONFIG
@ADMIN
@JSON
def unpin(class_id: str, config: Path, admin: str | None, as_json: bool) -> None:
    """Let the routing rule decide about CLASS again."""
    request = {"class_id": class_id}
    show_all(config, admin, as_json, "Unpin", request, lambda answer: _show_unpin(class_id, answer), headings=False)


def _show_unpin(class_id: str, answer: Any) -> str:
    return f"{answer.node_name}: {class_id} {'is no longer' if answer.changed else 'was not'} pinned"


# -- the configuration -------------------------------------------------------------------------------------------------


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be applied.")
@CONFIG
@ADMIN
@JSON
def reload(dry_run: bool, config: Path, admin: str | None, as_json: bool) -> None:
    """Have the node read its configuration again, with certificates, users and passwords, while mail goes on.

    It is applied whole, or not at all. SIGHUP does the same. What needs a restart is named, and stays as it was.
    """
    from smtp_edge.configuration import ConfigurationError, load_configuration

    if admin is None:  # where the node is stands in the file that may be wrong
        try:
            load_configuration(config, files=False)
        except ConfigurationError as error:
            fail(f"{error}\nthe node was not asked, and goes on by its old configuration", EXIT_BAD_CONFIGURATION)
    request = {"dry_run": dry_run}
    answers = ask_all(config, admin, lambda client: client.call("Reload", request, timeout_s=RELOAD_MAX_S))
    done = [answer.value for answer in answers if answer.value is not None]
    if as_json:
        show_answers([answer for answer in answers if answer.value is not None], True, str)
    else:
        for warning in dict.fromkeys(warning for item in done for warning in item.warnings):
            click.echo(f"smtpmesh: warning: {warning}", err=True)
        for item in done:
            if not item.mistakes:
                click.echo(_show_reload(item))
    end_with_troubles(answers)
    refused = [item for item in done if item.mistakes]
    if refused:
        names = ", ".join(item.node_name for item in refused)
        mistakes = [] if as_json else list(dict.fromkeys(text for item in refused for text in item.mistakes))
        head = f"{names} {'go on by their' if len(refused) > 1 else 'goes on by its'} old configuration"
        fail("\n".join([head, *mistakes]), EXIT_BAD_CONFIGURATION)


def _show_reload(answer: Any) -> str:
    """`mx1: applied 3, needs restart: metrics.listen`, and the names of what was applied."""
    would = "would apply" if answer.dry_run else "applied"
    head = f"{answer.node_name}: {would} {len(answer.applied) or 'nothing'}"
    if answer.needs_restart:
        head += f", needs restart: {', '.join(answer.needs_restart)}"
    lines = [head, *(f"  {name}" for name in answer.applied)]
    if answer.sessions_before:
        sessions = f"{answer.sessions_before} session{'s' * (answer.sessions_before > 1)}"
        lines.append(f"{sessions} of clients end by what they began with")
    return "\n".join(lines)


@contextmanager
def _asking(door: Door) -> Iterator[Any]:
    """A client; what goes wrong with it ends the process."""
    from smtp_edge.admin.client import CallError, UnreachableError

    try:
        with door.open() as client:
            yield client
    except UnreachableError as error:
        fail(str(error), EXIT_UNREACHABLE)
    except CallError as error:
        fail(str(error), EXIT_NOT_DONE)
