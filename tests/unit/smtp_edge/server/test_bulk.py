"""Cutting mail data out of a stream, and line ends, however the segments fall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.server import bulk
from smtp_edge.server.bulk import DataReader, LineEnds
from smtp_edge.stuffing import DotCount

PIECES = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"a", b"\x00", b"\r\n.", b"\n."]), max_size=30)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in segments of these sizes, the last one of what is left."""
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [*parts, data]


def read(segments: list[bytes]) -> tuple[bytes, bytes | None]:
    """Mail data and what followed it."""
    reader, data = DataReader(), b""
    for number, segment in enumerate(segments):
        data += reader.feed(segment)
        if reader.rest is not None:
            return data, reader.rest + b"".join(segments[number + 1 :])
    return data, None


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(
    ("sent", "data", "rest"),
    [
        (b".\r\nNOOP\r\n", b"", b"NOOP\r\n"),
        (b"a\r\n.\r\n", b"a\r\n", b""),
        (b"..\r\n.a\r\n\r\n.\r\n.\r\n", b"..\r\n.a\r\n\r\n", b".\r\n"),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\n.\r\nb\r.\r\nc\r\n.\nd\r\n.\rd\r\n.\r\nx", b"a\n.\r\nb\r.\r\nc\r\n.\nd\r\n.\rd\r\n", b"x"),
    ],
)
def test_the_end_is_found_at_every_cut(sent: bytes, data: bytes, rest: bytes, size: int) -> None:
    assert read([sent[at : at + size] for at in range(0, len(sent), size)]) == (data, rest)


@given(PIECES, st.lists(st.integers(0, 5), max_size=20))
def test_reading_is_the_same_however_it_is_cut(pieces: list[bytes], sizes: list[int]) -> None:
    sent = b"".join(pieces)
    whole, end, rest = (b"\r\n" + sent).partition(b"\r\n.\r\n")
    data, found = read(cut(sent, sizes))
    if end:
        assert (data, found) == ((whole + b"\r\n")[2:], rest)
    else:
        assert found is None
        assert sent.startswith(data)


@given(PIECES, st.lists(st.integers(0, 5), max_size=20), st.booleans())
def test_what_is_repaired_has_whole_line_ends_and_no_lone_dot(
    pieces: list[bytes], sizes: list[int], stuffed: bool
) -> None:
    sent = b"".join(pieces)
    ends = LineEnds(repair=True, stuffed=stuffed)
    repaired = b"".join(ends.feed(part) for part in cut(sent, sizes)) + ends.finish()
    assert repaired.count(b"\r") == repaired.count(b"\n") == repaired.count(b"\r\n")
    ended = stuffed and b"\r\n.\r\n" in b"\r\n" + sent  # the reader would have stopped there
    if stuffed and not ended:
        assert b"\r\n.\r\n" not in b"\r\n" + repaired
    if not ends.bare and not ended:
        assert repaired == sent


@given(PIECES, st.lists(st.integers(0, 5), max_size=20))
def test_what_is_checked_is_not_changed_and_the_verdict_is_the_same_at_every_cut(
    pieces: list[bytes], sizes: list[int]
) -> None:
    sent = b"".join(pieces)
    ends = LineEnds(repair=False)
    assert b"".join(ends.feed(part) for part in cut(sent, sizes)) + ends.finish() == sent
    assert ends.bare == (sent.replace(b"\r\n", b"").count(b"\r") + sent.replace(b"\r\n", b"").count(b"\n") > 0)


@given(PIECES, st.lists(st.integers(0, 5), max_size=20))
def test_doubled_dots_are_counted_at_every_cut(pieces: list[bytes], sizes: list[int]) -> None:
    sent, dots = b"".join(pieces), DotCount()
    for part in cut(sent, sizes):
        dots.feed(part)
    assert dots.count == (b"\r\n" + sent).count(b"\r\n.")


@given(PIECES)
def test_large_segments_are_judged_as_small_ones_are(pieces: list[bytes]) -> None:
    chunk = b"".join(pieces)
    pairs = chunk.count(b"\r\n")
    bare = not pairs == chunk.count(b"\n") == chunk.count(b"\r")
    assert bulk.has_bare(chunk) is bare
    padding = b"x" * bulk.VECTOR_BYTES_MIN
    assert bulk.has_bare(chunk + padding) is bare
    assert bulk.has_bare(padding + chunk) is bare


@given(PIECES)
def test_without_numpy_the_judgement_is_the_same(pieces: list[bytes]) -> None:
    chunk = b"".join(pieces) + b"x" * bulk.VECTOR_BYTES_MIN
    with pytest.MonkeyPatch.context() as patch:
        judged = bulk.has_bare(chunk)
        patch.setattr(bulk, "numpy", None)
        assert bulk.has_bare(chunk) is judged


@given(st.lists(st.sampled_from([b".", b"\r\n", b"x", b"\r\n.\r\n", b"\r\n.", b"\r", b"\n"]), max_size=20))
def test_the_first_end_is_found(pieces: list[bytes]) -> None:
    joined = b"".join(pieces)
    assert bulk._find_end(joined) == joined.find(bulk.END)
