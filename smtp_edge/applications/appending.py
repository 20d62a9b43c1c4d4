"""Text put below that of a mail, part by part: its charset and transfer encoding stay what they are if they can. Pure.

In plain text it follows the last line; in HTML it is put before the end of the body, or of the document. Text that the
charset does not have makes the part UTF-8; text that 7bit cannot carry makes it quoted-printable.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import quopri
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from smtp_edge.sinks.fields import Field, make_field
from smtp_edge.sinks.mime import Kind, MediaType, Token, Walker, find_value, media_type_of, parse_media_type

TEXT_BYTES_MAX = 1024 * 1024
"""A text part that is larger stays as it is: it is held in memory."""
KINDS = ("text/plain", "text/html")
_HTML_END = re.compile(r"</body\s*>|</html\s*>", re.IGNORECASE)
_CHARSET = re.compile(r"[!#$%&'*+.0-9A-Za-z^_`{|}~-]+")


@dataclass(frozen=True, slots=True)
class Footer:
    """What is appended."""

    plain: str
    """Lines end in LF."""
    html: str

    @classmethod
    def build(cls, plain: str, html: str = "") -> Footer:
        """Where no HTML is given it is the plain text, escaped."""
        lines = [line.rstrip() for line in plain.strip("\n").splitlines()]
        return cls("\n".join(lines), html or "<p>" + "<br>\n".join(map(escape, lines)) + "</p>")


@dataclass(frozen=True, slots=True)
class Part:
    """A text part: the fields that describe it, and its body as it is encoded."""

    fields: tuple[Field, ...]
    body: bytes


def is_text(fields: Sequence[Field]) -> bool:
    """Something to read, not an attachment."""
    media_type = media_type_of(fields)
    shown = parse_media_type(find_value(fields, "content-disposition"))
    named = media_type.get("name") or shown.get("filename")
    return media_type.kind in KINDS and shown.kind != "attachment" and not named


def append(part: Part, footer: Footer) -> Part | None:
    """The part with the footer; None if it cannot be read, and so cannot be appended to."""
    media_type = media_type_of(part.fields)
    encoding = find_value(part.fields, "content-transfer-encoding").lower() or "7bit"
    charset = media_type.get("charset") or "us-ascii"
    try:
        raw = _decode(part.body, encoding)
    except (LookupError, binascii.Error):
        return None
    try:
        codecs.lookup(charset)  # an empty text is decoded in any
        text = _join(raw.decode(charset), footer, media_type)
    except (LookupError, ValueError):
        return _append_blindly(part, raw, footer, media_type, encoding)
    try:
        raw = text.encode(charset)
    except UnicodeError:
        charset, raw = "utf-8", text.encode("utf-8", "replace")
    if encoding == "7bit" and not raw.isascii():
        encoding = "quoted-printable"
    return Part(_describe(part.fields, media_type, charset, encoding), _encode(raw, encoding))


def _append_blindly(part: Part, raw: bytes, footer: Footer, media_type: MediaType, encoding: str) -> Part | None:
    """To what is not in the charset that it names: only text that is the same in nearly all of them."""
    if not (footer.plain + footer.html).isascii():
        return None
    return Part(part.fields, _encode(_join(raw.decode("latin-1"), footer, media_type).encode("latin-1"), encoding))


def _join(text: str, footer: Footer, media_type: MediaType) -> str:
    text = text.replace("\r\n", "\n")
    text = _into_html(text, footer.html) if media_type.kind == "text/html" else _below(text, footer.plain, media_type)
    return text.replace("\n", "\r\n")


def _decode(body: bytes, encoding: str) -> bytes:
    if encoding == "base64":
        return base64.b64decode(body)
    if encoding == "quoted-printable":
        return quopri.decodestring(body)
    if encoding in ("7bit", "8bit", "binary"):
        return body
    raise LookupError(encoding)


def _encode(raw: bytes, encoding: str) -> bytes:
    if encoding == "base64":
        return base64.encodebytes(raw).replace(b"\n", b"\r\n")
    if encoding == "quoted-printable":
        return quopri.encodestring(raw.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n")
    return raw


def _below(text: str, footer: str, media_type: MediaType) -> str:
    if media_type.get("format").lower() == "flowed":  # RFC 3676 section 4.4
        lines = footer.split("\n")
        footer = "\n".join(" " + line if line.startswith((" ", ">", "From ")) else line for line in lines)
    return text.rstrip("\n") + "\n\n" + footer + "\n"


def _into_html(text: str, footer: str) -> str:
    ends = list(_HTML_END.finditer(text))
    bodies = [match for match in ends if match[0].lower().startswith("</body")]
    at = bodies[-1].start() if bodies else ends[-1].start() if ends else len(text)
    return text[:at] + footer + "\n" + text[at:]


def _describe(fields: tuple[Field, ...], media_type: MediaType, charset: str, encoding: str) -> tuple[Field, ...]:
    """What has to be said anew, of charset and transfer encoding."""
    if (media_type.get("charset") or "us-ascii").lower() != charset.lower():
        others = {name: value for name, value in media_type.parameters.items() if name != "charset"}
        words = [media_type.kind, f"charset={charset}", *(f"{name}={_quote(value)}" for name, value in others.items())]
        fields = _with(fields, make_field("Content-Type", ";\r\n ".join(words)))
    if (find_value(fields, "content-transfer-encoding").lower() or "7bit") != encoding:
        fields = _with(fields, make_field("Content-Transfer-Encoding", encoding))
    return fields


def _quote(value: str) -> str:
    if _CHARSET.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _with(fields: tuple[Field, ...], new: Field) -> tuple[Field, ...]:
    at = next((number for number, found in enumerate(fields) if found.is_named(new.name)), len(fields))
    return (*fields[:at], new, *(found for found in fields[at:] if not found.is_named(new.name)))


@dataclass(slots=True)
class Appender:
    """The body of a multipart as it streams by, with the footer in the texts that a reader sees first.

    That is the first text part, and, if it is one of alternatives, the first of each kind among them.
    """

    media_type: MediaType
    footer: Footer
    added: int = 0
    """Parts so far that have it."""
    _walker: Walker = field(init=False)
    _head: Token | None = None
    _held: bytearray = field(default_factory=bytearray)
    _seen: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    """Kind of text -> where the first one was."""

    def __post_init__(self) -> None:
        self._walker = Walker(self.media_type)

    def feed(self, chunk: bytes) -> bytes:
        """What is certain so far."""
        return b"".join(map(self._take, self._walker.feed(chunk)))

    def finish(self) -> bytes:
        """The rest."""
        return b"".join(map(self._take, self._walker.finish()))

    def _take(self, token: Token) -> bytes:
        if token.kind is Kind.HEAD and self._wants(token):
            self._head = token
            self._seen[media_type_of(token.fields).kind] = token.inside
            return b""
        if self._head is None:
            return token.raw
        if token.kind is Kind.END:
            return self._give()
        self._held += token.raw
        if len(self._held) <= TEXT_BYTES_MAX:
            return b""
        head, self._head = self._head, None
        held, self._held = bytes(self._held), bytearray()
        return head.raw + held

    def _wants(self, head: Token) -> bool:
        if not is_text(head.fields) or media_type_of(head.fields).kind in self._seen:
            return False
        if b"".join(item.raw for item in head.fields) + b"\r\n" != head.raw:
            return False  # no empty line, or lines among them that are no field
        if head.inside[-1][0] == "multipart/digest" and not find_value(head.fields, "content-type"):
            return False  # RFC 2046 section 5.1.5: it is a message
        alternatives = {place for place in head.inside if place[0] == "multipart/alternative"}
        return all(alternatives & set(inside) for inside in self._seen.values())

    def _give(self) -> bytes:
        assert self._head is not None
        head, self._head = self._head, None
        held, self._held = bytes(self._held), bytearray()
        part = append(Part(head.fields, held), self.footer)
        if part is None or self._walker.is_cut_by(part.body):  # what was encoded may be a delimiter in clear
            return head.raw + held
        self.added += 1
        body = part.body
        if held and not held.endswith(b"\r\n"):  # its last line end is the delimiter's; that of an empty one has none
            body = body.removesuffix(b"\r\n")
        return b"".join(item.raw for item in part.fields) + b"\r\n" + body
