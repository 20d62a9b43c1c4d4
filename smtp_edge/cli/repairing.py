"""`queue repair`: on the files of a node that is stopped."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click

from smtp_edge.cli.common import EXIT_NOT_DONE, fail, load_for_reading
from smtp_edge.configuration import find_hostname
from smtp_edge.queue.errors import StoreError
from smtp_edge.queue.repair import check, repair
from smtp_edge.routes import build_table
from smtp_edge.sorting import Sorter
from smtp_edge.workers import Worker


def repair_queue(config: Path, worker: int, *, only_check: bool, force: bool) -> None:
    """Ends with 1 if something is wrong (check), or is lost or in doubt (repair)."""
    given = load_for_reading(config)
    settings = Worker(worker, given.node.workers).derive(given)
    queue, sorter = settings.node.data_dir / "queue", Sorter(build_table(settings), find_hostname(settings))
    try:
        if only_check:
            _end(check(queue))
        report = repair(queue, class_of=sorter.class_of, at=datetime.now(UTC), force=force)
    except StoreError as error:
        fail(str(error), EXIT_NOT_DONE)
    for line in report.lines():
        click.echo(line)
    if report.folder is None:
        click.echo(f"{queue}: nothing is wrong, and nothing was changed")
    elif not report.clean:
        click.echo("look at what is held or damaged with `smtpmesh queue` when the node runs again")
        sys.exit(EXIT_NOT_DONE)


def _end(problems: list[str]) -> None:
    for problem in problems:
        click.echo(f"problem: {problem}")
    if not problems:
        click.echo("nothing is wrong")
    sys.exit(EXIT_NOT_DONE if problems else 0)
