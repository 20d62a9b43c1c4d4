"""The disclaimer: where it stands, in which charset; what becomes of signed mail. Python's email reads along."""

from __future__ import annotations

import email
import email.policy
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtp_edge.applications.appending import TEXT_BYTES_MAX, Appender, Footer, Part, append
from smtp_edge.applications.disclaimer import Disclaimer
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import SinkError
from smtp_edge.sinks.fields import split_header
from smtp_edge.sinks.mime import parse_media_type
from smtp_edge.sinks.testing import Outcome, ask
from tests.unit.smtp_edge.sinks.test_replace_body import (
    Authority,
    authority,
    bound,
    dkim_key,
    signer,
    verifies,
)

__all__ = ["authority", "dkim_key"]
TEXT = "-- \nExample Ltd & Söhne\n"
PLAIN_TEXT, HTML_TEXT = "--\nExample Ltd & Söhne", "<p>--<br>\nExample Ltd &amp; Söhne</p>"
ASCII = "Example Ltd"
HIDDEN = b"--b\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\nx\r\n=2D-b\r\n\r\ny\r\n--b--\r\n"
"""A delimiter that is none; in clear it would be one."""


async def send(mail: bytes, text: str = TEXT, **more: str) -> Outcome:
    return await ask(Disclaimer(text, **more), mail)


def read(mail: bytes) -> EmailMessage:
    found = email.message_from_bytes(mail, policy=email.policy.SMTP)
    assert isinstance(found, EmailMessage)
    return found


def single(content: str, body: bytes) -> bytes:
    return f"From: sue@example.org\r\n{content}\r\n".encode() + body


def build(*, html: bool = False, attached: bool = False, related: bool = False, cte: str = "8bit") -> bytes:
    """A message as a mail program makes it."""
    mail = EmailMessage(policy=email.policy.SMTP)
    mail["From"], mail["Subject"] = "sue@example.org", "hi"
    mail.set_content("grüße\n.dot\n", cte=cte)
    if html:
        mail.add_alternative("<html><body><b>grüße</b></body></html>\n", subtype="html", cte=cte)
    if related:
        html_part = mail.get_payload()[1]  # type: ignore[index]
        html_part.add_related(b"\x89PNG", "image", "png")  # type: ignore[union-attr]
    if attached:
        mail.add_attachment("an attached text\n", filename="a.txt")
    return mail.as_bytes()


@pytest.mark.parametrize(
    ("content", "body", "after"),
    [
        ("", b"hi\r\n", "hi\n\n" + ASCII + "\n"),
        ("Content-Type: text/plain\r\n", b".\r\n\r\n\r\n", ".\n\n" + ASCII + "\n"),
        ("Content-Type: text/plain; charset=unheard-of\r\n", b"", "\n\n" + ASCII + "\n"),
        ("Content-Type: text/plain; charset=unheard-of\r\n", b"gr\xfc\xdfe", "gr\ufffd\ufffde\n\n" + ASCII + "\n"),
    ],
)
async def test_plain_text_has_it_below_the_last_line(content: str, body: bytes, after: str) -> None:
    outcome = await send(single(content, body), ASCII)
    assert outcome.content.startswith(f"From: sue@example.org\r\n{content}\r\n".encode())
    assert outcome.content.partition(b"\r\n\r\n")[2].decode("ascii", "replace").replace("\r\n", "\n") == after


@pytest.mark.parametrize(
    ("charset", "encoding", "stays"),
    [
        ("utf-8", "8bit", True),
        ("utf-8", "quoted-printable", True),
        ("utf-8", "base64", True),
        ("iso-8859-1", "8bit", True),
        ("windows-1252", "quoted-printable", True),
        ("iso-8859-15", "base64", True),
        ("koi8-r", "base64", False),
    ],
)
async def test_charset_and_encoding_are_respected(charset: str, encoding: str, stays: bool) -> None:
    old = "grüße" if stays else "привет"
    mail = EmailMessage(policy=email.policy.SMTP)
    mail["From"] = "sue@example.org"
    mail.set_content(f"{old} " * 30 + "\n", charset=charset, cte=encoding)
    outcome = await send(mail.as_bytes())
    after = read(outcome.content)
    assert after.get_content().replace("\r\n", "\n") == f"{old} " * 30 + "\n\n" + PLAIN_TEXT + "\n"
    assert after["content-transfer-encoding"] == encoding
    assert after.get_content_charset() == (charset if stays else "utf-8")
    assert outcome.body_type == ("8BITMIME" if encoding == "8bit" else "7BIT")


