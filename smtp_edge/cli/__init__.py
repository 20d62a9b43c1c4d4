"""The command `smtpmesh`. Start-up is light: gRPC, networkx and pydantic are imported by the commands that need them.

exit codes    0 done · 1 not done · 2 usage · 3 cannot reach the node · 75 try again · 78 bad configuration
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from smtp_edge import __version__
from smtp_edge.cli.common import (
    ADMIN,
    CONFIG,
    EXIT_BAD_CONFIGURATION,
    EXIT_NOT_DONE,
    EXIT_UNREACHABLE,
    JSON,
    Duration,
    fail,
    load_settings,
    open_client,
    show,
)
from smtp_edge.cli.everyone import show_all
from smtp_edge.cli.health import health
from smtp_edge.cli.orders import host_group, node_group, pin, reload, unpin
from smtp_edge.cli.queue import queue_group, why
from smtp_edge.cli.send import send
from smtp_edge.cli.simulate import simulate
from smtp_edge.cli.sinks import sinks_group
from smtp_edge.cli.whatif import Rate, Slow, show_what_if


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="smtpmesh")
def cli() -> None:
    """A cluster of mail relays that measure their next hops, tell each other, and route around failures."""


for added in (simulate, node_group, host_group, pin, unpin, reload, queue_group, why, send, sinks_group, health):
    cli.add_command(added)


def main() -> None:
    """Entry point of the console script."""
    if sys.argv[1:2] != ["run"]:  # a node reads what the core says of refused handshakes (gossip.core_log)
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    cli(prog_name="smtpmesh")


# -- nodes -------------------------------------------------------------------------------------------------------------


@cli.command()
@CONFIG
@click.option("--worker", "number", type=click.IntRange(1), hidden=True, help="Of a supervisor: this worker alone.")
@click.option(
    "--of", "count", type=click.IntRange(1), hidden=True, help="With so many workers. [default: node.workers]"
)
@click.option("--supervisor", type=click.IntRange(1), hidden=True, help="Its process: this one ends with it.")
def run(config: Path, number: int | None, count: int | None, supervisor: int | None) -> None:
    """Run a node until it is told to stop (SIGTERM, Ctrl-C). SIGHUP is `smtpmesh reload`.

    With `workers` in node.toml, it runs so many processes, and starts again those that die.
    """
    from smtp_edge.cli.running import run_node, run_worker

    sys.exit(run_node(config) if number is None else run_worker(config, number, count, supervisor))


@cli.command("check-config")
@CONFIG
def check_config(config: Path) -> None:
    """Report every mistake in a configuration, with the way out."""
    settings = load_settings(config)
    from datetime import UTC, datetime

    from smtp_edge.configuration import ConfigurationError
    from smtp_edge.preflight import find_mistakes, find_warnings, load_identities

    mistakes = find_mistakes(settings)
    if mistakes:
        fail(str(ConfigurationError(config, mistakes)), EXIT_BAD_CONFIGURATION)
    for warning in find_warnings(settings, datetime.now(UTC)):
        click.echo(f"smtpmesh: {config}: warning: {warning}", err=True)
    found = load_identities(settings)
    names = ", ".join(f"{name} ({identity.node_id})" for name, identity in found.items())
    cluster = next(iter(found.values())).cluster
    click.echo(f"{config}: good. Node{'s' * (len(found) > 1)} {names} of the cluster {cluster}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", help="The node's name. [default: the folder's]")
@click.option("--cluster", help="Name of a new cluster. [default: mesh]")
@click.option("--address", default="127.0.0.1", show_default=True, help="IP address on which the node listens.")
@click.option(
    "--from",
    "parent",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of the first node (it holds ca.key): join its cluster instead of making a new one.",
)
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes, to use so many cores."
)
def init(folder: Path, name: str | None, cluster: str | None, address: str, parent: Path | None, workers: int) -> None:
    """Make FOLDER: keys, certificates and a commented node.toml that works. Overwrites nothing."""
    from datetime import UTC, datetime

    from smtp_edge.setup import Plan, SetupError, create_node

    if cluster is not None and parent is not None:
        raise click.UsageError("a node made with --from joins that node's cluster; leave --cluster out")
    plan = Plan(folder, name or folder.absolute().name, cluster or "mesh", address, parent, workers)
    try:
        steps = create_node(plan, at=datetime.now(UTC))
    except SetupError as error:
        fail(str(error), EXIT_NOT_DONE)
    click.echo(f"{folder} is ready. Next:")
    for step in steps:
        click.echo(f"  {step}")
    if parent is None:
        click.echo(f"{folder / 'ca.key'} admits new members: keep it safe; running nodes do not need it.")


AUTHORITY = click.option(
    "--from",
    "parent",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    help="Folder that holds ca.crt and ca.key.",
)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@AUTHORITY
@click.option(
    "--days", default=825, show_default=True, type=click.IntRange(1, 3650), help="How long the new one is valid."
)
def renew(folder: Path, parent: Path, days: int) -> None:
    """Give the node in FOLDER a new certificate for the key that it has: the same node for longer.

    Those of its further workers (node-2.crt, ...) are renewed with it.
    """
    from datetime import UTC, datetime

    from smtp_edge.setup import SetupError, renew_node

    try:
        renewals = renew_node(folder, parent, at=datetime.now(UTC), days=days)
    except SetupError as error:
        fail(str(error), EXIT_NOT_DONE)
    for renewal in renewals:
        click.echo(f"{renewal.certificate}: node {renewal.node_id}, valid until {renewal.not_after:%Y-%m-%d}")
    click.echo("Restart the node to use it.")


@cli.command()
@click.argument("count", metavar="N", type=click.IntRange(1, 64))
@CONFIG
@click.option(
    "--from",
    "parent",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder that holds ca.key. [default: that of the configuration]",
)
def workers(count: int, config: Path, parent: Path | None) -> None:
    """Let the node run in N processes, to use as many cores: issue their certificates, write it into node.toml.

    Mail stays where it is. Of fewer workers than before, those that are no more drain at the next start, and end.
    """
    from datetime import UTC, datetime

    from smtp_edge.setup import SetupError, set_workers

    try:
        made = set_workers(config, parent, count, at=datetime.now(UTC))
    except SetupError as error:
        fail(str(error), EXIT_NOT_DONE)
    for path in made:
        click.echo(f"{path} is made")
    click.echo(f"{config}: workers = {count}. Restart the node to go by it; `smtpmesh check-config` first.")


@cli.command()
@click.argument("node", metavar="NODE_ID|CERTIFICATE")
@AUTHORITY
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file. [default: NODE_ID.revoked]"
)
@click.option("--reason", default="", help="For people: one line, at most 200 characters.")
def revoke(node: str, parent: Path, output: Path | None, reason: str) -> None:
    """Remove a node from its cluster for ever. Writes a file that the other nodes are to be given."""
    from datetime import UTC, datetime

    from smtp_edge.setup import SetupError, revoke_node

    try:
        revocation, file = revoke_node(node, parent, output, at=datetime.now(UTC), reason=reason)
    except SetupError as error:
        fail(str(error), EXIT_NOT_DONE)
    click.echo(f"{file} revokes the node {revocation.node_id} of the cluster {revocation.cluster}. It does so where")
    click.echo("it lies in the folder `cluster.revocations` (revocations, beside ca.crt) of a node that starts, or")
    click.echo("is told `smtpmesh reload`. There is no way back: the machine needs a new key, from `smtpmesh init`.")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="The ledger as one JSON object.")
@click.option("--keep", is_flag=True, help="Leave the cluster up until Ctrl-C, for your own mail.")
@click.option(
    "--directory", type=click.Path(path_type=Path, file_okay=False), help="Where to put it. [default: temporary]"
)
@click.option(
    "--scene",
    type=click.Choice(["mail", "replication"]),
    default="mail",
    show_default=True,
    help="mail: to smart hosts that die; replication: a table, by mail, from one relay to another.",
)
def demo(as_json: bool, keep: bool, directory: Path | None, scene: str) -> None:
    """Three relays, three smart hosts, real mail; then some of them die, and every message is accounted for."""
    from smtp_edge.demo import run_demo

    sys.exit(run_demo(json_output=as_json, keep=keep, directory=directory, scene=scene))


@cli.command()
def version() -> None:
    """The version of this program."""
    click.echo(f"smtpmesh {__version__}")


@cli.command("hash-password")
def hash_password() -> None:
    """Ask for a password and print its hash, for a line `user:hash` of a listener's auth_users file.

    Without a terminal the password is the first line of standard input.
    """
    from smtp_edge.auth.users import hash_password as hashed

    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        fail("an empty password lets everybody in", EXIT_NOT_DONE)
    click.echo(hashed(password))


# -- questions ---------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--wait", is_flag=True, help="Until the node serves and has its sessions; exit code 75 if it does not.")
@click.option("--timeout", type=Duration(), default="60s", show_default=True, help="With --wait: at most so long.")
@CONFIG
@ADMIN
@JSON
def status(wait: bool, timeout: float, config: Path, admin: str | None, as_json: bool) -> None:
    """Who the node is and what it has done since its start."""
    if wait:
        from smtp_edge.cli.waiting import wait_ready

        wait_ready(config, admin, timeout)
    show_all(config, admin, as_json, "GetStatus", {}, "show_status", headings=False)


@cli.command()
@click.argument("class_id", metavar="[CLASS]", default="")
@CONFIG
@ADMIN
@JSON
def routes(class_id: str, config: Path, admin: str | None, as_json: bool) -> None:
    """The routing table: for each class every next hop, its scores, and why it is where it is."""
    show(config, admin, as_json, "GetRoutes", {"class_id": class_id}, "show_routes")


@cli.command()
@click.argument("address")
@click.option("--trace", multiple=True, metavar="NODE", help="A relay that the message has visited. Repeat in order.")
@click.option(
    "--size", default=0, type=click.IntRange(0), metavar="BYTES", help="Of a message; some exits have limits."
)
@CONFIG
@ADMIN
@JSON
def explain(address: str, trace: tuple[str, ...], size: int, config: Path, admin: str | None, as_json: bool) -> None:
    """Where mail for ADDRESS would go now, every other candidate, and why it lost."""
    request = {"address": address, "trace": list(trace), "size_bytes": size}
    show(config, admin, as_json, "Explain", request, "show_explanation")


@cli.command("what-if")
@click.option("--down", multiple=True, metavar="NAME", help="A node or smart host that fails. Repeat.")
@click.option("--slow", multiple=True, type=Slow(), help="A smart host at a share of its speed: s1=0.5. Repeat.")
@click.option("--load", type=Rate(), help="What clients submit, like 400/s. [default: what can be delivered now]")
@click.option("--at", multiple=True, metavar="NODE", help="Where they submit it, in equal parts. [default: everywhere]")
@click.option("--class", "class_id", default="", help="Only this class of destinations.")
@CONFIG
@ADMIN
@JSON
def what_if(
    down: tuple[str, ...],
    slow: tuple[tuple[str, float], ...],
    load: float | None,
    at: tuple[str, ...],
    class_id: str,
    config: Path,
    admin: str | None,
    as_json: bool,
) -> None:
    """Where mail would go if something failed, next to where it goes now. Changes nothing.

    An exit's capacity is what all nodes together measured. One that was never at its limit may carry more than it says.
    """
    changes = [{"host": host, "factor": factor} for host, factor in slow]
    request = {"down": list(down), "slow": changes, "load_mps": load or 0.0, "at": list(at), "class_id": class_id}
    show(config, admin, as_json, "WhatIf", request, show_what_if)


@cli.command()
@CONFIG
@ADMIN
@JSON
@click.option("--wide", is_flag=True, help="Ids, zones and addresses too.")
def nodes(config: Path, admin: str | None, as_json: bool, wide: bool) -> None:
    """Members of the cluster as this node sees them: their state, who says so, and whether their databases agree."""
    show(config, admin, as_json, "ListNodes", {}, "show_nodes_wide" if wide else "show_nodes")


@cli.command()
@CONFIG
@ADMIN
@JSON
def links(config: Path, admin: str | None, as_json: bool) -> None:
    """Every link of every node, as its owner measured it."""
    show(config, admin, as_json, "ListLinks", {}, "show_links")


@cli.group()
def gossip() -> None:
    """What gossip does: `gossip stats`; `monitor` shows its events."""


@gossip.command("stats")
@CONFIG
@ADMIN
@JSON
def gossip_stats(config: Path, admin: str | None, as_json: bool) -> None:
    """Gossip of this node in numbers: counters since its start, and how things stand now."""
    show(config, admin, as_json, "GetGossipStats", {}, "show_gossip_stats")


@cli.command()
@CONFIG
@ADMIN
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each event, on a line of its own.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only events of this kind. May be repeated.")
@click.option(
    "--recent", default=0, show_default=True, type=click.IntRange(0, 256), help="Begin with so many of the past."
)
def monitor(config: Path, admin: str | None, as_json: bool, kinds: tuple[str, ...], recent: int) -> None:
    """Events of gossip as they happen, a line for each: who comes, goes, is suspected, refused. Ctrl-C ends it."""
    from smtp_edge.admin.client import CallError, UnreachableError
    from smtp_edge.cli import tables

    shower = tables.to_json_line if as_json else tables.show_event
    try:
        with open_client(config, admin) as client, _ended_by_ctrl_c():
            request = {"kinds": list(kinds), "recent": recent}
            for answer in client.stream("WatchEvents", request, _say_watching):
                click.echo(shower(answer))
    except UnreachableError as error:
        fail(str(error), EXIT_UNREACHABLE)
    except CallError as error:
        fail(str(error), EXIT_NOT_DONE)
    fail("the node has stopped", EXIT_UNREACHABLE)


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """At once, whatever runs: as an exception it would be lost if it came inside a callback of gRPC."""

    def leave(_number: int, _frame: object) -> None:
        with suppress(RuntimeError, OSError):  # a line is being written, or nobody reads them
            sys.stdout.flush()
        os._exit(0)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say_watching(name: str) -> None:
    click.echo(f"watching {name}; Ctrl-C ends", err=True)
