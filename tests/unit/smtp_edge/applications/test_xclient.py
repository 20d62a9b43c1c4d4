"""XCLIENT and XFORWARD attributes (Postfix's XCLIENT_README and XFORWARD_README)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.applications.xclient import Override, SyntaxFault, XClient, parse_xclient, parse_xforward
from smtp_edge.envelope import Forwarded


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("NAME=spike.example.org ADDR=168.100.189.2", Override(name="spike.example.org", address="168.100.189.2")),
        ("ADDR=IPV6:2001:db8::2 PORT=25", Override(address="2001:db8::2", port=25)),
        ("addr=2001:DB8::2", Override(address="2001:db8::2")),
        ("NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE]", Override(name="", address="")),
        ("NAME=[TEMPUNAVAIL] PORT=[UNAVAILABLE]", Override(name="", port=0)),
        ("HELO=host PROTO=ESMTP", Override(helo="host", protocol="ESMTP")),
        ("PROTO=SMTP HELO=+5B1.2.3.4+5D", Override(helo="[1.2.3.4]", protocol="SMTP")),
        ("LOGIN=sue+2Bmail", Override(user="sue+mail")),
        ("DESTADDR=192.0.2.1 DESTPORT=25", Override()),
    ],
)
def test_what_a_proxy_says_is_understood(argument: str, said: Override) -> None:
    assert parse_xclient(argument) == said


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "ADDR",
        "ADDR=",
        "ADDR=300.1.1.1",
        "ADDR=fe80::1%eth0",
        "ADDR=mail.example.org",
        "ADDR=1.2.3.4 ADDR=1.2.3.5",
        "COLOUR=red",
        "IDENT=x",
        "PORT=65536",
        "PORT=-1",
        "PORT=x",
        "PROTO=LMTP",
        "NAME=a+0D+0AReceived:",
        "NAME=a+20b",
        "HELO=a+20b",
        "HELO=+00",
        "HELO=a=b",
        "LOGIN=a+0Ab",
        "NAME=+FF",
        "NAME=+4",
        "NAME=" + "a" * 256,
        " ".join(f"X{n}=1" for n in range(20)),
    ],
)
def test_what_is_not_understood_is_no_half_truth(argument: str) -> None:
    if argument == "ADDR=":
        assert parse_xclient(argument) == Override(address="")
        return
    with pytest.raises(SyntaxFault):
        parse_xclient(argument)


def test_forwarded_attributes_add_up_and_are_one_line_for_the_log() -> None:
    first = parse_xforward("NAME=spike.example.org ADDR=168.100.189.2 PORT=1234 PROTO=ESMTP", Forwarded())
    both = parse_xforward("HELO=spike IDENT=4XyZ SOURCE=remote", first)
    assert str(both) == "spike spike.example.org [168.100.189.2] 4XyZ REMOTE"
    assert (both.port, both.protocol) == ("1234", "ESMTP")
    assert str(parse_xforward("NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE]", both)) == "spike 4XyZ REMOTE"


@given(st.text(max_size=60), st.sampled_from(["NAME", "ADDR", "HELO", "LOGIN", "IDENT", "SOURCE"]))
def test_no_control_character_gets_through(text: str, key: str) -> None:
    encoded = "".join(f"+{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))
    for parse in (parse_xclient, lambda argument: parse_xforward(argument, Forwarded())):
        try:
            said = parse(f"{key}={encoded}")
        except SyntaxFault:
            continue
        assert str(said).isprintable()


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ([], "networks is a list"),
        ("127.0.0.1/32", "networks is a list"),
        (["x"], "is no network"),
        (["0.0.0.0/0"], "anybody could say that he is anybody"),
        (["10.0.0.0/8", "::/0"], "anybody could say that he is anybody"),
    ],
)
def test_trust_in_nobody_and_in_everybody_is_a_mistake(networks: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        XClient(networks)
