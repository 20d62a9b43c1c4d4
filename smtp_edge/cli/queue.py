"""`queue`: what waits, and orders for it; `why`: the reason of one message."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from smtp_edge.cli.common import (
    ADMIN,
    CONFIG,
    EXIT_NOT_DONE,
    EXIT_TRY_AGAIN,
    JSON,
    Duration,
)
from smtp_edge.cli.everyone import ask_all, end_with_troubles, forget_absent, show_all, show_found

ASK_FROM = 2
"""Messages that are bounced or removed at once without a question to the person at the terminal: fewer than this."""
COUNTED = ("changed", "under_way", "unfit", "damaged")
"""What an order tells of deliveries."""


def selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """What narrows deliveries down; of different kinds all must hold, of one kind any."""
    for option in (
        click.option("--newer", type=Duration(), help="Received less long ago: 10m, 2h, 1d."),
        click.option("--older", type=Duration(), help="Received longer ago: 10m, 2h, 1d."),
        click.option("--state", "states", multiple=True, help="Only in this state: queued, claimed, deferred, held."),
        click.option("--sender", "senders", multiple=True, help="From this address, @domain, or <>."),
        click.option("--domain", "domains", multiple=True, help="With a recipient of this domain."),
        click.option("--class", "class_ids", multiple=True, help="Only of this class."),
    ):
        command = option(command)
    return command


def queue_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a list of the queue takes."""
    command = click.option(
        "--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="At most so many."
    )(command)
    for option in (JSON, ADMIN, CONFIG):
        command = option(command)
    return selection_options(command)


@click.group("queue", invoke_without_command=True)
@queue_options
@click.pass_context
def queue_group(context: click.Context, /, **values: Any) -> None:
    """What waits here: totals by class, and the oldest deliveries with the reason why each is not gone yet.

    `queue show ID` tells one message's history, `queue shape` where and how long mail waits; the others are orders.
    """
    if context.invoked_subcommand is None:
        _show_queue(**values)
    else:  # options may stand before or after the second word
        context.default_map = dict.fromkeys(("list", "show"), values)


@queue_group.command("list")
@queue_options
def queue_list(**values: Any) -> None:
    """The same as `queue` alone."""
    _show_queue(**values)


@queue_group.command("show")
@click.argument("queue_id")
@CONFIG
@ADMIN
@JSON
def queue_show(queue_id: str, config: Path, admin: str | None, as_json: bool) -> None:
    """One message: its recipients, where it stands, and everything that happened to it here."""
    show_found(config, admin, as_json, "GetMessage", {"queue_id": queue_id}, "show_message")


