"""Loading a node's TOML file: all mistakes at once, each with file, key, what is wrong and the way out.

    node.toml: queue.retry_first_s: must be greater than 0, not -1
    node.toml: queue.retry_frist_s: unknown key; did you mean retry_first_s?

Paths are relative to the folder of the file. Relations between keys (`smtp_edge.relations`) are checked here too, so
that what loads can run. They need whole settings: values that are wrong are replaced by their defaults for that check,
and what it says about such a section is held back.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from socket import getfqdn
from typing import Any, TypeVar, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from smtp_edge.mistake import Mistake
from smtp_edge.relations import find_mistakes, find_warnings
from smtp_edge.settings import Settings

__all__ = ["ConfigurationError", "Mistake", "find_hostname", "load_configuration"]

REPAIRS_MAX = 4
GIVEN_CHARACTERS_MAX = 60
STAND_INS: dict[str, Any] = {"node": {"name": "x"}, "name": "x", "host": "x", "via": ["mx"], "use": "x"}
"""Values for required keys that are missing or wrong, while the relations of the rest are checked."""
Model = TypeVar("Model", bound=BaseModel)
Location = tuple[int | str, ...]


class ConfigurationError(Exception):
    """The configuration cannot be used; `str()` is one line for each mistake, with the file's name."""

    def __init__(self, path: Path, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(f"{path}: {mistake}" for mistake in mistakes))
        self.path, self.mistakes = path, mistakes


def load_configuration(path: Path, *, files: bool = True) -> tuple[Settings, list[str]]:
    """The settings of a file, and warnings. ConfigurationError with all mistakes; `files`: those it names must open."""
    settings, mistakes = _validate(_read(path))
    if settings is not None:
        settings = _resolve_section(settings, path.absolute().parent)
        relations = find_mistakes(settings, files=files)
        mistakes += [broken for broken in relations if _stands_alone(broken, mistakes)]
    if mistakes or settings is None:
        raise ConfigurationError(path, mistakes)
    return settings, list(find_warnings(settings))


def find_hostname(settings: Settings) -> str:
    """The name in EHLO, Received and the greeting. May ask the DNS for the machine's own."""
    return settings.node.hostname or getfqdn()


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


# -- mistakes of single keys -------------------------------------------------------------------------------------------


def _validate(raw: dict[str, Any]) -> tuple[Settings | None, list[Mistake]]:
    """Settings and the mistakes of single keys. With mistakes, the settings are what is left (None: too little)."""
    mistakes: list[Mistake] = []
    repaired = copy.deepcopy(raw)
    for _ in range(REPAIRS_MAX):
        try:
            return Settings.model_validate(repaired), mistakes
        except ValidationError as error:
            details = error.errors()
        if not mistakes:
            mistakes = [_translate(detail) for detail in details]
        for detail in details:
            _repair(repaired, detail["loc"], missing=detail["type"] == "missing")
    return None, mistakes


def _repair(raw: dict[str, Any], location: Location, *, missing: bool) -> None:
    """Take out the wrong value, or put a stand-in where one is missing."""
    words = list(location)
    while words and isinstance(words[-1], int):  # one element of a list is wrong: the list goes
        words.pop()
    holder: Any = raw
    for part in words[:-1]:
        try:
            holder = holder[part]
        except (LookupError, TypeError):
            return
    if not isinstance(holder, dict):
        return
    holder.pop(words[-1], None)
    if missing:
        holder[words[-1]] = copy.deepcopy(STAND_INS.get(str(words[-1]), "x"))


def _stands_alone(broken: Mistake, mistakes: list[Mistake]) -> bool:
    """True if no section that the rule read has a mistake of its own."""
    read = (_section_of(broken.key), *broken.rests_on)
    wrong = [_section_of(mistake.key) for mistake in mistakes]
    return not any(section == part or section.startswith(f"{part}[") for section in wrong for part in read)


def describe(error: ValidationError, root: type[BaseModel]) -> list[Mistake]:
    """The mistakes of single keys of another file (`root`: the whole of it), for people."""
    return [_translate(detail, root) for detail in error.errors()]


def _section_of(key: str) -> str:
    return key.partition(".")[0]


