"""Certificates for tests: an authority, a server with any names and dates, and TLSA records of both."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from smtp_edge.client.dane import Tlsa

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def spki(self) -> bytes:
        return self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def write(self, path: Path, *chain: Pair) -> Path:
        """Key, certificate and chain in one file, in the order that Postfix wants."""
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(key + self.pem + b"".join(pair.pem for pair in chain))
        return path


def issue(
    name: str,
    by: Pair | None = None,
    *,
    names: tuple[str, ...] = (),
    ca: bool = False,
    begins: datetime = NOW - DAY,
    ends: datetime = NOW + DAY,
    usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.SERVER_AUTH,
    key_usage: bool = True,
) -> Pair:
    """A certificate, self-signed without `by`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if ca and key_usage:
        bits = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "crl_sign",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, **bits), critical=True)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False
        )
    if usage is not None and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if by is not None:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())  # type: ignore[arg-type]
        builder = builder.add_extension(identifier, critical=False)
    return Pair(builder.sign(by.key if by else key, hashes.SHA256()), key)


def tlsa(pair: Pair, usage: int, selector: int = 1, matching: int = 1) -> Tlsa:
    """The record that names a certificate or its key."""
    data = pair.spki if selector else pair.der
    match matching:
        case 1:
            data = hashlib.sha256(data).digest()
        case 2:
            data = hashlib.sha512(data).digest()
    return Tlsa(usage, selector, matching, data)


def row(record: Tlsa) -> str:
    """As it stands in a zone."""
    return f"{record.usage} {record.selector} {record.matching} {record.data.hex()}"


def server_context(path: Path) -> ssl.SSLContext:
    """A server's, from a file that `Pair.write` made."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
