"""PROXY headers: what is believed, what is nonsense, and that not a byte more than the header is read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.server.proxy import LENGTH_MAX, SIGNATURE, V1_BYTES_MAX, ProxiedClient, ProxyFault, needed, parse_proxy


def read(stream: bytes) -> tuple[bytes, bytes]:
    """The header, read as `needed` says, and what is left."""
    header = b""
    while count := needed(header):
        if not stream:
            raise ProxyFault("the end")
        header, stream = header + stream[:count], stream[count:]
    return header, stream


def version_2(command: int, family: int, addresses: bytes, *, version: int = 2) -> bytes:
    return SIGNATURE + bytes([version << 4 | command, family]) + struct.pack("!H", len(addresses)) + addresses


V4 = bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 56324, 25)
V6 = bytes.fromhex("20010db8000000000000000000000007") + bytes(15) + b"\x01" + struct.pack("!HH", 1, 25)
TLV = b"\x05\x00\x03abc"


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 25\r\n", ProxiedClient("192.0.2.7", 56324)),
        (b"PROXY TCP6 2001:db8::7 ::1 1 25\r\n", ProxiedClient("2001:db8::7", 1)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
        (version_2(1, 0x11, V4), ProxiedClient("192.0.2.7", 56324)),
        (version_2(1, 0x11, V4 + TLV), ProxiedClient("192.0.2.7", 56324)),
        (version_2(1, 0x21, V6), ProxiedClient("2001:db8::7", 1)),
        (version_2(0, 0x00, b""), None),
        (version_2(0, 0x11, V4), None),
        (version_2(1, 0x31, bytes(216)), None),
        (version_2(1, 0x00, TLV), None),
    ],
)
@pytest.mark.parametrize("behind", [b"", b"EHLO x\r\n", b"\x16\x03\x01\x02\x00"])
def test_headers_are_read_to_their_last_byte_and_no_further(
    header: bytes, client: ProxiedClient | None, behind: bytes
) -> None:
    assert read(header + behind) == (header, behind)
    assert parse_proxy(header) == client


@pytest.mark.parametrize(
    "stream",
    [
        b"EHLO client.test\r\n",
        b"PROXY\r\nEHLO x\r\n",
        b"PROXY TCP4 192.0.2.7\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 25\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 25 x\r\n",
        b"PROXY TCP4 192.0.2.300 198.51.100.1 56324 25\r\n",
        b"PROXY TCP4 ::1 ::1 1 25\r\n",
        b"PROXY TCP6 192.0.2.7 ::1 1 25\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 25\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 01 25\r\n",
        b"PROXY  TCP4 192.0.2.7 198.51.100.1 1 25\r\n",
        b"PROXY UNKNOWN \x00\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00",
        SIGNATURE[:-1] + b"X" + bytes(8),
        version_2(1, 0x11, V4, version=1),
        version_2(2, 0x11, V4),
        version_2(1, 0x12, V4),
        version_2(1, 0x41, V4),
        version_2(1, 0x11, V4[:-1]),
        version_2(1, 0x21, V4),
        SIGNATURE + b"\x21\x11" + struct.pack("!H", LENGTH_MAX + 1) + bytes(LENGTH_MAX + 1),
    ],
)
def test_garbage_is_a_fault(stream: bytes) -> None:
    with pytest.raises(ProxyFault):
        parse_proxy(read(stream)[0])


@given(st.binary(max_size=300), st.sampled_from([b"", SIGNATURE, SIGNATURE + b"\x21\x11", b"PROXY ", b"PROXY TCP4 "]))
def test_whatever_comes_is_a_header_or_a_fault(stream: bytes, beginning: bytes) -> None:
    try:
        header, _ = read(beginning + stream)
        client = parse_proxy(header)
    except ProxyFault:
        return
    assert len(header) <= max(V1_BYTES_MAX, 16 + LENGTH_MAX)
    assert client is None or 0 <= client.port <= 65535
