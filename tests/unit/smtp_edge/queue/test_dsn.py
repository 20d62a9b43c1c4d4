"""Reports: fields as RFC 3464 wants them, wishes of RFC 3461, addresses of RFC 6533; parsed back by the stdlib."""

from __future__ import annotations

import email
import email.policy
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage, Message
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.dsn import build_dsn, decode_xtext, encode_utf8_address
from smtp_edge.envelope import BodyType, Envelope, MailData, Notify, Recipient
from smtp_edge.queue.entry import DeliveryState, Entry, NewEntry, RecipientResult
from smtp_edge.reply import Reply

AT = datetime(2026, 3, 2, 8, 30, tzinfo=UTC)
HEADER = b"From: <anna@sender.example>\r\nSubject: Invoice\r\n..odd: field\r\n\r\n"
BODY = b"Hello\r\n..a line that began with a dot\r\n"
GOLDEN = Path(__file__).parent / "golden"
UNKNOWN = Reply(550, "no such user\nsee our pages", "5.1.1")
BERT = Recipient("bert@exit.example")


def build_entry(**changes: object) -> Entry:
    data = MailData(len(HEADER + BODY), HEADER + BODY, header=HEADER)
    envelope = Envelope("anna@sender.example", (BERT,))
    entry = Entry("0ABCdefGHI12", AT - timedelta(hours=1), AT + timedelta(days=4), envelope, data)
    return replace(entry, **changes)  # type: ignore[arg-type]


def report(entry: Entry, *results: RecipientResult, action: str = "failed") -> NewEntry | None:
    return build_dsn(
        entry,
        results or (RecipientResult(BERT, UNKNOWN),),
        action=action,
        hostname="relay.example",
        queue_id="0ABCdefGHI99",
        at=AT,
        boundary="=0ABCdefGHI99/relay.example",
        lifetime=timedelta(days=5),
        class_of=lambda domain: f"mx:{domain}",
    )


def parse(new: NewEntry | None) -> EmailMessage:
    assert new is not None
    content = new.entry.data.inline
    assert content is not None
    unstuffed = b"\r\n".join(line[1:] if line.startswith(b".") else line for line in content.split(b"\r\n"))
    message = email.message_from_bytes(unstuffed, policy=email.policy.SMTPUTF8)
    assert message.defects == []
    return cast("EmailMessage", message)


def parts(new: NewEntry | None) -> list[Message]:
    return cast("list[Message]", parse(new).get_payload())


def fields(new: NewEntry | None) -> list[Message]:
    """The blocks of the machine's part: first that of the message, then one for each recipient."""
    return cast("list[Message]", parts(new)[1].get_payload())


def test_failure_goes_to_the_sender_from_nobody() -> None:
    new = report(build_entry())
    assert new is not None
    assert new.entry.envelope == Envelope("", (Recipient("anna@sender.example", notify=Notify.NEVER),))
    assert new.entry.expires_at == AT + timedelta(days=5)
    (delivery,) = new.deliveries
    assert (delivery.class_id, delivery.state) == ("mx:sender.example", DeliveryState.QUEUED)
    assert delivery.transfer_token == "relay.example/0ABCdefGHI99/0"
    assert new.entry.origin == "relay.example/0ABCdefGHI99"
    assert new.entry.data.inline is not None
    assert new.entry.data.inline.startswith(new.entry.data.header)
    assert new.entry.data.inline.endswith(b"--\r\n")


def test_report_is_what_the_stdlib_reads_as_one() -> None:
    message = parse(report(build_entry()))
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["To"] == "anna@sender.example"
    assert message["Auto-Submitted"] == "auto-replied"
    assert [part.get_content_type() for part in parts(report(build_entry()))] == [
        "text/plain",
        "message/delivery-status",
        "text/rfc822-headers",
    ]


def test_fields_say_who_what_and_why() -> None:
    entry = build_entry(
        envelope=Envelope("anna@sender.example", (BERT,), envid="QQ+2B314"),
    )
    recipient = replace(BERT, orcpt="rfc822;Bert+2Bx@list.example")
    message, bert = fields(report(entry, RecipientResult(recipient, UNKNOWN)))
    assert dict(message.items()) == {
        "Original-Envelope-Id": "QQ+314",
        "Reporting-MTA": "dns; relay.example",
        "Arrival-Date": "Mon, 02 Mar 2026 07:30:00 +0000",
    }
    assert dict(bert.items()) == {
        "Original-Recipient": "rfc822;Bert+x@list.example",
        "Final-Recipient": "rfc822; bert@exit.example",
        "Action": "failed",
        "Status": "5.1.1",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user see our pages",
        "Last-Attempt-Date": "Mon, 02 Mar 2026 08:30:00 +0000",
    }


