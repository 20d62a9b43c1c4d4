"""Changes of tables as JSON: what the applier takes and `replicate` sends. Pure.

A message carries one JSON document, as Content-Type application/json in UTF-8 (any Content-Transfer-Encoding): one
change, or a list of at most `CHANGES_MAX`.

    {"table": "parts", "key": 7, "op": "upsert", "version": 41, "row": {"id": 7, "name": "bolt", "price": 0.25}}
    {"table": "parts", "key": 7, "op": "delete", "version": 42}

    table     a table that the receiver lists, by the name that it has there
    key       value of its key column: an integer or a text
    op        `upsert`: the row is inserted, or these columns of it are set; `delete`: it is removed
    version   0 to 2^63-1: of two changes of one key the one with the higher version counts, in whatever order they come
    row       column -> value, of columns that the receiver lists; it may leave out the key, which is above

Of several changes of one key in one document only the newest is looked at. Whatever is not said here is refused: other
members, other columns, values of another type. A document may be signed (`Smtpmesh-Signature: sha256=HEX`, HMAC-SHA256
of its bytes with a secret that both ends have): whoever may send mail could otherwise write into the table.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from email import message_from_bytes
from typing import Any

CHANGES_MAX = 1000
"""In one document."""
KINDS = ("integer", "number", "text", "boolean", "json")
"""What a column may hold in JSON, null besides; a database's own types go as text, but for these."""
SIGNATURE = "Smtpmesh-Signature"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_INTEGER_MAX = 2**63 - 1
_SETTINGS = {"key", "columns"}
_MEMBERS = {"table", "key", "op", "version", "row"}


class Poisoned(Exception):
    """The message can never be applied; `str()` says why, for people."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that changes may name. Its names are identifiers: letters, digits and `_`."""

    name: str
    """With its schema, if it has one: `public.parts`."""
    key: str
    """The key column."""
    columns: Mapping[str, str]
    """Column -> kind (`KINDS`), the key's as well."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row."""

    table: str
    key: int | str
    op: str
    """`upsert` or `delete`."""
    version: int
    row: Mapping[str, Any]
    """With the key; for `delete` nothing but the key."""


def parse_tables(given: object) -> dict[str, Table]:
    """The setting `tables`. ValueError."""
    if not isinstance(given, Mapping) or not given:
        raise ValueError('tables names a table at least: { parts = { key = "id", columns = { id = "integer" } } }')
    return {name: _parse_table(name, table) for name, table in given.items()}


def _parse_table(name: object, given: object) -> Table:
    where = f"tables.{name}"
    if not isinstance(name, str) or not all(map(_NAME.fullmatch, name.split("."))) or name.count(".") > 1:
        raise ValueError(
            f"{where}: a table's name is letters, digits and _, after its schema and a dot if it needs one"
        )
    if not isinstance(given, Mapping) or set(given) != _SETTINGS:
        raise ValueError(f'{where} has `key`, a column, and `columns`, as {{ id = "integer", name = "text" }}')
    key, columns = given["key"], given["columns"]
    if not isinstance(columns, Mapping) or not columns:
        raise ValueError(f"{where}.columns names a column at least")
    for column, kind in columns.items():
        if not isinstance(column, str) or not _NAME.fullmatch(column):
            raise ValueError(f"{where}.columns: {column!r} is no column: letters, digits and _")
        if kind not in KINDS:
            raise ValueError(f"{where}.columns.{column} = {kind!r} is none of: {', '.join(KINDS)}")
    if not isinstance(key, str) or columns.get(key) not in ("integer", "text"):
        raise ValueError(f"{where}.key = {key!r} is none of its columns of kind integer or text")
    return Table(name, key, dict(columns))


# -- reading -----------------------------------------------------------------------------------------------------------


def read_document(message: bytes, secret: bytes) -> bytes:
    """The JSON text that a message carries; `secret` empty = it need not be signed. Poisoned."""
    parsed = message_from_bytes(message)
    if parsed.get_content_type() != "application/json":
        raise Poisoned(f"it is {parsed.get_content_type()[:80]}, not application/json")
    document = parsed.get_payload(decode=True)
    assert isinstance(document, bytes), "it is not multipart"
    if secret and not hmac.compare_digest(sign(document, secret), str(parsed.get(SIGNATURE, "")).encode()):
        raise Poisoned("its signature is missing or wrong")
    return document


