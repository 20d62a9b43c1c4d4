"""Loading a node's TOML file: all mistakes at once, each with file, key, what is wrong and the way out.

    node.toml: queue.retry_first_s: must be greater than 0, not -1
    node.toml: queue.retry_frist_s: unknown key; did you mean retry_first_s?

Paths are relative to the folder of the file. Relations between keys are checked here too, so that what loads can run.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from smtp_edge.settings import ListenerSettings, Settings, SmartHostSettings

PORT_MAX = 65535
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing to repair."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class ConfigurationError(Exception):
    """The configuration cannot be used; `str()` is one line for each mistake, with the file's name."""

    def __init__(self, path: Path, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(f"{path}: {mistake}" for mistake in mistakes))
        self.path, self.mistakes = path, mistakes


def load_configuration(path: Path) -> tuple[Settings, list[str]]:
    """The settings of a file, and warnings. ConfigurationError with all mistakes."""
    raw = _read(path)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError(path, [_translate(detail) for detail in error.errors()]) from None
    settings = _resolve(settings, path.absolute().parent)
    mistakes = list(_check(settings))
    if mistakes:
        raise ConfigurationError(path, mistakes)
    return settings, list(_warn(settings))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        text = "there is no such file; `smtpmesh init FOLDER` writes one, `--config FILE` names one"
        raise ConfigurationError(path, [Mistake("", text)]) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigurationError(path, [Mistake("", f"cannot be read: {reason}")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(path, [Mistake("", f"is not valid TOML: {error}")]) from None


# -- pydantic's words as ours ------------------------------------------------------------------------------------------


def _translate(detail: ErrorDetails) -> Mistake:
    location = detail["loc"]
    key = _spell(location)
    context = detail.get("ctx", {})
    given = detail.get("input")
    match detail["type"]:
        case "extra_forbidden":
            return Mistake(key, f"unknown key{_suggest(location)}")
        case "missing":
            return Mistake(key, "is required")
        case "literal_error":
            return Mistake(key, f"must be one of {context.get('expected')}, not {given!r}")
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return Mistake(key, f"must be {detail['msg'].removeprefix('Input should be ')}, not {given!r}")
        case "string_pattern_mismatch":
            return Mistake(key, f"{given!r} is no name: letters, digits, dot, dash and underscore, at most 63")
        case _:
            return Mistake(
                key, f"{detail['msg'].removeprefix('Input should be ').removeprefix('Value error, ')}, not {given!r}"
            )


def _spell(location: Iterable[int | str]) -> str:
    """`listener[0].tls`; the members of unions that pydantic names are left out."""
    words = ""
    for part in location:
        if isinstance(part, int):
            words += f"[{part}]"
        elif part not in ("IPv4Network", "IPv6Network", "ipv4network", "ipv6network"):
            words += f".{part}" if words else part
    return words


def _suggest(location: tuple[int | str, ...]) -> str:
    known = sorted(_keys_at(location[:-1]))
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _keys_at(location: tuple[int | str, ...]) -> set[str]:
    model: Any = Settings
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        model = next((kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)), None)
        if model is None:
            return set()
    return {field.alias or name for name, field in model.model_fields.items()}


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


# -- paths -------------------------------------------------------------------------------------------------------------


def _resolve(settings: Settings, folder: Path) -> Settings:
    """Every path made absolute, from the folder of the file."""
    return _resolve_section(settings, folder)


def _resolve_section(section: Model, folder: Path) -> Model:
    changes = {name: _resolve_value(getattr(section, name), folder) for name in type(section).model_fields}
    return section.model_copy(update=changes)


def _resolve_value(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, BaseModel):
        return _resolve_section(value, folder)
    if isinstance(value, tuple):
        return tuple(_resolve_value(item, folder) for item in value)
    return value


# -- relations ---------------------------------------------------------------------------------------------------------


def _check(settings: Settings) -> Iterator[Mistake]:
    yield from _check_names(settings)
    yield from _check_routes(settings)
    yield from _check_addresses(settings)
    for number, listener in enumerate(settings.listener):
        yield from _check_listener(f"listener[{number}]", listener)
    for number, host in enumerate(settings.smart_host):
        yield from _check_smart_host(f"smart_host[{number}]", host)
    for key in ("ca", "certificate", "key"):
        yield from _check_file(f"cluster.{key}", getattr(settings.cluster, key), "`smtpmesh init` makes it")
    if settings.queue.retry_first_s > settings.queue.retry_max_s:
        yield Mistake("queue.retry_first_s", "must not be greater than queue.retry_max_s")


def _check_names(settings: Settings) -> Iterator[Mistake]:
    for key, sections in (
        ("listener", settings.listener),
        ("smart_host", settings.smart_host),
        ("route", settings.route),
    ):
        names = [section.name for section in sections]
        for number, name in enumerate(names):
            if name in names[:number]:
                yield Mistake(f"{key}[{number}].name", f"{name!r} is used twice")


def _check_routes(settings: Settings) -> Iterator[Mistake]:
    known = sorted(host.name for host in settings.smart_host)
    if not settings.route:
        yield Mistake("route", 'no [[route]] says where mail goes; add one with via = smart-host names or ["mx"]')
    for number, route in enumerate(settings.route):
        if not route.via:
            yield Mistake(f"route[{number}].via", 'is empty; name smart hosts, or "mx" for direct delivery')
        if route.via == ("mx",):
            continue
        for name in route.via:
            if name == "mx":
                yield Mistake(f"route[{number}].via", '"mx" stands alone: a route uses smart hosts or exchangers')
            elif name not in known:
                yield Mistake(
                    f"route[{number}].via", f"no smart host is named {name!r}; there are: {', '.join(known) or 'none'}"
                )


def _check_addresses(settings: Settings) -> Iterator[Mistake]:
    places = [("gossip.listen", settings.gossip.listen), ("mesh.listen", settings.mesh.listen)]
    places += [(f"listener[{n}].listen", section.listen) for n, section in enumerate(settings.listener)]
    if not settings.admin.listen.startswith("unix:"):
        places.append(("admin.listen", settings.admin.listen))
    taken: dict[str, str] = {}
    for key, address in places:
        if not _is_address(address):
            yield Mistake(key, f"{address!r} is not host:port, with an address of this machine")
        elif address in taken and not address.endswith(":0"):
            yield Mistake(key, f"{address} is taken by {taken[address]}")
        taken.setdefault(address, key)
    for key, address in (("gossip.listen", settings.gossip.listen), ("mesh.listen", settings.mesh.listen)):
        section = settings.gossip if key.startswith("gossip") else settings.mesh
        if _is_address(address) and ip_address(_host(address)).is_unspecified and not section.advertise:
            yield Mistake(key.replace("listen", "advertise"), f"is required when {key} is {address}: peers dial it")
    for number, seed in enumerate(settings.gossip.join):
        if not _has_port(seed):
            yield Mistake(f"gossip.join[{number}]", f"{seed!r} is not host:port")


def _check_listener(key: str, listener: ListenerSettings) -> Iterator[Mistake]:
    if listener.tls != "none" and listener.certificate is None:
        yield Mistake(f"{key}.certificate", f"is required for tls = {listener.tls!r}")
    if listener.tls == "none" and listener.certificate is not None:
        yield Mistake(f"{key}.tls", 'is "none", so the certificate would never be shown; set "starttls" or "implicit"')
    if listener.auth_users is not None and listener.tls == "none":
        yield Mistake(f"{key}.auth_users", 'needs TLS: passwords never travel in the clear; set tls = "starttls"')
    for name in ("certificate", "key", "auth_users"):
        path = getattr(listener, name)
        if path is not None:
            yield from _check_file(f"{key}.{name}", path, "")


def _check_smart_host(key: str, host: SmartHostSettings) -> Iterator[Mistake]:
    if bool(host.user) != (host.password_file is not None):
        yield Mistake(f"{key}.user", "and password_file go together")
    if host.user and host.tls == "none":
        yield Mistake(
            f"{key}.tls", 'is "none", so the password would travel in the clear; set "starttls" or "implicit"'
        )
    for name in ("password_file", "tls_ca"):
        path = getattr(host, name)
        if path is not None:
            yield from _check_file(f"{key}.{name}", path, "")


def _check_file(key: str, path: Path, way_out: str) -> Iterator[Mistake]:
    try:
        with path.open("rb"):
            return
    except OSError as error:
        yield Mistake(key, f"{path}: {error.strerror}" + (f"; {way_out}" if way_out else ""))


def _warn(settings: Settings) -> Iterator[str]:
    """What runs, but surely not as meant."""
    for listener in settings.listener:
        if not (listener.allow_networks or listener.relay_domains or listener.auth_users):
            yield (
                f"listener {listener.name} ({listener.listen}) relays for nobody: "
                "set allow_networks, relay_domains or auth_users"
            )
    if not settings.listener:
        yield "there is no [[listener]]: this node takes mail from peers only"


def _is_address(text: str) -> bool:
    if not _has_port(text):
        return False
    try:
        ip_address(_host(text))
    except ValueError:
        return False
    return True


def _has_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and int(port) <= PORT_MAX


def _host(text: str) -> str:
    return text.rpartition(":")[0].strip("[]")
