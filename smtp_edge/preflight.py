"""What `check-config` looks at beyond the file itself: do certificates, users files and sinks work?

A node that starts meets the same errors one by one, in the part that owns the file; here they come all at once.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from gossip.identity import Identity, IdentityError
from gossip.revocation import RevocationError, load_revocations
from smtp_edge.auth.api import AuthError
from smtp_edge.auth.backends import load_authenticator
from smtp_edge.auth.senders import SenderMap
from smtp_edge.auth.users import UsersFile
from smtp_edge.client.contexts import apply_bounds
from smtp_edge.mistake import Mistake
from smtp_edge.settings import Settings, SinkSettings, SmartHostSettings
from smtp_edge.settings_inbound import AuthSettings, ListenerSettings
from smtp_edge.shards import find_stranded
from smtp_edge.sinks.bindings import check_alone, check_exits, load_bindings
from smtp_edge.sinks.chain import SinkError
from smtp_edge.workers import list_workers

CERTIFICATE_DAYS_LEFT = 14
"""With less than this a certificate should have been renewed: whoever does it is late."""


def load_identity(settings: Settings) -> Identity:
    """The node's identity. IdentityError."""
    cluster = settings.cluster
    return Identity.load(cluster.ca, cluster.certificate, cluster.key)


def load_identities(settings: Settings) -> dict[str, Identity]:
    """Name -> identity, of each worker. IdentityError."""
    workers = list_workers(settings.node.workers)
    return {worker.name_of(settings.node.name): load_identity(worker.derive(settings)) for worker in workers}


def find_mistakes(settings: Settings) -> list[Mistake]:
    """Everything in the files that a configuration names which would keep the node from starting or delivering."""
    return list(_find(settings))


def find_warnings(settings: Settings, at: datetime) -> Iterator[str]:
    """What works, and not for long, or not all: certificates of listeners, mail of workers that are no more.

    For files in which `find_mistakes` found none.
    """
    for item in find_stranded(settings):
        own = item.worker.derive(settings).cluster.certificate
        lost = "" if own.exists() else f", but {own.name} is missing: `smtpmesh workers {item.worker.number}` issues it"
        yield f"{item}; `smtpmesh run` drains it until it is empty{lost}"
    for listener in settings.listener:
        if listener.certificate is None:
            continue
        ends_at = x509.load_pem_x509_certificates(listener.certificate.read_bytes())[0].not_valid_after_utc
        if ends_at <= at:
            yield f"listener {listener.name}: {listener.certificate} has expired on {ends_at:%Y-%m-%d}"
        elif ends_at - at < timedelta(days=CERTIFICATE_DAYS_LEFT):
            days = (ends_at - at).days
            yield f"listener {listener.name}: {listener.certificate} expires in {days} days, on {ends_at:%Y-%m-%d}"


def _find(settings: Settings) -> Iterator[Mistake]:
    try:
        for identity in load_identities(settings).values():
            load_revocations(settings.cluster.revocations_folder, identity)
    except IdentityError as error:
        yield Mistake("cluster", str(error))
    except RevocationError as error:
        yield Mistake("cluster.revocations", str(error))
    for number, listener in enumerate(settings.listener):
        yield from _check_listener(f"listener[{number}]", listener)
    for number, auth in enumerate(settings.auth):
        yield from _check_auth(number, auth)
    for number, host in enumerate(settings.smart_host):
        yield from _check_smart_host(f"smart_host[{number}]", host)
    for number, table in enumerate(settings.tls):
        yield from _check_authority(f"tls[{number}].ca", table.ca)
    yield from _check_authority("mta_sts.ca", settings.mta_sts.ca)
    yield from _check_ciphers(settings)
    yield from _check_sinks(settings.sink, settings.smart_host, settings.node.workers)


def _check_listener(key: str, listener: ListenerSettings) -> Iterator[Mistake]:
    if listener.certificate is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(listener.certificate, listener.key)
        except (OSError, ssl.SSLError) as error:
            yield Mistake(f"{key}.certificate", _explain_pair(listener.certificate, listener.key, error))
    if listener.auth_users is not None:
        try:
            UsersFile(listener.auth_users)
        except AuthError as error:
            yield Mistake(f"{key}.auth_users", str(error))

    if listener.senders is not None:
        try:
            SenderMap.load(listener.senders)
        except AuthError as error:
            yield Mistake(f"{key}.senders", str(error))


def _check_auth(number: int, section: AuthSettings) -> Iterator[Mistake]:
    try:
        load_authenticator(section)
    except AuthError as error:
        yield Mistake(f"auth[{number}]", str(error))


def _explain_pair(certificate: Path, key: Path | None, error: OSError) -> str:
    if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
        return f"{key or certificate} is not the key of {certificate}"
    if key is None:
        return f"{certificate} does not hold a PEM certificate and its key; name the key's file in `key`"
    return f"{certificate} and {key} are not a PEM certificate and its unencrypted key"


def _check_smart_host(key: str, host: SmartHostSettings) -> Iterator[Mistake]:
    if host.password_file is not None and not host.password_file.read_text("utf-8", errors="replace").strip():
        yield Mistake(f"{key}.password_file", f"{host.password_file} is empty; the password stands in it, alone")
    yield from _check_authority(f"{key}.tls_ca", host.tls_ca)


def _check_authority(key: str, ca: Path | None) -> Iterator[Mistake]:
    if ca is not None:
        try:
            ssl.create_default_context(cafile=str(ca))
        except (OSError, ssl.SSLError):
            yield Mistake(key, f"{ca} holds no PEM certificate")


def _check_ciphers(settings: Settings) -> Iterator[Mistake]:
    try:
        apply_bounds(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), settings.outbound)
    except ssl.SSLError:
        yield Mistake("outbound.tls_ciphers", f"{settings.outbound.tls_ciphers!r} names no cipher of OpenSSL here")


def _check_sinks(
    sinks: Sequence[SinkSettings], hosts: Sequence[SmartHostSettings], worker_count: int
) -> Iterator[Mistake]:
    """Each by itself, then all in their order."""
    sound = True
    for number, sink in enumerate(sinks):
        try:
            load_bindings([sink])
        except SinkError as error:
            sound = False
            yield Mistake(f"sink[{number}]", str(error).partition(": ")[2])
    if sound:
        try:
            bindings = load_bindings(sinks)
            check_exits(bindings, hosts)
            check_alone(bindings, worker_count)
        except SinkError as error:
            yield Mistake("sink", str(error))
