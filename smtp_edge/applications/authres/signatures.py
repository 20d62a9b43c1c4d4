"""DKIM (RFC 6376, RFC 8463) and ARC (RFC 8617) by the library dkimpy, with our DNS; the body is hashed as it streams.

The library wants a whole message in memory; here it gets the header only, and body hashes are compared before it is
asked. What a stranger may make large has a bound: the length of a signature and of a key, fields, signatures, sets.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dkim
import structlog
from dkim.util import InvalidTagValueList, parse_tag_value

from smtp_edge.applications.authres.bodyhash import BodyKey, Hashed
from smtp_edge.applications.authres.lookups import LookupFailed, Lookups
from smtp_edge.applications.authres.results import (
    FAIL,
    NEUTRAL,
    NONE,
    PASS,
    PERMERROR,
    POLICY,
    TEMPERROR,
    Result,
    to_ascii,
)
from smtp_edge.sinks.fields import Field

log = structlog.get_logger()

SIGNATURES_MAX = 10
"""Of a message; further ones are not looked at."""
ARC_SETS_MAX = 50
"""RFC 8617 section 4.2.1."""
FIELDS_MAX = 1000
SIGNED_FIELDS_MAX = 200
"""Names in `h=`."""
SIGNATURE_BYTES_MAX = 8192
BLANKS_MAX = 100
"""In a row, in a signature: the library's expressions take a square of them in steps."""
KEY_RECORD_BYTES_MAX = 2048
RSA_BITS_MAX = 4096
RSA_EXPONENT_BITS_MAX = 64
"""Larger keys cost more than mail is worth (RFC 8301 section 3.2 has 4096 bits as the most that all verify)."""
_BLANKS = re.compile(rb"\s{%d}" % BLANKS_MAX)
_ALGORITHMS = (b"rsa-sha256", b"ed25519-sha256")
Hashes = Mapping[BodyKey, Hashed]


class Changed(dkim.ValidationError):  # type: ignore[misc]
    """The body is not the one that was signed."""


class Partial(dkim.ValidationError):  # type: ignore[misc]
    """The signature leaves the end of the body to anybody."""


class Verifier(dkim.DomainSigner):  # type: ignore[misc]
    """What both kinds of signature have in common. The library calls `verify_sig` for each."""

    def __init__(self, header: Sequence[Field], hashes: Hashes) -> None:
        super().__init__()
        self.headers = [_as_dkimpy(field) for field in header]
        self._hashes = hashes

    def verify_sig(self, sig: dict[bytes, bytes], include_headers: list[bytes], sig_header: Any, dnsfunc: Any) -> bool:
        """True if it verifies. dkim.DKIMException, LookupFailed."""
        name = b"%s._domainkey.%s" % (sig[b"s"], sig[b"d"])
        record = dnsfunc(name)
        self.pk, self.keysize, self.ktag, self.seqtlsrpt = _load_key(name, record)
        if not sig[b"a"].startswith(self.ktag + b"-"):
            raise dkim.KeyFormatError("the key is of another algorithm")
        _, at, domain = sig.get(b"i", b"").rpartition(b"@")
        if at and _is_exact(record) and domain.lower() != sig[b"d"].lower():
            raise dkim.KeyFormatError("the key is for its domain alone")
        if b"bh" in sig:
            self._check_body(sig)
        without = {tag: value for tag, value in sig.items() if tag != b"bh"}  # the library has no body to hash
        return bool(self.verify_sig_process(without, include_headers, sig_header, None))

    def _check_body(self, sig: dict[bytes, bytes]) -> None:
        key = body_key(sig)
        found = self._hashes[key]
        if found.digest != base64.b64decode(re.sub(rb"\s+", b"", sig[b"bh"])):
            raise Changed("the body hash does not verify")
        if key.length is not None and key.length < found.size_bytes:
            raise Partial("only a part of the body is signed")


class DKIM(Verifier, dkim.DKIM):  # type: ignore[misc]
    """DKIM-Signature fields."""


class ARC(Verifier, dkim.ARC):  # type: ignore[misc]
    """A chain of ARC sets."""


# -- before the body is read -------------------------------------------------------------------------------------------


def body_key(sig: Mapping[bytes, bytes]) -> BodyKey:
    """Which hash a signature is about."""
    canonical = sig.get(b"c", b"simple/simple").split(b"/")
    length = sig.get(b"l", b"")
    return BodyKey(canonical[1:] == [b"relaxed"], int(length) if re.fullmatch(rb"\d{1,15}", length) else None)


def find_body_keys(header: Sequence[Field]) -> set[BodyKey]:
    """All hashes that `verify_dkim` and `verify_arc` will want."""
    if len(header) > FIELDS_MAX:
        return set()
    keys = {body_key(sig) for sig in map(_parse, _signatures(header)) if sig}
    sets = [_parse(field) for field in header if field.is_named("arc-message-signature")]
    return keys | {body_key({b"c": b"relaxed/relaxed", **sig}) for sig in sets[:ARC_SETS_MAX] if sig}


def _signatures(header: Sequence[Field]) -> list[Field]:
    """As the library counts them: a blank before the colon makes another name."""
    return [field for field in header if field.raw.lower().startswith(b"dkim-signature:")][:SIGNATURES_MAX]


def _parse(field: Field) -> dict[bytes, bytes]:
    """Its tags; none if it is too much to look at, or no list of tags."""
    raw = field.raw.partition(b":")[2]
    if len(raw) > SIGNATURE_BYTES_MAX or _BLANKS.search(raw):
        return {}
    try:
        tags = dict(parse_tag_value(raw))
    except (InvalidTagValueList, ValueError):
        return {}
    return {} if tags.get(b"h", b"").count(b":") >= SIGNED_FIELDS_MAX else tags


