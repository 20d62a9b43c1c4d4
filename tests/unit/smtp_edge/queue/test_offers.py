"""Transfers that were begun: what the next process knows of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtp_edge.queue import offers as offers_module
from smtp_edge.queue.offers import FILE, Offers, parse

ONE, OTHER, PEER = ("Q1", 0), ("Q2", 1), "peer:" + "a" * 32


def begin(folder: Path) -> Offers:
    made = Offers(folder / FILE)
    made.restart()
    return made


def test_what_was_begun_outlives_the_process(tmp_path: Path) -> None:
    killed = begin(tmp_path)
    killed.note(ONE, "peer:b")
    killed.note(OTHER, "peer:b")
    killed.note(ONE, PEER)
    killed.withdraw(OTHER)
    assert Offers(tmp_path / FILE).read() == {ONE: PEER}


def test_a_new_list_is_empty(tmp_path: Path) -> None:
    begin(tmp_path).note(ONE, PEER)
    begin(tmp_path)
    assert Offers(tmp_path / FILE).read() == {}
    assert Offers(tmp_path / "nowhere" / FILE).read() == {}


def test_a_long_list_is_written_anew_with_what_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers_module, "LENGTH_MAX", 1000)
    offers = begin(tmp_path)
    offers.note(ONE, PEER)
    for number in range(100):
        offers.note(("Q9", number), PEER)
        offers.forget([("Q9", number)])
    assert (tmp_path / FILE).stat().st_size < 1100
    assert Offers(tmp_path / FILE).read()[ONE] == PEER


def test_torn_and_senseless_lines_are_passed_over() -> None:
    assert parse(["Q1 0 peer:x", "Q2 0", "", "Q3 x peer:y", "\0\0\0", "Q1 0 peer:z", "Q4 0 -"]) == {ONE: "peer:z"}


def test_a_disk_that_refuses_costs_the_note_only(tmp_path: Path) -> None:
    offers = Offers(tmp_path / "nowhere" / FILE)
    offers.restart()
    offers.note(ONE, PEER)
    offers.withdraw(ONE)
    offers.close()
    offers.close()


def test_in_memory_it_outlives_what_a_simulation_calls_a_process() -> None:
    offers = Offers()
    offers.note(ONE, PEER)
    assert offers.read() == {ONE: PEER}
    offers.restart()
    assert offers.read() == {}
