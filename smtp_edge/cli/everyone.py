"""Commands that concern the whole machine ask every worker of the node; a node of one process answers as it always did.

ask_all      one question to all, one answer or trouble each
show_all     the same, shown one after another
find_holder  the worker that knows a message
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from smtp_edge.cli.common import EXIT_NOT_DONE, EXIT_TRY_AGAIN, EXIT_UNREACHABLE, Door, Shower, find_doors, find_shower

ABORTED = "ABORTED"
"""gRPC's status of what may be tried again."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one worker."""

    name: str
    value: Any = None
    """What it answered; None: nothing, and `trouble` says why."""
    trouble: str = ""
    code: int = 0
    """For the exit of the command."""
    absent: bool = False
    """What was asked about is not there."""


def ask_all(config: Path, admin: str | None, ask: Callable[[Any], Any]) -> list[Answer]:
    """`ask` with a client of each."""
    return [ask_one(door, ask) for door in find_doors(config, admin)]


def ask_one(door: Door, ask: Callable[[Any], Any]) -> Answer:
    """What goes wrong is an answer, too."""
    from smtp_edge.admin.client import NOT_FOUND, CallError, UnreachableError

    try:
        with door.open() as client:
            return Answer(door.name, ask(client))
    except UnreachableError as error:
        return Answer(door.name, trouble=_named(door.name, str(error)), code=EXIT_UNREACHABLE)
    except CallError as error:
        code = EXIT_TRY_AGAIN if error.code == ABORTED else EXIT_NOT_DONE
        return Answer(door.name, trouble=_named(door.name, str(error)), code=code, absent=error.code == NOT_FOUND)


def show_all(
    config: Path,
    admin: str | None,
    as_json: bool,
    method: str,
    request: dict[str, Any],
    shower: str | Shower,
    *,
    headings: bool = True,
) -> None:
    """One call to each; `headings`: the answers are tables, which do not say whose they are."""
    answers = ask_all(config, admin, lambda client: client.call(method, request))
    show_answers(answers, as_json, find_shower(shower), headings=headings)


def show_answers(answers: list[Answer], as_json: bool, shower: Shower, *, headings: bool = True) -> None:
    """What was answered, then what was not; ends the process if that is anything."""
    from smtp_edge.cli import tables

    good = [answer for answer in answers if answer.value is not None]
    if as_json and len(answers) > 1:
        click.echo(tables.to_json_of({answer.name: answer.value for answer in good}))
    elif as_json:
        for answer in good:
            click.echo(tables.to_json(answer.value))
    else:
        between = "\n\n" if headings else "\n"
        shown = [
            f"{answer.name}:\n{shower(answer.value)}" if headings and answer.name else shower(answer.value)
            for answer in good
        ]
        if shown:
            click.echo(between.join(shown))
    end_with_troubles(answers)


def end_with_troubles(answers: list[Answer]) -> None:
    """Says them, and ends the process, if there are any."""
    troubles = [answer for answer in answers if answer.trouble]
    for answer in troubles:
        click.echo(f"smtpmesh: {answer.trouble}", err=True)
    if troubles:
        sys.exit(max(answer.code for answer in troubles))


def show_found(
    config: Path, admin: str | None, as_json: bool, method: str, request: dict[str, Any], shower: str | Shower
) -> None:
    """The answer of the worker that has what is asked for."""
    from smtp_edge.cli import tables

    answer = find_holder(config, admin, method, request)[1]
    click.echo(tables.to_json(answer) if as_json else find_shower(shower)(answer))


def find_holder(config: Path, admin: str | None, method: str, request: dict[str, Any]) -> tuple[Door, Any]:
    """The worker that has what is asked for, and its answer; ends the process if none has."""
    doors, answers = find_doors(config, admin), []
    for door in doors:
        answers.append(ask_one(door, lambda client: client.call(method, request)))
        if answers[-1].value is not None:
            break
    if answers[-1].value is None:
        end_with_troubles(forget_absent(answers))
    return doors[len(answers) - 1], answers[-1].value


def forget_absent(answers: list[Answer]) -> list[Answer]:
    """Without those that do not have what was asked about, if there is another answer; else only one of them."""
    others = [answer for answer in answers if not answer.absent]
    first = answers[0]
    return others or [replace(first, trouble=first.trouble.removeprefix(f"{first.name}: "))]


def _named(name: str, text: str) -> str:
    return f"{name}: {text}" if name else text
