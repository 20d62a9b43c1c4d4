"""deploy/node.example.toml loads, names every setting, and shows the true defaults."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from smtp_edge.changes import RESTART
from smtp_edge.settings import Settings
from smtp_edge.workers import SHARED

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "node.example.toml"
TEXT = EXAMPLE.read_text("utf-8")


def section_model(name: str) -> type[BaseModel]:
    annotation = Settings.model_fields[name].annotation
    (model,) = [
        kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type) and issubclass(kind, BaseModel)
    ]
    return model


def keys_by_section() -> dict[str, set[str]]:
    """What the file mentions, commented out or not."""
    found: dict[str, set[str]] = {}
    section = ""
    for line in TEXT.splitlines():
        head = re.match(r"(?:# )?\[{1,2}(\w+)\]{1,2}", line)
        key = re.match(r"(?:# )?(\w+) = ", line)
        if head:
            section = head[1]
            found[section] = set()
        elif key and section:
            found[section].add(key[1])
    return found


def test_it_loads() -> None:
    Settings.model_validate(tomllib.loads(TEXT))


def test_it_names_every_setting_and_no_other() -> None:
    wanted = {
        name: {field.alias or key for key, field in section_model(name).model_fields.items()}
        for name in Settings.model_fields
    }
    assert keys_by_section() == wanted


def test_it_says_what_waits_for_a_restart() -> None:
    (line,) = [line for line in TEXT.splitlines() if line.startswith("# Only these wait for a restart: ")]
    assert line.partition(": ")[2].replace("[", "").replace("]", "").split() == list(RESTART)


def test_it_says_which_limits_workers_share() -> None:
    said = re.search(r"Divided among them, rounded up: (.*?)\.", re.sub(r"\n +# ", " ", TEXT))
    assert said is not None
    assert set(said[1].split(", ")) == {key for keys in SHARED.values() for key in keys}


def test_values_are_the_defaults_unless_they_are_called_examples() -> None:
    raw: dict[str, Any] = tomllib.loads(TEXT)
    wrong = []
    for name, value in raw.items():
        given = value[0] if isinstance(value, list) else value
        for key, shown in given.items():
            default = section_model(name).model_fields[key].default
            line = next(line for line in TEXT.splitlines() if re.match(rf"{key} = ", line) and repr_of(shown) in line)
            if default is PydanticUndefined or "example" in line.partition("#")[2]:
                continue
            if shown != plain(default):
                wrong.append(f"{name}.{key}: {shown!r}, default {default!r}")
    assert wrong == []


def plain(default: Any) -> Any:
    if isinstance(default, Path):
        return str(default)
    return list(default) if isinstance(default, tuple) else default


def repr_of(shown: Any) -> str:
    return str(shown).lower() if isinstance(shown, bool) else str(shown).replace("'", '"')
