"""Results of methods, and the field that tells them (RFC 8601); which fields claim to be ours. Pure.

Whatever a stranger chose (domains, addresses, selectors) is a token, or is quoted; it never ends a value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

FIELD = "Authentication-Results"
VALUE_MAX = 255
PASS, FAIL, NONE, NEUTRAL, POLICY = "pass", "fail", "none", "neutral", "policy"
TEMPERROR, PERMERROR = "temperror", "permerror"
TOO_MANY_AUTHORS = "too many authors"
"""The reason of a result."""
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"
_PLAIN = re.compile(rf"(?:{_TOKEN})?@?{_TOKEN}")
_UNSEEN = re.compile(r"[^ -~]")


@dataclass(frozen=True, slots=True)
class Result:
    """What a method says."""

    method: str
    result: str
    properties: tuple[tuple[str, str], ...] = ()
    """`smtp.mailfrom`, `header.d`, ... and their values."""
    reason: str = ""
    """For people, in our words: no parenthesis, nothing of the message."""
    domain: str = ""
    """That passed or did not, in lower case."""


def to_ascii(domain: str) -> str:
    """A domain as the DNS has it, in lower case; what cannot be one stays as it is."""
    domain = domain.rstrip(".").lower()
    if domain.isascii():
        return domain
    try:
        return domain.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return domain


def quote(value: str) -> str:
    """As a value of the field (RFC 8601 section 2.2, pvalue)."""
    value = _UNSEEN.sub("?", value[:VALUE_MAX])
    if _PLAIN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def build_value(authserv_id: str, results: Sequence[Result]) -> str:
    """The value of the field, a result a line."""
    lines = [quote(authserv_id)]
    for result in results:
        words = [f"{result.method}={result.result}"]
        words += [f"({result.reason})"] if result.reason else []
        words += [f"{name}={quote(value)}" for name, value in result.properties if value]
        lines.append("\r\n\t\t".join(words) if len(" ".join(words)) > 900 else " ".join(words))
    return ";\r\n\t".join(lines)


def claims(value: str, authserv_id: str) -> bool:
    """A field with this value says that we said it. In doubt it does."""
    ours = to_ascii(authserv_id)
    stripped = strip_comments(value)
    if stripped is None:
        return ours in value.lower()
    said = stripped.partition(";")[0].strip()
    if said.startswith('"'):
        said = re.sub(r"\\(.)", r"\1", said[1:].partition('"')[0])
    return bool(said) and to_ascii(said.split()[0]) == ours


def strip_comments(value: str) -> str | None:
    """Without comments (RFC 5322 section 3.2.2), which may be nested; None if one or a quoted string has no end."""
    left: list[str] = []
    depth, quoted, escaped = 0, False, False
    for character in value:
        if escaped:
            escaped = False
            left.append("" if depth else character)
            continue
        if character == "\\" and (depth or quoted):
            escaped = True
        elif character == '"' and not depth:
            quoted = not quoted
        elif character == "(" and not quoted:
            depth += 1
        if not depth:
            left.append(character)
        elif character == ")" and not quoted:
            depth -= 1
            left.append(" ")
    return None if depth or quoted or escaped else "".join(left)