def _translate(detail: ErrorDetails, root: type[BaseModel] = Settings) -> Mistake:
    location, given = detail["loc"], detail.get("input")
    return Mistake(_spell(location), _word(detail["type"], detail, location, _show(given), root))


def _word(kind: str, detail: ErrorDetails, location: Location, given: str, root: type[BaseModel]) -> str:
    """pydantic's finding in our words."""
    match kind:
        case "extra_forbidden":
            return f"unknown key{_suggest(location, root)}"
        case "missing":
            return "is required"
        case "value_error":
            return str(detail["ctx"]["error"])
        case "literal_error":
            return f"must be one of {detail['ctx']['expected']}, not {given}"
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            return f"must be {_bounds(location, root)}, not {given}"
        case "string_pattern_mismatch":
            return f"{given} is no name: letters, digits, dot, dash and underscore, at most 63"
        case "tuple_type" if _model_at(location, root) is not None:
            return f"must be a list of tables: write [[{location[-1]}]], not [{location[-1]}]"
        case _:
            return f"must be {KINDS.get(kind, detail['msg'].removeprefix('Input should be '))}, not {given}"


KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text in quotes",
    "path_type": "a path in quotes",
    "tuple_type": 'a list: ["...", "..."]',
    "model_type": "a table",
    "dict_type": "a table",
}
"""What a value must be, by pydantic's name of the error."""


def _show(given: object) -> str:
    if isinstance(given, bool):
        return str(given).lower()
    text = repr(given)
    return text if len(text) <= GIVEN_CHARACTERS_MAX else f"{text[:GIVEN_CHARACTERS_MAX]}..."


def _spell(location: Iterable[int | str]) -> str:
    """`listener[0].tls`"""
    words = ""
    for part in location:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            words += f".{part}" if words else part
    return words


MOVED = {"xclient_networks": '[[sink]] with use = "xclient" and with = { networks = [...] }'}
"""Keys of earlier releases, and what they are now."""


def _suggest(location: Location, root: type[BaseModel]) -> str:
    if (now := MOVED.get(str(location[-1]))) is not None:
        return f"; it is a {now} now"
    model = _model_at(location[:-1], root)
    known = sorted(field.alias or name for name, field in model.model_fields.items()) if model is not None else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"


def _bounds(location: Location, root: type[BaseModel]) -> str:
    """`between 1 and 65535`, from the field's own constraints."""
    model = _model_at(location[:-1], root)
    rules: list[Any] = []
    if model is not None:
        field = model.model_fields[str(location[-1])]
        rules += field.metadata
        for kind in get_args(field.annotation):  # of an optional value
            rules += get_args(kind)[1:]
    words = []
    for bound_rule in [part for rule in rules for part in getattr(rule, "metadata", [rule])]:
        match bound_rule:
            case Ge(ge=bound):
                words.append(f"at least {bound}")
            case Gt(gt=bound):
                words.append(f"greater than {bound}")
            case Le(le=bound):
                words.append(f"at most {bound}")
            case Lt(lt=bound):
                words.append(f"less than {bound}")
    return " and ".join(words)


def _model_at(location: Location, root: type[BaseModel]) -> type[BaseModel] | None:
    """The section that a location leads to; None if it leads to a plain value."""
    model = root
    for part in location:
        if isinstance(part, int):
            continue
        if part not in model.model_fields:
            return None
        annotation = model.model_fields[part].annotation
        found = next((kind for kind in (annotation, *get_args(annotation)) if _is_model(kind)), None)
        if found is None:
            return None
        model = found
    return model


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


# -- paths -------------------------------------------------------------------------------------------------------------


def _resolve_section(section: Model, folder: Path) -> Model:
    """Every path made absolute, from the folder of the file."""
    values = {name: getattr(section, name) for name in type(section).model_fields}
    resolved = {name: _resolve_value(value, folder) for name, value in values.items()}
    # Only what changed: what was given and what is a default stays told apart.
    return section.model_copy(update={name: value for name, value in resolved.items() if value != values[name]})


def _resolve_value(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, BaseModel):
        return _resolve_section(value, folder)
    if isinstance(value, tuple):
        return tuple(_resolve_value(item, folder) for item in value)
    return value
