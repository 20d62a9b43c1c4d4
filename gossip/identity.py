"""Who belongs to the cluster: one key per node, one certificate from the cluster's own authority.

The node id is a hash of the public key, so it cannot be claimed without the key; the certificate says that the
cluster's authority let this key in. The same key signs advertisements and secures every connection between nodes.

    SAN URI   smtpmesh://CLUSTER/NODE_ID      checked on accept and on dial
    SAN DNS   NODE_ID.smtpmesh                what TLS libraries compare when dialling

Keys are ECDSA P-256: gRPC's TLS refuses certificates with Ed25519 keys.

While an authority is replaced, the nodes carry the old and the new one in a single ca.crt, the trust bundle: whoever
either of them let in is a member. `gossip/THREATS.md` says what all this protects, and what it does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import stat
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossip.linkstate import NodeId
from gossip.revocation import SIGNATURE_BYTES_MAX, Revocation

SCHEME = "smtpmesh"
NODE_ID_DIGITS = 32
AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825
AUTHORITIES_MAX = 16
"""Certificates in a trust bundle: a rotation needs two."""
BACKDATE = timedelta(hours=1)
"""Certificates are valid from a little before their making, for machines whose clock is behind."""
MALFORMED = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What parsing a damaged certificate raises."""
SIGNATURE = ec.ECDSA(hashes.SHA256())


class IdentityError(Exception):
    """Key material that cannot be used; `str()` says what is wrong and the way out."""


class RevokedError(IdentityError):
    """The certificate would do, but its node was revoked: no fault of a peer that passes its records on."""


def node_id_of(certificate_der: bytes) -> NodeId:
    """The node id of the key in a certificate. IdentityError if it is not a certificate."""
    try:
        return _id_of_key(x509.load_der_x509_certificate(certificate_der))
    except MALFORMED as error:
        raise IdentityError("the peer's certificate cannot be read") from error


def certificate_der(pem: bytes) -> bytes:
    """The first certificate of a PEM file, as it travels. IdentityError if there is none."""
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    except ValueError as error:
        raise IdentityError("it is not a PEM certificate") from error


def server_name(node_id: NodeId) -> str:
    """The DNS name in a node's certificate: what a dialling TLS library must be told to expect."""
    return f"{node_id}.{SCHEME}"


@dataclass(frozen=True, slots=True)
class Member:
    """A node whose certificate an authority of the cluster signed."""

    node_id: NodeId
    cluster: str
    name: str
    certificate_der: bytes
    key: ec.EllipticCurvePublicKey
    not_after: datetime
    """When membership ends (aware UTC): the earlier of the certificate's own end and its authority's."""

    def verify(self, signature: bytes, message: bytes) -> bool:
        """True if this member's key made the signature."""
        return _verify(self.key, signature, message)


class TrustBundle:
    """The authorities by which members are known: usually one, two while they are exchanged, all of one cluster."""

    def __init__(self, pem: bytes, *, source: str = "the trust bundle") -> None:
        """`source` is what sentences call it: the file."""
        try:
            found = x509.load_pem_x509_certificates(pem)
        except ValueError as error:
            raise IdentityError(f"{source} is not a PEM certificate") from error
        if pem.count(b"-----BEGIN ") != len(found):  # the library skips half a certificate without a word
            raise IdentityError(f"{source} holds a block that is no whole certificate")
        if len(found) > AUTHORITIES_MAX:
            raise IdentityError(f"{source} holds more than {AUTHORITIES_MAX} authorities")
        self._authorities = tuple(dict.fromkeys(found))
        self.cluster = _common_name(found[0])
        for certificate in found:
            if not _is_authority(certificate):
                name = _common_name(certificate)
                raise IdentityError(f"{source} holds the certificate of {name!r}, which is no authority")
            if _common_name(certificate) != self.cluster:
                both = f"{self.cluster!r} and {_common_name(certificate)!r}"
                raise IdentityError(f"{source} holds authorities of two clusters, {both}; keep those of one")

    @classmethod
    def load(cls, path: Path) -> TrustBundle:
        """Read the file. IdentityError names it."""
        return cls(_read(path), source=str(path))

    @property
    def pem(self) -> bytes:
        """The certificates and nothing else, in the order of the file."""
        return b"".join(authority.public_bytes(serialization.Encoding.PEM) for authority in self._authorities)

    def member(self, certificate_der: bytes, *, at: datetime) -> Member:
        """The member that a certificate speaks for. IdentityError: other authority or cluster, expired, wrong id."""
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
        except MALFORMED as error:
            raise IdentityError("the certificate was not issued by this cluster's authority") from error
        issuers = self.issuers(certificate)
        if not certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc:
            raise IdentityError(f"the certificate is valid until {certificate.not_valid_after_utc:%Y-%m-%d} only")
        ends = [issuer.not_valid_after_utc for issuer in issuers if issuer.not_valid_before_utc <= at]
        if not ends or max(ends) < at:
            end = max(issuer.not_valid_after_utc for issuer in issuers)
            raise IdentityError(f"the certificate's authority is valid until {end:%Y-%m-%d} only")
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("the certificate's key is not ECDSA")
        node_id = _check_names(certificate, self.cluster)
        not_after = min(certificate.not_valid_after_utc, max(ends))
        return Member(node_id, self.cluster, _common_name(certificate), certificate_der, key, not_after)

    def check_issued(self, certificate_der: bytes) -> None:
        """IdentityError if these authorities did not sign it. Whether it is still valid is not asked."""
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
        except MALFORMED as error:
            raise IdentityError("the certificate cannot be read") from error
        self.issuers(certificate)

    def issuers(self, certificate: x509.Certificate) -> list[x509.Certificate]:
        """The authorities whose key signed a certificate: more than one if an authority was renewed. IdentityError."""
        found = [authority for authority in self._authorities if _is_issued_by(certificate, authority)]
        if not found:
            raise IdentityError("the certificate was not issued by this cluster's authority")
        return found

    def check_revocation(self, body: bytes, signature: bytes) -> Revocation:
        """See `Identity.check_revocation`."""
        revocation = Revocation.decode(body)
        if revocation.cluster != self.cluster:
            raise IdentityError(f"the revocation is of the cluster {revocation.cluster!r}, not {self.cluster!r}")
        keys = [authority.public_key() for authority in self._authorities]
        for key in keys:
            if not isinstance(key, ec.EllipticCurvePublicKey) or _digest(_spki(key)) != revocation.authority:
                continue
            if len(signature) <= SIGNATURE_BYTES_MAX and _verify(key, signature, body):
                return revocation
        raise IdentityError("the revocation was not signed by this cluster's authority")


