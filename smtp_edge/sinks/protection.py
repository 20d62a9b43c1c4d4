"""Whether a message is signed or encrypted, and what an edit would do to that. Pure; nothing is verified.

It is told by header fields and MIME types: S/MIME (RFC 8551), PGP/MIME (RFC 3156), DKIM (RFC 6376), ARC (RFC 8617). Of
a body, only `BodyScan` knows: OpenPGP in the text itself, and signed parts of an unsigned whole.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from smtp_edge.sinks.fields import Field
from smtp_edge.sinks.mime import MediaType, media_type_of, parse_media_type

DKIM_FIELDS = ("dkim-signature", "domainkey-signature")
ARC_FIELDS = ("arc-seal", "arc-message-signature", "arc-authentication-results")
PKCS7 = ("application/pkcs7-mime", "application/x-pkcs7-mime")
LINE_BYTES_MAX = 1000
"""Of a line of the body, more is not looked at."""
PART_FIELD_BYTES_MAX = 4096
_SMIME_SIGNATURE = ("application/pkcs7-signature", "application/x-pkcs7-signature")
_ARMOR = b"-----BEGIN PGP "


class Mark(enum.StrEnum):
    """A way to sign or to encrypt."""

    SMIME = "S/MIME"
    PGP = "PGP"
    DKIM = "DKIM"
    ARC = "ARC"
    OTHER = "unknown"
    """A multipart/signed or multipart/encrypted of some protocol."""


class Signed(enum.Enum):
    """What becomes of signatures when the body is replaced."""

    STRIP = "strip"
    """They are removed: of S/MIME and PGP/MIME what is signed is left, DKIM-Signature and ARC fields go."""
    ANNOTATE = "annotate"
    """They stay, and a header field says why they no longer hold."""
    RESIGN = "resign"
    """S/MIME is made anew with a key of ours; for DKIM, a later sink has to sign."""


class ProtectedError(Exception):
    """The body is signed or encrypted, and may not be replaced like that; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Protection:
    """How a message is protected."""

    signatures: frozenset[Mark] = frozenset()
    encryption: frozenset[Mark] = frozenset()
    opaque: bool = False
    """Signed as one blob of CMS (`smime-type=signed-data`): what was signed is not there in clear."""

    @property
    def signed(self) -> bool:
        """Somebody's signature covers the body."""
        return bool(self.signatures)

    @property
    def encrypted(self) -> bool:
        """Only its recipients can read the body."""
        return bool(self.encryption)

    def __or__(self, other: Protection) -> Protection:
        return Protection(
            self.signatures | other.signatures, self.encryption | other.encryption, self.opaque or other.opaque
        )

    def __str__(self) -> str:
        marks = ((self.signatures, "signed"), (self.encryption, "encrypted"))
        return "; ".join(f"{word} ({', '.join(sorted(found))})" for found, word in marks if found)


NONE = Protection()


def detect(fields: Sequence[Field]) -> Protection:
    """By the header of the message alone."""
    found = detect_type(media_type_of(fields))
    for names, mark in ((DKIM_FIELDS, Mark.DKIM), (ARC_FIELDS, Mark.ARC)):
        if any(field.name.lower() in names for field in fields):
            found |= Protection(frozenset({mark}))
    for field in fields:  # a second Content-Type is some readers' first
        if field.is_named("content-type"):
            found |= detect_type(parse_media_type(field.value))
    return found


