"""`send`: submit a test mail, as a client of the node does; with `--wait`, say what became of it.

A bare host has no command that can do this. One message, one transaction, and every reply that matters is shown. Exit
code: 0 accepted (with --wait: it is gone), 1 refused for good, 75 for now (with --wait: it still waits), 3 nobody
there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smtp_edge.cli.common import (
    ADMIN,
    CONFIG,
    EXIT_NOT_DONE,
    EXIT_TRY_AGAIN,
    EXIT_UNREACHABLE,
    JSON,
    Duration,
    fail,
    load_for_reading,
)
from smtp_edge.cli.everyone import find_holder

if TYPE_CHECKING:
    from smtp_edge.cli.submitting import Submission

POLL_S = 0.25


@click.command("send")
@click.argument("recipients", metavar="ADDRESS...", nargs=-1, required=True)
@click.option(
    "--from", "sender", default="", help='Reverse-path. [default: postmaster@ this node; "<>" is the null one]'
)
@click.option("--subject", default="smtpmesh test", show_default=True)
@click.option("--file", "file", type=click.File("rb"), help="A whole message instead, or - for standard input.")
@click.option("--size", type=click.IntRange(0, 1 << 30), default=0, metavar="BYTES", help="Fill up to this size.")
@click.option("--server", metavar="HOST:PORT", help="[default: the first listener of --config]")
@click.option("--tls", type=click.Choice(["none", "starttls", "implicit"]), help="[default: as that listener has it]")
@click.option("--user", help="AUTH, over TLS.")
@click.option("--password-file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--wait", is_flag=True, help="Say what becomes of it.")
@click.option("--timeout", type=Duration(), default="60s", show_default=True, help="With --wait: at most so long.")
@CONFIG
@ADMIN
@JSON
def send(
    recipients: tuple[str, ...],
    sender: str,
    subject: str,
    file: Any,
    size: int,
    server: str | None,
    tls: str | None,
    user: str | None,
    password_file: Path | None,
    wait: bool,
    timeout: float,
    config: Path,
    admin: str | None,
    as_json: bool,
) -> None:
    """Submit a test mail to ADDRESS by SMTP, and show the node's replies."""
    from smtp_edge.cli.submitting import DoorError, SubmitError, build_message, find_door, submit

    settings = load_for_reading(config) if server is None else None
    try:
        door = find_door(settings, server, tls)
    except DoorError as error:
        raise click.UsageError(str(error)) from error
    if user and door.tls == "none":
        raise click.UsageError("a password never travels in the clear; say --tls starttls or implicit")
    hostname = (settings.node.hostname if settings is not None else "") or "localhost"
    sender = "" if sender == "<>" else sender or f"postmaster@{hostname}"
    given = file.read() if file is not None else b""
    content, message_id = build_message(given, sender, recipients, subject, size, hostname)
    password = password_file.read_text("utf-8").strip() if password_file is not None else ""
    try:
        done = submit(door, sender, recipients, content, message_id, (user, password) if user else None)
    except SubmitError as error:
        fail(str(error), EXIT_UNREACHABLE)
    if not as_json:
        for step, code, text in done.replies:
            click.echo(f"{step:<32} {code} {text}")
    outcome = _follow(done.queue_id, config, admin, timeout) if wait and done.queue_id else None
    _finish(done, outcome, as_json=as_json)


def _follow(queue_id: str, config: Path, admin: str | None, timeout_s: float) -> dict[str, Any]:
    """What became of it: `done` when nothing more will happen here, and why it is not."""
    from smtp_edge.admin.client import CallError, UnreachableError

    deadline = time.monotonic() + timeout_s
    try:
        with find_holder(config, admin, "Why", {"queue_id": queue_id})[0].open() as client:
            while True:
                answer = client.call("Why", {"queue_id": queue_id})
                ends = [(item.delivery.state, item.answer) for item in answer.deliveries]
                done = all(state in ("relayed", "failed", "expired") for state, _ in ends)
                if done or time.monotonic() >= deadline:
                    lost = any(state in ("failed", "expired") for state, _ in ends)
                    return {"done": done, "failed": lost, "deliveries": [text for _, text in ends]}
                time.sleep(POLL_S)
    except UnreachableError as error:
        fail(str(error), EXIT_UNREACHABLE)
    except CallError as error:
        fail(str(error), EXIT_NOT_DONE)


def _finish(done: Submission, outcome: dict[str, Any] | None, *, as_json: bool) -> None:
    """Say the rest, and end with the code that it deserves."""
    if as_json:
        import json

        replies = [{"step": step, "code": code, "text": text} for step, code, text in done.replies]
        shown = {"server": done.server, "queue_id": done.queue_id, "message_id": done.message_id, "replies": replies}
        click.echo(json.dumps({**shown, **({"outcome": outcome} if outcome is not None else {})}, indent=2))
    elif outcome is not None:
        for text in outcome["deliveries"]:
            click.echo(text)
    if done.code >= 500 or (outcome is not None and outcome["failed"]):
        sys.exit(EXIT_NOT_DONE)
    if done.code >= 400 or (outcome is not None and not outcome["done"]):
        sys.exit(EXIT_TRY_AGAIN)
