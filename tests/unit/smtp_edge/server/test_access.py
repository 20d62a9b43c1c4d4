"""Access rules: order, stages, and what they never do."""

from __future__ import annotations

import pytest

from smtp_edge.server.access import AccessRules, Facts, Stage, at_greeting, compile_rules
from smtp_edge.settings_inbound import AccessSettings


def rules(*sections: dict[str, object], listener: str = "smtp") -> AccessRules:
    return compile_rules([AccessSettings.model_validate(section) for section in sections], listener)


def reply(chosen: AccessRules, facts: Facts, stage: Stage) -> str:
    rule = chosen.decide(facts, stage)
    return str(rule.refusal) if rule else ""


BAD = {"client": ["192.0.2.0/24"], "action": "reject"}
STRANGER = Facts("192.0.2.7", "host.example.net", "", "sue@example.net", "ann@example.org")


@pytest.mark.parametrize(
    ("section", "stage"),
    [
        ({"client": ["192.0.2.0/24"]}, Stage.CONNECT),
        ({"helo": ["*.example.net"]}, Stage.HELO),
        ({"sender": ["example.net"]}, Stage.MAIL),
        ({"sender": ["SUE@example.NET"]}, Stage.MAIL),
        ({"recipient": ["ann@*"]}, Stage.RCPT),
        ({"client": ["192.0.2.7"], "sender": ["*@example.net"]}, Stage.MAIL),
        ({}, Stage.CONNECT),
    ],
)
def test_a_rule_decides_as_soon_as_all_that_it_names_is_known(section: dict[str, object], stage: Stage) -> None:
    chosen = rules({**section, "action": "reject"})
    assert [bool(reply(chosen, STRANGER, now)) for now in Stage] == [now >= stage for now in Stage]


@pytest.mark.parametrize(
    "section",
    [
        {"client": ["198.51.100.0/24"]},
        {"helo": ["*.example.com"]},
        {"sender": ["<>"]},
        {"sender": ["other.example.net"]},
        {"recipient": ["example.com"]},
        {"user": ["*"]},
        {"listener": ["submission"]},
        {"client": ["192.0.2.7"], "sender": ["<>"]},
    ],
)
def test_one_condition_that_does_not_fit_is_enough(section: dict[str, object]) -> None:
    assert not reply(rules({**section, "action": "reject"}), STRANGER, Stage.RCPT)


def test_the_first_rule_that_fits_decides_and_an_earlier_one_may_yet_fit() -> None:
    chosen = rules({"recipient": ["postmaster@example.org"], "action": "permit"}, BAD)
    assert [bool(reply(chosen, STRANGER, now)) for now in Stage] == [False, False, False, True]
    pardoned = Facts("192.0.2.7", "x", "", "sue@example.net", "Postmaster@Example.ORG")
    assert not reply(chosen, pardoned, Stage.RCPT)


def test_a_permit_by_client_holds_at_every_stage() -> None:
    chosen = rules({"client": ["192.0.2.7"], "action": "permit"}, {"action": "reject"})
    assert not any(reply(chosen, STRANGER, now) for now in Stage)
    assert reply(chosen, Facts("192.0.2.8"), Stage.CONNECT)


def test_users_are_known_at_mail() -> None:
    chosen = rules({"user": ["sue"], "action": "permit"}, {"action": "defer", "text": "later"})
    assert not reply(chosen, Facts("192.0.2.7"), Stage.HELO)
    assert not reply(chosen, Facts("192.0.2.7", user="SUE"), Stage.MAIL)
    assert reply(chosen, Facts("192.0.2.7", user="bob"), Stage.MAIL) == "450 4.7.1 later"
    assert reply(chosen, Facts("192.0.2.7"), Stage.MAIL) == "450 4.7.1 later"


def test_the_null_reverse_path_has_a_name() -> None:
    assert reply(rules({"sender": ["<>"], "action": "reject"}), Facts("192.0.2.7"), Stage.MAIL)


def test_an_own_code_status_and_text() -> None:
    section = {"client": ["192.0.2.7"], "action": "reject", "code": 521, "status": "5.3.2", "text": "no mail here"}
    rule = rules(section).decide(Facts("192.0.2.7"), Stage.CONNECT)
    assert rule is not None
    assert rule.refusal is not None
    assert str(rule.refusal) == "521 5.3.2 no mail here"
    assert str(at_greeting(rule.refusal)) == "554 5.3.2 no mail here"
    deferred = rules({"action": "defer"}).decide(Facts("192.0.2.7"), Stage.CONNECT)
    assert deferred is not None
    assert deferred.refusal is not None
    assert str(at_greeting(deferred.refusal)) == "421 4.7.1 access denied"


def test_a_pattern_of_stars_takes_no_time() -> None:
    chosen = rules({"sender": ["*" * 200 + "@example.net"], "action": "reject"})
    assert not reply(chosen, Facts("192.0.2.7", sender="a" * 250), Stage.MAIL)
    assert reply(chosen, STRANGER, Stage.MAIL)
