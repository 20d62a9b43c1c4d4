"""What a document of changes may say, and that everything else is refused with a reason."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.applications.changes import (
    Change,
    Poisoned,
    build_message,
    dump_change,
    parse_changes,
    parse_tables,
    read_document,
)

TABLES = parse_tables(
    {
        "parts": {
            "key": "id",
            "columns": {"id": "integer", "name": "text", "price": "number", "good": "boolean", "more": "json"},
        },
        "public.notes": {"key": "title", "columns": {"title": "text"}},
    }
)
SECRET = b"a secret of sixteen bytes"


def upsert(**members: object) -> dict[str, object]:
    return {"table": "parts", "key": 7, "op": "upsert", "version": 1, "row": {"name": "bolt"}} | members


def test_a_change_is_read_as_it_stands_with_its_key_in_the_row() -> None:
    text = b'{"table":"parts","key":7,"op":"upsert","version":3,"row":{"price":0.10,"good":true,"more":[1,null]}}'
    ((change,), _) = parse_changes(text, TABLES)
    row = {"price": Decimal("0.10"), "good": True, "more": [1, None], "id": 7}
    assert change == Change("parts", 7, "upsert", 3, row)
    assert dump_change(change) == (
        '{"table": "parts", "key": 7, "op": "upsert", "version": 3, '
        '"row": {"price": 0.10, "good": true, "more": [1, null], "id": 7}}'
    )


def test_of_one_key_only_the_newest_counts_and_it_stands_where_it_stood() -> None:
    changes = [upsert(version=2), upsert(key=8), upsert(version=5), upsert(version=4)]
    found, count = parse_changes(json.dumps(changes).encode(), TABLES)
    assert [(change.key, change.version) for change in found] == [(8, 1), (7, 5)]
    assert count == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is not JSON"),
        (b"\xff\xfe", "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b'{"a": NaN}', "NaN is no number in JSON"),
        (b"[]", "it has 0 changes"),
        (b"7", "change 0: it is no object"),
        (upsert(more=1), "unknown member 'more'"),
        (upsert(table="users"), "unknown table 'users'"),
        (upsert(table=["parts"]), "unknown table"),
        (upsert(op="drop"), "op is upsert or delete, not 'drop'"),
        (upsert(version=True), "version is an integer"),
        (upsert(version=-1), "version is an integer"),
        (upsert(version=2**63), "version is an integer"),
        (upsert(key=None), "it has no key"),
        (upsert(key="7"), "parts.id is integer, which '7' is not"),
        (upsert(key=7.0), "parts.id is integer"),
        (upsert(key=2**63), "parts.id is integer"),
        (upsert(row=None), "an upsert has a row"),
        (upsert(row={'name" = 1; --': 1}), "unknown column"),
        (upsert(row={"id": 8}), "id in the row is not the key"),
        (upsert(row={"name": 3}), "parts.name is text, which 3 is not"),
        (upsert(row={"price": "3"}), "parts.price is number"),
        (upsert(row={"good": 1}), "parts.good is boolean"),
        (upsert(row={"name": "\ud800"}), "parts.name is text"),
        (upsert(op="delete"), "a delete has no row"),
        ([upsert()] * 1001, "it has 1001 changes; 1 to 1000 are taken"),
        ([upsert(), upsert(table="x")], "change 1: unknown table"),
    ],
)
def test_what_may_not_be_said_is_refused_with_the_reason(text: object, reason: str) -> None:
    with pytest.raises(Poisoned, match=reason.replace("(", r"\(")):
        parse_changes(text if isinstance(text, bytes) else json.dumps(text).encode(), TABLES)


@given(
    st.binary()
    | st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists).map(
        lambda value: json.dumps(
            [{"table": "parts", "key": 1, "op": "upsert", "version": 1, "row": value}, value]
        ).encode()
    )
)
def test_garbage_is_poison_and_nothing_else(text: bytes) -> None:
    with pytest.raises(Poisoned):
        parse_changes(text, TABLES)


@given(st.integers(-(2**62), 2**62), st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_change_that_is_sent_is_the_change_that_comes(key: int, name: str, price: float) -> None:
    sent = json.loads(json.dumps({"id": key, "name": name, "price": price}), parse_float=Decimal)
    message = build_message([dump_change(Change("parts", key, "upsert", 5, sent))], {"Subject": "x"}, SECRET)
    assert max(map(len, message.split(b"\r\n"))) <= 998
    ((change,), _) = parse_changes(read_document(message, SECRET), TABLES)
    assert change == Change("parts", key, "upsert", 5, sent)


def test_a_document_comes_in_any_transfer_encoding() -> None:
    head = b"Content-Type: application/json; charset=utf-8\r\n"
    assert read_document(head + b"\r\n{}\r\n", b"") == b"{}\r\n"
    assert read_document(head + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=7B=7D", b"") == b"{}"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"Subject: x\r\n\r\n{}\r\n", "it is text/plain, not application/json"),
        (b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x--\r\n", "it is multipart/mixed"),
        (b"Content-Type: application/json\r\n\r\n{}\r\n", "its signature is missing or wrong"),
        (
            b"Content-Type: application/json\r\nSmtpmesh-Signature: \xff\r\n\r\n{}\r\n",
            "its signature is missing or wrong",
        ),
        (build_message(["{}"], {}, b"another secret of ours"), "its signature is missing or wrong"),
        (build_message(["{}"], {}, SECRET).replace(b"W3t9", b"W3t8"), "its signature is missing or wrong"),
    ],
)
def test_a_message_that_carries_no_signed_document_is_poison(message: bytes, reason: str) -> None:
    with pytest.raises(Poisoned, match=reason):
        read_document(message, SECRET)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({}, "names a table at least"),
        ([], "names a table at least"),
        ({'x"; DROP': {}}, "letters, digits and _"),
        ({"a.b.c": {}}, "letters, digits and _"),
        ({"x": {"key": "id"}}, "tables.x has `key`, a column, and `columns`"),
        ({"x": {"key": "id", "columns": {}}}, "tables.x.columns names a column at least"),
        ({"x": {"key": "id", "columns": {"i d": "text"}}}, "'i d' is no column"),
        ({"x": {"key": "id", "columns": {"id": "uuid"}}}, "tables.x.columns.id = 'uuid' is none of: integer"),
        ({"x": {"key": "no", "columns": {"id": "text"}}}, "tables.x.key = 'no' is none of its columns"),
        ({"x": {"key": "id", "columns": {"id": "number"}}}, "tables.x.key = 'id' is none of its columns of kind"),
    ],
)
def test_a_setting_that_means_nothing_is_named(tables: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_tables(tables)
