"""What is signed and what is encrypted is told by header and type; what a header edit breaks is told, too."""

from __future__ import annotations

import pytest

from smtp_edge.sinks.fields import split_header
from smtp_edge.sinks.protection import NONE, BodyScan, Mark, Protection, detect, find_broken

SMIME = Protection(frozenset({Mark.SMIME}))
PGP = Protection(frozenset({Mark.PGP}))
BLOB = Protection(frozenset({Mark.SMIME}), opaque=True)
PGP_SECRET = Protection(encryption=frozenset({Mark.PGP}))
SECRET = Protection(encryption=frozenset({Mark.SMIME}))


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"Subject: x", NONE),
        (b"Content-Type: text/plain", NONE),
        (b"Content-Type: multipart/signed;\r\n protocol=\"application/pkcs7-signature\"; boundary=x", SMIME),
        (b"content-type: Multipart/Signed; Protocol=application/x-pkcs7-signature", SMIME),
        (b"Content-Type: multipart/signed; protocol=application/pgp-signature", PGP),
        (b"Content-Type: multipart/signed", Protection(frozenset({Mark.OTHER}))),
        (b"Content-Type: application/pkcs7-mime; smime-type=signed-data", BLOB),
        (b"Content-Type: application/pkcs7-mime; smime-type=enveloped-data", SECRET),
        (b"Content-Type: application/x-pkcs7-mime; smime-type=authEnveloped-data", SECRET),
        (b"Content-Type: application/pkcs7-mime; name=smime.p7m", SECRET),
        (b"Content-Type: application/octet-stream; name=smime.P7M", SECRET),
        (b"Content-Type: application/pkcs7-mime; smime-type=certs-only", NONE),
        (b"Content-Type: multipart/encrypted; protocol=\"application/pgp-encrypted\"", PGP_SECRET),
        (b"DKIM-Signature: v=1", Protection(frozenset({Mark.DKIM}))),
        (b"ARC-Seal: i=1", Protection(frozenset({Mark.ARC}))),
        (b"Content-Type: text/plain\r\nContent-Type: multipart/signed; protocol=application/pgp-signature", PGP),
    ],
)  # fmt: skip
def test_by_its_header(header: bytes, found: Protection) -> None:
    assert detect(split_header(header + b"\r\n\r\n").fields) == found


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"hello\r\n", NONE),
        (b"x\r\n-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA256\r\n", PGP),
        (b"-----BEGIN PGP MESSAGE-----\r\n", PGP_SECRET),
        (b"> -----BEGIN PGP MESSAGE-----\r\n", NONE),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\r\n", NONE),
        (b"--b\r\nX: y\r\nContent-Type: multipart/signed;\r\n\tprotocol=application/pgp-signature\r\n\r\nz\r\n", PGP),
        (b"--b\r\nContent-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n\r\nz\r\n", NONE),
        (b"--b\r\n\r\nContent-Type: multipart/signed\r\n", NONE),
    ],
)
def test_by_its_body(body: bytes, found: Protection) -> None:
    for step in (1, 7, 1000):
        scan = BodyScan()
        for at in range(0, len(body), step):
            scan.feed(body[at : at + step])
        assert scan.finish() == found, step


SIGNED = b"DKIM-Signature: v=1; h=From:Subject:subject:To; b=x\r\n"


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        (b"From: a\r\nSubject: b\r\n", b"From: a\r\nSubject: c\r\n", ("subject",)),
        (b"From: a\r\nSubject: b\r\n", b"X-New: y\r\nFrom: a\r\nSubject: b\r\n", ()),
        (b"From: a\r\nSubject: b\r\n", b"Subject: c\r\nFrom: a\r\nSubject: b\r\n", ("subject",)),
        (b"From: a\r\n", b"From: b\r\nFrom: a\r\n", ()),
        (b"From: a\r\n", b"From: a\r\nFrom: b\r\n", ("from",)),
        (b"From: a\r\nTo: b\r\n", b"Subject: x\r\n", ("from", "subject", "to")),
    ],
)
def test_what_a_header_edit_breaks(before: bytes, after: bytes, names: tuple[str, ...]) -> None:
    was, now = split_header(SIGNED + before).fields, split_header(SIGNED + after).fields
    assert find_broken(was, now) == names
    assert find_broken(was, split_header(after).fields) == (), "the signature went, too"