async def test_what_7bit_cannot_carry_becomes_quoted_printable() -> None:
    for content in ("", "Content-Type: text/plain; charset=us-ascii; format=flowed\r\nMIME-Version: 1.0\r\n"):
        outcome = await send(single(content, b"a=b \r\nFrom here\r\n" + b"x" * 200))
        after = read(outcome.content)
        assert after["content-transfer-encoding"] == "quoted-printable"
        assert after.get_content_charset() == "utf-8"
        assert after["mime-version"] == "1.0"
        assert after["content-type"].params.get("format") == ("flowed" if content else None)
        text = "a=b \nFrom here\n" + "x" * 200 + "\n\n" + PLAIN_TEXT + "\n"
        assert after.get_content().replace("\r\n", "\n") == text
        assert outcome.body_type == "7BIT"
        assert outcome.content.isascii()


@pytest.mark.parametrize("cte", ["8bit", "quoted-printable", "base64"])
@pytest.mark.parametrize("related", [False, True])
@pytest.mark.parametrize("attached", [False, True])
async def test_both_alternatives_have_it_and_attachments_do_not(cte: str, related: bool, attached: bool) -> None:
    mail = build(html=True, attached=attached, related=related, cte=cte)
    before, after = read(mail), read((await send(mail)).content)
    plain, html = after.get_body(("plain",)), after.get_body(("html",))
    assert plain is not None
    assert html is not None
    assert plain.get_content().replace("\r\n", "\n") == f"grüße\n.dot\n\n{PLAIN_TEXT}\n"
    assert html.get_content().replace("\r\n", "\n") == f"<html><body><b>grüße</b>{HTML_TEXT}\n</body></html>\n"
    assert [part.as_bytes() for part in after.iter_attachments()] == [p.as_bytes() for p in before.iter_attachments()]
    kinds = [part.get_content_type() for part in before.walk()]
    assert [part.get_content_type() for part in after.walk()] == kinds


async def test_the_html_that_is_set_is_used() -> None:
    mail = single("Content-Type: text/html\r\n", b"<p>hi\r\n</BODY ></html>\r\n")
    assert (await send(mail, ASCII, html="<hr>")).content == mail.replace(b"</BODY", b"<hr>\r\n</BODY")
    bare = single("Content-Type: text/html\r\n", b"<p>hi\r\n")
    assert (await send(bare, ASCII, html="<hr>")).content == bare + b"<hr>\r\n"


