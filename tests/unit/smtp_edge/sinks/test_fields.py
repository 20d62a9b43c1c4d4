"""Header fields: told apart without losing a byte, made without giving a line away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.sinks.fields import Field, join_header, make_field, split_header

NAMES = st.text(st.sampled_from("ABCxyz-09"), min_size=1, max_size=8)
WORDS = st.text(st.sampled_from("abc .:é\t"), max_size=12)
VALUES = st.lists(WORDS, min_size=1, max_size=3).map("\r\n ".join)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.binary(max_size=40))
def test_what_is_made_is_told_apart_again(pairs: list[tuple[str, str]], body: bytes) -> None:
    fields = tuple(make_field(name, value) for name, value in pairs)
    text = join_header(fields) + body
    header = split_header(text)
    assert header.fields == fields
    assert text[header.length :] == body
    assert [field.name for field in header.fields] == [name for name, _ in pairs]
    assert [field.value for field in fields] == [value.replace("\r\n", "").strip(" \t") for _, value in pairs]


@given(st.binary(max_size=80))
def test_nothing_is_lost_of_anything(text: bytes) -> None:
    header = split_header(text)
    raw = b"".join(field.raw for field in header.fields)
    assert text.startswith(raw)
    assert text[len(raw) : header.length] in (b"", b"\r\n", b"\n")


@pytest.mark.parametrize(
    ("text", "names", "length"),
    [
        (b"", [], 0),
        (b"\r\nbody", [], 2),
        (b"A: b\r\n c\r\nD :e\r\n\r\nbody", ["A", "D"], 18),
        (b"A: b\r\n", ["A"], 6),
        (b"no header\r\n", [], 0),
        (b"A: b\r\nno header\r\nC: d\r\n", ["A"], 6),
        (b" lost line\r\nA: b\r\n\r\n", [], 0),
        (b"From sue Thu\r\nA: b\r\n\r\n", [], 0),
    ],
)
def test_where_a_header_ends(text: bytes, names: list[str], length: int) -> None:
    header = split_header(text)
    assert ([field.name for field in header.fields], header.length) == (names, length)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("", "x"),
        ("A b", "x"),
        ("A:", "x"),
        ("Ä", "x"),
        ("A", "x\r\nB: y"),
        ("A", "x\ny"),
        ("A", "x\ry"),
        ("A", "x\0y"),
        ("A", "x\r\n"),
        ("A", "x" * 1000),
    ],
)
def test_what_is_no_field_is_an_error(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=r"name|value|line"):
        make_field(name, value)


def test_bytes_that_are_no_text_come_back_as_they_were() -> None:
    field = Field(b"Subject: \xff\xfe\r\n")
    assert make_field("Subject", field.value).raw == field.raw
