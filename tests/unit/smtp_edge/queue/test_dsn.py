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

from smtp_edge.dsn import Reporter, build_dsn, decode_xtext, encode_utf8_address
from smtp_edge.envelope import BodyType, Envelope, MailData, Notify, Recipient
from smtp_edge.queue.entry import Action, DeliveryState, Entry, NewEntry, RecipientResult
from smtp_edge.queue.spool import read_whole
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


NODE = "a" * 32
REPORTER = Reporter(
    hostname="relay.example",
    node_id=NODE,
    new_queue_id=lambda at: "0ABCdefGHI99",
    class_of=lambda recipient: f"mx:{recipient.domain}",
    lifetime=timedelta(days=5),
    read=lambda data: read_whole(data, 1000),
)
REMOTE = "mx.exit.example[192.0.2.1]:25"


def result(
    recipient: Recipient = BERT, reply: Reply | None = None, action: Action = Action.FAILED, remote: str = REMOTE
) -> RecipientResult:
    return RecipientResult(recipient, action, reply, remote if reply else "")


def report(entry: Entry, *results: RecipientResult, reporter: Reporter = REPORTER) -> NewEntry | None:
    return build_dsn(reporter, entry, results or (result(reply=UNKNOWN),), at=AT)


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


@pytest.mark.rfc("3461 6.1a", "5321 4.5.5a")
def test_failure_goes_to_the_sender_from_nobody() -> None:
    new = report(build_entry())
    assert new is not None
    assert new.entry.envelope == Envelope("", (Recipient("anna@sender.example", notify=Notify.NEVER),))
    assert new.entry.expires_at == AT + timedelta(days=5)
    (delivery,) = new.deliveries
    assert (delivery.class_id, delivery.state) == ("mx:sender.example", DeliveryState.QUEUED)
    assert delivery.transfer_token == f"{NODE}/0ABCdefGHI99/0"
    assert new.entry.origin == f"{NODE}/0ABCdefGHI99"
    assert new.entry.data.inline is not None
    assert new.entry.data.inline.startswith(new.entry.data.header)
    assert new.entry.data.inline.endswith(b"--\r\n")


@pytest.mark.rfc("3464 2a", "6522 3a", "6522 3b")
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


@pytest.mark.rfc(
    "3461 6.3a",
    "3461 6.3b",
    "3463 2a",
    "3464 2b",
    "3464 2.2.1",
    "3464 2.2.2",
    "3464 2.3.1",
    "3464 2.3.2",
    "3464 2.3.4",
    "3464 2.3.6",
    "3464 2.3.9",
)
def test_fields_say_who_what_and_why() -> None:
    entry = build_entry(
        envelope=Envelope("anna@sender.example", (BERT,), envid="QQ+2B314"),
    )
    recipient = replace(BERT, orcpt="rfc822;Bert+2Bx@list.example")
    message, bert = fields(report(entry, result(recipient, UNKNOWN)))
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
        "Remote-MTA": "dns; mx.exit.example",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user see our pages",
        "Last-Attempt-Date": "Mon, 02 Mar 2026 08:30:00 +0000",
        "Final-Log-ID": "0ABCdefGHI12",
    }


@pytest.mark.rfc("3464 2.3.1", "3464 2.3.3", "3464 2.3.9")
def test_delay_says_until_when() -> None:
    _, bert = fields(report(build_entry(), result(action=Action.DELAYED)))
    assert (bert["Action"], bert["Status"]) == ("delayed", "4.0.0")
    assert bert["Will-Retry-Until"] == "Fri, 06 Mar 2026 08:30:00 +0000"
    assert bert["Diagnostic-Code"] is None


@pytest.mark.rfc("3463 2a", "3464 2.3.4")
def test_status_without_an_enhanced_one_is_its_class() -> None:
    _, bert = fields(report(build_entry(), result(reply=Reply(452, "full"))))
    assert bert["Status"] == "4.0.0"


@pytest.mark.rfc("3461 6.1b", "3464 2c")
def test_nobody_is_told_about_a_report() -> None:
    assert report(build_entry(envelope=Envelope("", (BERT,)))) is None


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        (Notify.FAILURE | Notify.DELAY, {"failed", "delayed"}),
        (Notify.NEVER, set()),
        (Notify.SUCCESS, {"relayed", "delivered", "expanded"}),
        (Notify.FAILURE, {"failed"}),
        (Notify.DELAY, {"delayed"}),
    ],
)
@pytest.mark.rfc("3461 4.1b", "3461 5.2.6a", "3464 2.3.3")
def test_notify_chooses_what_is_told(notify: Notify, told: set[str]) -> None:
    recipient = Recipient("b@exit.example", notify=notify)
    assert {action.value for action in Action if report(build_entry(), result(recipient, action=action))} == told


