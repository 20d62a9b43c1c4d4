"""What a filter changed, done to the message. Fields that are not named keep every byte.

A new body is put below the header as the filter has left it: what that says of the body (Content-Type, ...) is the
filter's to keep right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from smtp_edge.applications.milter.wire import (
    AddHeader,
    AddRecipient,
    ChangeHeader,
    ChangeSender,
    DeleteRecipient,
    InsertHeader,
    MilterError,
    Modification,
)
from smtp_edge.sinks.api import Message, ProtectedError, Signed
from smtp_edge.sinks.fields import Field, make_field
from smtp_edge.sinks.mime import media_type_of
from smtp_edge.sinks.protection import detect_type

OWN_TRACE = Field(b"")
"""Stands for this relay's own Received field: above all others when the message goes on, and the filter counts it when
it inserts, but does not see it."""


def apply_changes(message: Message, changes: Sequence[Modification], *, leading_space: bool) -> None:
    """In their order; those that are not of header or envelope are passed over. MilterError for what is no field or
    address: the message is then to be forgotten."""
    fields = apply_to_fields(message.fields, changes, leading_space=leading_space)
    if fields != message.fields:
        message.fields = fields
    for change in changes:
        try:
            _readdress(message, change)
        except ValueError as error:
            raise MilterError(f"{type(change).__name__}: {error}") from None


async def apply_body(message: Message, chunks: Iterable[bytes], signed: Signed | None) -> None:
    """Replace the body, after the other changes. ProtectedError: the mail is encrypted, or signed and `signed` does not
    do; the message is then to be forgotten."""
    found = await message.inspect()
    kept = detect_type(media_type_of(message.fields))
    if signed is Signed.STRIP and kept.signed:
        raise ProtectedError(f"the filter has left a header of what is {kept}: what was signed cannot be told apart")
    await message.replace_body(chunks, signed=signed if found.signed else None, reason="body changed by a filter")


def _readdress(message: Message, change: Modification) -> None:
    match change:
        case AddRecipient(address):
            message.add_recipient(_mailbox(address))
        case DeleteRecipient(address):
            message.remove_recipient(_mailbox(address))
        case ChangeSender(address):
            message.set_sender(_mailbox(address))
        case _:
            pass


def _mailbox(path: bytes) -> str:
    """Without brackets, which some filters leave out themselves."""
    return path.decode("utf-8", "surrogateescape").strip().removeprefix("<").removesuffix(">")


def apply_to_fields(
    fields: Sequence[Field], changes: Sequence[Modification], *, leading_space: bool
) -> tuple[Field, ...]:
    """As Sendmail and Postfix count: positions of new fields as the message is delivered, others as it came."""
    edited = [OWN_TRACE, *fields]
    for change in changes:
        match change:
            case AddHeader(name, value):
                edited.append(build_field(name, value, leading_space=leading_space))
            case InsertHeader(index, name, value):
                edited.insert(index, build_field(name, value, leading_space=leading_space))
            case ChangeHeader(index, name, value):
                _change(edited, index, name, build_field(name, value, leading_space=leading_space) if value else None)
            case _:
                pass
    return tuple(field for field in edited if field is not OWN_TRACE)


def _change(fields: list[Field], index: int, name: bytes, field: Field | None) -> None:
    """One that is not there is added, as Sendmail and Postfix do. Index 0 is 1."""
    wanted = name.decode("ascii", "replace")
    places = [place for place, found in enumerate(fields) if found is not OWN_TRACE and found.is_named(wanted)]
    at = max(1, index) - 1
    if at < len(places):
        fields[places[at] : places[at] + 1] = [] if field is None else [field]
    elif field is not None:
        fields.append(field)


def build_field(name: bytes, value: bytes, *, leading_space: bool) -> Field:
    """Filters fold with LF, and some end with one. MilterError."""
    text = value.replace(b"\r\n", b"\n").rstrip(b"\n").replace(b"\n", b"\r\n").decode("utf-8", "surrogateescape")
    try:
        made = make_field(name.decode("ascii", "replace"), text)
    except ValueError as error:
        raise MilterError(f"the filter made a field that is none: {error}") from None
    return made if not leading_space else Field(made.raw.replace(b": ", b":", 1))
