"""MAIL and RCPT arguments: the grammar, and that nothing else gets through."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtp_edge.address import SyntaxFault, parse_mailbox
from smtp_edge.envelope import BodyType, Notify
from smtp_edge.server.commands import (
    PLAIN_PATH,
    MailParameters,
    decode_line,
    parse_path_argument,
    take_mail_parameters,
    take_rcpt_parameters,
)


@pytest.mark.parametrize(
    ("argument", "address"),
    [
        ("FROM:<>", ""),
        ("FROM: <a@b.c>", "a@b.c"),
        ("from:<a@b.c>", "a@b.c"),
        ("FROM:a@b.c", "a@b.c"),
        ("FROM:<@x.y,@z.w:a@b.c>", "a@b.c"),
        ("FROM:<a@b.c.>", "a@b.c"),
        ('FROM:<"a b\\"c>"@b.c>', '"a b\\"c>"@b.c'),
        ('FROM:<"@"@b.c>', '"@"@b.c'),
        ("FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]"),
        ("FROM:<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
        ("FROM:<a+b=c/d@b-c.d_e.f>", "a+b=c/d@b-c.d_e.f"),
        ("FROM:<Postmaster>", "Postmaster"),
        ("FROM:<jörg@grüße.test>", "jörg@grüße.test"),
    ],
)
@pytest.mark.rfc("5321 4.1.2a")
def test_paths(argument: str, address: str) -> None:
    assert parse_path_argument(argument, "FROM", null_allowed=True).address == address


@pytest.mark.parametrize(
    "argument",
    [
        "", "FROM", "FROM:", "FROM: ", "TO:<a@b.c>", "FROM<a@b.c>", "FROM:<a@b.c", "FROM:a@b.c>", "FROM:<<a@b.c>>",
        "FROM:<a@b.c>x", "FROM:<a@b@c>", "FROM:<a b@c.d>", "FROM:<.a@b.c>", "FROM:<a.@b.c>", "FROM:<a..b@c.d>",
        "FROM:<a@>", "FROM:<@b.c>", "FROM:<a@.b>", "FROM:<a@b..c>", "FROM:<a@-b.c>", "FROM:<a@b-.c>", "FROM:<a>",
        'FROM:<"a@b.c>', 'FROM:<"a"b@c.d>', 'FROM:<a"b"@c.d>', "FROM:<a@[192.0.2.300]>", "FROM:<a@[1.2.3]>",
        "FROM:<a@[IPv6:xyz]>", "FROM:<a@[192.0.2.1>", "FROM:<a@b.c,d@e.f>", "FROM:<a@b.c> <d@e.f>", "FROM:<(x)a@b.c>",
        "FROM:<" + "a" * 65 + "@b.c>", "FROM:<a@" + "b." * 130 + "c>", "FROM:<@x.y a@b.c>", "FROM:<@:a@b.c>",
    ],
)  # fmt: skip
@pytest.mark.rfc("5321 4.1.2a")
def test_no_path(argument: str) -> None:
    with pytest.raises(SyntaxFault):
        take_mail_parameters(dict(parse_path_argument(argument, "FROM", null_allowed=False).parameters), tls=True)


def mail(text: str, *, tls: bool = True) -> MailParameters:
    parameters = dict(parse_path_argument(f"FROM:<a@b.c> {text}", "FROM", null_allowed=True).parameters)
    taken = take_mail_parameters(parameters, tls=tls)
    if parameters:
        raise SyntaxFault("left over", code=555)
    return taken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", MailParameters()),
        ("SIZE=1000", MailParameters(size_bytes=1000)),
        ("size=0 body=8bitmime", MailParameters(body_type=BodyType.EIGHT_BIT_MIME)),
        ("BODY=BINARYMIME", MailParameters(body_type=BodyType.BINARY_MIME)),
        ("SMTPUTF8 REQUIRETLS", MailParameters(smtputf8=True, requiretls=True)),
        ("RET=hdrs ENVID=QQ+2B314159", MailParameters(ret="HDRS", envid="QQ+2B314159")),
        ("AUTH=<>", MailParameters()),
        ("AUTH=e+3Dmc2@example.com", MailParameters()),
    ],
)
def test_parameters_of_mail(text: str, expected: MailParameters) -> None:
    assert mail(text) == expected


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SIZE", 501), ("SIZE=", 501), ("SIZE=x", 501), ("SIZE=-1", 501), ("SIZE=1.5", 501), ("SIZE=" + "9" * 21, 501),
        ("SIZE=1 SIZE=1", 501), ("BODY", 501), ("BODY=9BIT", 501), ("SMTPUTF8=yes", 501), ("REQUIRETLS=yes", 501),
        ("RET=ALL", 501), ("RET", 501), ("ENVID=a+4", 501), ("ENVID=" + "a" * 101, 501), ("ENVID=ä", 501),
        ("AUTH", 501), ("AUTH=a+4", 501), ("COLOUR=red", 555), ("XTOKEN=x", 555), ("=x", 501), ("A=b=c", 501),
        ("SIZE=1  BODY=7BIT x!", 501), (" ".join(f"X{n}" for n in range(30)), 501),
    ],
)  # fmt: skip
def test_bad_parameters_of_mail(text: str, code: int) -> None:
    with pytest.raises(SyntaxFault) as fault:
        mail(text)
    assert fault.value.code == code


@pytest.mark.rfc("8689 2a")
def test_requiretls_is_not_known_in_the_clear() -> None:
    with pytest.raises(SyntaxFault) as fault:
        mail("REQUIRETLS", tls=False)
    assert fault.value.code == 555


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, (Notify.FAILURE | Notify.DELAY, "")),
        ({"NOTIFY": "never"}, (Notify.NEVER, "")),
        ({"NOTIFY": "delay,FAILURE"}, (Notify.FAILURE | Notify.DELAY | Notify.STATED, "")),
        ({"NOTIFY": "SUCCESS,delay"}, (Notify.SUCCESS | Notify.DELAY, "")),
        ({"ORCPT": "rfc822;Ann+2B@x"}, (Notify.FAILURE | Notify.DELAY, "rfc822;Ann+2B@x")),
        ({"ORCPT": "utf-8;jörg@x"}, (Notify.FAILURE | Notify.DELAY, "utf-8;jörg@x")),
    ],
)
@pytest.mark.rfc("3461 4.1a")
def test_parameters_of_rcpt(parameters: dict[str, str | None], expected: tuple[Notify, str]) -> None:
    assert take_rcpt_parameters(parameters) == expected
    assert parameters == {}


@pytest.mark.parametrize(
    "parameters",
    [
        {"NOTIFY": None}, {"NOTIFY": "NEVER,SUCCESS"}, {"NOTIFY": "MAYBE"}, {"NOTIFY": ","}, {"ORCPT": None},
        {"ORCPT": "rfc822;a+b@x"}, {"ORCPT": "rfc822;jörg@x"},
        {"ORCPT": "Ann@x"}, {"ORCPT": ";Ann@x"}, {"ORCPT": "rfc822;"}, {"ORCPT": "rfc822;" + "a" * 500},
    ],
)  # fmt: skip
def test_bad_parameters_of_rcpt(parameters: dict[str, str | None]) -> None:
    with pytest.raises(SyntaxFault):
        take_rcpt_parameters(parameters)


@pytest.mark.parametrize(
    "line",
    [
        b"FROM:<a\x00@b.c>", b"FROM:<a\t@b.c>", b"\x1b[31m", b"a\x7fb", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80",
        "a\x85b".encode(), "a\u2028b".encode(), "a\u202eb".encode(), "a\u2066b".encode(), b"a\rb",
        "a\xa0b".encode(), "a\ue000b".encode(),
    ],
)  # fmt: skip
def test_control_characters_and_what_is_not_utf8_are_no_text(line: bytes) -> None:
    with pytest.raises(SyntaxFault) as fault:
        decode_line(line)
    assert (fault.value.code, fault.value.status) == (500, "5.5.2")


@given(st.binary(max_size=300), st.sampled_from([b"", b"FROM:<", b"FROM:<a@b.c> ", b'FROM:<"']))
def test_whatever_comes_is_an_address_or_a_fault(line: bytes, beginning: bytes) -> None:
    try:
        path = parse_path_argument(decode_line(beginning + line), "FROM", null_allowed=True)
        take_mail_parameters(dict(path.parameters), tls=True)
    except SyntaxFault:
        return
    assert path.address.isprintable()
    assert path.address == "" or parse_mailbox(path.address) == path.address
    assert "\n" not in path.address.encode().decode()


@given(st.from_regex(r"[a-z]{1,5}(\.[a-z]{1,5})?@[a-z]{1,5}(\.[a-z]{2,5}){1,2}", fullmatch=True))
def test_ordinary_addresses_are_kept_as_written(address: str) -> None:
    assert parse_path_argument(f"TO:<{address}>", "TO", null_allowed=False).address == address


@given(st.from_regex(PLAIN_PATH, fullmatch=True))
@example(f"TO:<{'a' * 64}@b.test>")
@example(f"TO:<{'a' * 65}@b.test>")
@example(f"TO:<a@{'b' * 63}.{'c' * 63}.{'d' * 63}.{'e' * 60}>")
@example(f"TO:<a@{'b' * 63}.{'c' * 63}.{'d' * 63}.{'e' * 61}>")
def test_the_short_way_through_the_grammar_ends_where_the_long_one_does(argument: str) -> None:
    def parse(text: str) -> object:
        try:
            return parse_path_argument(text, "TO", null_allowed=False)
        except SyntaxFault as fault:
            return str(fault)

    assert parse(argument) == parse(f"{argument} ")
    assert PLAIN_PATH.fullmatch(f"{argument} ") is None