@pytest.mark.rfc("3464 2.3.3", "6522 3c")
def test_what_was_decided_at_once_is_one_report_and_the_gravest_gives_its_subject() -> None:
    keen = Recipient("keen@exit.example", notify=Notify.SUCCESS)
    entry = build_entry(envelope=Envelope("anna@sender.example", (BERT, keen), ret="FULL"))
    new = report(entry, result(keen, Reply(250, "ok", "2.0.0"), Action.RELAYED), result(reply=UNKNOWN))
    assert parse(new)["Subject"] == "Your message could not be delivered"
    assert [(block["Final-Recipient"], block["Action"], block["Status"]) for block in fields(new)[1:]] == [
        ("rfc822; keen@exit.example", "relayed", "2.0.0"),
        ("rfc822; bert@exit.example", "failed", "5.1.1"),
    ]
    words = cast("str", parts(new)[0].get_payload())
    assert words.index("bert@exit.example") < words.index("keen@exit.example")
    assert "mx.exit.example said: 550 5.1.1 no such user" in words


@pytest.mark.parametrize(
    ("remote", "field"),
    [
        ("mx.exit.example[192.0.2.1]:25", "dns; mx.exit.example"),
        ("192.0.2.1[192.0.2.1]:25", "dns; [192.0.2.1]"),
        ("2001:db8::1[2001:db8::1]:25", "dns; [IPv6:2001:db8::1]"),
    ],
)
@pytest.mark.rfc("3464 2.1.2", "3464 2.3.5", "3464 2.3.6")
def test_the_remote_is_named_if_it_has_said_something(remote: str, field: str) -> None:
    _, bert = fields(report(build_entry(), result(reply=UNKNOWN, remote=remote)))
    assert bert["Remote-MTA"] == field
    _, own = fields(report(build_entry(), result(reply=Reply(550, "no such domain", "5.1.2"), remote="")))
    assert (own["Remote-MTA"], own["Diagnostic-Code"]) == (None, "x-smtpmesh; 550 5.1.2 no such domain")


@pytest.mark.rfc("3464 2c")
def test_a_report_that_fails_is_told_to_the_postmaster_once_where_there_is_one() -> None:
    lost = build_entry(envelope=Envelope("", (Recipient("anna@sender.example", notify=Notify.NEVER),)))
    silent = result(Recipient("anna@sender.example", notify=Notify.NEVER), UNKNOWN)
    assert report(lost, silent) is None
    reporter = replace(REPORTER, double_bounces_to="postmaster@relay.example")
    new = report(lost, silent, reporter=reporter)
    assert new is not None
    assert [recipient.address for recipient in new.entry.envelope.recipients] == ["postmaster@relay.example"]
    assert (new.entry.envelope.sender, parse(new)["Subject"]) == ("", "Undeliverable report")
    assert report(new.entry, silent, reporter=reporter) is None, "the copy must not cause another"
    assert report(lost, result(action=Action.DELAYED), reporter=reporter) is None


@pytest.mark.rfc("8689 5a")
def test_a_report_on_mail_that_requires_tls_requires_it_too_and_returns_the_header_only() -> None:
    entry = build_entry(envelope=Envelope("anna@sender.example", (BERT,), ret="FULL", requiretls=True))
    new = report(entry)
    assert new is not None
    assert new.entry.envelope.requiretls
    assert parts(new)[2].get_content_type() == "text/rfc822-headers"


def test_binary_mail_returns_its_header_without_what_no_text_may_hold() -> None:
    header = b"Subject: a\x00b\rc\nd\r\n\r\n"
    envelope = Envelope("anna@sender.example", (BERT,), ret="FULL", body_type=BodyType.BINARY_MIME)
    new = report(build_entry(envelope=envelope, data=MailData(len(header), header, header=header)))
    assert new is not None
    assert b"Subject: a b c d\r\n" in (new.entry.data.inline or b"")


def test_spooled_mail_comes_back_whole_up_to_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "spooled"
    path.write_bytes(HEADER + BODY)
    full = Envelope("anna@sender.example", (BERT,), ret="FULL")
    for size, kind in ((len(HEADER + BODY), "message/rfc822"), (1001, "text/rfc822-headers")):
        new = report(build_entry(envelope=full, data=MailData(size, path=path, header=HEADER)))
        assert parts(new)[2].get_content_type() == kind


@pytest.mark.rfc("3461 5.2.6c", "3464 2b")
def test_only_recipients_that_want_it_are_named() -> None:
    silent = result(Recipient("silent@exit.example", notify=Notify.NEVER), UNKNOWN)
    new = report(build_entry(), silent, result(reply=UNKNOWN))
    assert [block["Final-Recipient"] for block in fields(new)[1:]] == ["rfc822; bert@exit.example"]
    assert new is not None
    assert b"silent" not in (new.entry.data.inline or b"")


@pytest.mark.rfc("3461 6.2a")
def test_ret_full_returns_the_message_as_it_was() -> None:
    entry = build_entry(envelope=Envelope("anna@sender.example", (BERT,), ret="FULL"))
    new = report(entry)
    assert parts(new)[2].get_content_type() == "message/rfc822"
    assert new is not None
    assert HEADER + BODY in (new.entry.data.inline or b"")


