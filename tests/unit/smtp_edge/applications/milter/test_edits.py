"""Where fields go that a filter adds, changes and removes."""

from __future__ import annotations

import pytest

from smtp_edge.applications.milter.edits import apply_to_fields
from smtp_edge.applications.milter.wire import AddHeader, ChangeHeader, Hold, InsertHeader, MilterError, Modification
from smtp_edge.sinks.fields import join_header, split_header

HEADER = b"A: 1\r\nB:  folded\r\n here\r\nA: 2\r\n\r\n"


def edit(*changes: Modification, leading_space: bool = False) -> bytes:
    return join_header(apply_to_fields(split_header(HEADER).fields, changes, leading_space=leading_space))


@pytest.mark.parametrize(
    ("change", "header"),
    [
        (AddHeader(b"C", b"x\n y"), HEADER[:-2] + b"C: x\r\n y\r\n\r\n"),
        (InsertHeader(0, b"C", b"x"), b"C: x\r\n" + HEADER),
        (InsertHeader(1, b"C", b"x"), b"C: x\r\n" + HEADER),
        (InsertHeader(2, b"C", b"x"), b"A: 1\r\nC: x\r\nB:  folded\r\n here\r\nA: 2\r\n\r\n"),
        (InsertHeader(99, b"C", b"x"), HEADER[:-2] + b"C: x\r\n\r\n"),
        (ChangeHeader(2, b"a", b"3"), b"A: 1\r\nB:  folded\r\n here\r\na: 3\r\n\r\n"),
        (ChangeHeader(1, b"A", b""), b"B:  folded\r\n here\r\nA: 2\r\n\r\n"),
        (ChangeHeader(3, b"A", b"4"), HEADER[:-2] + b"A: 4\r\n\r\n"),
        (ChangeHeader(3, b"A", b""), HEADER),
        (ChangeHeader(1, b"", b""), HEADER),
        (AddHeader(b"C", b"x\n"), HEADER[:-2] + b"C: x\r\n\r\n"),
        (Hold(b"x"), HEADER),
    ],
)
def test_fields_go_where_sendmail_puts_them(change: Modification, header: bytes) -> None:
    assert edit(change) == header


def test_after_a_field_above_our_trace_field_that_counts_as_any_other() -> None:
    inserted = (InsertHeader(0, b"C", b"x"), InsertHeader(1, b"D", b"y"), InsertHeader(3, b"E", b"z"))
    assert edit(*inserted) == b"C: x\r\nD: y\r\nE: z\r\n" + HEADER


def test_a_removed_field_is_not_counted_any_more() -> None:
    assert edit(ChangeHeader(1, b"A", b""), ChangeHeader(1, b"A", b"")) == b"B:  folded\r\n here\r\n\r\n"


def test_a_value_with_its_own_blank_gets_no_second_one() -> None:
    assert edit(AddHeader(b"C", b" x"), AddHeader(b"D", b"y"), leading_space=True).endswith(b"C: x\r\nD:y\r\n\r\n")


@pytest.mark.parametrize(
    "change",
    [AddHeader(b"a b", b"x"), AddHeader(b"A", b"x\ny"), InsertHeader(1, b"", b"x"), AddHeader(b"A", b"x" * 999)],
)
def test_a_field_that_is_none_is_a_fault_of_the_filter(change: Modification) -> None:
    with pytest.raises(MilterError, match="a field that is none"):
        edit(change)
