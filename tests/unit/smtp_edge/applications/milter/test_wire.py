"""Packets as mfdef.h has them, and garbage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.applications.milter.answers import decode, decode_length
from smtp_edge.applications.milter.wire import (
    Action,
    AddHeader,
    AddRecipient,
    Answer,
    ChangeHeader,
    ChangeSender,
    Command,
    DeleteRecipient,
    Hold,
    InsertHeader,
    MilterError,
    Options,
    Plain,
    ReplaceBody,
    ReplyCode,
    Stage,
    Step,
    build_connect,
    build_options,
    build_texts,
    encode,
    encode_macros,
)
from smtp_edge.reply import Reply


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (build_options(Action.ADD_HEADERS), b"\0\0\0\rO\0\0\0\x06\0\0\0\x01\0\x1f\xff\xff"),
        (build_connect("a.example", "192.0.2.1", 25), b"a.example\x004\0\x19192.0.2.1\0"),
        (build_connect("[::1]", "::1", 25), b"[::1]\x006\0\x19::1\0"),
        (build_connect("x", "fe80::1%eth0", 0), b"x\x006\0\0fe80::1\0"),
        (build_connect("x", "", 0), b"x\0U"),
        (encode(Command.MAIL, build_texts("<a@b>", "SIZE=1")), b"\0\0\0\x0eM<a@b>\0SIZE=1\0"),
        (encode(Command.HELO, build_texts("a\0b")), b"\0\0\0\x03Ha\0"),
        (encode_macros(Command.RCPT, [("i", "1"), ("rcpt_addr", "x")]), b"\0\0\0\x14DRi\x001\0{rcpt_addr}\0x\0"),
    ],
)
def test_packets_are_written_as_libmilter_reads_them(packet: bytes, expected: bytes) -> None:
    assert packet == expected


@pytest.mark.parametrize(
    ("packet", "answer"),
    [
        (b"c", Plain.CONTINUE),
        (b"4", Plain.SHUTDOWN),
        (b"y550 5.7.1 no\0", ReplyCode(Reply(550, "no", "5.7.1"))),
        (b"y451 later 100%%\0", ReplyCode(Reply(451, "later 100%"))),
        (b"y550 \xc3\xa4\tb\0", ReplyCode(Reply(550, "??b"))),
        (b"y550-5.7.1 a\r\n550 5.7.1 b\0", ReplyCode(Reply(550, "a\nb", "5.7.1"))),
        (b"hX-A\0 b\n c\0", AddHeader(b"X-A", b" b\n c")),
        (b"i\0\0\0\x01X\0y\0", InsertHeader(1, b"X", b"y")),
        (b"m\0\0\0\x02X\0\0", ChangeHeader(2, b"X", b"")),
        (b"+<a@b>\0", AddRecipient(b"<a@b>")),
        (b"2<a@b>\0NOTIFY=NEVER\0", AddRecipient(b"<a@b>", b"NOTIFY=NEVER")),
        (b"-<a@b>\0", DeleteRecipient(b"<a@b>")),
        (b"e<>\0", ChangeSender(b"<>")),
        (b"bx\0y", ReplaceBody(b"x\0y")),
        (b"qspam\0", Hold(b"spam")),
        (
            b"O" + struct.pack(">III", 6, 0x11, 0x400) + b"\0\0\0\x02i {auth_type}\0",
            Options(6, Action.ADD_HEADERS | Action.CHANGE_HEADERS, Step.SKIP, ((Stage.MAIL, ("i", "auth_type")),)),
        ),
    ],
)
def test_packets_of_filters_are_read(packet: bytes, answer: Answer) -> None:
    assert decode(packet) == answer


@pytest.mark.parametrize(
    "packet",
    [
        *(b"", b"?", b"O\0\0\0\x06", b"hX", b"hX\0", b"hX\0y\0z\0", b"i\0\0", b"m\0\0\0\x01X\0y", b"+a\0b\0"),
        *(b"y", b"y250 fine\0", b"y550 no\r\n450 well\0", b"y550 4.7.1 no\0", b"q", b"y550no\0"),
        b"O" + struct.pack(">III", 6, 0, 0) + b"\0\0\0\x09i\0",
        b"O" + struct.pack(">III", 6, 0, 0) + b"\0\0\0\x01i",
    ],
)
def test_garbage_is_an_error_of_the_filter(packet: bytes) -> None:
    with pytest.raises(MilterError):
        decode(packet)


def packets() -> st.SearchStrategy[bytes]:
    kinds = st.sampled_from([b"O", b"y", b"h", b"i", b"m", b"+", b"2", b"-", b"e", b"b", b"q"])
    return st.binary(max_size=80) | st.builds(lambda kind, rest: kind + rest, kinds, st.binary(max_size=80))


@given(packets())
def test_any_packet_is_an_answer_or_an_error(packet: bytes) -> None:
    try:
        decode(packet)
    except MilterError:
        pass


@pytest.mark.parametrize(("prefix", "length"), [(b"\0\0\0\x01", 1), (b"\0\x10\0\x01", 1024 * 1024 + 1)])
def test_lengths_within_the_bounds_are_taken(prefix: bytes, length: int) -> None:
    assert decode_length(prefix) == length


@pytest.mark.parametrize("prefix", [b"\0\0\0\0", b"\0\x10\0\x02", b"220 "])
def test_lengths_out_of_bounds_are_an_error(prefix: bytes) -> None:
    with pytest.raises(MilterError):
        decode_length(prefix)