@pytest.mark.parametrize("ret", ["", "HDRS"])
@pytest.mark.rfc("3461 6.2a", "6522 4")
def test_without_ret_full_only_the_header_comes_back(ret: str) -> None:
    new = report(build_entry(envelope=Envelope("anna@sender.example", (BERT,), ret=ret)))
    assert parts(new)[2].get_content_type() == "text/rfc822-headers"
    assert new is not None
    assert BODY not in (new.entry.data.inline or b"")


@pytest.mark.rfc("3461 6.2b")
def test_a_delay_and_mail_that_cannot_be_read_return_the_header_only() -> None:
    full = Envelope("anna@sender.example", (BERT,), ret="FULL")
    spooled = MailData(10, path=Path("/nowhere"), header=HEADER)
    delayed = report(build_entry(envelope=full), result(action=Action.DELAYED))
    for new in (delayed, report(build_entry(envelope=full, data=spooled))):
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
    new = report(entry, result(Recipient("jürgen+x@exämple.org", orcpt="utf-8;jürgen+2Bx@exämple.org")))
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
        result(Recipient("jürgen@exämple.org"), UNKNOWN),
    )
    assert new is not None
    assert new.entry.envelope.smtputf8
    assert new.entry.envelope.body_type is BodyType.EIGHT_BIT_MIME
    assert parse(new)["To"] == sender
    content = (new.entry.data.inline or b"").decode()
    assert "Content-Type: message/global-delivery-status\r\n" in content
    assert "Final-Recipient: utf-8; jürgen@exämple.org\r\n" in content
    assert "Content-Type: message/global\r\n" in content


@pytest.mark.rfc("3464 2.1")
def test_remote_text_cannot_begin_a_field_or_end_a_part() -> None:
    text = "bad\r\nAction: delivered\n--=0ABCdefGHI99/relay.example--\n\x00\x1b[31m" + "x" * 5000
    new = report(build_entry(), result(reply=Reply(550, text)))
    _, bert = fields(new)
    assert bert.get_all("Action") == ["failed"]
    assert new is not None
    content = new.entry.data.inline or b""
    assert max(len(line) for line in content.split(b"\r\n")) <= 998
    assert b"\x00" not in content
    assert b"\n--=0ABCdefGHI99/relay.example--\r\n" in content
    assert content.count(b"\n--=0ABCdefGHI99/relay.example--") == 1


def test_long_host_name_keeps_the_boundary_legal() -> None:
    new = report(build_entry(), reporter=replace(REPORTER, hostname="h" * 200))
    assert len(parse(new).get_boundary() or "") == 70


@given(st.text(max_size=50), st.text(max_size=200), st.text(max_size=30))
@pytest.mark.rfc("3464 2a")
def test_whatever_others_said_the_report_parses(address: str, text: str, envid: str) -> None:
    entry = build_entry(envelope=Envelope("anna@sender.example", (BERT,), envid=envid))
    recipient = Recipient(address or "x", orcpt=f"rfc822;{text}")
    blocks = fields(report(entry, result(recipient, Reply(550, text))))
    assert [block["Action"] for block in blocks] == [None, "failed"]


@given(st.text())
def test_escaped_address_is_printable_ascii_and_unambiguous(address: str) -> None:
    escaped = encode_utf8_address(address)
    assert all(0x21 <= ord(character) <= 0x7E for character in escaped)
    assert escaped.encode().decode("ascii").count("\\x{") == len(escaped.split("\\")) - 1


@pytest.mark.rfc("3461 6.3b")
def test_xtext_is_undone() -> None:
    assert decode_xtext("a+2Bb+3Dc+zz+2b") == "a+b=c+zz+2b"


@pytest.mark.parametrize("action", [Action.FAILED, Action.DELAYED, Action.RELAYED])
@pytest.mark.rfc("6522 3b")
def test_report_looks_as_it_did(action: Action) -> None:
    reply = Reply(250, "ok", "2.0.0") if action is Action.RELAYED else UNKNOWN
    every = Notify.SUCCESS | Notify.FAILURE | Notify.DELAY
    bert = replace(BERT, notify=every)
    other = Recipient("jürgen@exämple.org", orcpt="utf-8;jürgen@exämple.org", notify=every)
    new = report(
        build_entry(envelope=Envelope("anna@sender.example", (BERT,), envid="QQ314159", ret="FULL")),
        result(bert, reply, action),
        result(other, Reply(451, "try later") if action is not Action.RELAYED else reply, action),
    )
    assert new is not None
    content = new.entry.data.inline or b""
    file = GOLDEN / f"dsn_{action}.eml"
    if "SMTPMESH_WRITE_GOLDEN" in os.environ:
        file.write_bytes(content)
    assert content == file.read_bytes()


@pytest.mark.rfc("3464 2.2.2")
def test_a_relay_without_a_full_name_does_not_claim_to_stand_in_dns() -> None:
    message, _ = fields(report(build_entry(), reporter=replace(REPORTER, hostname="relay")))
    assert message["Reporting-MTA"] == "x-local-hostname; relay"
