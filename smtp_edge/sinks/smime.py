"""A certificate and its key: S/MIME signatures (RFC 8551) made, and what was encrypted for it read.

Only what `cryptography` does: RSA and EC signatures with SHA-256, detached; enveloped-data with AES-CBC for RSA keys.
It verifies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder, pkcs7_decrypt_der
from cryptography.x509 import Certificate, load_pem_x509_certificates

from smtp_edge.sinks.protection import ProtectedError


@dataclass(frozen=True, slots=True)
class SmimeIdentity:
    """What `Message.replace_body` takes as key."""

    certificate: Certificate
    key: RSAPrivateKey | EllipticCurvePrivateKey
    chain: tuple[Certificate, ...] = ()
    """Those between it and the root."""

    @classmethod
    def load(cls, certificate: Path, key: Path) -> SmimeIdentity:
        """From PEM: its own certificate first, those above it behind; a key without a password. ValueError, OSError."""
        try:
            own, *chain = load_pem_x509_certificates(certificate.read_bytes())
        except ValueError as error:
            raise ValueError(f"certificate = {certificate} is no certificate in PEM: {error}") from None
        try:
            secret = load_pem_private_key(key.read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(f"key = {key} is no private key without a password, in PEM: {error}") from None
        if not isinstance(secret, RSAPrivateKey | EllipticCurvePrivateKey):
            raise ValueError(f"key = {key} is neither an RSA nor an EC key")
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if own.public_key().public_bytes(*form) != secret.public_key().public_bytes(*form):
            raise ValueError(f"key = {key} is not that of certificate = {certificate}")
        return cls(own, secret, tuple(chain))

    def sign(self, entity: bytes | memoryview) -> bytes:
        """A detached signature (DER) of a MIME entity whose lines end in CRLF. Takes a while: for a thread."""
        builder = PKCS7SignatureBuilder().set_data(entity).add_signer(self.certificate, self.key, SHA256())
        for certificate in self.chain:
            builder = builder.add_certificate(certificate)
        return builder.sign(Encoding.DER, [PKCS7Options.DetachedSignature, PKCS7Options.Binary])

    def decrypt(self, enveloped: bytes) -> bytes:
        """The MIME entity in enveloped-data (DER). ProtectedError if it is not for us, or not so that we can."""
        if not isinstance(self.key, RSAPrivateKey):
            raise ProtectedError("only an RSA key reads encrypted mail here")
        try:
            return pkcs7_decrypt_der(enveloped, self.certificate, self.key, [])
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ProtectedError(f"the key does not open the message: {error}") from error
