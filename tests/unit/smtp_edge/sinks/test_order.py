"""Which sinks run, in which order and for whom: 1,000 random sets of bindings against a naive reading of the rules."""

from __future__ import annotations

import fnmatch
import random
from dataclasses import dataclass

import pytest

from smtp_edge.envelope import Client, Recipient
from smtp_edge.sinks.api import Message, Sink
from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.rules import Facts, RuleError, parse_rule

ADDRESSES = [f"{name}@{domain}" for name in ("ann", "bob", "Eve") for domain in ("a.test", "b.test", "sub.a.test")]
GLOBS = ["*@a.test", "*@*.a.test", "ann@*", "BOB@B.TEST", "*", "x@y"]
SUBJECTS = ["invoice", "hello", "INVOICE 7"]


class Noted(Sink):
    async def data(self, message: Message) -> None:
        return None


@dataclass(frozen=True)
class Case:
    sender: str
    recipients: tuple[Recipient, ...]
    subjects: tuple[str, ...]
    size: int
    listener: str

    def facts(self) -> Facts:
        client = Client("192.0.2.7", listener=self.listener)
        return Facts(client, self.sender, self.recipients, self.size, self._values)

    def _values(self, name: str) -> list[str]:
        return list(self.subjects) if name == "subject" else []


def draw_rule(rng: random.Random) -> list[tuple[str, bool, list[str]]]:
    kinds = {
        "rcpt to": GLOBS,
        "mail from": GLOBS,
        "listener": ["in", "out", "i*"],
        "header subject": ["*invoice*", "hello"],
        "size": ["<100", ">1K"],
        "client": ["192.0.2.0/24", "10.0.0.0/8", "192.0.2.7"],
    }
    chosen = rng.sample(sorted(kinds), rng.randint(0, 3))
    return [(key, rng.random() < 0.3, rng.sample(kinds[key], rng.randint(1, 2))) for key in chosen]


def naive(rule: list[tuple[str, bool, list[str]]], case: Case) -> tuple[Recipient, ...] | None:
    """As a person reads it."""
    left = case.recipients
    for key, negated, values in rule:
        globs = [value.lower() for value in values]
        if key == "rcpt to":
            left = tuple(
                item
                for item in left
                if any(fnmatch.fnmatchcase(item.address.lower(), glob) for glob in globs) is not negated
            )
            continue
        if key == "size":
            found = any(case.size < 100 if glob == "<100" else case.size > 1024 for glob in globs)
        elif key == "client":
            found = any(glob.startswith("192") for glob in globs)
        else:
            seen = {"mail from": [case.sender or "<>"], "listener": [case.listener], "header subject": case.subjects}[
                key
            ]
            found = any(fnmatch.fnmatchcase(value.lower(), glob) for value in seen for glob in globs)
        if found is negated:
            return None
    return left or None


def test_a_thousand_sets_of_bindings_run_as_a_naive_reading_has_it() -> None:
    rng, ran = random.Random(1), 0
    for _ in range(1000):
        rules = [draw_rule(rng) for _ in range(rng.randint(0, 6))]
        priorities = [rng.choice([0, 5, 5, 9]) for _ in rules]
        texts = ["; ".join(f"{k}{'!' * n}={','.join(v)}" for k, n, v in rule) for rule in rules]
        bindings = [
            Binding(str(number), Noted(), parse_rule(text, events=["data"]), priority)
            for number, (text, priority) in enumerate(zip(texts, priorities, strict=True))
        ]
        case = Case(
            rng.choice([*ADDRESSES, ""]),
            tuple(Recipient(address) for address in rng.sample(ADDRESSES, rng.randint(1, 4))),
            tuple(rng.sample(SUBJECTS, rng.randint(0, 2))),
            rng.choice([50, 500, 5000]),
            rng.choice(["in", "out"]),
        )
        found = [(b.name, facts.recipients) for b, facts in SinkChain(bindings).matching("data", case.facts)]
        order = sorted(range(len(rules)), key=lambda number: priorities[number])
        assert found == [
            (str(number), wanted) for number in order if (wanted := naive(rules[number], case)) is not None
        ], texts
        ran += len(found)
    assert ran > 500


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("client=192.0.2", "networks like"),
        ("client=192.0.2.1/24", "networks like"),
        ("size=100", "bounds like"),
        ("size=<10X", "bounds like"),
        ("header=x", "which header field"),
        ("helo=x", "'helo' means nothing for the event 'data'"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_named(rule: str, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        parse_rule(rule, events=["data"])


def test_an_ipv4_client_of_a_socket_for_both_families_is_known_by_its_ipv4_address() -> None:
    rule = parse_rule("client=192.0.2.0/24", events=["connect"])
    assert rule.select(Facts(Client("::ffff:192.0.2.7"))) is not None
    assert rule.select(Facts(Client("::ffff:198.51.100.7"))) is None


def test_a_rule_that_one_of_the_events_cannot_answer_is_an_error() -> None:
    with pytest.raises(RuleError, match="'rcpt to' means nothing for the event 'mail'"):
        parse_rule("rcpt to=*", events=["mail", "data"])
