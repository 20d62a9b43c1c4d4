"""DANE for SMTP (RFC 7672): what DNSSEC says about a host's certificate, and what follows from it. Pure.

    MX list (1)   addresses    TLSA lookup                  verdict            a session with this host
    insecure      any          not asked                    NOT_APPLICABLE     as the other policies say
    secure        insecure     not asked (2)                NOT_APPLICABLE
    secure        secure       no answer, bogus             SKIP               none: another host, or later
    secure        secure       insecure, or no record       NOT_APPLICABLE
    secure        secure       records, none usable         ENCRYPT            TLS demanded, certificate not looked at
    secure        secure       a usable record              AUTHENTICATE       TLS demanded, certificate must match

(1) or the secure absence of one; a configured smart host counts as secure. (2) but an alias in a secure zone that
leads out of it is asked under its own name (section 2.2.2). TLSA records stand at `_PORT._tcp.HOST`, HOST after its
aliases if there are any records there, else as the MX record names it; that name is also sent as SNI.

    usage          usable      certificate must
    0, 1           no          (they name public authorities, which this protocol does not: section 3.1.3)
    2  DANE-TA     yes         come from the authority in the record, be in its time, hold one of the reference names
    3  DANE-EE     yes         be the one in the record; neither name nor time matters
    other, or selector > 1, matching > 2, digest of a wrong length, no certificate where one must be: not usable

Of two digests for the same usage and selector only the stronger counts (RFC 7671 section 9).
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID

DANE_TA, DANE_EE = 2, 3
FULL_CERTIFICATE, PUBLIC_KEY = 0, 1
EXACT, SHA256, SHA512 = 0, 1, 2
DIGEST_BYTES = {SHA256: 32, SHA512: 64}
CHAIN_MAX = 10
RECORDS_MAX = 50
"""Looked at; more are nonsense or an attack on our time."""


class DaneMismatch(Exception):
    """The certificate is none that the records allow; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Tlsa:
    """A TLSA record."""

    usage: int
    selector: int
    matching: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.usage} {self.selector} {self.matching} {self.data.hex()[:16]}..."


class TlsaLookup(enum.Enum):
    """How the question for TLSA records ended."""

    NOT_ASKED = enum.auto()
    FAILED = enum.auto()
    INSECURE = enum.auto()
    SECURE = enum.auto()
    """Records, or the secure absence of any."""


class DaneVerdict(enum.Enum):
    """What DANE asks of a session; see the table."""

    NOT_APPLICABLE = "not applicable"
    SKIP = "skip"
    ENCRYPT = "encrypt"
    AUTHENTICATE = "authenticate"


@dataclass(frozen=True, slots=True)
class DanePlan:
    """The verdict for one host, with what is needed to carry it out."""

    verdict: DaneVerdict
    records: tuple[Tlsa, ...] = ()
    """Usable ones."""
    base: str = ""
    """TLSA base domain: the first reference name, and SNI."""
    reason: str = ""


NOT_APPLICABLE = DanePlan(DaneVerdict.NOT_APPLICABLE)


def judge(
    *, list_secure: bool, addresses_secure: bool, lookup: TlsaLookup, records: Sequence[Tlsa] = (), base: str = ""
) -> DanePlan:
    """The first table. `addresses_secure` is also true for an alias in a secure zone."""
    if not (list_secure and addresses_secure):
        return NOT_APPLICABLE
    match lookup:
        case TlsaLookup.FAILED:
            return DanePlan(DaneVerdict.SKIP, base=base, reason=f"TLSA records of {base} cannot be looked up")
        case TlsaLookup.SECURE if records:
            usable = choose_usable(records)
            verdict = DaneVerdict.AUTHENTICATE if usable else DaneVerdict.ENCRYPT
            return DanePlan(verdict, usable, base)
        case _:
            return NOT_APPLICABLE


def choose_usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """The second table: the records that can be used, without digests weaker than others of their kind."""
    usable = [record for record in list(records)[:RECORDS_MAX] if _is_usable(record)]
    strongest: dict[tuple[int, int], int] = {}
    for record in usable:
        kind = (record.usage, record.selector)
        strongest[kind] = max(strongest.get(kind, EXACT), record.matching)
    return tuple(record for record in usable if record.matching in (EXACT, strongest[(record.usage, record.selector)]))


