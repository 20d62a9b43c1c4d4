"""What check-config says of listeners, AUTH and access rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtp_edge.configuration import ConfigurationError, load_configuration

BASE = """
[node]
name = "mx1"
[[route]]
via = ["mx"]
[[listener]]
relay_domains = ["example.org"]
"""
TLS = 'tls = "starttls"\ncertificate = "x"\n'
DOVECOT = '[[auth]]\nname = "staff"\nuse = "dovecot"\npath = "x"\n'


def load(folder: Path, text: str) -> list[str]:
    """Mistakes, or the warnings if there is none."""
    path = folder / "node.toml"
    path.write_text(BASE + text)
    try:
        return load_configuration(path, files=False)[1]
    except ConfigurationError as error:
        return [str(mistake) for mistake in error.mistakes]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tls_required = true", 'listener[0].tls_required: is for tls = "starttls"'),
        ('auth = "staff"', 'listener[0].auth: needs TLS'),
        (TLS + 'auth = "stuff"\n' + DOVECOT, "no [[auth]] is named 'stuff'; did you mean staff?"),
        (TLS + 'auth = "staff"\nauth_users = "x"\n' + DOVECOT, "are two answers to one question"),
        ("auth_required = true", "would refuse everybody"),
        ('senders = "x"', "is of no use without auth"),
        ("limits = { buffer_bytes_max = 2000000 }", "is for the whole node"),
        ("limits = { bad_comands_max = 2 }", "unknown key; did you mean bad_commands_max?"),
        ("limits = { hops_max = 2 }", "must be at least 5 and at most 500, not 2"),
        ('[limits]\nexempt_networks = ["10.0.0.1/8"]', "did you mean 10.0.0.0/8?"),
        ('[[auth]]\nname = "a"\nuse = "file"', "auth[0].path: is required"),
        (DOVECOT + DOVECOT, "auth[1].name: 'staff' is the name of auth[0] too"),
        ('[[access]]\naction = "drop"', "must be one of 'permit', 'reject' or 'defer'"),
        ('[[access]]\naction = "reject"\ncode = 450', "450 is not 5yz"),
        ('[[access]]\naction = "defer"\nstatus = "5.7.1"', "5.7.1 does not begin with 4"),
        ('[[access]]\naction = "permit"\ntext = "hello"', "a permit says nothing"),
        ('[[access]]\naction = "reject"\ntext = "a\\r\\n250 ok"', "access[0].text"),
        ('[[access]]\naction = "reject"\nlistener = ["smpt"]', "no listener is named 'smpt'; there are: smtp"),
        ('[[access]]\naction = "reject"\nuser = ["*"]', "never fits: no listener that it is for has auth"),
        ('[[access]]\naction = "reject"\nsender = ["a b"]', "is no pattern"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, text: str, said: str) -> None:
    found = load(tmp_path, text)
    assert [line for line in found if said in line], found


def rules(*bodies: str) -> str:
    return "".join(f"[[access]]\n{body}\n" for body in bodies)


REJECT, PERMIT = 'action = "reject"', 'action = "permit"'


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ("", 'client = ["192.0.2.1"]'),
        ('client = ["192.0.2.0/24"]', 'client = ["192.0.2.1", "192.0.2.128/25"]'),
        ('client = ["192.0.2.0/24"]', 'client = ["192.0.2.1"]\nsender = ["<>"]'),
        ('sender = ["example.net"]', 'sender = ["ann@example.net"]'),
        ('sender = ["*"]', 'sender = ["<>"]'),
        ('recipient = ["*.example.net"]', 'recipient = ["ann@mail.example.net"]'),
        ('helo = ["*.net"]', 'helo = ["*.example.net", "x.net"]'),
        ('listener = ["smtp"]', 'listener = ["smtp"]\nhelo = ["x"]'),
    ],
)
def test_a_rule_that_is_never_reached_is_a_mistake_if_it_says_otherwise(tmp_path: Path, wide: str, narrow: str) -> None:
    (said,) = load(tmp_path, rules(f"{wide}\n{REJECT}", f"{narrow}\n{PERMIT}"))
    assert "access[1]: is never reached: access[0] (reject)" in said
    assert not any(
        "never reached" in line for line in load(tmp_path, rules(f"{narrow}\n{PERMIT}", f"{wide}\n{REJECT}"))
    )
    same = load(tmp_path, rules(f"{wide}\n{REJECT}", f"{narrow}\n{REJECT}"))
    assert any("access[1] is never reached" in line for line in same)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('client = ["192.0.2.0/25"]', 'client = ["192.0.2.0/24"]'),
        ('client = ["192.0.2.0/24"]', 'client = ["::/0"]'),
        ('client = ["192.0.2.0/24"]', 'sender = ["<>"]'),
        ('sender = ["example.net"]', 'sender = ["mail.example.net"]'),
        ('sender = ["*.example.net"]', 'sender = ["example.net"]'),
        ('helo = ["a"]', 'helo = ["*"]'),
        ('listener = ["smtp"]', 'helo = ["x"]'),
    ],
)
def test_a_rule_that_may_be_reached_is_none(tmp_path: Path, first: str, second: str) -> None:
    said = load(tmp_path, rules(f"{first}\n{REJECT}", f"{second}\n{PERMIT}"))
    assert not any("never reached" in line for line in said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('proxy_networks = ["0.0.0.0/0"]', "believes everybody who his client is"),
        ('allow_networks = ["0.0.0.0/0"]', "is an open relay"),
        ("limits = { mail_line_bytes_max = 500 }", "refuses lawful mail"),
        ("connections_max = 10", "one client may take all"),
        (DOVECOT, "auth staff is named by no listener"),
        (rules(REJECT), "all mail from outside of the cluster is refused"),
        (rules(f'recipient = ["example.net"]\n{PERMIT}'), "is no leave to relay"),
    ],
)
def test_warnings(tmp_path: Path, text: str, said: str) -> None:
    found = load(tmp_path, text)
    assert [line for line in found if said in line], found


def test_a_listener_keeps_what_its_own_limits_do_not_name(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(BASE + "limits = { hops_max = 20 }\n[limits]\nhops_max = 30\nbad_commands_max = 7\n")
    settings, _ = load_configuration(path, files=False)
    limits = settings.limits.overridden_by(settings.listener[0].limits)
    assert (limits.hops_max, limits.bad_commands_max, limits.header_fields_max) == (20, 7, 2000)
