"""Finds which test says that it shows which requirement, without importing a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
_LINE = re.compile(r"^# rfc: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, order=True)
class Evidence:
    """A test or a dialogue. `path` is below tests/."""

    path: str
    name: str


def collect_evidence(folder: Path = TESTS) -> dict[str, list[Evidence]]:
    """Requirement -> what shows it, in order."""
    found: dict[str, set[Evidence]] = {}
    for requirement, evidence in (*_in_tests(folder), *_in_dialogues(folder)):
        found.setdefault(requirement, set()).add(evidence)
    return {requirement: sorted(evidence) for requirement, evidence in found.items()}


def _in_dialogues(folder: Path) -> Iterator[tuple[str, Evidence]]:
    for path in folder.rglob("*.dialog"):
        evidence = Evidence(path.relative_to(folder).as_posix(), path.stem)
        for line in _LINE.findall(path.read_text("utf-8")):
            yield from ((requirement.strip(), evidence) for requirement in line.split(","))


def _in_tests(folder: Path) -> Iterator[tuple[str, Evidence]]:
    for path in folder.rglob("test_*.py"):
        text = path.read_text("utf-8")
        if "mark.rfc(" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                evidence = Evidence(path.relative_to(folder).as_posix(), node.name)
                yield from ((requirement, evidence) for requirement in _marks(node.decorator_list))


def _marks(decorators: list[ast.expr]) -> Iterator[str]:
    """Also those inside of `pytest.param(..., marks=...)`."""
    for call in (node for decorator in decorators for node in ast.walk(decorator) if isinstance(node, ast.Call)):
        if ast.unparse(call.func) == "pytest.mark.rfc":
            yield from (ast.literal_eval(argument) for argument in call.args)
