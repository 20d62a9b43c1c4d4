"""What a filter sends, read: each packet is a value of `smtp_edge.applications.milter.wire` or a MilterError. Pure."""

from __future__ import annotations

import re
import struct

from smtp_edge.applications.milter.wire import (
    LENGTH_BYTES,
    PACKET_BYTES_MAX,
    Action,
    AddHeader,
    AddRecipient,
    Answer,
    ChangeHeader,
    ChangeSender,
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
)
from smtp_edge.reply import Reply

_LINE = re.compile(r"([45]\d\d)(?:[- ](?:([45]\.\d{1,3}\.\d{1,3})(?: |$))?(.*))?")
_PLAIN = {plain.value: plain for plain in Plain}


def decode_length(prefix: bytes) -> int:
    """Bytes that follow, at least the one that says what the packet is."""
    (length,) = struct.unpack(">I", prefix)
    if not 1 <= length <= PACKET_BYTES_MAX:
        raise MilterError(f"a packet of {length} bytes")
    return int(length)


def decode(packet: bytes) -> Answer:
    """One packet without its length."""
    kind, payload = packet[:1], packet[1:]
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain
    match kind:
        case b"O":
            return _decode_options(payload)
        case b"y":
            return ReplyCode(_decode_reply(payload))
        case b"h":
            return AddHeader(*_texts(kind, payload, 2, 2))
        case b"i":
            return InsertHeader(_index(kind, payload), *_texts(kind, payload[4:], 2, 2))
        case b"m":
            return ChangeHeader(_index(kind, payload), *_texts(kind, payload[4:], 2, 2))
        case b"+" | b"2":
            return AddRecipient(*_texts(kind, payload, 1, 2 if kind == b"2" else 1))
        case b"-":
            return DeleteRecipient(*_texts(kind, payload, 1, 1))
        case b"e":
            return ChangeSender(*_texts(kind, payload, 1, 2))
        case b"b":
            return ReplaceBody(payload)
        case b"q":
            return Hold(*_texts(kind, payload, 1, 1))
        case _:
            raise MilterError(f"a packet of an unknown kind, {kind!r}")


def _index(kind: bytes, payload: bytes) -> int:
    if len(payload) < LENGTH_BYTES:
        raise MilterError(f"a packet {kind!r} without its number")
    return int.from_bytes(payload[:4], "big")


def _texts(kind: bytes, payload: bytes, least: int, most: int) -> list[bytes]:
    *texts, rest = payload.split(b"\0")
    if rest or not least <= len(texts) <= most:
        raise MilterError(f"a packet {kind!r} that does not hold what it should")
    return texts


def _decode_options(payload: bytes) -> Options:
    if len(payload) < 12:
        raise MilterError("an answer to OPTNEG that is too short")
    version, actions, steps = struct.unpack(">III", payload[:12])
    return Options(version, Action(actions), Step(steps), tuple(_decode_macros(payload[12:])))


def _decode_macros(rest: bytes) -> list[tuple[Stage, tuple[str, ...]]]:
    found: list[tuple[Stage, tuple[str, ...]]] = []
    while rest:
        number, (names, end, after) = rest[:4], rest[4:].partition(b"\0")
        stage = int.from_bytes(number, "big")
        if len(number) < 4 or not end or stage > max(Stage):
            raise MilterError("an answer to OPTNEG whose lists of macros make no sense")
        words = names.decode("ascii", "replace").replace(",", " ").split()
        found.append((Stage(stage), tuple(word.strip("{}") for word in words)))
        rest = after
    return found


def _decode_reply(payload: bytes) -> Reply:
    """`550 5.7.1 text`, or lines of it, all with the same code."""
    lines = [_LINE.fullmatch(line) for line in payload.rstrip(b"\0\r\n").decode("utf-8", "replace").splitlines()]
    found = [line for line in lines if line is not None]
    if not found or len(found) != len(lines) or len({line[1] for line in found}) != 1:
        raise MilterError(f"a reply that is none: {payload[:80]!r}")
    text = "\n".join(_printable((line[3] or "").replace("%%", "%")) for line in found)  # libmilter wants % doubled
    try:
        return Reply(int(found[0][1]), text, found[0][2] or "")
    except ValueError as error:
        raise MilterError(f"a reply that is none: {error}") from None


def _printable(text: str) -> str:
    return "".join(character if " " <= character <= "~" else "?" for character in text)
