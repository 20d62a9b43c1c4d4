"""`smtpmesh simulate`: what a mesh does when something fails, without a mesh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from smtp_edge.cli.whatif import Rate

if TYPE_CHECKING:
    from smtp_edge.simulation.scenario import MeshFile

EXIT_NOT_DONE = 1
EXIT_BAD_CONFIGURATION = 78


@click.command()
@click.argument("mesh", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--from-live",
    "live",
    metavar="ADDRESS",
    help="Instead of MESH: the topology and scores of a running cluster, from a node's admin service "
    "(unix:PATH or HOST:PORT).",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("node.toml"),
    show_default=True,
    help="With --from-live HOST:PORT: whose certificates to show there.",
)
@click.option("--load", "load_mps", type=Rate(), help="With --from-live: so much mail, instead of what arrives now.")
@click.option(
    "--write",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --from-live: write the mesh to a file, to change it and run it later.",
)
@click.option("--scenario", type=click.Path(path_type=Path, dir_okay=False), help="What fails, and when.")
@click.option("--duration", type=click.FloatRange(min=0.1), help="Virtual seconds, instead of the file's duration_s.")
@click.option("--seed", type=int, help="Another run of the same mesh, instead of the file's seed.")
@click.option(
    "--plot", "plots", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
    help="Write a picture (.png, .svg) or a page (.html); may be given several times.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the timeline.")
def simulate(
    mesh: Path | None,
    live: str | None,
    config: Path,
    load_mps: float | None,
    write: Path | None,
    scenario: Path | None,
    duration: float | None,
    seed: int | None,
    plots: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Run a mesh with real engines and queues in virtual time, and account for every message.

    MESH is a TOML file of hosts, relays, ways and loads; the scenario is one of events. The same files and seed give
    the same run. Exit code 1 if a message was lost.
    """
    if (mesh is None) == (live is None):
        raise click.UsageError("say what to simulate: a file MESH, or --from-live ADDRESS")
    if live is None and (load_mps is not None or write is not None):
        raise click.UsageError("--load and --write go with --from-live; a file says its loads itself")
    import structlog

    from smtp_edge.configuration import ConfigurationError
    from smtp_edge.simulation import MeshError
    from smtp_edge.simulation.plot import PlotError, save
    from smtp_edge.simulation.report import build_report, render
    from smtp_edge.simulation.scenario import ScenarioFile, build, load_mesh, load_scenario

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        topology, events = (load_mesh(mesh), ()) if mesh is not None else _take(live or "", config, load_mps, write)
        story = load_scenario(scenario) if scenario is not None else ScenarioFile()
        built = build(topology, story.model_copy(update={"event": (*events, *story.event)}), seed=seed)
    except (ConfigurationError, MeshError) as error:
        _fail(str(error), EXIT_BAD_CONFIGURATION)
    with built:
        try:
            built.run(duration if duration is not None else topology.duration_s)
        except MeshError as error:
            _fail(str(error), EXIT_BAD_CONFIGURATION)
        report = build_report(built)
    click.echo(json.dumps(report.values()) if as_json else render(report))
    for path in plots:
        try:
            save(report, path, " + ".join(file.stem for file in (mesh or Path("live"), scenario) if file is not None))
        except (PlotError, OSError) as error:
            _fail(str(error), EXIT_NOT_DONE)
    if report.lost:
        _fail(f"{report.lost} messages were lost: that must never be", EXIT_NOT_DONE)


def _take(address: str, config: Path, load_mps: float | None, write: Path | None) -> tuple[MeshFile, tuple[Any, ...]]:
    """The mesh of a running cluster, and what is down in it."""
    from smtp_edge.admin.client import CallError, UnreachableError
    from smtp_edge.cli.common import EXIT_UNREACHABLE, open_client
    from smtp_edge.simulation.live import LiveError, read_live, write_toml

    try:
        with open_client(config, address, hint="--from-live") as client:
            nodes, links = client.call("ListNodes", {}), client.call("ListLinks", {})
        found = read_live(nodes, links, load_mps)
        if write is not None:
            write.write_text(write_toml(found), "utf-8")
    except UnreachableError as error:
        _fail(str(error), EXIT_UNREACHABLE)
    except (CallError, LiveError) as error:
        _fail(str(error), EXIT_NOT_DONE)
    except OSError as error:
        _fail(f"{write}: {error.strerror}", EXIT_NOT_DONE)
    click.echo(f"taken from {address}: {found.summary()}", err=True)
    return found.mesh, found.events


def _fail(text: str, code: int) -> NoReturn:
    click.echo("\n".join(f"smtpmesh: {line}" for line in text.splitlines()), err=True)
    raise SystemExit(code)
