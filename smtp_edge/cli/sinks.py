"""`smtpmesh sinks`: which sinks are bound, which would be asked about a message, and what they say of one."""

from __future__ import annotations

import asyncio
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from smtp_edge.cli.common import CONFIG, EXIT_BAD_CONFIGURATION, EXIT_NOT_DONE, fail, load_for_reading


@click.group("sinks")
def sinks_group() -> None:
    """Look at the sinks of a configuration: `sinks explain`, `sinks try`."""


@sinks_group.command("explain")
@click.argument("message", default="")
@CONFIG
def explain_sinks(message: str, config: Path) -> None:
    """Show which sinks are asked about MESSAGE, in which order and for which recipients.

    MESSAGE is in words: "listener=inbound; client=192.0.2.7; mail from=sue@example.net; rcpt to=ann@example.org".
    Without it, all bindings are shown that have no rule.
    """
    from smtp_edge.cli.tables import table
    from smtp_edge.sinks.explaining import explain, parse_facts
    from smtp_edge.sinks.rules import RuleError

    try:
        facts = parse_facts(message)
    except RuleError as error:
        fail(str(error), EXIT_NOT_DONE)
    rows = [
        [
            step.event,
            step.binding.name,
            str(step.binding.priority),
            f"{step.binding.limit_s(step.event):g} s",
            step.binding.on_failure if step.event != "route" else "wait",
            ", ".join(step.recipients),
        ]
        for step in explain(_load_chain(config), facts)
    ]
    rows.append(["route", "mesh", "last", "", "wait", ", ".join(item.address for item in facts.recipients)])
    click.echo(table(["EVENT", "SINK", "PRIORITY", "TIMEOUT", "ON FAILURE", "RECIPIENTS"], rows))


@sinks_group.command("try")
@click.argument("name")
@click.option("--eml", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="The message.")
@click.option("--from", "sender", default="sender@example.net", show_default=True, help="Reverse-path.")
@click.option("--to", "recipients", multiple=True, default=["recipient@example.org"], show_default=True)
@click.option("--client", default="192.0.2.1", show_default=True, help="Address of the client.")
@click.option("--with", "given", multiple=True, metavar="KEY=VALUE", help="A setting of the sink; VALUE as in TOML.")
@CONFIG
def try_sink(
    name: str, eml: Path, sender: str, recipients: tuple[str, ...], client: str, given: tuple[str, ...], config: Path
) -> None:
    """Ask one sink about a message, and show what becomes of it.

    NAME is the `name` or `use` of a [[sink]] of the configuration: then its rule, time limit and settings count.
    With --with, or if no [[sink]] has it, it is an entry point or module:Class. Lines of the message may end in LF.
    """
    from dataclasses import replace

    import structlog

    from smtp_edge.sinks.chain import SinkError
    from smtp_edge.sinks.testing import CLIENT, ask

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
    text = eml.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    try:
        bindings = _find_bindings(name, given, config)
        who = replace(CLIENT, address=client)
        outcome = asyncio.run(ask(bindings, text, sender=sender, recipients=recipients, client=who))
    except SinkError as error:
        fail(str(error), EXIT_NOT_DONE)
    if outcome.reply:
        click.echo(outcome.reply)
        return
    for recipient, reason in outcome.held:
        click.echo(f"held      {recipient}: {reason}")
    for recipient in outcome.recipients:
        if recipient not in dict(outcome.held):
            click.echo(f"accepted  {recipient}")
    if outcome.content == text:
        click.echo("unchanged")
        return
    header = outcome.content.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"\n").decode("utf-8", "replace")
    click.echo(f"changed; its header is now:\n{header}")


def _find_bindings(name: str, given: tuple[str, ...], config: Path) -> Any:
    from smtp_edge.settings import SinkSettings
    from smtp_edge.sinks.bindings import load_bindings

    sections = [] if given or not config.exists() else load_for_reading(config).sink
    chosen = [section for section in sections if name in (section.name, section.use)]
    if chosen:
        return load_bindings(chosen)
    settings: dict[str, Any] = {}
    for item in given:
        key, separator, value = item.partition("=")
        if not separator:
            fail(f"--with {item!r} is not of the form KEY=VALUE", EXIT_NOT_DONE)
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
    return load_bindings([SinkSettings.model_validate({"use": name, "with": settings})])


def _load_chain(config: Path) -> Any:
    from smtp_edge.sinks.bindings import load_bindings
    from smtp_edge.sinks.chain import SinkChain, SinkError

    try:
        return SinkChain(load_bindings(load_for_reading(config).sink))
    except SinkError as error:
        fail(str(error), EXIT_BAD_CONFIGURATION)