async def test_a_second_text_has_none_and_an_empty_one_has() -> None:
    head = single("Content-Type: multipart/mixed; boundary=b\r\n", b"")
    two = b"--b\r\n\r\none\r\n--b\r\nContent-Type: text/html\r\n\r\ntwo\r\n--b--\r\n"
    assert (await send(head + two, ASCII)).content == head + two.replace(b"one", b"one\r\n\r\n" + ASCII.encode())
    empty = head + b"--b\r\nContent-Type: text/plain\r\n\r\n--b--\r\n"
    after = read((await send(empty, ASCII)).content)
    assert [part.get_content().strip() for part in after.iter_parts()] == [ASCII]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "mail",
    [
        single("Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n", b"iVBORw0KGgo=\r\n"),
        single("Content-Type: text/plain; name=a.txt\r\n", b"x\r\n"),
        single("Content-Type: text/plain\r\nContent-Disposition: attachment\r\n", b"x\r\n"),
        single("Content-Type: text/plain; charset=utf-8\r\n", b"gr\xfc\xdfe\r\n"),
        single("Content-Type: text/plain\r\nContent-Transfer-Encoding: x-uuencode\r\n", b"x\r\n"),
        single("Content-Type: text/plain\r\n", b"x" * (TEXT_BYTES_MAX + 1) + b"\r\n"),
        single("Content-Type: multipart/report; boundary=b\r\n", b"--b\r\n\r\nx\r\n--b--\r\n"),
        single(
            "Content-Type: multipart/mixed; boundary=b\r\n", b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n"
        ),
        single("Content-Type: multipart/mixed; boundary=b\r\n", HIDDEN),
        single("Content-Type: multipart/mixed\r\n", b"--b\r\n\r\nx\r\n--b--\r\n"),
        single("Content-Type: multipart/encrypted; boundary=b\r\n", b"--b\r\n\r\nx\r\n--b--\r\n"),
        single("Content-Type: application/pkcs7-mime; smime-type=enveloped-data\r\n", b"x\r\n"),
        single("Content-Type: application/pkcs7-mime; smime-type=signed-data\r\n", b"x\r\n"),
        single("Content-Type: multipart/digest; boundary=b\r\n", b"--b\r\n\r\nSubject: x\r\n\r\ny\r\n--b--\r\n"),
        single("Content-Type: multipart/mixed; boundary=b\r\n", b"--b\r\n--b\r\nno field\r\n--b--\r\n"),
        b"From sue Mon Jan  1 00:00:00 2024\r\n" + single("", b"x\r\n"),
        b"From: sue@example.org\r\n",
        b"DKIM-Signature: v=1\r\n" + single("", b"x\r\n"),
        single("", b"-----BEGIN PGP SIGNED MESSAGE-----\r\n"),
    ],
)
async def test_what_it_leaves_alone(mail: bytes) -> None:
    assert (await send(mail)).content == mail


async def test_a_large_attachment_streams_through() -> None:
    mail = build(html=True).replace(b"\r\n--", b"\r\n--", 1)
    large = single("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=big\r\n", b"--big\r\n")
    inner = mail.partition(b"\r\n\r\n")
    content = inner[0][inner[0].index(b"Content-Type") :]
    blob = b"\r\n--big\r\nContent-Type: application/x\r\n\r\n" + b".x--y\r\n" * 500_000 + b"\r\n--big--\r\n"
    outcome = await send(large + content + b"\r\n\r\n" + inner[2] + blob)
    assert outcome.content.endswith(blob)
    assert outcome.content.count("Söhne".encode()) == 2


PIECES = [
    *(b"--b\r\n", b"--b--\r\n", b"--c\r\n", b"--c--\r\n", b"\r\n", b"text\r\n", b"=\r\n", b"\xff", b"--"),
    *(b"Content-Type: text/html\r\n", b"Content-Type: multipart/alternative; boundary=c\r\n", b"no field\r\n"),
    *(b"Content-Transfer-Encoding: base64\r\n", b"Content-Type: text/plain; charset=utf-8\r\n"),
]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=25), st.integers(1, 9))
def test_any_multipart_keeps_its_delimiters(pieces: list[bytes], step: int) -> None:
    body = b"".join(pieces)
    outcomes = []
    for size in (step, 10**6):
        appender = Appender(parse_media_type("multipart/mixed; boundary=b"), Footer.build(TEXT))
        outcomes.append(
            b"".join(appender.feed(body[at : at + size]) for at in range(0, len(body), size)) + appender.finish()
        )
        assert appender.added or outcomes[-1] == body
    assert outcomes[0] == outcomes[1]
    lines = [line for line in body.split(b"\r\n") if line.startswith((b"--b", b"--c"))]
    assert [line for line in outcomes[0].split(b"\r\n") if line.startswith((b"--b", b"--c"))] == lines


@settings(deadline=None)
@given(
    st.text(max_size=80), st.sampled_from(["7bit", "8bit", "base64", "quoted-printable", "x"]), st.binary(max_size=40)
)
def test_any_part_is_read_or_left_alone(footer: str, encoding: str, body: bytes) -> None:
    header = f"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    append(Part(split_header(header.encode()).fields, body), Footer.build(footer))


