"""Writes the page."""

from tests.requirements.evidence import collect_evidence
from tests.requirements.lists import read_documents
from tests.requirements.page import PAGE, render

if __name__ == "__main__":
    PAGE.write_text(render(read_documents(), collect_evidence()), "utf-8")
    print(f"written: smtp_edge/{PAGE.name}")
