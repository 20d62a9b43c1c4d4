"""TLS contexts of outbound sessions: made once for each kind of demand, and what a finished handshake is worth.

The library checks certificates against authorities and names; what it cannot do is done here after the handshake and
before anything but the handshake was sent: TLSA records (Python's ssl takes no callback for them) and lists of names.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from cryptography import x509

from gossip.identity import Identity, IdentityError
from smtp_edge.client.dane import DaneMismatch, dns_names, name_matches, verify_chain
from smtp_edge.client.tls_policy import Level, TlsDemand
from smtp_edge.settings import OutboundSettings

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsRefused(Exception):
    """The session is not as secure as demanded; `str()` says why."""


class Contexts:
    """See the module."""

    def __init__(self, identity: Identity | None, settings: OutboundSettings | None = None) -> None:
        self._identity, self._settings = identity, settings or OutboundSettings()
        self._made: dict[tuple[bool, bool, Path | None], ssl.SSLContext] = {}

    def mesh(self) -> ssl.SSLContext:
        """For peers: the cluster's own. TlsRefused without an identity."""
        if self._identity is None:
            raise TlsRefused("no cluster identity")
        return self._identity.client_context()

    def find(self, demand: TlsDemand) -> ssl.SSLContext:
        """For anyone else. TlsRefused if the authority's file cannot be used."""
        by_authority = demand.level is Level.VERIFIED
        key = (by_authority, bool(demand.names), demand.ca if by_authority else None)
        context = self._made.get(key)
        if context is None:
            context = self._made[key] = self._build(*key)
        return context

    def _build(self, by_authority: bool, named: bool, ca: Path | None) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(ca) if ca else None)
        except (OSError, ssl.SSLError) as error:
            raise TlsRefused(f"authority {ca}: {error}") from error
        apply_bounds(context, self._settings)
        context.hostname_checks_common_name = False
        if not by_authority or named:
            context.check_hostname = False
        if not by_authority:
            context.verify_mode = ssl.CERT_NONE
        return context

    def check_peer(self, tls: ssl.SSLObject | None, node_id: str) -> None:
        """The other end must be this member of the cluster. TlsRefused."""
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        if self._identity is None or certificate is None:
            raise TlsRefused("no cluster identity")
        try:
            found = self._identity.member(certificate, at=datetime.now(UTC)).node_id
        except IdentityError as error:
            raise TlsRefused(str(error)) from error
        if found != node_id:
            raise TlsRefused(f"the peer there is {found}")


def apply_bounds(context: ssl.SSLContext, settings: OutboundSettings) -> None:
    """Versions and ciphers. ssl.SSLError for a list of ciphers that names none."""
    context.minimum_version = VERSIONS[settings.tls_version_min]
    if settings.tls_ciphers:
        context.set_ciphers(settings.tls_ciphers)


def judge_session(tls: ssl.SSLObject | None, demand: TlsDemand) -> str:
    """Check what the library could not. Returns how the certificate was checked (`verified`, `dane-ee`), or nothing.

    TlsRefused.
    """
    if tls is None:
        if demand.level > Level.OPPORTUNISTIC:
            raise TlsRefused("no TLS")
        return ""
    match demand.level:
        case Level.DANE:
            try:
                return verify_chain(shown_chain(tls), demand.tlsa, demand.names, at=datetime.now(UTC))
            except DaneMismatch as error:
                raise TlsRefused(f"DANE: {error}") from error
        case Level.VERIFIED:
            if demand.names:
                _check_names(tls, demand)
            return "verified" + (f" {demand.source}" if demand.source else "")
        case _:
            return ""


def _check_names(tls: ssl.SSLObject, demand: TlsDemand) -> None:
    certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    shown = dns_names(certificate)
    for wanted in demand.names:
        for name in shown:
            if name_matches(name, wanted) or name_matches(wanted, name):
                return
    raise TlsRefused(f"the certificate names none of {', '.join(demand.names)}")


def shown_chain(tls: ssl.SSLObject) -> list[bytes]:
    """The certificates that the server showed, DER, its own first.

    Public since Python 3.13; before, the same method of the object inside.
    """
    holder = cast(Any, tls)
    if hasattr(holder, "get_unverified_chain"):
        return [bytes(certificate) for certificate in holder.get_unverified_chain() or ()]
    chain = holder._sslobj.get_unverified_chain() or ()
    return [certificate.public_bytes(_DER) for certificate in chain]


_DER = 2
"""`_ssl.ENCODING_DER`."""


def describe_session(tls: ssl.SSLObject | None) -> str:
    """`TLSv1.3 TLS_AES_256_GCM_SHA384`; empty in the clear."""
    cipher = tls.cipher() if tls is not None else None
    return f"{tls.version()} {cipher[0]}" if tls is not None and cipher else ""
