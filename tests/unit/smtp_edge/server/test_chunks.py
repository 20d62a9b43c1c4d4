"""BDAT's octets to what the store keeps: reversible for binary data, the same as DATA for text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.server.chunks import BinaryChunks, Conversion, DotStuffing, TextChunks
from tests.unit.smtp_edge.server.test_bulk import PIECES, cut


def convert(conversion: Conversion, parts: list[bytes]) -> bytes:
    return b"".join(conversion.feed(part) for part in parts) + conversion.finish()


def unstuff(data: bytes) -> bytes:
    return (b"\r\n" + data).replace(b"\r\n.", b"\r\n")[2:]


@given(PIECES, st.lists(st.integers(0, 5), max_size=20))
def test_binary_data_comes_back_as_it_was(pieces: list[bytes], sizes: list[int]) -> None:
    sent = b"".join(pieces)
    kept = convert(BinaryChunks(), cut(sent, sizes))
    assert unstuff(kept) == sent
    assert b"\r\n.\r\n" not in b"\r\n" + kept


@given(st.binary(max_size=200), st.lists(st.integers(0, 40), max_size=8))
def test_stuffing_is_the_same_however_it_is_cut(sent: bytes, sizes: list[int]) -> None:
    dots = DotStuffing()
    assert b"".join(dots.feed(part) for part in cut(sent, sizes)) == DotStuffing().feed(sent)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"", b""),
        (b"a", b"a\r\n"),
        (b"a\r\n", b"a\r\n"),
        (b".", b"..\r\n"),
        (b"a\r\n.\r\nMAIL FROM:<x@y.z>\r\n", b"a\r\n..\r\nMAIL FROM:<x@y.z>\r\n"),
        (b".a\r\n..b\r\n", b"..a\r\n...b\r\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_text_gets_its_last_line_end_and_its_dots(sent: bytes, kept: bytes, size: int) -> None:
    chunks = TextChunks(repair=False)
    assert convert(chunks, [sent[at : at + size] for at in range(0, len(sent), size)]) == kept
    assert not chunks.bare


@given(PIECES, st.lists(st.integers(0, 5), max_size=20))
def test_repaired_text_has_no_bare_line_end_and_no_lone_dot(pieces: list[bytes], sizes: list[int]) -> None:
    kept = convert(TextChunks(repair=True), cut(b"".join(pieces), sizes))
    assert kept.count(b"\r") == kept.count(b"\n") == kept.count(b"\r\n")
    assert b"\r\n.\r\n" not in b"\r\n" + kept
    assert kept == b"" or kept.endswith(b"\r\n")


@pytest.mark.parametrize("sent", [b"a\nb", b"a\rb", b"a\n", b"a\r", b"\n.\n"])
def test_bare_line_ends_in_text_are_told(sent: bytes) -> None:
    chunks = TextChunks(repair=False)
    convert(chunks, [sent])
    assert chunks.bare
