"""Multiparts as they stream by: nothing is lost, and how they are cut changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtp_edge.sinks.fields import split_header
from smtp_edge.sinks.mime import Kind, MediaType, Token, Walker, media_type_of, parse_media_type, with_content

MIXED = parse_media_type("multipart/mixed; boundary=a")
LINES = [
    *(
        b"--a\r\n",
        b"--a--\r\n",
        b"--b\r\n",
        b"--b--\r\n",
        b"--a \t\r\n",
        b"--ab\r\n",
        b"\r\n",
        b"text\r\n",
        b"--",
        b"\r",
    ),
    *(b"\n", b"a", b"Content-Type: multipart/mixed; boundary=b\r\n", b"Content-Type: text/plain\r\n", b"x" * 300),
]


def walk(text: bytes, step: int, media_type: MediaType = MIXED) -> list[tuple[Kind, bytes]]:
    """Tokens, with neighbours of one kind as one."""
    walker, tokens = Walker(media_type), list[Token]()
    for at in range(0, len(text), step):
        tokens += walker.feed(text[at : at + step])
    found: list[tuple[Kind, bytes]] = []
    for token in [*tokens, *walker.finish()]:
        if found and found[-1][0] is token.kind and token.kind in (Kind.RAW, Kind.BODY):
            found[-1] = token.kind, found[-1][1] + token.raw
        else:
            found.append((token.kind, token.raw))
    return found


@settings(deadline=None, max_examples=500)
@given(st.lists(st.sampled_from(LINES), max_size=25), st.integers(1, 9))
def test_nothing_is_lost_however_it_is_cut(lines: list[bytes], step: int) -> None:
    text = b"".join(lines)
    found = walk(text, step)
    assert b"".join(raw for _, raw in found) == text
    assert found == walk(text, 10**6)


def test_parts_are_told_apart() -> None:
    text = (
        b"preamble\r\n--a\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n"
        b"Content-Type: text/html\r\n\r\ntwo\r\n--\r\n--b--\r\n--a\r\n\r\n--a--\r\nepilogue\r\n"
    )
    bodies, inside = list[bytes](), list[tuple[str, ...]]()
    for token in Walker(MIXED).feed(text):
        if token.kind is Kind.HEAD:
            bodies.append(b"")
            inside.append(tuple(kind for kind, _ in token.inside))
        if token.kind is Kind.BODY:
            bodies[-1] += token.raw
    assert bodies == [b"one", b"two\r\n--", b""]
    assert inside == [("multipart/mixed", "multipart/alternative")] * 2 + [("multipart/mixed",)]


@pytest.mark.parametrize(
    ("value", "kind", "parameters"),
    [
        ('Text/HTML; Charset="a\\"b"; x=y', "text/html", {"charset": 'a"b', "x": "y"}),
        ("text/plain (a comment); format = flowed ;", "text/plain", {"format": "flowed"}),
        ('multipart/mixed; boundary="=_a; b"', "multipart/mixed", {"boundary": "=_a; b"}),
        ("multipart/mixed; boundary=a; boundary=b", "multipart/mixed", {"boundary": "a"}),
        ("", "", {}),
        (";;=;", "", {}),
    ],
)
def test_media_types(value: str, kind: str, parameters: dict[str, str]) -> None:
    assert parse_media_type(value) == MediaType(kind, parameters)


def test_what_describes_the_body_is_replaced_where_it_stood() -> None:
    fields = split_header(b"A: 1\r\nContent-Type: x/y\r\nB: 2\r\ncontent-id: z\r\n\r\n").fields
    new = split_header(b"Content-Type: text/plain\r\n\r\n").fields
    assert [field.name for field in with_content(fields, new)] == ["A", "MIME-Version", "Content-Type", "B"]
    assert media_type_of(()).kind == "text/plain"