def test_delay_says_until_when() -> None:
    _, bert = fields(report(build_entry(), RecipientResult(BERT), action="delayed"))
    assert (bert["Action"], bert["Status"]) == ("delayed", "4.0.0")
    assert bert["Will-Retry-Until"] == "Fri, 06 Mar 2026 08:30:00 +0000"
    assert bert["Diagnostic-Code"] is None


def test_status_without_an_enhanced_one_is_its_class() -> None:
    _, bert = fields(report(build_entry(), RecipientResult(BERT, Reply(452, "full"))))
    assert bert["Status"] == "4.0.0"


def test_nobody_is_told_about_a_report() -> None:
    assert report(build_entry(envelope=Envelope("", (BERT,)))) is None


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        (Notify.FAILURE | Notify.DELAY, {"failed", "delayed"}),
        (Notify.NEVER, set()),
        (Notify.SUCCESS, {"relayed", "delivered"}),
        (Notify.FAILURE, {"failed"}),
        (Notify.DELAY, {"delayed"}),
    ],
)
def test_notify_chooses_what_is_told(notify: Notify, told: set[str]) -> None:
    result = RecipientResult(Recipient("b@exit.example", notify=notify))
    actions = ("failed", "delayed", "relayed", "delivered")
    assert {action for action in actions if report(build_entry(), result, action=action)} == told


def test_only_recipients_that_want_it_are_named() -> None:
    silent = RecipientResult(Recipient("silent@exit.example", notify=Notify.NEVER), UNKNOWN)
    new = report(build_entry(), silent, RecipientResult(BERT, UNKNOWN))
    assert [block["Final-Recipient"] for block in fields(new)[1:]] == ["rfc822; bert@exit.example"]
    assert new is not None
    assert b"silent" not in (new.entry.data.inline or b"")


def test_ret_full_returns_the_message_as_it_was() -> None:
    entry = build_entry(envelope=Envelope("anna@sender.example", (BERT,), ret="FULL"))
    new = report(entry)
    assert parts(new)[2].get_content_type() == "message/rfc822"
    assert new is not None
    assert HEADER + BODY in (new.entry.data.inline or b"")


@pytest.mark.parametrize("ret", ["", "HDRS"])
def test_without_ret_full_only_the_header_comes_back(ret: str) -> None:
    new = report(build_entry(envelope=Envelope("anna@sender.example", (BERT,), ret=ret)))
    assert parts(new)[2].get_content_type() == "text/rfc822-headers"
    assert new is not None
    assert BODY not in (new.entry.data.inline or b"")


def test_delay_and_spooled_mail_return_the_header_only() -> None:
    full = Envelope("anna@sender.example", (BERT,), ret="FULL")
    spooled = MailData(10**7, path=Path("/nowhere"), header=HEADER)
    for new in (report(build_entry(envelope=full), action="delayed"), report(build_entry(envelope=full, data=spooled))):
        assert parts(new)[2].get_content_type() == "text/rfc822-headers"


def test_header_cut_off_in_a_line_ends_with_a_whole_one() -> None:
    new = report(build_entry(data=MailData(10**7, path=Path("/nowhere"), header=b"A: b\r\nSubject: cut o")))
    assert "cut" not in cast("str", parts(new)[2].get_payload())


def test_eight_bit_header_makes_an_eight_bit_report() -> None:
    header = b"Subject: gr\xfc\xdfe\r\n\r\n"
    new = report(build_entry(data=MailData(len(header), header, header=header)))
    assert new is not None
    assert new.entry.envelope.body_type is BodyType.EIGHT_BIT_MIME
    assert not new.entry.envelope.smtputf8
    assert parts(new)[2]["Content-Transfer-Encoding"] == parse(new)["Content-Transfer-Encoding"] == "8bit"


