"""The Received field."""

from __future__ import annotations

from datetime import UTC, datetime
from email import message_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.envelope import Client, Forwarded, Recipient
from smtp_edge.trace import build_received, protocol_word

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ANN, BOB = Recipient("ann@example.org"), Recipient("bob@example.org")


def build(client: Client, *recipients: Recipient) -> bytes:
    return build_received(client, hostname="relay.test", queue_id="Q1", at=AT, recipients=recipients, tls=client.tls)


@pytest.mark.rfc("5321 4.4c", "5321 4.4d")
def test_the_field_names_both_ends_the_protocol_the_id_and_the_only_recipient() -> None:
    client = Client("192.0.2.1", helo="client.test", protocol="ESMTPS", tls="TLSv1.3 TLS_AES_256_GCM_SHA384")
    assert build(client, ANN) == (
        b"Received: from client.test ([192.0.2.1])\r\n"
        b"\t(using TLSv1.3 TLS_AES_256_GCM_SHA384)\r\n"
        b"\tby relay.test (smtpmesh) with ESMTPS id Q1\r\n"
        b"\tfor <ann@example.org>;\r\n"
        b"\tFri, 02 Jan 2026 03:04:05 +0000\r\n"
    )


@pytest.mark.rfc("5321 4.4e", "5321 7.2")
def test_several_recipients_are_not_revealed() -> None:
    assert b"for <" not in build(Client("192.0.2.1", helo="x"), ANN, BOB)


def test_ipv6_addresses_are_tagged() -> None:
    assert b"([IPv6:2001:db8::1])" in build(Client("2001:db8::1", helo="x"), ANN)


@given(st.text(), st.text())
def test_whatever_a_client_says_the_field_stays_one_field(helo: str, address: str) -> None:
    field = build(Client("192.0.2.1", helo=helo), Recipient(address))
    parsed = message_from_bytes(field + b"\r\n")
    assert parsed.keys() == ["Received"]
    assert field.isascii()
    assert field.count(b";") == 1


def test_whom_a_filter_had_as_its_client_is_told_apart() -> None:
    before = Forwarded(helo="evil(x)", name="[203.0.113.9];\r\n")
    client = Client("192.0.2.1", name="filter.example.org", helo="filter", forwarded=before)
    field = build(client, Recipient("ann@example.org"))
    assert b"from filter (filter.example.org [192.0.2.1])\r\n" in field
    assert b"\t(forwarded for evil?x? [203.0.113.9]???)\r\n" in field


@pytest.mark.rfc("4954 7", "6531 3.7.3")
def test_with_words() -> None:
    assert protocol_word(extended=False, tls=True, authenticated=False, utf8=False) == "SMTP"
    assert protocol_word(extended=True, tls=False, authenticated=False, utf8=False) == "ESMTP"
    assert protocol_word(extended=True, tls=True, authenticated=True, utf8=False) == "ESMTPSA"
    assert protocol_word(extended=True, tls=True, authenticated=False, utf8=True) == "UTF8SMTPS"
