"""What an opaque S/MIME message says: the content of CMS SignedData (RFC 5652 section 5), in DER or BER. Pure.

Nothing is verified. The lengths may be indefinite and the content cut into pieces, as writers of streams do it.
"""

from __future__ import annotations

from dataclasses import dataclass

SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
DATA = bytes.fromhex("2a864886f70d010701")
DEPTH_MAX = 16
VALUES_MAX = 100_000
_OID, _OCTETS, _SEQUENCE, _EXPLICIT, _CONSTRUCTED = 0x06, 0x04, 0x30, 0xA0, 0x20


@dataclass(frozen=True, slots=True)
class Value:
    """One value of BER."""

    tag: int
    """With its class and whether it is constructed."""
    primitive: bytes = b""
    parts: tuple[Value, ...] = ()


def read_signed_content(ber: bytes) -> bytes:
    """The MIME entity that was signed. ValueError if there is none in it."""
    outer, _ = _Reader(ber).read(0, len(ber), DEPTH_MAX)
    kind, signed = _parts(outer, _SEQUENCE, 2)
    if (kind.tag, kind.primitive) != (_OID, SIGNED_DATA):
        raise ValueError("it is no SignedData")
    encapsulated = _parts(_parts(signed, _EXPLICIT, 1)[0], _SEQUENCE, 3)[2]
    kind, content = _parts(encapsulated, _SEQUENCE, 2)
    if (kind.tag, kind.primitive) != (_OID, DATA):
        raise ValueError("what was signed is no MIME entity")
    return b"".join(_octets(_parts(content, _EXPLICIT, 1)[0]))


def _parts(value: Value, tag: int, count_min: int) -> tuple[Value, ...]:
    if value.tag != tag or len(value.parts) < count_min:
        raise ValueError("it is no SignedData with its content")
    return value.parts


def _octets(value: Value) -> list[bytes]:
    if value.tag & ~_CONSTRUCTED != _OCTETS:
        raise ValueError("what was signed is no string of octets")
    if value.tag & _CONSTRUCTED:
        return [piece for part in value.parts for piece in _octets(part)]
    return [value.primitive]


class _Reader:
    def __init__(self, ber: bytes) -> None:
        self._ber, self._count = ber, 0

    def read(self, at: int, limit: int, depth: int) -> tuple[Value, int]:
        """The value at a place, and where the next one is. ValueError."""
        self._count += 1
        if depth < 0 or self._count > VALUES_MAX or at + 2 > limit:
            raise ValueError("it is damaged, or too deep")
        tag, length = self._ber[at], self._ber[at + 1]
        if tag & 0x1F == 0x1F:
            raise ValueError("a tag that CMS has not")
        at += 2
        end: int | None = at + length
        if length == 0x80:
            end = None
        elif length > 0x80:
            at += length - 0x80
            end = at + int.from_bytes(self._ber[at - length + 0x80 : at])
        if (end or at) > limit or (end is None and not tag & _CONSTRUCTED):
            raise ValueError("it is cut off")
        if end is not None and not tag & _CONSTRUCTED:
            return Value(tag, self._ber[at:end]), end
        parts: list[Value] = []
        while at != end:
            if end is None and self._ber[at : at + 2] == b"\0\0":
                return Value(tag, parts=tuple(parts)), at + 2
            part, at = self.read(at, limit if end is None else end, depth - 1)
            parts.append(part)
        return Value(tag, parts=tuple(parts)), at