def test_ascii_sender_gets_utf8_recipients_in_ascii() -> None:
    entry = build_entry(envelope=Envelope("anna@sender.example", (BERT,), smtputf8=True))
    new = report(entry, RecipientResult(Recipient("jürgen+x@exämple.org", orcpt="utf-8;jürgen+2Bx@exämple.org")))
    assert new is not None
    assert not new.entry.envelope.smtputf8
    machine = parts(new)[1]
    assert machine.get_content_type() == "message/delivery-status"
    _, block = fields(new)
    assert block["Final-Recipient"] == "utf-8; j\\x{FC}rgen\\x{2B}x@ex\\x{E4}mple.org"
    assert block["Original-Recipient"] == "utf-8;j\\x{FC}rgen\\x{2B}x@ex\\x{E4}mple.org"
    assert parts(new)[2].get_content_type() == "message/global-headers"


def test_utf8_sender_gets_a_utf8_report() -> None:
    sender = "änna@sender.example"
    new = report(
        build_entry(envelope=Envelope(sender, (BERT,), smtputf8=True, ret="FULL")),
        RecipientResult(Recipient("jürgen@exämple.org"), UNKNOWN),
    )
    assert new is not None
    assert new.entry.envelope.smtputf8
    assert new.entry.envelope.body_type is BodyType.EIGHT_BIT_MIME
    assert parse(new)["To"] == sender
    content = (new.entry.data.inline or b"").decode()
    assert "Content-Type: message/global-delivery-status\r\n" in content
    assert "Final-Recipient: utf-8; jürgen@exämple.org\r\n" in content
    assert "Content-Type: message/global\r\n" in content


def test_remote_text_cannot_begin_a_field_or_end_a_part() -> None:
    text = "bad\r\nAction: delivered\n--=0ABCdefGHI99/relay.example--\n\x00\x1b[31m" + "x" * 5000
    new = report(build_entry(), RecipientResult(BERT, Reply(550, text)))
    _, bert = fields(new)
    assert bert.get_all("Action") == ["failed"]
    assert new is not None
    content = new.entry.data.inline or b""
    assert max(len(line) for line in content.split(b"\r\n")) <= 998
    assert b"\x00" not in content
    assert b"\n--=0ABCdefGHI99/relay.example--\r\n" in content
    assert content.count(b"\n--=0ABCdefGHI99/relay.example--") == 1


def test_long_host_name_keeps_the_boundary_legal() -> None:
    new = build_dsn(
        build_entry(),
        [RecipientResult(BERT, UNKNOWN)],
        action="failed",
        hostname="h" * 200,
        queue_id="q",
        at=AT,
        boundary="=q/" + "h" * 200,
        lifetime=timedelta(1),
        class_of=str,
    )
    assert len(parse(new).get_boundary() or "") == 70


@given(st.text(max_size=50), st.text(max_size=200), st.text(max_size=30))
def test_whatever_others_said_the_report_parses(address: str, text: str, envid: str) -> None:
    entry = build_entry(envelope=Envelope("anna@sender.example", (BERT,), envid=envid))
    recipient = Recipient(address or "x", orcpt=f"rfc822;{text}")
    blocks = fields(report(entry, RecipientResult(recipient, Reply(550, text))))
    assert [block["Action"] for block in blocks] == [None, "failed"]


@given(st.text())
def test_escaped_address_is_printable_ascii_and_unambiguous(address: str) -> None:
    escaped = encode_utf8_address(address)
    assert all(0x21 <= ord(character) <= 0x7E for character in escaped)
    assert escaped.encode().decode("ascii").count("\\x{") == len(escaped.split("\\")) - 1


def test_xtext_is_undone() -> None:
    assert decode_xtext("a+2Bb+3Dc+zz+2b") == "a+b=c+zz+2b"


@pytest.mark.parametrize("name", ["failed", "delayed"])
def test_report_looks_as_it_did(name: str) -> None:
    other = RecipientResult(Recipient("jürgen@exämple.org", orcpt="utf-8;jürgen@exämple.org"), Reply(451, "try later"))
    new = report(
        build_entry(envelope=Envelope("anna@sender.example", (BERT,), envid="QQ314159", ret="FULL")),
        RecipientResult(BERT, UNKNOWN),
        other,
        action=name,
    )
    assert new is not None
    content = new.entry.data.inline or b""
    file = GOLDEN / f"dsn_{name}.eml"
    if "SMTPMESH_WRITE_GOLDEN" in os.environ:
        file.write_bytes(content)
    assert content == file.read_bytes()
