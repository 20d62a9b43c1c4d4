"""Frames from anywhere: nothing leaves the decoder but WireError, nothing at all leaves the machine."""

from __future__ import annotations

import random

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.database import Database, Verdict
from gossip.frames import Hello, Record
from gossip.linkstate import Key, Kind, NodeId, NodeInfo, Sessions, Version
from gossip.wire import WireError, decode_frame, decode_record, encode_body, encode_frame
from smtp_edge.simulation.stub import certificate_of, member_of, node_id_of, sign_as
from smtpmesh.gossip.v1 import gossip_pb2 as pb
from tests.unit.gossip.ordeal import Ordeal

ORIGINS = [node_id_of(index) for index in range(3)]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600))
def test_any_bytes_are_a_frame_or_a_wire_error(raw: bytes) -> None:
    try:
        message = pb.Frame.FromString(raw)
    except DecodeError:
        return
    try:
        frame = decode_frame(message)
    except WireError:
        return
    if frame is not None:
        assert decode_frame(encode_frame(frame)) == frame or getattr(frame, "faults", ())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=80))
def test_any_bytes_are_a_record_or_a_wire_error(body: bytes, signature: bytes) -> None:
    try:
        record = decode_record(body, signature)
    except WireError:
        return
    assert (record.body, record.signature) == (body, signature)


HELLOS = st.builds(
    Hello,
    sequence=st.integers(0, 2**63 - 1),
    heard=st.integers(0, 2**63 - 1),
    root=st.integers(0, 2**64 - 1),
    lag_ms=st.integers(0, 2**32 - 1),
    wanted=st.booleans(),
    records=st.integers(0, 2**32 - 1),
    held_ms=st.integers(0, 2**32 - 1),
)


@settings(max_examples=200, deadline=None)
@given(HELLOS)
def test_hellos_arrive_as_they_were(hello: Hello) -> None:
    assert decode_frame(encode_frame(hello)) == hello


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=1200))
def test_no_sequence_of_frames_sessions_and_times_harms_a_machine(data: bytes) -> None:
    Ordeal().run(data)


@pytest.mark.parametrize("seed", range(40))
def test_long_random_lives(seed: int) -> None:
    Ordeal().run(random.Random(seed).randbytes(2500))


# -- the newest version wins, in any order -----------------------------------------------------------------------------


def record_of(origin: NodeId, kind: Kind, version: Version, variant: int, lifetime_s: int) -> Record:
    payload = (
        NodeInfo(f"v{variant}", "10.0.0.1:1", "10.0.0.1:2") if kind is Kind.NODE else Sessions((ORIGINS[variant],))
    )
    body = encode_body(
        Key(origin, kind),
        version,
        "simulated",
        payload,
        certificate=certificate_of(origin) if kind is Kind.NODE else b"",
        issued_at=version.epoch,
        lifetime_s=lifetime_s,
    )
    return decode_record(body, sign_as(origin, body))


RECORDS = st.builds(
    record_of,
    st.sampled_from(ORIGINS),
    st.sampled_from([Kind.NODE, Kind.SESSIONS]),
    st.builds(Version, st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 2),
    st.sampled_from([300, 1000, 4000]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(RECORDS, max_size=25), st.randoms(use_true_random=False), st.integers(1, 3))
def test_whatever_the_order_duplicates_and_delays_the_newest_version_stays(
    records: list[Record], rng: random.Random, copies: int
) -> None:
    certificates = [record_of(origin, Kind.NODE, Version(0, 1), 0, 1000) for origin in ORIGINS]
    results = []
    for _ in range(2):
        database, now = Database("simulated", member_of), 0.0
        for record in certificates:
            assert database.offer(record, now)[0] is Verdict.STORED
        arrivals = records * copies
        rng.shuffle(arrivals)
        for record in arrivals:
            now += rng.random() * 5
            database.offer(record, now, age_s=rng.random() * 50)
        results.append({record.key: record.mark for record in database.records()})
    expected: dict[Key, Record] = {}
    for record in [*certificates, *records]:
        held = expected.get(record.key)
        if held is None or (record.version, record.mark) > (held.version, held.mark):
            expected[record.key] = record
    assert results[0] == results[1] == {key: record.mark for key, record in expected.items()}


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(RECORDS, st.floats(0, 500)), min_size=1, max_size=25))
def test_what_has_expired_comes_back_in_no_order(deliveries: list[tuple[Record, float]]) -> None:
    """Copies may linger anywhere and grow older; once a version ended here, nothing up to it returns."""
    database, now, ended = Database("simulated", member_of), 0.0, dict[Key, Version]()
    for origin in ORIGINS:
        database.offer(record_of(origin, Kind.NODE, Version(0, 1), 0, 86_400), now)
    for record, pause_s in deliveries:
        now += pause_s
        held = {found.key: found.version for found in database.records()}
        for key in database.expire(now, NodeId("")):
            ended[key] = max(held[key], ended.get(key, held[key]))
        issued = 400 * record.version.epoch + 130 * record.version.sequence - 530
        if now >= issued:
            database.offer(record, now, age_s=now - issued)
        if record.key in ended:
            found = database.get(record.key)
            assert found is None or found.version > ended[record.key]
