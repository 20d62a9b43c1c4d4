"""`smtpmesh simulate`: what a mesh does when something fails, without a mesh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import click

EXIT_NOT_DONE = 1
EXIT_BAD_CONFIGURATION = 78


@click.command()
@click.argument("mesh", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--scenario", type=click.Path(path_type=Path, dir_okay=False), help="What fails, and when.")
@click.option("--duration", type=click.FloatRange(min=0.1), help="Virtual seconds, instead of the file's duration_s.")
@click.option("--seed", type=int, help="Another run of the same mesh, instead of the file's seed.")
@click.option(
    "--plot", "plots", type=click.Path(path_type=Path, dir_okay=False), multiple=True,
    help="Write a picture (.png, .svg) or a page (.html); may be given several times.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the timeline.")
def simulate(
    mesh: Path, scenario: Path | None, duration: float | None, seed: int | None, plots: tuple[Path, ...], as_json: bool
) -> None:
    """Run a mesh with real engines and queues in virtual time, and account for every message.

    MESH is a TOML file of hosts, relays, ways and loads; the scenario is one of events. The same files and seed give
    the same run. Exit code 1 if a message was lost.
    """
    import structlog

    from smtp_edge.configuration import ConfigurationError
    from smtp_edge.simulation import MeshError
    from smtp_edge.simulation.plot import PlotError, save
    from smtp_edge.simulation.report import build_report, render
    from smtp_edge.simulation.scenario import build, load_mesh, load_scenario

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        topology = load_mesh(mesh)
        built = build(topology, load_scenario(scenario) if scenario is not None else None, seed=seed)
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
            save(report, path, f"{mesh.stem}{f' + {scenario.stem}' if scenario is not None else ''}")
        except (PlotError, OSError) as error:
            _fail(str(error), EXIT_NOT_DONE)
    if report.lost:
        _fail(f"{report.lost} messages were lost: that must never be", EXIT_NOT_DONE)


def _fail(text: str, code: int) -> NoReturn:
    click.echo("\n".join(f"smtpmesh: {line}" for line in text.splitlines()), err=True)
    raise SystemExit(code)