# -- signed mail -------------------------------------------------------------------------------------------------------

SIGNED = b"From: sue@example.org\r\nSubject: hi\r\nContent-Type: text/plain\r\n\r\nold\r\n"


@pytest.mark.peer("openssl")
async def test_signed_mail_by_choice(authority: Authority) -> None:
    mail = authority.sign(SIGNED)
    assert (await send(mail)).content == mail
    stripped = (await send(mail, ASCII, signed="strip")).content
    assert b"multipart/signed" not in stripped
    assert stripped.endswith(b"Content-Type: text/plain\r\n\r\nold\r\n\r\n" + ASCII.encode() + b"\r\n")

    opaque = authority.sign(SIGNED, "-nodetach")
    assert (await send(opaque)).content == opaque
    damaged = opaque[:-400] + b"\r\n"
    assert (await send(damaged, signed="strip")).content == damaged
    assert (await send(opaque, ASCII, signed="strip")).content == stripped

    annotated = (await send(mail, signed="annotate")).content
    assert annotated.startswith(b"X-smtpmesh-Modified: disclaimer added; signed before: S/MIME\r\n")
    boundary = read(annotated).get_boundary() or ""
    parts = annotated.split(b"--" + boundary.encode())
    kept = parts[1].removeprefix(b"\r\n").removesuffix(b"\r\n")
    assert authority.verify(b"MIME-Version: 1.0\r\n" + kept) == b"Content-Type: text/plain\r\n\r\nold\r\n"
    assert read(annotated).get_payload()[1].get_content().strip() == PLAIN_TEXT.replace("\n", "\r\n")  # type: ignore

    files = {"certificate": str(authority.folder / "relay.pem"), "key": str(authority.folder / "relay.key")}
    for text in (ASCII, TEXT):
        anew = (await send(mail, text, signed="resign", **files)).content
        signed = read(authority.verify(anew) or b"")
        assert signed.get_content().replace("\r\n", "\n").startswith("old\n\n" + Footer.build(text).plain)
    alternatives = authority.sign(build(html=True, attached=True))
    anew = (await send(alternatives, signed="resign", **files)).content
    assert (authority.verify(anew) or b"").decode().count("Söhne") == 2


@pytest.mark.peer("dkimverify")
async def test_mail_with_dkim_by_choice(dkim_key: tuple) -> None:  # type: ignore[type-arg]
    mail = (await ask(signer(dkim_key), SIGNED)).content
    assert (await send(mail)).content == mail
    assert (await send(mail, signed="strip")).content.startswith(b"From: sue@example.org\r\n")
    annotated = (await send(mail, signed="annotate")).content
    assert annotated.startswith(b"X-smtpmesh-Modified: disclaimer added; signed before: DKIM\r\nDKIM-Signature")
    assert not verifies(annotated, dkim_key)
    assert (await send(mail, signed="resign")).reply.startswith("451 "), "nobody signs after it"
    anew = (await ask(bound(Disclaimer(TEXT, signed="resign"), signer(dkim_key)), mail)).content
    assert verifies(anew, dkim_key)
    assert "S=C3=B6hne" in anew.decode()


def test_settings_that_mean_nothing_are_named(tmp_path: object) -> None:
    for given_, reason in (
        ({"text": " \n"}, "text is empty"),
        ({"text": "x", "signed": "maybe"}, "signed = 'maybe' is none of: skip, strip, annotate, resign"),
        ({"text": "x", "key": "/a"}, "certificate and key belong together"),
        ({"text": "x", "signed": "strip", "key": "/a", "certificate": "/b"}, "belong together"),
        ({"text": "x", "signed": "resign", "key": "/nowhere/a", "certificate": "/nowhere/b"}, "No such file"),
        ({"txt": "x"}, "it takes: text, html, signed, certificate, key"),
    ):
        with pytest.raises(SinkError, match=reason):
            load_bindings([SinkSettings.model_validate({"use": "disclaimer", "with": given_})])