def _is_usable(record: Tlsa) -> bool:
    if record.usage not in (DANE_TA, DANE_EE) or record.selector not in (FULL_CERTIFICATE, PUBLIC_KEY):
        return False
    if record.matching in DIGEST_BYTES:
        return len(record.data) == DIGEST_BYTES[record.matching]
    if record.matching != EXACT:
        return False
    try:
        if record.selector == FULL_CERTIFICATE:
            x509.load_der_x509_certificate(record.data)
        else:
            load_der_public_key(record.data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


# -- certificates ------------------------------------------------------------------------------------------------------


def verify_chain(chain: Sequence[bytes], records: Sequence[Tlsa], names: Sequence[str], *, at: datetime) -> str:
    """Check what a server showed (DER, its own certificate first) against usable records: `dane-ee` or `dane-ta`.

    DaneMismatch if nothing fits. `names` are the reference names, of which DANE-TA wants one in the certificate.
    """
    if not chain:
        raise DaneMismatch("the server showed no certificate")
    if any(record.usage == DANE_EE and _matches(record, chain[0]) for record in records):
        return "dane-ee"
    anchors = [record for record in records if record.usage == DANE_TA]
    if not anchors:
        raise DaneMismatch("the certificate matches no TLSA record")
    try:
        _verify_to_anchor(chain[:CHAIN_MAX], anchors, names, at)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DaneMismatch(f"the certificate cannot be read: {error}") from error
    return "dane-ta"


def _matches(record: Tlsa, der: bytes) -> bool:
    if record.selector == PUBLIC_KEY:
        try:
            key = x509.load_der_x509_certificate(der).public_key()
            der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return False
    match record.matching:
        case 1:
            return hashlib.sha256(der).digest() == record.data
        case 2:
            return hashlib.sha512(der).digest() == record.data
        case _:
            return der == record.data


def _verify_to_anchor(chain: Sequence[bytes], anchors: Sequence[Tlsa], names: Sequence[str], at: datetime) -> None:
    leaf = x509.load_der_x509_certificate(chain[0])
    _check_time(leaf, at)
    if not any(name_matches(pattern, name) for pattern in dns_names(leaf) for name in names):
        raise DaneMismatch(f"the certificate does not name {' or '.join(names)}")
    if not _serves(leaf):
        raise DaneMismatch("the certificate is not for servers")
    rest = [*chain[1:], *_anchors_in_full(anchors)]
    current = leaf
    for _ in range(CHAIN_MAX):
        issuer = next((der for der in rest if _issued(current, der)), None)
        if issuer is None:
            raise DaneMismatch("the chain leads to no authority of the TLSA records")
        rest.remove(issuer)
        current = x509.load_der_x509_certificate(issuer)
        _check_time(current, at)
        if any(_matches(record, issuer) for record in anchors):
            return
    raise DaneMismatch("the chain is too long")


def _anchors_in_full(anchors: Sequence[Tlsa]) -> list[bytes]:
    """Authorities that stand in the records themselves: a server need not show them."""
    return [record.data for record in anchors if record.selector == FULL_CERTIFICATE and record.matching == EXACT]


def _issued(certificate: x509.Certificate, issuer_der: bytes) -> bool:
    try:
        issuer = x509.load_der_x509_certificate(issuer_der)
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return _is_authority(issuer)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        return missing.oid == x509.KeyUsage.oid  # no key usage: any


def _serves(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.SERVER_AUTH in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages


def _check_time(certificate: x509.Certificate, at: datetime) -> None:
    if at < certificate.not_valid_before_utc:
        raise DaneMismatch("a certificate of the chain is not valid yet")
    if at > certificate.not_valid_after_utc:
        raise DaneMismatch("a certificate of the chain has expired")


def dns_names(certificate: x509.Certificate) -> list[str]:
    """The DNS names of a certificate, lower case; the common name only where there is no list of names at all."""
    try:
        listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [name.lower() for name in listed.get_values_for_type(x509.DNSName)]
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return [str(attribute.value).lower() for attribute in common[:1]]


def name_matches(pattern: str, name: str) -> bool:
    """A certificate's name against a host's (RFC 9525): equal, or `*` for exactly the first label."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if pattern == name:
        return True
    wildcard, _, rest = pattern.partition(".")
    _, _, parent = name.partition(".")
    return wildcard == "*" and "." in rest and rest == parent