class Authority:
    """The certificate authority of one cluster. Its key stays where certificates are issued, not on the nodes."""

    def __init__(
        self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, trust: TrustBundle | None = None
    ) -> None:
        self._certificate, self._key = certificate, key
        self.cluster = _common_name(certificate)
        self.trust = trust or TrustBundle(self.certificate_pem)
        """What its nodes carry as ca.crt: itself, and during a rotation the other authority."""

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
        """Read both files; of a bundle, the certificate of the key. IdentityError names the file at fault."""
        trust, private = TrustBundle.load(certificate), _load_key(key)
        own = [found for found in x509.load_pem_x509_certificates(trust.pem) if _same_key(found, private)]
        if not own:
            raise IdentityError(f"{key} is not the key of {certificate}")
        return cls(max(own, key=lambda found: found.not_valid_after_utc), private, trust)

    @property
    def certificate_pem(self) -> bytes:
        """Its own certificate."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def save(self, certificate: Path, key: Path) -> None:
        """Write both files, the key readable by its owner only. FileExistsError if either is there."""
        write_new(key, _key_pem(self._key), mode=0o600)
        write_new(certificate, self.trust.pem, mode=0o644)

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
        return self._certify(subject, key.public_key(), x509.SubjectAlternativeName(names), at, days), _key_pem(key)

    def renew(self, certificate_der: bytes, *, at: datetime, days: int = CERTIFICATE_DAYS) -> bytes:
        """A new certificate (PEM) for the same key, and so the same node, with the same names. It may have expired.

        IdentityError if it is not of this cluster: signing the key of a stranger would let it in.
        """
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
        except MALFORMED as error:
            raise IdentityError("the certificate cannot be read") from error
        self.trust.issuers(certificate)
        _check_names(certificate, self.cluster)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("the certificate's key is not ECDSA")
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return self._certify(certificate.subject, key, names, at, days)

    def revoke(self, node_id: NodeId, *, at: datetime, reason: str = "") -> Revocation:
        """The removal of a node for ever; `sign_revocation` gives it force. RevocationError: no id, a bad reason."""
        return Revocation(self.cluster, node_id, int(at.timestamp()), reason, _id_of_key(self._certificate))

    def sign_revocation(self, revocation: Revocation) -> bytes:
        """The signature over `revocation.encode()`. IdentityError if it names another cluster or authority."""
        if (revocation.cluster, revocation.authority) != (self.cluster, _id_of_key(self._certificate)):
            raise IdentityError("the revocation is for another authority to sign")
        return self._key.sign(revocation.encode(), SIGNATURE)

    def _certify(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        names: x509.SubjectAlternativeName,
        at: datetime,
        days: int,
    ) -> bytes:
        certificate = (
            _builder(subject, self._certificate.subject, key, at, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(authority=False), critical=True)
            .add_extension(names, critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


class Identity:
    """This node's own key and certificate, the authorities by which it knows others, and who was revoked."""

    def __init__(self, ca_pem: bytes, certificate_pem: bytes, key_pem: bytes) -> None:
        self._trust = TrustBundle(ca_pem)
        self.ca_pem, self.certificate_pem, self.key_pem = self._trust.pem, certificate_pem, key_pem
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self.certificate_der = certificate.public_bytes(serialization.Encoding.DER)
        self.cluster = self._trust.cluster
        self.name = _common_name(certificate)
        self.node_id = _id_of_key(certificate)
        self._revoked: dict[NodeId, Revocation] = {}
        self._contexts: weakref.WeakSet[ssl.SSLContext] = weakref.WeakSet()
        """Given out by us, and in use somewhere: a renewal reaches them."""

    @classmethod
    def load(cls, ca: Path, certificate: Path, key: Path) -> Identity:
        """Read and check the three files. IdentityError is one sentence with the file and the way out."""
        trust, own, private = TrustBundle.load(ca), _load_certificate(certificate), _load_key(key)
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            raise IdentityError(f"{key} can be read by others; run: chmod 600 {key}")
        if not _same_key(own, private):
            raise IdentityError(f"{key} is not the key of {certificate}; issue both together with `smtpmesh init`")
        identity = cls(trust.pem, certificate.read_bytes(), key.read_bytes())
        try:
            identity.member(identity.certificate_der, at=datetime.now(UTC))
        except IdentityError as error:
            raise IdentityError(f"{certificate} does not fit {ca}: {error}") from error
        return identity

    def renew(self, fresh: Identity) -> bool:
        """Take over a renewed certificate and bundle, everywhere this identity is used; False if they are the same.

        TLS contexts given out before show the new certificate from the next handshake on; sessions stay. An authority
        that left the bundle vouches for nobody any more. IdentityError if `fresh` is of another node or cluster.
        """
        self.check_renewal(fresh)
        if (fresh.ca_pem, fresh.certificate_pem) == (self.ca_pem, self.certificate_pem):
            return False
        self._trust, self.ca_pem = fresh._trust, fresh.ca_pem
        self.certificate_pem, self.certificate_der = fresh.certificate_pem, fresh.certificate_der
        self.key_pem, self._key, self.name = fresh.key_pem, fresh._key, fresh.name
        for context in self._contexts:
            self._fill(context)
        return True

    def check_renewal(self, fresh: Identity) -> None:
        """Whether `renew` would take it. IdentityError."""
        if (fresh.node_id, fresh.cluster) != (self.node_id, self.cluster):
            raise IdentityError(f"the files are of the node {fresh.node_id} now; another key needs a restart")

    def sign(self, message: bytes) -> bytes:
        """Signature of this node over a message (ECDSA P-256, SHA-256, DER)."""
        return self._key.sign(message, SIGNATURE)

    def member(self, certificate_der: bytes, *, at: datetime) -> Member:
        """The member that a certificate speaks for. IdentityError: other authority or cluster, expired, wrong id.

        RevokedError if only that is wrong with it.
        """
        member = self._trust.member(certificate_der, at=at)
        revocation = self._revoked.get(member.node_id)
        if revocation is not None:
            because = f": {revocation.reason}" if revocation.reason else ""
            raise RevokedError(f"the node {member.node_id} was revoked{because}")
        return member

    def check_revocation(self, body: bytes, signature: bytes) -> Revocation:
        """The revocation that an authority of this cluster signed. Changes nothing.

        RevocationError: the bytes are none. IdentityError: of another cluster, or not signed by one of the bundle. An
        authority that has expired still counts: what it took away does not come back with time.
        """
        return self._trust.check_revocation(body, signature)

    def apply_revocation(self, revocation: Revocation) -> None:
        """From now on `member` refuses that node. The value must come from `check_revocation`. The first one stays."""
        self._revoked.setdefault(revocation.node_id, revocation)

    def server_context(self) -> ssl.SSLContext:
        """Mutual TLS for the accepting side: a caller without a certificate of these authorities is refused."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """Mutual TLS for the dialling side. The caller compares `member(peer certificate).node_id` with its wish."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return context

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        self._fill(context)
        self._contexts.add(context)
        return context

    def _fill(self, context: ssl.SSLContext) -> None:
        context.load_verify_locations(cadata=self.ca_pem.decode("ascii"))
        with _key_on_disk(self.certificate_pem + self.key_pem) as path:
            context.load_cert_chain(path)


def write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Create a file that must not exist yet, with its mode from the first instant."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(number, "wb") as file:
        file.write(content)


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Exchange a file for another in one step: written beside it, synced, renamed. Whoever reads gets one or the other.

    A file left beside it by a run that died is overwritten.
    """
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    try:
        number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _same_key(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    return _spki(certificate.public_key()) == _spki(key.public_key())


def _verify(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, SIGNATURE)
    except InvalidSignature:
        return False
    return True


def _check_names(certificate: x509.Certificate, cluster: str) -> NodeId:
    """The node id of its key, which its names must hold together with the cluster. IdentityError."""
    node_id = _id_of_key(certificate)
    expected, uris = f"{SCHEME}://{cluster}/{node_id}", _uris(certificate)
    if expected not in uris:
        raise IdentityError(f"the certificate names {', '.join(uris) or 'no node'}, expected {expected}")
    return node_id


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