@queue_group.command("shape")
@click.option("--by", type=click.Choice(["recipient", "sender", "class"]), default="recipient", show_default=True)
@click.option("--state", "states", multiple=True, help="Only deliveries in this state. May be repeated.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="At most so many rows.")
@CONFIG
@ADMIN
@JSON
def queue_shape(by: str, states: tuple[str, ...], limit: int, config: Path, admin: str | None, as_json: bool) -> None:
    """How many deliveries wait, by domain and by age in doublings; the domains with most come first."""
    from smtp_edge.cli.queue_tables import show_shape

    show_all(config, admin, as_json, "GetShape", {"by": by, "states": list(states), "limit": limit}, show_shape)


@click.command("why")
@click.argument("queue_id", metavar="QUEUE-ID")
@CONFIG
@ADMIN
@JSON
def why(queue_id: str, config: Path, admin: str | None, as_json: bool) -> None:
    """Why a message is still here: the reason, what happens next, and what each next hop would need to take it."""
    from smtp_edge.cli.queue_tables import show_reasons

    show_found(config, admin, as_json, "Why", {"queue_id": queue_id}, show_reasons)


def _show_queue(config: Path, admin: str | None, as_json: bool, limit: int, **selection: Any) -> None:
    from smtp_edge.cli.queue_tables import show_queue

    request = {"selection": _build_selection((), **selection), "limit": limit}
    show_all(config, admin, as_json, "GetQueue", request, show_queue)


def _build_selection(
    queue_ids: tuple[str, ...],
    *,
    class_ids: tuple[str, ...],
    domains: tuple[str, ...],
    senders: tuple[str, ...],
    states: tuple[str, ...],
    older: float | None,
    newer: float | None,
) -> dict[str, Any]:
    return {
        "queue_ids": list(queue_ids),
        "class_ids": list(class_ids),
        "domains": list(domains),
        "senders": list(senders),
        "states": list(states),
        "older_s": older or 0.0,
        "younger_s": newer or 0.0,
    }


@queue_group.command("repair")
@click.option("--check", "only_check", is_flag=True, help="Only say what is wrong.")
@click.option("--force", is_flag=True, help="Build it anew although nothing seems to be wrong.")
@click.option("--worker", default=1, show_default=True, type=click.IntRange(1), metavar="K", help="Whose queue.")
@CONFIG
def queue_repair(only_check: bool, force: bool, worker: int, config: Path) -> None:
    """Save what can be read of a damaged queue, while the node is stopped. Nothing is thrown away.

    The old database goes to a folder beside the new one, with a report. Mail that may be delivered already is held.
    """
    from smtp_edge.cli.repairing import repair_queue

    repair_queue(config, worker, only_check=only_check, force=force)


# -- orders ------------------------------------------------------------------------------------------------------------


def order_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every order takes."""
    for option in (
        click.option("--reason", default="", help="For the history; a bounce tells it to the sender."),
        click.option("--dry-run", is_flag=True, help="Only say how many deliveries are meant."),
        click.option("--all", "everything", is_flag=True, help="Everything, if nothing else is said."),
        JSON,
        ADMIN,
        CONFIG,
    ):
        command = option(command)
    return click.argument("queue_ids", metavar="[QUEUE-ID]...", nargs=-1)(selection_options(command))


@queue_group.command("hold")
@order_options
def queue_hold(**values: Any) -> None:
    """Keep what is meant here, untried, until it is released."""
    _order("hold", **values)


@queue_group.command("release")
@order_options
def queue_release(**values: Any) -> None:
    """Let held mail go, now. What could not be read is tried once more, if it is named by its id."""
    _order("release", **values)


@queue_group.command("retry")
@order_options
def queue_retry(**values: Any) -> None:
    """Make deferred mail due now; its attempts go on from where they are. Damaged mail: by its id."""
    _order("retry", **values)


YES = click.option("--yes", is_flag=True, help="Do not ask.")


@queue_group.command("bounce")
@YES
@order_options
def queue_bounce(yes: bool, **values: Any) -> None:
    """Return mail to its senders, as undeliverable, as they wish to be told."""
    _order("bounce", asks=not yes, **values)


@queue_group.command("remove")
@YES
@order_options
def queue_remove(yes: bool, **values: Any) -> None:
    """Give mail up without telling anybody but the history: the responsibility is yours. Damaged mail: by its id."""
    _order("remove", asks=not yes, **values)


@queue_group.command("move")
@click.option("--to-class", default="", metavar="CLASS", help="Give it another class of this node: a route, mx:DOMAIN.")
@click.option("--to-node", default="", metavar="NODE", help="Hand it to another relay, with its age and attempts.")
@order_options
def queue_move(to_class: str, to_node: str, **values: Any) -> None:
    """Send mail another way: by the exits of another class, or through another relay.

    What the other relay does not take stays here as it was. Mail that was there, or that another hop may have, stays.
    """
    if bool(to_class) == bool(to_node):
        raise click.UsageError("say where to: --to-class or --to-node")
    _order("move", extra={"to_class": to_class, "to_node": to_node}, **values)


def _order(
    action: str,
    *,
    queue_ids: tuple[str, ...],
    config: Path,
    admin: str | None,
    as_json: bool,
    everything: bool,
    dry_run: bool,
    reason: str,
    asks: bool = False,
    extra: dict[str, str] | None = None,
    **selection: Any,
) -> None:
    request: dict[str, Any] = {
        "action": action,
        "selection": _build_selection(queue_ids, **selection),
        "all": everything,
        "reason": reason,
        **(extra or {}),
    }
    if asks and not dry_run and _is_asked():
        planned = forget_absent(ask_all(config, admin, lambda client: _carry_out(client, request | {"dry_run": True})))
        end_with_troubles(planned)
        _confirm(action, sum(answer.value["changed"] for answer in planned))
    answers = forget_absent(ask_all(config, admin, lambda client: _carry_out(client, request | {"dry_run": dry_run})))
    done = [answer.value for answer in answers if answer.value is not None]
    if done:
        _say(action, done, dry_run=dry_run, as_json=as_json)
    end_with_troubles(answers)
    _end(done)


def _carry_out(client: Any, request: dict[str, Any]) -> dict[str, Any]:
    """All pages of an order; what they did together."""
    done: dict[str, Any] = dict.fromkeys(COUNTED, 0) | {"queue_ids": []}
    after: dict[str, Any] = {}
    while True:
        answer = client.call("ChangeQueue", request | after)
        for name in COUNTED:
            done[name] += getattr(answer, name)
        done["queue_ids"] += answer.queue_ids
        done["node_name"] = answer.node_name
        if not answer.after_id:
            return done
        after = {"after_id": answer.after_id, "after_copy": answer.after_copy}


def _is_asked() -> bool:
    """There is somebody who can answer."""
    return sys.stdin.isatty()


def _confirm(action: str, count: int) -> None:
    if count >= ASK_FROM:
        click.confirm(f"{action} {count} deliveries?", abort=True, err=True)


def _say(action: str, done: list[dict[str, Any]], *, dry_run: bool, as_json: bool) -> None:
    """What each worker did; those that had nothing to do are left out, if another one had."""
    from smtp_edge.cli.queue_tables import show_done

    if as_json:
        import json

        whole: dict[str, Any] = {"workers": {item["node_name"]: item for item in done}}
        click.echo(
            json.dumps({"action": action, "dry_run": dry_run} | (done[0] if len(done) == 1 else whole), indent=2)
        )
        return
    busy = [item for item in done if any(item[name] for name in COUNTED)]
    for item in busy or done[:1]:
        click.echo(show_done(action, item, dry_run=dry_run))


def _end(done: list[dict[str, Any]]) -> None:
    if any(item["under_way"] for item in done):
        sys.exit(EXIT_TRY_AGAIN)
    if not any(item["changed"] + item["damaged"] for item in done):
        sys.exit(EXIT_NOT_DONE)
