"""Meshes and failures from TOML files, for `smtpmesh simulate`.

# mesh.toml                          # failover.toml
[[host]]                             [[event]]
name = "s1"                          at = 10
capacity_mps = 40                    do = "kill"
[[relay]]                            what = "s1"
name = "a"                           [[event]]
exits = ["s1"]                       at = 20
[[load]]                             do = "restart"
relay = "a"                          what = "s1"
rate_mps = 30
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from smtp_edge.configuration import ConfigurationError, describe
from smtp_edge.mistake import Mistake
from smtp_edge.setting_kinds import Name, Seconds, Section, Tags
from smtp_edge.simulation.mesh import DOMAIN, Mesh, MeshError
from smtp_edge.simulation.relay import Strategy

Rate = Annotated[float, Field(gt=0, le=1_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Model = TypeVar("Model", bound=Section)


class HostSection(Section):
    """[[host]]: a smart host."""

    name: Name
    capacity_mps: Rate | None = None
    """Without it, it takes everything at once."""
    error_rate: Share = 0.0
    tags: Tags = ()
    size_bytes_max: Annotated[int, Field(ge=0)] = 0
    """Larger messages never go there; 0 = any."""
    greylist_s: Seconds = 0.0
    """It tells every message to come back, until so long after it saw it first."""


class RelaySection(Section):
    """[[relay]]: a node of the cluster, and the hosts that it can reach."""

    name: Name
    exits: tuple[Name, ...] = ()
    tags: Tags = ()


class RouteSection(Section):
    """[[route]]: as in node.toml."""

    name: Name
    domains: tuple[str, ...] = ("*",)
    via: tuple[Name, ...]
    require_tags: Tags = ()
    forbid_tags: Tags = ()
    transit: bool = True


class WaySection(Section):
    """[[way]]: from a relay to a relay or host. What is not named is fast and sound."""

    from_: Annotated[Name, Field(alias="from")]
    to: Name
    capacity_mps: Rate | None = None
    latency_s: Seconds = 0.002
    loss: Share = 0.0
    lost_replies: Share = 0.0


class LoadSection(Section):
    """[[load]]: clients that submit mail."""

    relay: Name
    rate_mps: Rate
    domain: str = DOMAIN
    since: Seconds = 0.0
    until: Seconds | None = None
    size_bytes: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Of each message; 0 = a short one."""


class MeshFile(Section):
    """mesh.toml."""

    seed: int = 1
    duration_s: Annotated[float, Field(gt=0, le=604_800)] = 60.0
    host: tuple[HostSection, ...] = ()
    relay: tuple[RelaySection, ...] = ()
    route: tuple[RouteSection, ...] = ()
    way: tuple[WaySection, ...] = ()
    load: tuple[LoadSection, ...] = ()


class EventSection(Section):
    """[[event]]: one failure, or its end."""

    at: Seconds
    do: Literal["kill", "restart", "silence", "degrade", "partition", "heal", "block", "unblock", "drain", "undrain"]
    what: str = ""
    """A relay or host; for block and unblock the relay that sends."""
    to: str = ""
    """For block, unblock, and a way that is degraded: the next hop."""
    speed: Share = 0.2
    error_rate: Share = 0.5
    every_s: Annotated[float, Field(gt=0)] | None = None
    """With `times`: the same again after so many seconds."""
    times: Annotated[int, Field(ge=1, le=100_000)] = 1
    one: tuple[Name, ...] = ()
    other: tuple[Name, ...] = ()
    """For partition: the two groups."""


class ScenarioFile(Section):
    """failover.toml."""

    event: tuple[EventSection, ...] = ()


def load_mesh(path: Path) -> MeshFile:
    """The topology. ConfigurationError with all mistakes."""
    return _load(path, MeshFile)


def load_scenario(path: Path) -> ScenarioFile:
    """The failures. ConfigurationError with all mistakes."""
    return _load(path, ScenarioFile)


def _load(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise ConfigurationError(path, [Mistake("", "there is no such file")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(path, [Mistake("", f"cannot be read: {error}")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(path, [Mistake("", f"is not valid TOML: {error}")]) from None
    except ValidationError as error:
        raise ConfigurationError(path, describe(error, model)) from None


def build(
    topology: MeshFile,
    scenario: ScenarioFile | None = None,
    *,
    seed: int | None = None,
    strategy: Strategy | None = None,
) -> Mesh:
    """The mesh, ready to run. MeshError for names that do not fit together."""
    mesh = Mesh(seed=topology.seed if seed is None else seed, strategy=strategy)
    for host in topology.host:
        mesh.host(
            host.name,
            _unlimited(host.capacity_mps),
            error_rate=host.error_rate,
            tags=host.tags,
            size_bytes_max=host.size_bytes_max,
            greylist_s=host.greylist_s,
        )
    for relay in topology.relay:
        mesh.relay(relay.name, relay.exits, tags=relay.tags)
    for route in topology.route:
        mesh.route(
            route.name,
            route.domains,
            route.via,
            require_tags=route.require_tags,
            forbid_tags=route.forbid_tags,
            transit=route.transit,
        )
    for way in topology.way:
        mesh.way(
            way.from_,
            way.to,
            capacity_mps=_unlimited(way.capacity_mps),
            latency_s=way.latency_s,
            loss=way.loss,
            lost_replies=way.lost_replies,
        )
    for load in topology.load:
        mesh.load(
            load.relay,
            load.rate_mps,
            domain=load.domain,
            since=load.since,
            until=_unlimited(load.until),
            size_bytes=load.size_bytes,
        )
    for event in scenario.event if scenario is not None else ():
        if event.do not in ("heal", "partition") and not event.what:
            raise MeshError(f"the event at {event.at:g} s ({event.do}) does not say what")
        if event.times > 1 and event.every_s is None:
            raise MeshError(f"the event at {event.at:g} s ({event.do}) happens {event.times} times; say every_s, too")
        for number in range(event.times):
            _plan(mesh, event.model_copy(update={"at": event.at + number * (event.every_s or 0.0)}))
    return mesh


def _plan(mesh: Mesh, event: EventSection) -> None:
    match event.do:
        case "kill":
            mesh.kill(event.what, at=event.at)
        case "restart":
            mesh.restart(event.what, at=event.at)
        case "silence":
            mesh.silence(event.what, at=event.at)
        case "degrade":
            mesh.degrade(event.what, to=event.to, speed=event.speed, error_rate=event.error_rate, at=event.at)
        case "partition":
            mesh.partition(event.one, event.other, at=event.at)
        case "heal":
            mesh.heal(at=event.at)
        case "block":
            mesh.block(event.what, event.to, at=event.at)
        case "unblock":
            mesh.unblock(event.what, event.to, at=event.at)
        case "drain":
            mesh.drain(event.what, at=event.at)
        case "undrain":
            mesh.undrain(event.what, at=event.at)


def _unlimited(value: float | None) -> float:
    return float("inf") if value is None else value
