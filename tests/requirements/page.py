"""The page: lists and evidence, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.requirements.evidence import Evidence
from tests.requirements.lists import Document, Requirement

PAGE = Path(__file__).resolve().parents[2] / "smtp_edge" / "REQUIREMENTS.md"
HEAD = """\
# What the RFCs want of a relay, and what shows that it is so

Written by `python3 deploy/run.py requirements` from the lists in `tests/requirements` and from the tests, each of which
names what it shows; a test fails where this page is older than they are. The words are ours and short, the RFC's count.
Listed is each MUST and SHOULD that concerns a relay: as *server* it takes mail, as *client* it sends it on, as *relay*
it keeps and reports it. What concerns mail stores, mail programs and gateways is not.
"""


def render(documents: Sequence[Document], evidence: Mapping[str, Sequence[Evidence]]) -> str:
    """The page."""
    lines = [HEAD, *_overview(documents), ""]
    for document in documents:
        lines += [f"## RFC {document.number}: {document.title}", "", "| section | who | | what | shown by |"]
        lines.append("|---|---|---|---|---|")
        lines += [_row(requirement, evidence.get(requirement.name, ())) for requirement in document.requirements]
        lines.append("")
    return "\n".join(lines)


def _overview(documents: Sequence[Document]) -> Iterator[str]:
    yield "| RFC | | requirements | deviations |"
    yield "|---|---|---|---|"
    for document in documents:
        deviations = dict.fromkeys(wanted.section for wanted in document.requirements if wanted.deviation)
        count = len(document.requirements)
        yield f"| {document.number} | {document.title} | {count} | {', '.join(deviations) or '-'} |"


def _row(requirement: Requirement, evidence: Sequence[Evidence]) -> str:
    shown = ", ".join(f"[{_words(item.name)}](../tests/{item.path})" for item in evidence)
    deviation = f"**Deviation:** {requirement.deviation}" if requirement.deviation else ""
    last = " ".join(word for word in (deviation, shown) if word)
    text = requirement.text.replace("|", "\\|")
    return f"| {requirement.section} | {requirement.role} | {requirement.level} | {text} | {last} |"


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")
