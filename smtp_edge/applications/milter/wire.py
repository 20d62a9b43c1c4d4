"""Packets of the milter protocol, version 6, as sendmail's mfdef.h has them. Pure.

    packet = length (4 bytes, of what follows), command (1 byte), payload; texts end in NUL

Whatever a filter sends is one of the values here, or a `MilterError`: the filter is at fault, and of no more use.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from smtp_edge.reply import Reply

VERSION = 6
VERSION_MIN = 2
"""What libmilter spoke twenty years ago; nothing older is in use."""
BODY_BYTES_MAX = 65535
"""Of one BODY packet: what libmilter takes unless a larger size was agreed on."""
PACKET_BYTES_MAX = 1024 * 1024 + 1
"""Of one packet from a filter: the largest that the protocol can agree on. More is garbage."""
LENGTH_BYTES = 4


class MilterError(Exception):
    """The filter cannot be used: down, silent, or what it says is no milter protocol. `str()` says why."""


class Command(enum.Enum):
    """From the MTA."""

    OPTIONS = b"O"
    MACROS = b"D"
    CONNECT = b"C"
    HELO = b"H"
    MAIL = b"M"
    RCPT = b"R"
    DATA = b"T"
    HEADER = b"L"
    EOH = b"N"
    """End of the header."""
    BODY = b"B"
    END = b"E"
    """Of the message."""
    QUIT = b"Q"


class Action(enum.IntFlag):
    """What a filter may change (SMFIF_)."""

    ADD_HEADERS = 0x1
    CHANGE_BODY = 0x2
    ADD_RECIPIENT = 0x4
    DELETE_RECIPIENT = 0x8
    CHANGE_HEADERS = 0x10
    QUARANTINE = 0x20
    CHANGE_SENDER = 0x40
    ADD_RECIPIENT_PARAMETERS = 0x80
    SET_MACROS = 0x100


OFFERED = (
    Action.ADD_HEADERS
    | Action.CHANGE_BODY
    | Action.CHANGE_HEADERS
    | Action.ADD_RECIPIENT
    | Action.DELETE_RECIPIENT
    | Action.CHANGE_SENDER
    | Action.QUARANTINE
    | Action.SET_MACROS
)
"""What messages let a filter change: no ESMTP parameters."""


class Step(enum.IntFlag):
    """What is not sent, what is not answered, and habits (SMFIP_)."""

    NO_CONNECT = 0x1
    NO_HELO = 0x2
    NO_MAIL = 0x4
    NO_RCPT = 0x8
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_EOH = 0x40
    NO_REPLY_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    REJECTED_RECIPIENTS = 0x800
    NO_REPLY_CONNECT = 0x1000
    NO_REPLY_HELO = 0x2000
    NO_REPLY_MAIL = 0x4000
    NO_REPLY_RCPT = 0x8000
    NO_REPLY_DATA = 0x10000
    NO_REPLY_UNKNOWN = 0x20000
    NO_REPLY_EOH = 0x40000
    NO_REPLY_BODY = 0x80000
    LEADING_SPACE = 0x100000


STEPS = Step(0x1FFFFF)
"""All that this MTA honours, or that never happens in its sessions of one message. Larger packets are not offered."""


class Stage(enum.IntEnum):
    """Where macros may be asked for (SMFIM_)."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    END = 5
    EOH = 6


# -- what filters say --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """OPTNEG, from either side."""

    version: int
    actions: Action
    steps: Step
    macros: tuple[tuple[Stage, tuple[str, ...]], ...] = ()
    """SETSYMLIST: names wanted at a stage instead of the usual ones, without braces."""


class Plain(enum.Enum):
    """Replies without a payload."""

    SHUTDOWN = b"4"
    ACCEPT = b"a"
    CONTINUE = b"c"
    DISCARD = b"d"
    CONN_FAIL = b"f"
    PROGRESS = b"p"
    REJECT = b"r"
    SKIP = b"s"
    TEMPFAIL = b"t"


@dataclass(frozen=True, slots=True)
class ReplyCode:
    """A 4yz or 5yz of the filter's own."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class AddHeader:
    """Below all others."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class InsertHeader:
    """At a position; 0 is above the MTA's own Received field, 1 below it."""

    index: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class ChangeHeader:
    """The index-th field of this name, 1 is the uppermost; an empty value removes it."""

    index: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class AddRecipient:
    """With ESMTP parameters, if any."""

    address: bytes
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class DeleteRecipient:
    """As it was given in RCPT."""

    address: bytes


@dataclass(frozen=True, slots=True)
class ChangeSender:
    """With ESMTP parameters, if any."""

    address: bytes
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class ReplaceBody:
    """One chunk; the first replaces all of it, others follow."""

    chunk: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hold:
    """QUARANTINE."""

    reason: bytes


Modification = (
    AddHeader | InsertHeader | ChangeHeader | AddRecipient | DeleteRecipient | ChangeSender | ReplaceBody | Hold
)
Answer = Options | Plain | ReplyCode | Modification


def size_bytes(change: Modification) -> int:
    """What it holds in memory."""
    match change:
        case ReplaceBody(chunk):
            return len(chunk)
        case AddHeader(name, value) | InsertHeader(_, name, value) | ChangeHeader(_, name, value):
            return len(name) + len(value)
        case AddRecipient(address, parameters) | ChangeSender(address, parameters):
            return len(address) + len(parameters)
        case DeleteRecipient(text) | Hold(text):
            return len(text)


# -- to the filter -----------------------------------------------------------------------------------------------------


def encode(command: Command, payload: bytes = b"") -> bytes:
    """One packet."""
    return struct.pack(">I", len(payload) + 1) + command.value + payload


def encode_macros(command: Command, macros: Sequence[tuple[str, str]]) -> bytes:
    """What the next packet, of this command, may be asked about. Names of more than a letter get their braces."""
    texts = (text for name, value in macros for text in (name if len(name) == 1 else f"{{{name}}}", value))
    return encode(Command.MACROS, command.value + build_texts(*texts))


def build_options(actions: Action) -> bytes:
    """What this MTA can do: a packet."""
    return encode(Command.OPTIONS, struct.pack(">III", VERSION, actions, STEPS))


def build_texts(*texts: str | bytes) -> bytes:
    """A payload of texts. A NUL cannot be sent: the text ends before it would, as for any program in C."""
    raw = (text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in texts)
    return b"".join(text.partition(b"\0")[0] + b"\0" for text in raw)


def build_connect(name: str, address: str, port: int) -> bytes:
    """A client: a payload. An address that is none is of a family unknown, which some filters take for this machine."""
    address = address.partition("%")[0]  # the zone of a link-local one
    if not re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]+", address):
        return build_texts(name) + b"U"
    family = b"6" if ":" in address else b"4"
    return build_texts(name) + family + struct.pack(">H", port) + build_texts(address)
