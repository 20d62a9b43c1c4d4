"""MAIL and RCPT arguments: paths and parameters (RFC 5321 sections 4.1.2 and 4.1.3; 1870, 3030, 3461, 4954, 6152, 6531,
8689). Pure.

Addresses are kept as they were written: the local part belongs to its host (RFC 5321 section 2.4). A source route is
accepted and ignored (section 4.1.1.3). Everything else that the grammar does not allow is refused here, so that no
later part ever sees a control character or an unbalanced quote in an address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from smtp_edge.address import LABEL, LOCAL_PART_MAX, SyntaxFault, parse_mailbox
from smtp_edge.envelope import NOTIFY_DEFAULT, BodyType, Notify

PATH_MAX = 256
"""Octets of a path with its brackets (RFC 5321 section 4.5.3.1.3)."""
PARAMETERS_MAX = 20
ENVID_MAX, ORCPT_MAX = 100, 500
BODY_TYPES = {body_type.value: body_type for body_type in BodyType}
NOTIFY_WORDS = {"SUCCESS": Notify.SUCCESS, "FAILURE": Notify.FAILURE, "DELAY": Notify.DELAY}

_ROUTE = re.compile(rf"@{LABEL}(?:\.{LABEL})*(?:,@{LABEL}(?:\.{LABEL})*)*:")
PLAIN_PATH = re.compile(
    r"([A-Za-z]{2,4}):<(([a-z0-9_+=-]+(?:\.[a-z0-9_+=-]+)*)@[a-z0-9][a-z0-9-]{0,62}(?<!-)(?:\.[a-z0-9][a-z0-9-]{0,62}(?<!-)){1,3})>",
    re.IGNORECASE | re.ASCII,
)
"""A path as nearly all are, without parameters: what is left of the grammar has no say in it."""
_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_VALUE = re.compile(r"[!-<>-~\x80-\U0010ffff]+")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})+")
_ORCPT = re.compile(
    r"(?:(?!utf-8;)[A-Za-z0-9-]{1,40};(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})+|utf-8;[!-<>-~\x80-\U0010ffff]+)", re.IGNORECASE
)
"""xtext, but for the type of RFC 6533 section 3, which has an encoding of its own."""
_FORBIDDEN_BYTES = re.compile(rb"[\x00-\x1f\x7f]")
_JOINERS = str.maketrans("", "", "\u200c\u200d")
"""Unprintable, and part of words in some scripts."""


class UnknownParameter(SyntaxFault):
    """A parameter that is not known here (RFC 5321 section 4.1.1.11)."""

    def __init__(self) -> None:
        super().__init__("parameter not recognised", code=555)


def split_line(line: bytes) -> tuple[bytes, bytes]:
    """The verb of a command line, in upper case, and its argument without the blanks around it."""
    verb, _, argument = line.rstrip(b"\r\n").partition(b" ")
    return verb.upper(), argument.strip(b" ")


def decode_line(line: bytes) -> str:
    """A command line without its line end, as text. SyntaxFault for control characters and for what is not UTF-8."""
    if _FORBIDDEN_BYTES.search(line):
        raise SyntaxFault("control characters are not allowed", "5.5.2", code=500)
    try:
        text = line.decode("ascii") if line.isascii() else line.decode("utf-8")
    except UnicodeDecodeError:
        raise SyntaxFault("not UTF-8", "5.5.2", code=500) from None
    if not text.isascii() and not text.translate(_JOINERS).isprintable():
        raise SyntaxFault("control characters are not allowed", "5.5.2", code=500)
    return text


@dataclass(frozen=True, slots=True)
class PathArgument:
    """A path with its ESMTP parameters. `address` is empty for `<>`; keywords are upper case, values untouched."""

    address: str
    parameters: dict[str, str | None] = field(default_factory=dict)


def parse_path_argument(argument: str, keyword: str, *, null_allowed: bool) -> PathArgument:
    """Parse `FROM:<path> params` or `TO:<path> params`. SyntaxFault if it is neither."""
    plain = PLAIN_PATH.fullmatch(argument)
    if (
        plain is not None
        and plain[1].upper() == keyword
        and len(plain[3]) <= LOCAL_PART_MAX
        and len(plain[2]) <= PATH_MAX - 2
    ):
        return PathArgument(plain[2])
    head, colon, rest = argument.partition(":")
    if not colon or head.strip().upper() != keyword:
        raise SyntaxFault(f"syntax: {keyword}:<address>")
    path, parameters = _split_path(rest.strip(" "))
    address = _parse_path(path, null_allowed=null_allowed)
    return PathArgument(address, _parse_parameters(parameters))


def _split_path(text: str) -> tuple[str, str]:
    """The text between angle brackets (quotes respected), and what follows."""
    if not text.startswith("<"):
        path, _, rest = text.partition(" ")
        return path, rest
    quoted = escaped = False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == ">" and not quoted:
            rest = text[index + 1 :]
            if rest and not rest.startswith(" "):
                raise SyntaxFault("syntax error after the address")
            return text[1:index], rest
    raise SyntaxFault("unbalanced angle brackets or quotes", "5.1.3")


def _parse_path(path: str, *, null_allowed: bool) -> str:
    if not path:
        if null_allowed:
            return ""
        raise SyntaxFault("an address is required", "5.1.3")
    if len(path.encode()) > PATH_MAX - 2:
        raise SyntaxFault("the path is too long", "5.1.3")
    route = _ROUTE.match(path)
    return parse_mailbox(path[route.end() :] if route else path)


def _parse_parameters(text: str) -> dict[str, str | None]:
    words = text.split()
    if len(words) > PARAMETERS_MAX:
        raise SyntaxFault("too many parameters")
    parameters: dict[str, str | None] = {}
    for word in words:
        keyword, equals, value = word.partition("=")
        if not _KEYWORD.fullmatch(keyword) or (equals and not _VALUE.fullmatch(value)):
            raise SyntaxFault("bad parameter syntax")
        if keyword.upper() in parameters:
            raise SyntaxFault("a parameter is given twice")
        parameters[keyword.upper()] = value if equals else None
    return parameters


@dataclass(frozen=True, slots=True)
class MailParameters:
    """What the ESMTP parameters of MAIL say."""

    size_bytes: int = 0
    body_type: BodyType = BodyType.SEVEN_BIT
    smtputf8: bool = False
    envid: str = ""
    ret: str = ""
    requiretls: bool = False


PLAIN_MAIL = MailParameters()


def take_mail_parameters(parameters: dict[str, str | None], *, tls: bool) -> MailParameters:
    """Take the known ones out of `parameters`; what is left is not known here. SyntaxFault for bad values.

    `tls`: the session is encrypted, else REQUIRETLS is not known (RFC 8689 section 2).
    """
    if not parameters:
        return PLAIN_MAIL
    size = _take_value(parameters, "SIZE", "0")
    body = _take_value(parameters, "BODY", "7BIT").upper()
    ret = _take_value(parameters, "RET", "").upper()
    envid = _take_value(parameters, "ENVID", "")
    if not (size.isascii() and size.isdigit()) or len(size) > 20 or body not in BODY_TYPES:
        raise SyntaxFault("bad parameter value")
    if ret not in ("", "FULL", "HDRS") or len(envid) > ENVID_MAX or (envid and not _XTEXT.fullmatch(envid)):
        raise SyntaxFault("bad parameter value")
    _check_auth(_take_value(parameters, "AUTH", "<>"))
    return MailParameters(
        int(size),
        BODY_TYPES[body],
        _take_flag(parameters, "SMTPUTF8"),
        envid,
        ret,
        tls and _take_flag(parameters, "REQUIRETLS"),
    )


def take_rcpt_parameters(parameters: dict[str, str | None]) -> tuple[Notify, str]:
    """Take NOTIFY and ORCPT out of `parameters` (RFC 3461 section 4, RFC 6533). SyntaxFault for bad values."""
    if not parameters:
        return NOTIFY_DEFAULT, ""
    notify = _take_value(parameters, "NOTIFY", "")
    orcpt = _take_value(parameters, "ORCPT", "")
    if orcpt and (len(orcpt) > ORCPT_MAX or not _ORCPT.fullmatch(orcpt)):
        raise SyntaxFault("bad ORCPT")
    return _parse_notify(notify), orcpt


def _take_value(parameters: dict[str, str | None], keyword: str, default: str) -> str:
    """The value of a parameter that has to have one."""
    if keyword not in parameters:
        return default
    value = parameters.pop(keyword)
    if value is None:
        raise SyntaxFault("a parameter needs a value")
    return value


def _take_flag(parameters: dict[str, str | None], keyword: str) -> bool:
    """True if a parameter without value is there."""
    if keyword not in parameters:
        return False
    if parameters.pop(keyword) is not None:
        raise SyntaxFault("a parameter takes no value")
    return True


def _check_auth(value: str) -> None:
    """`AUTH=` is checked and not believed (RFC 4954 section 5): nobody here could say on whose word it rests."""
    if value != "<>" and not _XTEXT.fullmatch(value):
        raise SyntaxFault("bad parameter value")


def _parse_notify(value: str) -> Notify:
    if not value:
        return NOTIFY_DEFAULT
    words = value.upper().split(",")
    if words == ["NEVER"]:
        return Notify.NEVER
    if not set(words) <= NOTIFY_WORDS.keys():
        raise SyntaxFault("bad NOTIFY")
    chosen = Notify.NEVER
    for word in words:
        chosen |= NOTIFY_WORDS[word]
    return chosen | Notify.STATED if chosen is NOTIFY_DEFAULT else chosen
