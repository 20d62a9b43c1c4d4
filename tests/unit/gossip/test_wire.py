"""The wire: values survive it, nonsense is only ever a WireError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.linkstate import (
    ClassLoad,
    Key,
    Kind,
    Links,
    LinkState,
    LinkStatus,
    Load,
    NodeId,
    NodeInfo,
    Payload,
    TlsLevel,
    Version,
)
from gossip.wire import (
    BODY_BYTES_MAX,
    WireError,
    decode_key,
    decode_record,
    encode_body,
    encode_key,
)
from smtpmesh.gossip.v1 import gossip_pb2 as pb

ORIGIN = NodeId("ab" * 16)
tags = st.lists(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True), max_size=4).map(
    lambda found: tuple(sorted(set(found)))
)
words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
hops = st.one_of(
    st.integers(0, 2**128 - 1).map(lambda number: f"peer:{number:032x}"),
    st.from_regex(r"host:[A-Za-z0-9._-]{1,63}", fullmatch=True),
    st.from_regex(r"mx:[a-z0-9-]{1,40}\.test", fullmatch=True),
)
links = st.builds(
    LinkState,
    hop=hops,
    status=st.sampled_from(LinkStatus),
    availability_permille=st.integers(0, 1000),
    reliability_permille=st.integers(0, 1000),
    capacity_mmps=st.integers(0, 10**9),
    latency_us=st.integers(0, 10**8),
    samples=st.integers(0, 10**6),
    cost=st.integers(0, 1000),
    classes=st.lists(words, max_size=3).map(tuple),
    tags=tags,
    tls=st.sampled_from(TlsLevel),
    size_bytes_max=st.integers(0, 10**12),
    sustained_mmps=st.integers(0, 10**9),
)
loads = st.builds(
    Load,
    accept_capacity_mmps=st.integers(0, 10**9),
    headroom_permille=st.integers(0, 1000),
    classes=st.lists(
        st.builds(ClassLoad, words, st.integers(0, 10**9), st.integers(0, 10**6), st.integers(0, 10**9)), max_size=4
    ).map(tuple),
)
infos = st.builds(NodeInfo, words, words, words, words, words, *[st.booleans()] * 4, words, tags, words)
payloads = st.one_of(
    infos.map(lambda info: (Kind.NODE, info)),
    st.lists(links, max_size=5).map(lambda found: (Kind.LINKS, Links(tuple(found)))),
    loads.map(lambda load: (Kind.LOAD, load)),
)


def encode(kind: Kind, payload: Payload, *, lifetime_s: int = 60) -> bytes:
    return encode_body(
        Key(ORIGIN, kind),
        Version(7, 9),
        "test",
        payload,
        certificate=b"certificate" if kind is Kind.NODE else b"",
        issued_at=1,
        lifetime_s=lifetime_s,
    )


@given(payloads)
def test_every_payload_survives_the_wire(given_payload: tuple[Kind, Payload]) -> None:
    kind, payload = given_payload
    record = decode_record(encode(kind, payload), b"signature")
    assert (record.payload, record.key, record.version) == (payload, Key(ORIGIN, kind), Version(7, 9))
    assert (record.cluster, record.lifetime_s) == ("test", 60)


@given(st.binary(max_size=400))
def test_garbage_is_only_ever_a_wire_error(garbage: bytes) -> None:
    try:
        decode_record(garbage, b"")
    except WireError:
        pass


@given(payloads, st.integers(0, 10**6), st.integers(0, 255))
def test_a_flipped_byte_is_a_record_or_a_wire_error(given_payload: tuple[Kind, Payload], place: int, byte: int) -> None:
    body = bytearray(encode(*given_payload))
    body[place % len(body)] = byte
    try:
        decode_record(bytes(body), b"")
    except WireError:
        pass


def test_a_payload_of_another_kind_is_nonsense() -> None:
    body = pb.Body.FromString(encode(Kind.LOAD, Load()))
    body.key.kind = int(Kind.LINKS)
    with pytest.raises(WireError, match="does not fit"):
        decode_record(body.SerializeToString(), b"")


@pytest.mark.parametrize("lifetime_s", [0, 86_401])
def test_lifetimes_have_bounds(lifetime_s: int) -> None:
    with pytest.raises(WireError, match="lifetime"):
        decode_record(encode(Kind.LOAD, Load(), lifetime_s=lifetime_s), b"")


def test_too_long_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(WireError, match="too long"):
        decode_record(b"\0" * (BODY_BYTES_MAX + 1), b"")


@pytest.mark.parametrize(
    "key",
    [
        pb.RecordKey(origin="short", kind=1),
        pb.RecordKey(origin="AB" * 16, kind=1),
        pb.RecordKey(origin="ab" * 16, kind=0),
        pb.RecordKey(origin="ab" * 16, kind=256),
        pb.RecordKey(origin="ab" * 16, kind=1, shard=100_000),
    ],
)
def test_malformed_keys_are_nonsense(key: pb.RecordKey) -> None:
    with pytest.raises(WireError):
        decode_key(key)
    assert decode_key(encode_key(Key(ORIGIN, Kind.NODE, 3))) == Key(ORIGIN, Kind.NODE, 3)


def with_tags(*words_given: str) -> list[pb.Body]:
    """A node and a link with these tags, as somebody may send them."""
    node, linked = (pb.Body.FromString(encode(kind, payload)) for kind, payload in (
        (Kind.NODE, NodeInfo("a", "", "")),
        (Kind.LINKS, Links((LinkState("host:a", LinkStatus.UP, 1000, 1000, 0, 0),))),
    ))  # fmt: skip
    node.node.tags.extend(words_given)
    linked.links.links[0].tags.extend(words_given)
    return [node, linked]


@pytest.mark.parametrize("wrong", [["EU"], [""], ["a b"], ["a" * 33], ["-a"], ["a\n"], [f"t{n}" for n in range(17)]])
def test_tags_out_of_bounds_are_nonsense(wrong: list[str]) -> None:
    for body in with_tags(*wrong):
        with pytest.raises(WireError, match="bad tags"):
            decode_record(body.SerializeToString(), b"")


def test_equal_tags_are_equal_values_in_whatever_order_they_were_sent() -> None:
    for body in with_tags("eu", "a-1", "eu"):
        payload = decode_record(body.SerializeToString(), b"").payload
        tagged = payload.links[0] if isinstance(payload, Links) else payload
        assert isinstance(tagged, LinkState | NodeInfo)
        assert tagged.tags == ("a-1", "eu")


def test_a_tls_level_of_a_newer_version_is_the_best_that_is_known_here() -> None:
    _, body = with_tags()
    body.links.links[0].tls = 9
    payload = decode_record(body.SerializeToString(), b"").payload
    assert isinstance(payload, Links)
    assert payload.links[0].tls is TlsLevel.VERIFIED


def test_fields_of_a_newer_version_are_passed_on_as_they_came() -> None:
    body = with_tags("eu")[0].SerializeToString() + b"\xfa\x01\x03new"
    assert decode_record(body, b"").body == body
