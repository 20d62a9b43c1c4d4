"""Who belongs to the cluster: one key per node, one certificate from the cluster's own authority.

The node id is a hash of the public key, so it cannot be claimed without the key; the certificate says that the
cluster's authority let this key in. The same key signs advertisements and secures every connection between nodes.

    SAN URI   smtpmesh://CLUSTER/NODE_ID      checked on accept and on dial
    SAN DNS   NODE_ID.smtpmesh                what TLS libraries compare when dialling

Keys are ECDSA P-256: gRPC's TLS refuses certificates with Ed25519 keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossip.linkstate import NodeId

SCHEME = "smtpmesh"
NODE_ID_DIGITS = 32
AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825
BACKDATE = timedelta(hours=1)
"""Certificates are valid from a little before their making, for machines whose clock is behind."""
SIGNATURE = ec.ECDSA(hashes.SHA256())


class IdentityError(Exception):
    """Key material that cannot be used; `str()` says what is wrong and the way out."""


def node_id_of(certificate_der: bytes) -> NodeId:
    """The node id of the key in a certificate. IdentityError if it is not a certificate."""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
    except ValueError as error:
        raise IdentityError("the peer's certificate cannot be read") from error
    return _id_of_key(certificate)


def server_name(node_id: NodeId) -> str:
    """The DNS name in a node's certificate: what a dialling TLS library must be told to expect."""
    return f"{node_id}.{SCHEME}"


@dataclass(frozen=True, slots=True)
class Member:
    """A node whose certificate the cluster's authority signed."""

    node_id: NodeId
    cluster: str
    name: str
    certificate_der: bytes
    key: ec.EllipticCurvePublicKey

    def verify(self, signature: bytes, message: bytes) -> bool:
        """True if this member's key made the signature."""
        try:
            self.key.verify(signature, message, SIGNATURE)
        except InvalidSignature:
            return False
        return True


class Authority:
    """The certificate authority of one cluster. Its key stays where certificates are issued, not on the nodes."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate, self._key = certificate, key
        self.cluster = _common_name(certificate)

    @classmethod
    def create(cls, cluster: str, *, at: datetime) -> Authority:
        """A new authority for a new cluster."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cluster)])
        certificate = (
            _builder(name, name, key.public_key(), at, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Authority:
        """Read both files. IdentityError names the file at fault."""
        loaded = _load_certificate(certificate)
        private = _load_key(key)
        if _spki(loaded.public_key()) != _spki(private.public_key()):
            raise IdentityError(f"{key} is not the key of {certificate}")
        return cls(loaded, private)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate that every node carries."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def save(self, certificate: Path, key: Path) -> None:
        """Write both files, the key readable by its owner only. FileExistsError if either is there."""
        write_new(key, _key_pem(self._key), mode=0o600)
        write_new(certificate, self.certificate_pem, mode=0o644)

    def issue(
        self, name: str, *, hosts: Sequence[str] = (), at: datetime, days: int = CERTIFICATE_DAYS
    ) -> tuple[bytes, bytes]:
        """A new node's certificate and key, both PEM. `hosts` are further DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        node_id = _digest(_spki(key.public_key()))
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(f"{SCHEME}://{self.cluster}/{node_id}"),
            x509.DNSName(server_name(node_id)),
            *(x509.DNSName(host) for host in hosts),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), at, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)


class Identity:
    """This node's own key and certificate, and the authority by which it knows others."""

    def __init__(self, ca_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> None:
        self.ca_pem, self.certificate_pem, self.key_pem = ca_pem, certificate_pem, key_pem
        self._authority = x509.load_pem_x509_certificate(ca_pem)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self.certificate_der = certificate.public_bytes(serialization.Encoding.DER)
        self.cluster = _common_name(self._authority)
        self.name = _common_name(certificate)
        self.node_id = _id_of_key(certificate)

    @classmethod
    def load(cls, ca: Path, certificate: Path, key: Path) -> Identity:
        """Read and check the three files. IdentityError is one sentence with the file and the way out."""
        authority, own, private = _load_certificate(ca), _load_certificate(certificate), _load_key(key)
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            raise IdentityError(f"{key} can be read by others; run: chmod 600 {key}")
        if _spki(own.public_key()) != _spki(private.public_key()):
            raise IdentityError(f"{key} is not the key of {certificate}; issue both together with `smtpmesh init`")
        identity = cls(ca.read_bytes(), certificate.read_bytes(), key.read_bytes())
        try:
            identity.member(identity.certificate_der, at=datetime.now(UTC))
        except IdentityError as error:
            raise IdentityError(f"{certificate} does not fit {ca}: {error}") from error
        del authority
        return identity

    def sign(self, message: bytes) -> bytes:
        """Signature of this node over a message (ECDSA P-256, SHA-256, DER)."""
        return self._key.sign(message, SIGNATURE)

    def member(self, certificate_der: bytes, *, at: datetime) -> Member:
        """The member that a certificate speaks for. IdentityError: other authority or cluster, expired, wrong id."""
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
            certificate.verify_directly_issued_by(self._authority)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise IdentityError("the certificate was not issued by this cluster's authority") from error
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            raise IdentityError(f"the certificate is valid until {certificate.not_valid_after_utc:%Y-%m-%d} only")
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("the certificate's key is not ECDSA")
        node_id, expected = _id_of_key(certificate), f"{SCHEME}://{self.cluster}/"
        uris = _uris(certificate)
        if f"{expected}{node_id}" not in uris:
            raise IdentityError(f"the certificate names {', '.join(uris) or 'no node'}, expected {expected}{node_id}")
        return Member(node_id, self.cluster, _common_name(certificate), certificate_der, key)

    def server_context(self) -> ssl.SSLContext:
        """Mutual TLS for the accepting side: a caller without a certificate of this authority is refused."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """Mutual TLS for the dialling side. The caller compares `member(peer certificate).node_id` with its wish."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.ca_pem.decode("ascii"))
        with _key_on_disk(self.certificate_pem + self.key_pem) as path:
            context.load_cert_chain(path)
        return context


def write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Create a file that must not exist yet, with its mode from the first instant."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(number, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def _key_on_disk(pem: bytes) -> Iterator[str]:
    """OpenSSL's Python door reads keys from files only: an anonymous one, gone with the descriptor."""
    number = os.memfd_create("smtpmesh-key")
    try:
        os.write(number, pem)
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise IdentityError(f"{path} is not a PEM certificate") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{path} is not an unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{path} is not an ECDSA key; issue one with `smtpmesh init`")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror}; `smtpmesh init` makes the files of a node") from error


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, at: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATE)
        .not_valid_after(at + timedelta(days=days))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _spki(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _digest(spki: bytes) -> NodeId:
    return NodeId(hashlib.sha256(spki).hexdigest()[:NODE_ID_DIGITS])


def _id_of_key(certificate: x509.Certificate) -> NodeId:
    return _digest(_spki(certificate.public_key()))


def _common_name(certificate: x509.Certificate) -> str:
    values = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else ""


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
