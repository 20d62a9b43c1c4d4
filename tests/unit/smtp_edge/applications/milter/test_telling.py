"""Fields and parameters as filters are told of them."""

from __future__ import annotations

import pytest

from smtp_edge.applications.milter.telling import sender_parameters, split_field
from smtp_edge.envelope import BodyType, Envelope


@pytest.mark.parametrize(
    ("raw", "bare", "exact"),
    [
        (b"A: b\r\n", b"b", b" b"),
        (b"A:  b\r\n", b" b", b"  b"),
        (b"A:b\r\n", b"b", b"b"),
        (b"A :\tb\r\n\tc\r\n", b"\tb\n\tc", b"\tb\n\tc"),
        (b"A:\r\n b\r\n", b"\n b", b"\n b"),
        (b"A: b", b"b", b" b"),
        (b"A:\r\n", b"", b""),
    ],
)
def test_one_blank_belongs_to_the_field_unless_the_filter_wants_it(raw: bytes, bare: bytes, exact: bytes) -> None:
    assert split_field(raw, leading_space=False) == (b"A", bare)
    assert split_field(raw, leading_space=True) == (b"A", exact)


def test_parameters_of_the_sender_are_those_of_mail() -> None:
    assert sender_parameters(Envelope("a@b", ()), 7) == ["SIZE=7"]
    wide = Envelope("a@b", (), body_type=BodyType.EIGHT_BIT_MIME, smtputf8=True)
    assert sender_parameters(wide, 7) == ["SIZE=7", "BODY=8BITMIME", "SMTPUTF8"]