def detect_type(media_type: MediaType) -> Protection:
    """By the MIME type. A CMS blob that does not say what it is counts as encrypted: nobody can tell."""
    protocol = media_type.get("protocol").lower()
    if media_type.kind == "multipart/signed":
        pgp = Mark.PGP if protocol == "application/pgp-signature" else Mark.OTHER
        return Protection(frozenset({Mark.SMIME if protocol in _SMIME_SIGNATURE else pgp}))
    if media_type.kind == "multipart/encrypted":
        return Protection(encryption=frozenset({Mark.PGP if protocol == "application/pgp-encrypted" else Mark.OTHER}))
    if media_type.kind == "application/pgp-encrypted":
        return Protection(encryption=frozenset({Mark.PGP}))
    named = media_type.kind == "application/octet-stream" and media_type.get("name").lower().endswith(".p7m")
    if media_type.kind in PKCS7 or named:
        kind = media_type.get("smime-type").lower()
        if kind == "signed-data":
            return Protection(frozenset({Mark.SMIME}), opaque=True)
        if kind not in ("certs-only", "compressed-data"):
            return Protection(encryption=frozenset({Mark.SMIME}))
    return NONE


class BodyScan:
    """What a body says that comes in chunks, dots undoubled: OpenPGP in the text, signed parts. Errs on their side."""

    def __init__(self) -> None:
        self.found = NONE
        self._line = b""
        self._part_header = False
        self._field = b""

    def feed(self, chunk: bytes) -> None:
        """The next piece."""
        lines = (self._line + chunk).split(b"\n")
        self._line = lines.pop()[:LINE_BYTES_MAX]
        for line in lines:
            self._take(line.removesuffix(b"\r"))

    def finish(self) -> Protection:
        """What was found."""
        self._take(self._line)
        self._take(b"")
        return self.found

    def _take(self, line: bytes) -> None:
        if line.startswith(_ARMOR):
            self._take_armor(line)
        if self._part_header:
            self._take_header(line)
        elif line.startswith(b"--"):
            self._part_header = True

    def _take_armor(self, line: bytes) -> None:
        if line.startswith((b"-----BEGIN PGP SIGNED MESSAGE-----", b"-----BEGIN PGP SIGNATURE-----")):
            self.found |= Protection(frozenset({Mark.PGP}))
        elif line.startswith(b"-----BEGIN PGP MESSAGE"):
            self.found |= Protection(encryption=frozenset({Mark.PGP}))

    def _take_header(self, line: bytes) -> None:
        """Of a part: its Content-Type, with what is folded below it. Encrypted parts are attachments, not the body."""
        if self._field and line[:1] in (b" ", b"\t"):
            self._field = (self._field + line)[:PART_FIELD_BYTES_MAX]
            return
        if self._field:
            value = self._field.partition(b":")[2].decode("utf-8", "surrogateescape")
            self.found |= Protection(detect_type(parse_media_type(value)).signatures)
        self._field = line if line[:13].lower() == b"content-type:" else b""
        self._part_header = bool(line)


def drop_signatures(fields: Iterable[Field]) -> tuple[Field, ...]:
    """Without the fields of DKIM and ARC."""
    return tuple(field for field in fields if field.name.lower() not in (*DKIM_FIELDS, *ARC_FIELDS))


def find_broken(before: Sequence[Field], after: Sequence[Field]) -> tuple[str, ...]:
    """Names, in lower case, of fields that a DKIM-Signature which is still there covers, and that are others now.

    A name counts as often as `h=` has it, from the bottom up; once more than there are fields means that none may be
    added (RFC 6376 section 5.4.2).
    """
    if after is before:
        return ()
    left = {field.raw for field in after}
    broken: set[str] = set()
    for field in before:
        if field.is_named(DKIM_FIELDS[0]) and field.raw in left:
            names = _signed_names(field.value)
            broken.update(name for name in set(names) if _last(before, name, names) != _last(after, name, names))
    return tuple(sorted(broken))


def _signed_names(value: str) -> list[str]:
    tags = dict(tag.partition("=")[::2] for tag in "".join(value.split()).split(";"))
    return [name.lower() for name in tags.get("h", "").split(":") if name]


def _last(fields: Sequence[Field], name: str, names: Sequence[str]) -> list[bytes]:
    found = [field.raw for field in fields if field.name.lower() == name]
    return found[-names.count(name) :]