# -- afterwards --------------------------------------------------------------------------------------------------------


def verify_dkim(header: Sequence[Field], hashes: Hashes, lookups: Lookups) -> list[Result]:
    """A result for each signature, the uppermost first; a single `none` if there is none. Blocks."""
    signatures = _signatures(header)
    if len(header) > FIELDS_MAX and signatures:
        return [Result("dkim", NEUTRAL, reason="too many fields")]
    return [_verify_one(header, number, field, hashes, lookups) for number, field in enumerate(signatures)] or [
        Result("dkim", NONE)
    ]


def _verify_one(header: Sequence[Field], number: int, field: Field, hashes: Hashes, lookups: Lookups) -> Result:
    sig = _parse(field)
    result, reason = NEUTRAL, "the signature cannot be read"
    if sig:
        signed = {name.strip().lower() for name in sig.get(b"h", b"").split(b":")}
        if sig.get(b"a") == b"rsa-sha1":
            result, reason = POLICY, "rsa-sha1 counts for nothing"
        elif b"h" in sig and b"from" not in signed:
            result, reason = PERMERROR, "From is not signed"
        else:
            wanted = [one for one in header if one.name.lower().encode() in signed | {b"dkim-signature"}]
            result, reason = _judge(lambda: DKIM(wanted, hashes).verify(number, _asking(lookups)), "dkim")
    domain = to_ascii(sig.get(b"d", b"").decode("utf-8", "replace"))
    tags = (("header.d", b"d"), ("header.s", b"s"), ("header.a", b"a"))
    properties = [(name, sig.get(tag, b"").decode("utf-8", "replace")) for name, tag in tags]
    beginning = re.sub(rb"\s+", b"", sig.get(b"b", b""))[:8].decode("ascii", "replace")
    return Result("dkim", result, (*properties, ("header.b", beginning)), reason, domain)


def _judge(verify: Any, method: str) -> tuple[str, str]:
    """Result and reason."""
    try:
        return (PASS, "") if verify() else (FAIL, "the signature does not verify")
    except LookupFailed:
        return TEMPERROR, "no key for now"
    except Changed:
        return FAIL, "the body hash does not verify"
    except Partial:
        return POLICY, "only a part of the body is signed"
    except (dkim.KeyFormatError, dkim.UnknownKeyTypeError):
        return PERMERROR, "no usable key"
    except dkim.ValidationError as error:
        expired = str(error).startswith("x= value is past")
        return (FAIL, "the signature has expired") if expired else (NEUTRAL, "the signature cannot be read")
    except Exception as error:  # the library meets signatures of strangers
        log.info("authres.signature_failed", method=method, reason=f"{type(error).__name__}: {error}"[:200])
        return NEUTRAL, "the signature cannot be read"


def verify_arc(header: Sequence[Field], hashes: Hashes, lookups: Lookups) -> tuple[Result, frozenset[str]]:
    """What the chain says of itself, and the domains that have sealed it, if it passes. Blocks."""
    sets = [field for field in header if field.name.lower().encode() in dkim.ARC.ARC_HEADERS]
    if not sets:
        return Result("arc", NONE), frozenset()
    tags = [_parse(field) for field in sets if not field.is_named("arc-authentication-results")]
    if len(header) > FIELDS_MAX or len(sets) > 3 * ARC_SETS_MAX or not all(tags):
        return Result("arc", FAIL, reason="the chain cannot be read"), frozenset()
    try:
        status, found, _ = ARC(header, hashes).verify(_asking(lookups))
    except LookupFailed:
        return Result("arc", TEMPERROR, reason="no key for now"), frozenset()
    except Exception as error:  # the library meets chains of strangers
        log.info("authres.signature_failed", method="arc", reason=f"{type(error).__name__}: {error}"[:200])
        return Result("arc", FAIL, reason="the chain cannot be read"), frozenset()
    if status != dkim.CV_Pass:
        return Result("arc", FAIL), frozenset()
    sealers = frozenset(to_ascii(one["as-domain"].decode("utf-8", "replace")) for one in found)
    newest = to_ascii(found[0]["as-domain"].decode("utf-8", "replace"))
    return Result("arc", PASS, (("header.d", newest),), f"i={len(found)}", newest), sealers


def _asking(lookups: Lookups) -> Any:
    def ask(name: bytes) -> bytes | None:
        try:
            found = lookups.text(name.decode("utf-8"))
        except UnicodeDecodeError:
            return None
        return found[0] if found else None

    return ask


def _load_key(name: bytes, record: bytes | None) -> Any:
    """As the library has it: key, bits, kind, is it for TLS reports. dkim.KeyFormatError."""
    if record is None or len(record) > KEY_RECORD_BYTES_MAX:
        raise dkim.KeyFormatError("no key, or too large a record")
    try:
        key, bits, kind, for_reports = dkim.evaluate_pk(name, record)
    except (binascii.Error, ValueError, KeyError, IndexError, TypeError) as error:
        raise dkim.KeyFormatError(f"no key: {error}") from None
    if kind == b"rsa" and (bits > RSA_BITS_MAX or int(key["publicExponent"]).bit_length() > RSA_EXPONENT_BITS_MAX):
        raise dkim.KeyFormatError("the key is too large")
    return key, bits, kind, for_reports


def _is_exact(record: bytes) -> bool:
    """Flag `s` (RFC 6376 section 3.6.1): no subdomain in `i=`."""
    return b"s" in [flag.strip() for flag in parse_tag_value(record).get(b"t", b"").split(b":")]


def _as_dkimpy(field: Field) -> list[bytes]:
    name, _, value = field.raw.partition(b":")
    return [name, value if value.endswith(b"\n") else value + b"\r\n"]
