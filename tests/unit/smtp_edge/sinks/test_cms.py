"""Opaque S/MIME: its content, whatever the form of its lengths; garbage is a ValueError and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.sinks.cms import DATA, SIGNED_DATA, read_signed_content


def value(tag: int, content: bytes) -> bytes:
    """DER."""
    size = len(content)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2)
    return bytes([tag]) + length + content


def endless(tag: int, content: bytes) -> bytes:
    """BER whose length is not said."""
    return bytes([tag, 0x80]) + content + b"\0\0"


def signed(octets: bytes, oid: bytes = SIGNED_DATA, inner: bytes = DATA, form=value) -> bytes:  # type: ignore[no-untyped-def]
    info = form(0x30, value(6, inner) + form(0xA0, octets))
    return bytes(form(0x30, value(6, oid) + form(0xA0, form(0x30, b"\x02\x01\x01" + value(0x31, b"") + info))))


@pytest.mark.parametrize("form", [value, endless])
def test_the_content_is_found(form: object) -> None:
    assert read_signed_content(signed(value(4, b"x" * 300), form=form)) == b"x" * 300
    pieces = endless(0x24, value(4, b"one") + value(0x24, value(4, b"two")) + value(4, b""))
    assert read_signed_content(signed(pieces, form=form)) == b"onetwo"


@pytest.mark.parametrize(
    "ber",
    [
        b"",
        b"\x30",
        signed(value(4, b"x"))[:-1],
        signed(value(4, b"x"), oid=DATA),
        signed(value(4, b"x"), inner=SIGNED_DATA),
        signed(b""),
        signed(value(2, b"x")),
        signed(endless(4, b"x")),
        b"\x30\x80" * 100_000,
        b"\x30\x80" + b"\x04\x00" * 200_000 + b"\0\0",
        b"\x30\x84\xff\xff\xff\xff",
    ],
)
def test_what_is_none_is_told(ber: bytes) -> None:
    with pytest.raises(ValueError):
        read_signed_content(ber)


@given(st.binary(max_size=60), st.integers(0, 80), st.binary(min_size=1, max_size=3))
def test_garbage_is_a_value_error(garbage: bytes, at: int, change: bytes) -> None:
    whole = signed(value(4, b"x" * 20))
    for ber in (garbage, whole[:at] + change + whole[at + len(change) :]):
        try:
            read_signed_content(ber)
        except ValueError:
            continue
