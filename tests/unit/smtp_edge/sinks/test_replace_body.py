"""Bodies that sinks replace: what is stored, what is guarded, and what each choice makes of a signature.

openssl and Debian's dkimpy judge the signatures.
"""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from smtp_edge.applications.dkim import DKIM
from smtp_edge.envelope import BodyType, Client, Envelope, ReceivedMessage, Recipient
from smtp_edge.queue.errors import StoreFull
from smtp_edge.queue.spool import Spool
from smtp_edge.sinks.api import Message, Reject, Sink, TempFail, Verdict
from smtp_edge.sinks.bodies import MEMORY_BYTES_MAX, LineEnds, NewBody
from smtp_edge.sinks.chain import ACCEPT, Binding, SinkChain
from smtp_edge.sinks.protection import ProtectedError, Signed
from smtp_edge.sinks.screen import Screen
from smtp_edge.sinks.smime import SmimeIdentity
from smtp_edge.sinks.testing import ask
from smtp_edge.stuffing import Unstuff
from tests.unit.smtp_edge.sinks.test_message import inline, spooled

PLAIN = b"From: sue@example.org\r\nSubject: hi\r\nContent-Type: text/plain\r\n\r\nold\r\n.dot\r\n"
Edit = Callable[[Message], Coroutine[Any, Any, Verdict | None]]


class Edits(Sink):
    """Does what the test says, and keeps what went wrong."""

    def __init__(self, edit: Edit) -> None:
        self._edit = edit
        self.error: Exception | None = None

    async def data(self, message: Message) -> Verdict | None:
        try:
            return await self._edit(message)
        except Exception as error:
            self.error = error
            raise


class Reads(Sink):
    """All of what it is shown."""

    def __init__(self) -> None:
        self.seen = b""
        self.size_bytes = 0

    async def data(self, message: Message) -> None:
        self.seen = b"".join([chunk async for chunk in message.content()])
        self.size_bytes = message.size_bytes


def replaces(body: Any, **choices: Any) -> Edits:
    """With these bytes."""

    async def edit(message: Message) -> None:
        await message.replace_body(body, **choices)

    return Edits(edit)


def bound(*sinks: Sink, **more: Any) -> list[Binding]:
    return [
        Binding(f"{type(sink).__name__}{number}", sink, priority=number, **more) for number, sink in enumerate(sinks)
    ]


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def screen(directory: Path, data: Any, *sinks: Sink, body_type: BodyType = BodyType.SEVEN_BIT) -> Any:
    chain = SinkChain(bound(*sinks))
    one = Screen(chain)
    envelope = Envelope("sue@example.org", (Recipient("ann@a.test"),), body_type)
    result = await one.data(ReceivedMessage(Client("192.0.2.1"), envelope, data), Spool(directory).begin)
    await one.close(Client("192.0.2.1"))
    return result


def text_of(result: ReceivedMessage) -> bytes:
    stored = result.data.inline if result.data.path is None else result.data.path.read_bytes()
    assert stored is not None
    assert len(stored) == result.data.size_bytes
    unstuff = Unstuff()
    return unstuff.feed(stored) + unstuff.finish()


# -- what is stored ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", ["small", "large"])
@pytest.mark.parametrize("old", ["inline", "file"])
async def test_the_new_body_is_stored_and_seen_by_the_next_sink(tmp_path: Path, old: str, new: str) -> None:
    data = inline(PLAIN) if old == "inline" else await spooled(PLAIN, tmp_path)
    body = b".new\r\n..\r\n" * (1 if new == "small" else MEMORY_BYTES_MAX // 5)
    reads = Reads()
    result = await screen(tmp_path, data, replaces(body), reads)
    whole = PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + body
    assert text_of(result) == whole == reads.seen
    assert reads.size_bytes == result.data.size_bytes == len(whole) + body.count(b"\r\n.") + 1
    assert result.data.header == PLAIN.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert (result.data.path is None) is (new == "small")
    assert files_in(tmp_path) == ([] if new == "small" else [result.data.path])


async def test_a_stream_may_read_the_old_body_while_it_writes_the_new(tmp_path: Path) -> None:
    old = b"Subject: x\r\n\r\n" + b"line\r\n" * 50_000

    async def edit(message: Message) -> None:
        async def both() -> AsyncIterator[bytes]:
            yield b"first\n"
            async for chunk in message.body():
                yield chunk
            yield b"last"

        await message.replace_body(both())

    result = await screen(tmp_path, await spooled(old, tmp_path), Edits(edit), Edits(edit))
    assert text_of(result) == b"Subject: x\r\n\r\nfirst\r\nfirst\r\n" + b"line\r\n" * 50_000 + b"last\r\nlast\r\n"
    assert files_in(tmp_path) == [result.data.path]


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"x", b""]), max_size=20))
def test_every_line_end_becomes_crlf_however_it_is_cut(pieces: list[bytes]) -> None:
    ends, whole = LineEnds(), LineEnds()
    text = b"".join(map(ends.feed, pieces)) + ends.finish()
    assert text == whole.feed(b"".join(pieces)) + whole.finish()
    wanted = re.sub(rb"\r\n|\r|\n", b"\r\n", b"".join(pieces))
    assert text == wanted + (b"" if wanted.endswith(b"\r\n") or not wanted else b"\r\n")