def parse_changes(document: bytes, tables: Mapping[str, Table]) -> tuple[list[Change], int]:
    """Of each key of a document the newest change, in its order; and how many changes it has. Poisoned."""
    try:
        found = json.loads(document, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Poisoned(f"it is not JSON: {error}") from None
    items = found if isinstance(found, list) else [found]
    if not 1 <= len(items) <= CHANGES_MAX:
        raise Poisoned(f"it has {len(items)} changes; 1 to {CHANGES_MAX} are taken")
    newest: dict[tuple[str, int | str], Change] = {}
    for number, item in enumerate(items):
        try:
            change = _parse_change(item, tables)
        except Poisoned as error:
            raise Poisoned(f"change {number}: {error}") from None
        before = newest.get((change.table, change.key))
        if before is None or before.version < change.version:
            newest.pop((change.table, change.key), None)  # it stands where the newest stood
            newest[change.table, change.key] = change
    return list(newest.values()), len(items)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def _parse_change(item: object, tables: Mapping[str, Table]) -> Change:
    if not isinstance(item, dict):
        raise Poisoned("it is no object")
    if unknown := set(item) - _MEMBERS:
        raise Poisoned(f"unknown member {min(unknown)!r:.80}")
    name, op, version = item.get("table"), item.get("op"), item.get("version")
    table = tables.get(name) if isinstance(name, str) else None
    if table is None:
        raise Poisoned(f"unknown table {name!r:.80}")
    if op not in ("upsert", "delete"):
        raise Poisoned(f"op is upsert or delete, not {op!r:.80}")
    if type(version) is not int or not 0 <= version <= _INTEGER_MAX:
        raise Poisoned(f"version is an integer from 0, not {version!r:.80}")
    key = item.get("key")
    if key is None:
        raise Poisoned("it has no key")
    _check(table, table.key, key)
    return Change(table.name, key, op, version, _parse_row(table, key, op, item.get("row")))


def _parse_row(table: Table, key: Any, op: str, row: object) -> dict[str, Any]:
    if op == "delete":
        if row is not None:
            raise Poisoned("a delete has no row")
        return {table.key: key}
    if not isinstance(row, dict):
        raise Poisoned("an upsert has a row")
    for column, value in row.items():
        if column not in table.columns:
            raise Poisoned(f"unknown column {column!r:.80} of {table.name}")
        _check(table, column, value)
    if row.get(table.key, key) != key:
        raise Poisoned(f"{table.key} in the row is not the key")
    return {**row, table.key: key}


def _check(table: Table, column: str, value: object) -> None:
    """A value is null or of the column's kind. Poisoned."""
    match table.columns[column]:
        case "integer":
            good = type(value) is int and -_INTEGER_MAX <= value <= _INTEGER_MAX
        case "number":
            good = type(value) in (int, Decimal) and math.isfinite(float(value))  # type: ignore[arg-type]
        case "boolean":
            good = type(value) is bool
        case "text":
            good = isinstance(value, str)
        case _:
            good = True
    if value is not None and not (good and _is_unicode(value)):
        raise Poisoned(f"{table.name}.{column} is {table.columns[column]}, which {value!r:.80} is not")


def _is_unicode(value: object) -> bool:
    """No half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


# -- writing -----------------------------------------------------------------------------------------------------------


def dump(value: object) -> str:
    """JSON text; numbers of a row keep all their digits."""
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(value, default=float)


def dump_row(row: Mapping[str, Any]) -> str:
    """A row as a JSON object."""
    return "{" + ", ".join(f"{dump(column)}: {dump(value)}" for column, value in row.items()) + "}"


def dump_change(change: Change) -> str:
    """A change as it stands in a document."""
    row = f', "row": {dump_row(change.row)}' if change.op == "upsert" else ""
    return (
        f'{{"table": {dump(change.table)}, "key": {dump(change.key)}, "op": {dump(change.op)}, '
        f'"version": {change.version}{row}}}'
    )


def build_message(changes: Sequence[str], header: Mapping[str, str], secret: bytes) -> bytes:
    """A message that carries these (`dump_change`), signed if there is a secret."""
    document = ("[" + ",\n".join(changes) + "]").encode()
    fields = {
        **header,
        "MIME-Version": "1.0",
        "Content-Type": "application/json",
        "Content-Transfer-Encoding": "base64",
    }
    if secret:
        fields[SIGNATURE] = sign(document, secret).decode()
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
    return lines + b"\r\n" + base64.encodebytes(document).replace(b"\n", b"\r\n")


def sign(document: bytes, secret: bytes) -> bytes:
    """The value of `SIGNATURE`."""
    return b"sha256=" + hmac.new(secret, document, hashlib.sha256).hexdigest().encode()
