"""The header as it streams by: its end, its size, its fields, its hops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.envelope import HEADER_KEPT_MAX
from smtp_edge.server.header import HeaderScan
from tests.unit.smtp_edge.server.test_bulk import cut

HEADER = b"Received: a\r\n\tby b; Received: no\r\nreceived : c\r\nX-Received: no\r\nSubject: Received: no\r\n\r\n"


def scan(parts: list[bytes], bytes_max: int = 1_000_000) -> HeaderScan:
    found = HeaderScan(bytes_max=bytes_max)
    for part in parts:
        found.feed(part)
    found.finish()
    return found


@given(st.lists(st.integers(0, 30), max_size=10))
@pytest.mark.rfc("5321 6.3a")
def test_hops_and_fields_are_counted_at_every_cut(sizes: list[int]) -> None:
    found = scan(cut(HEADER + b"Received: in the body\r\n\r\n", sizes))
    assert (found.hops_count, found.fields_count, found.size_bytes) == (2, 4, len(HEADER))
    assert found.kept == HEADER


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"\r\nbody\r\n", b"\r\n"),
        (b"", b""),
        (b"Subject: x\r\n", b"Subject: x\r\n"),
        (b"no field at all\r\n\r\nbody", b"no field at all\r\n\r\n"),
    ],
)
@pytest.mark.rfc("5321 3.3f", "5321 4.4b", "5321 6.4")
def test_odd_headers_are_kept_as_they_are(data: bytes, kept: bytes) -> None:
    assert scan([data]).kept == kept


def test_hops_beyond_what_is_kept_are_counted() -> None:
    header = b"X: y\r\n" * 20_000 + b"Received: a\r\n" * 3 + b"\r\n"
    found = scan([header[at : at + 1000] for at in range(0, len(header), 1000)])
    assert len(found.kept) == HEADER_KEPT_MAX
    assert (found.hops_count, found.fields_count) == (3, 20_003)


@pytest.mark.parametrize("line", [b"X: y\r\n", b"x" * 1000])
def test_a_header_that_never_ends_is_too_large_and_costs_nothing_more(line: bytes) -> None:
    found = HeaderScan(bytes_max=50_000)
    for _ in range(100_000 // len(line)):
        found.feed(line)
    assert found.too_large
    assert found.done


def test_a_body_may_be_larger_than_the_header() -> None:
    assert not scan([b"Subject: x\r\n\r\n", b"y" * 100_000], bytes_max=5000).too_large