@pytest.mark.parametrize(
    ("came", "header", "body", "declared"),
    [
        (BodyType.SEVEN_BIT, b"A: b", b"text", BodyType.SEVEN_BIT),
        (BodyType.SEVEN_BIT, b"A: b", "grün".encode(), BodyType.EIGHT_BIT_MIME),
        (BodyType.EIGHT_BIT_MIME, b"A: b", b"text", BodyType.EIGHT_BIT_MIME),
        (BodyType.BINARY_MIME, b"A: b", b"text\0\nx", BodyType.EIGHT_BIT_MIME),
        (BodyType.BINARY_MIME, b"A: b\nc", b"text", BodyType.BINARY_MIME),
    ],
)
async def test_the_body_type_is_that_of_the_new_body(
    tmp_path: Path, came: BodyType, header: bytes, body: bytes, declared: BodyType
) -> None:
    result = await screen(tmp_path, inline(header + b"\r\n\r\n\xff\r\n"), replaces(body), body_type=came)
    assert result.envelope.body_type is declared
    if declared is not BodyType.BINARY_MIME:
        assert b"\n" not in text_of(result).replace(b"\r\n", b"")


@pytest.mark.parametrize("end", ["fails", "refuses", "hangs", "fails while writing", "writes without end"])
async def test_a_sink_that_fails_or_refuses_has_changed_nothing(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtp_edge.sinks.bodies.BODY_BYTES_MAX", 1 << 20)

    def chunks() -> Iterator[bytes]:
        yield b"x" * 2 * MEMORY_BYTES_MAX
        if end == "fails while writing":
            raise ValueError
        while end == "writes without end":
            yield b"x" * 100_000

    async def edit(message: Message) -> Verdict | None:
        await message.replace_body(chunks())
        if end == "refuses":
            return Reject("no")
        if end == "fails":
            raise ValueError
        await asyncio.sleep(3600)
        return None

    reads = Reads()
    bindings = [
        Binding("edits", Edits(edit), priority=1, timeout_s=2.0, on_failure=ACCEPT),
        Binding("reads", reads, priority=2),
    ]
    outcome = await ask(bindings, PLAIN)
    assert outcome.content == (b"" if end == "refuses" else PLAIN)
    assert reads.seen == (b"" if end == "refuses" else PLAIN)


async def test_no_file_stays_whatever_becomes_of_the_message(tmp_path: Path) -> None:
    async def refuse(message: Message) -> Verdict:
        await message.replace_body(b"x" * 2 * MEMORY_BYTES_MAX)
        return TempFail("later")

    def breaks_off() -> Iterator[bytes]:
        yield b"x" * 2 * MEMORY_BYTES_MAX
        raise ValueError

    for sink, reply in ((Edits(refuse), "451 4.3.0 later"), (replaces(breaks_off()), "451 4.3.0 local error")):
        result = await screen(tmp_path, inline(PLAIN), replaces(b"y" * 2 * MEMORY_BYTES_MAX), sink)
        assert str(result).startswith(reply)
        assert files_in(tmp_path) == []


async def test_after_the_reply_nothing_can_be_changed(tmp_path: Path) -> None:
    kept: list[Message] = []

    async def keep(message: Message) -> None:
        kept.append(message)

    await screen(tmp_path, inline(PLAIN), Edits(keep))
    with pytest.raises(RuntimeError, match="has had its reply"):
        await kept[0].replace_body(b"late")


async def test_a_full_disk_is_not_the_sinks_failure(tmp_path: Path) -> None:
    def begin() -> Any:
        raise StoreFull("no space")

    sink = replaces(b"x" * 2 * MEMORY_BYTES_MAX)
    one = Screen(SinkChain(bound(sink, on_failure=ACCEPT)))
    envelope = Envelope("", (Recipient("ann@a.test"),))
    result = await one.data(ReceivedMessage(Client("192.0.2.1"), envelope, inline(PLAIN)), begin)
    assert str(result).startswith("452 ")


# -- S/MIME ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """Two people with certificates of one root, made by openssl."""

    folder: Path

    def openssl(self, *words: str, text: bytes = b"") -> bytes:
        done = subprocess.run(
            ["openssl", *words], cwd=self.folder, input=text, capture_output=True, check=True, timeout=60
        )
        return done.stdout

    def make(self) -> None:
        subject = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30")
        self.openssl(*subject, "-keyout", "root.key", "-out", "root.pem", "-subj", "/CN=root")
        for name in ("sue", "relay"):
            request = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-subj", f"/CN={name}")
            self.openssl(*request, "-out", f"{name}.csr")
            (self.folder / "ext").write_text(
                "keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=emailProtection\n"
            )
            issue = ("x509", "-req", "-in", f"{name}.csr", "-CA", "root.pem", "-CAkey", "root.key", "-days", "30")
            self.openssl(*issue, "-CAcreateserial", "-extfile", "ext", "-out", f"{name}.pem")

    def sign(self, mail: bytes, *more: str) -> bytes:
        """As a mail program would: the entity signed, the other fields around it."""
        header, _, body = mail.partition(b"\r\n\r\n")
        others = [line for line in header.split(b"\r\n") if not line.lower().startswith(b"content-")]
        content = [line for line in header.split(b"\r\n") if line.lower().startswith(b"content-")]
        entity = b"\r\n".join([*content, b"", body])
        signed = self.openssl("cms", "-sign", "-signer", "sue.pem", "-inkey", "sue.key", *more, text=entity)
        return b"\r\n".join([*others, signed.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")])

    def encrypt(self, entity: bytes, to: str) -> bytes:
        made = self.openssl("smime", "-encrypt", "-aes128", f"{to}.pem", text=entity)
        return b"From: sue@example.org\r\n" + made.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")

    def verify(self, mail: bytes) -> bytes | None:
        """The signed entity, if both commands of openssl like the signature."""
        for command in ("smime", "cms"):
            try:
                found = self.openssl(command, "-verify", "-CAfile", "root.pem", text=mail)
            except subprocess.CalledProcessError:
                return None
        return found

    def identity(self, name: str) -> SmimeIdentity:
        return SmimeIdentity.load(self.folder / f"{name}.pem", self.folder / f"{name}.key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.make()
    return made


@pytest.mark.peer("openssl")
async def test_signed_mail_keeps_its_body_without_a_choice(authority: Authority) -> None:
    mail = authority.sign(PLAIN)
    assert authority.verify(mail) == b"Content-Type: text/plain\r\n\r\nold\r\n.dot\r\n"
    sink = replaces(b"new\r\n")
    outcome = await ask(sink, mail)
    assert outcome.reply.startswith("451 ")
    assert isinstance(sink.error, ProtectedError)
    assert str(sink.error) == "the message is signed (S/MIME): say what becomes of that (strip, annotate or resign)"
    reads = Reads()
    bindings = [*bound(replaces(b"new\r\n"), on_failure=ACCEPT), Binding("reads", reads)]
    assert (await ask(bindings, mail)).content == mail == reads.seen


@pytest.mark.peer("openssl")
async def test_a_choice_is_not_to_be_dodged_by_editing_the_header_first(authority: Authority) -> None:
    async def dodge(message: Message) -> None:
        message.set_header("Content-Type", "text/plain")
        message.remove_header("DKIM-Signature")

    for mail in (authority.sign(PLAIN), b"DKIM-Signature: v=1\r\n" + PLAIN):
        later = replaces(b"new\r\n")
        await ask(bound(Edits(dodge), later), mail)
        assert isinstance(later.error, ProtectedError)


@pytest.mark.peer("openssl")
async def test_strip_leaves_the_first_part_and_no_signature(authority: Authority) -> None:
    mail = b"DKIM-Signature: v=1\r\nARC-Seal: i=1\r\n" + authority.sign(PLAIN)
    second = replaces(b"again\r\n")
    outcome = await ask(replaces(b"new\r\n", signed=Signed.STRIP), mail)
    assert outcome.content == (
        b"From: sue@example.org\r\nSubject: hi\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nnew\r\n"
    )
    outcome = await ask(bound(replaces(b"new\r\n", signed=Signed.STRIP), second), mail)
    assert second.error is None
    assert outcome.content.endswith(b"\r\n\r\nagain\r\n")


@pytest.mark.peer("openssl")
async def test_annotate_keeps_the_signature_and_says_why_it_does_not_hold(authority: Authority) -> None:
    mail = authority.sign(PLAIN)

    async def edit(message: Message) -> None:
        body = b"".join([chunk async for chunk in message.body()]).replace(b"old", b"new")
        await message.replace_body(body, signed=Signed.ANNOTATE, reason="words replaced")

    outcome = await ask(Edits(edit), mail)
    assert outcome.content == b"X-smtpmesh-Modified: words replaced; signed before: S/MIME\r\n" + mail.replace(
        b"old", b"new"
    )
    assert authority.verify(outcome.content) is None


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("size", ["small", "large"])
async def test_resign_makes_an_smime_signature_that_openssl_verifies(authority: Authority, size: str) -> None:
    body = b".new\r\n\r\n  x \r\n" * (1 if size == "small" else MEMORY_BYTES_MAX // 10)
    key = authority.identity("relay")
    outcome = await ask(replaces(body, signed=Signed.RESIGN, key=key), authority.sign(PLAIN))
    assert authority.verify(outcome.content) == b"Content-Type: text/plain\r\n\r\n" + body
    assert authority.verify(outcome.content.replace(b"new", b"old")) is None
    assert b"Subject: hi\r\nMIME-Version: 1.0\r\nContent-Type: multipart/signed;" in outcome.content
    assert outcome.content.count(b"application/pkcs7-signature") == 2


@pytest.mark.peer("openssl")
async def test_what_cannot_be_signed_anew_is_not_touched(authority: Authority) -> None:
    key = authority.identity("relay")
    opaque = authority.sign(PLAIN, "-nodetach")
    pgp = b"Content-Type: multipart/signed; protocol=application/pgp-signature; boundary=b\r\n"
    pgp += b"\r\n--b\r\n\r\nx\r\n--b--\r\n"
    dkim = b"DKIM-Signature: v=1\r\n"
    for mail, choices, reason in (
        (authority.sign(PLAIN), {"signed": Signed.RESIGN}, "there are none"),
        (opaque, {"signed": Signed.RESIGN}, "there are none"),
        (opaque[:-400], {"signed": Signed.STRIP}, "cannot be opened"),
        (pgp, {"signed": Signed.RESIGN, "key": key}, "nobody here signs anew what is signed .PGP."),
        (dkim + PLAIN, {"signed": Signed.RESIGN, "key": key}, "none is asked after this one"),
        (dkim + authority.sign(PLAIN), {"signed": Signed.RESIGN, "key": key}, "none is asked after this one"),
        (b"Content-Type: multipart/signed; boundary=b\r\n\r\nx\r\n", {"signed": Signed.STRIP}, "cannot be told"),
    ):
        sink = replaces(b"new\r\n", **choices)
        outcome = await ask(bound(sink, on_failure=ACCEPT), mail)
        assert outcome.content == mail
        with pytest.raises(ProtectedError, match=reason):
            raise sink.error or AssertionError(mail)


@pytest.mark.peer("openssl")
async def test_encrypted_mail_is_opened_by_its_key_alone(authority: Authority) -> None:
    mail = authority.encrypt(b"Content-Type: text/html\r\n\r\n<p>old\r\n", "relay")
    assert b"old" not in mail
    sue, relay = authority.identity("sue"), authority.identity("relay")
    for choices, reason in (
        ({}, "encrypted .S/MIME.: without its key"),
        ({"signed": Signed.STRIP}, "without its key"),
        ({"key": sue}, "does not open"),
    ):
        sink = replaces(b"new\r\n", **choices)
        assert (await ask(bound(sink, on_failure=ACCEPT), mail)).content == mail
        with pytest.raises(ProtectedError, match=reason):
            raise sink.error or AssertionError(reason)
    outcome = await ask(replaces(b"new\r\n", key=relay), mail)
    assert outcome.content == b"From: sue@example.org\r\nMIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\nnew\r\n"

    async def read(message: Message) -> Verdict:
        message.add_header("X-Seen", "yes")
        await message.decrypt(relay)
        assert not message.protected.encrypted
        return Reject(b"".join([chunk async for chunk in message.body()]).decode().strip())

    assert (await ask(Edits(read), mail)).reply == "550 5.7.1 <p>old"


@pytest.mark.peer("openssl")
async def test_what_is_signed_inside_what_is_encrypted_is_guarded_too(authority: Authority) -> None:
    signed = authority.sign(PLAIN).partition(b"Subject: hi\r\n")[2]
    mail = authority.encrypt(signed, "relay")
    relay = authority.identity("relay")
    sink = replaces(b"new\r\n", key=relay)
    assert (await ask(bound(sink, on_failure=ACCEPT), mail)).content == mail
    assert isinstance(sink.error, ProtectedError)

    async def give_up(message: Message) -> None:
        with pytest.raises(ProtectedError, match=r"signed .S/MIME.: say"):
            await message.replace_body(b"new\r\n", key=relay)

    assert (await ask(Edits(give_up), mail)).content == mail, "not even opened"
    outcome = await ask(replaces(b"new\r\n", key=relay, signed=Signed.RESIGN), mail)
    assert authority.verify(outcome.content) == b"Content-Type: text/plain\r\n\r\nnew\r\n"


@pytest.mark.peer("openssl")
def test_keys_that_do_not_fit_are_named(authority: Authority, tmp_path: Path) -> None:
    folder, nonsense = authority.folder, tmp_path / "nonsense"
    nonsense.write_text("x")
    for certificate, key, reason in (
        (folder / "sue.pem", folder / "relay.key", "is not that of certificate"),
        (nonsense, folder / "relay.key", "is no certificate in PEM"),
        (folder / "sue.pem", nonsense, "is no private key without a password"),
    ):
        with pytest.raises(ValueError, match=reason):
            SmimeIdentity.load(certificate, key)


# -- DKIM --------------------------------------------------------------------------------------------------------------

VERIFY = """
import sys, dkim
text, record = sys.stdin.buffer.read(), sys.argv[1].encode()
sys.exit(0 if dkim.verify(text, dnsfunc=lambda name, timeout=5: record if name.startswith(b"mesh.") else None) else 1)
"""


@pytest.fixture(scope="module")
def dkim_key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The key's file, and its record in the DNS."""
    key = rsa.generate_private_key(65537, 2048)
    path = tmp_path_factory.mktemp("dkim") / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return path, "v=DKIM1; k=rsa; p=" + base64.b64encode(der).decode()


def signer(key: tuple[Path, str]) -> DKIM:
    return DKIM("example.org", "mesh", str(key[0]), now=lambda: 1_780_000_000)


def verifies(mail: bytes, key: tuple[Path, str]) -> bool:
    words = ["/usr/bin/python3", "-c", VERIFY, key[1]]
    done = subprocess.run(words, input=mail, check=False, capture_output=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


@pytest.mark.peer("dkimverify")
async def test_what_each_choice_makes_of_a_dkim_signature(dkim_key: tuple[Path, str]) -> None:
    signed = (await ask(signer(dkim_key), PLAIN)).content
    assert verifies(signed, dkim_key)
    assert (await ask(bound(replaces(b"new"), signer(dkim_key)), signed)).reply.startswith("451 ")
    stripped = (await ask(replaces(b"new", signed=Signed.STRIP), signed)).content
    assert stripped == PLAIN.replace(b"old\r\n.dot", b"new")
    annotated = (await ask(replaces(b"new", signed=Signed.ANNOTATE, reason="why"), signed)).content
    assert annotated.startswith(b"X-smtpmesh-Modified: why; signed before: DKIM\r\nDKIM-Signature: ")
    assert not verifies(annotated, dkim_key)
    anew = (await ask(bound(replaces(b"new", signed=Signed.RESIGN), signer(dkim_key)), signed)).content
    assert anew.count(b"DKIM-Signature:") == 2, "RFC 6376 section 4.2: those that are there stay"
    assert verifies(anew, dkim_key)
    assert not verifies(anew.replace(b"new", b"old"), dkim_key)


@pytest.mark.peer("dkimverify", "openssl")
async def test_smime_and_dkim_are_signed_anew_together(authority: Authority, dkim_key: tuple[Path, str]) -> None:
    signed = (await ask(signer(dkim_key), authority.sign(PLAIN))).content
    edits = replaces(b"new\r\n", signed=Signed.RESIGN, key=authority.identity("relay"))
    anew = (await ask(bound(edits, signer(dkim_key)), signed)).content
    assert verifies(anew, dkim_key)
    assert authority.verify(anew) == b"Content-Type: text/plain\r\n\r\nnew\r\n"


async def test_a_header_edit_that_breaks_a_signature_is_told_once() -> None:
    mail = b"DKIM-Signature: v=1; h=from:subject; b=x\r\n" + PLAIN

    async def edit(message: Message) -> None:
        message.set_header("Subject", message.headers.get("subject") + " [list]")
        message.add_header("X-New", "y")

    with structlog.testing.capture_logs() as logs:
        outcome = await ask(bound(Edits(edit), Edits(edit)), mail)
    assert b"Subject: hi [list] [list]\r\n" in outcome.content
    told = [{name: value for name, value in line.items() if name != "log_level"} for line in logs]
    assert [line for line in told if line["event"] == "sink.breaks_signature"] == [
        {"event": "sink.breaks_signature", "sink": "Edits0", "fields": ("subject",)}
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"-----BEGIN PGP SIGNED MESSAGE-----\r\nHash: SHA256\r\n\r\nhi\r\n", "signed .PGP.: say"),
        (b"-----BEGIN PGP MESSAGE-----\r\n\r\nhQ\r\n", "encrypted .PGP.: without its key"),
    ],
)
async def test_openpgp_in_the_text_is_guarded_when_the_body_would_change(text: bytes, reason: str) -> None:
    mail = b"Subject: x\r\n\r\n" + text
    sink = replaces(b"new")
    assert (await ask(bound(sink, on_failure=ACCEPT), mail)).content == mail
    with pytest.raises(ProtectedError, match=reason):
        raise sink.error or AssertionError


async def test_a_body_is_read_as_often_as_one_wants(tmp_path: Path) -> None:
    data = (await spooled(b"x\r\n.y\r\n", tmp_path)), inline(b"x\r\n.y\r\n")
    for one in data:
        body = NewBody(one, eight_bit=False)
        assert [b"".join([chunk async for chunk in body.stuffed()]) for _ in range(2)] == [b"x\r\n..y\r\n"] * 2


@pytest.mark.peer("openssl")
async def test_a_large_body_is_never_in_memory(tmp_path: Path, authority: Authority) -> None:
    size, bound_bytes = 20 * 1024 * 1024, 4 * 1024 * 1024
    header = b"Content-Type: application/octet-stream\r\n\r\n"
    data = await spooled(authority.sign(header + (b"0123456789abcdef" * 4 + b"\r\n") * (size // 66)), tmp_path)

    async def edit(message: Message) -> None:
        entity = await message.entity()
        await message.replace_body(entity.body(), signed=Signed.RESIGN, key=authority.identity("relay"))

    tracemalloc.start()
    try:
        result = await screen(tmp_path, data, Edits(edit))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.data.size_bytes > size * 0.9
    assert peak < bound_bytes
    assert authority.verify(text_of(result)) is not None


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("form", ["-nodetach", "-nodetach -nosmimecap", "-nodetach -indef", "-nodetach -binary"])
async def test_what_is_signed_in_one_blob_is_opened(authority: Authority, form: str) -> None:
    entity = b"Content-Type: text/plain\r\n\r\n" + b"old line\r\n" * 5000
    mail = authority.sign(b"Subject: hi\r\n" + entity, *form.split())
    assert b"smime-type=signed-data" in mail

    key = authority.identity("relay")

    async def edit(message: Message) -> None:
        body = b"".join([chunk async for chunk in (await message.entity()).body()])
        await message.replace_body(body.replace(b"old", b"new"), signed=signed, key=key)

    for signed in (Signed.STRIP, Signed.RESIGN):
        outcome = await ask(Edits(edit), mail)
        new = entity.replace(b"old", b"new")
        if signed is Signed.STRIP:
            assert outcome.content == b"Subject: hi\r\nMIME-Version: 1.0\r\n" + new
        else:
            assert authority.verify(outcome.content) == new
