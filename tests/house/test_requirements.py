"""The page of requirements is that of the tests, and no requirement is without test or reason."""

from __future__ import annotations

from pathlib import Path

from tests.requirements.evidence import Evidence, collect_evidence
from tests.requirements.lists import Requirement, read_documents
from tests.requirements.page import PAGE, render


def all_requirements() -> list[Requirement]:
    return [requirement for document in read_documents() for requirement in document.requirements]


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text("utf-8") == render(read_documents(), collect_evidence()), "python3 deploy/run.py requirements"


def test_each_requirement_is_shown_by_a_test_or_deviated_from_for_a_reason() -> None:
    shown = collect_evidence()
    bare = [wanted.name for wanted in all_requirements() if not wanted.deviation and wanted.name not in shown]
    assert bare == []


def test_tests_name_only_what_is_listed() -> None:
    names = {requirement.name for requirement in all_requirements()}
    assert sorted(collect_evidence().keys() - names) == []


def test_evidence_is_found_in_marks_and_in_dialogues(tmp_path: Path) -> None:
    (tmp_path / "a.dialog").write_text("# A claim.\n# rfc: 1 2, 1 3b\nC: NOOP\n")
    (tmp_path / "test_b.py").write_text(
        '@pytest.mark.rfc("1 2", "4 5")\nasync def test_x(): ...\n'
        '@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.rfc("9 9"))])\ndef test_y(n): ...\n'
    )
    dialogue, first, second = (
        Evidence("a.dialog", "a"),
        Evidence("test_b.py", "test_x"),
        Evidence("test_b.py", "test_y"),
    )
    assert collect_evidence(tmp_path) == {
        "1 2": [dialogue, first],
        "1 3b": [dialogue],
        "4 5": [first],
        "9 9": [second],
    }
