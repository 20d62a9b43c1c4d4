"""The quick look is never wrong: what it rules out no rule selects; what it lets through is looked at anyway."""

from __future__ import annotations

import random

from smtp_edge.envelope import Recipient
from smtp_edge.sinks.concern import Concern
from smtp_edge.sinks.rules import Facts, parse_rule

TERMS = ["*@a.test", "ann@a.test", "*@*.test", "ann*", "*", "*@B.test", "*@*", "x@y@z", "*+*@a.test"]
ADDRESSES = ["ann@a.test", "bob@A.TEST", "ann@b.test", "ann+x@a.test", "postmaster", '"a@b"@a.test', "x@other"]


def test_a_thousand_sets_of_rules_against_asking_each() -> None:
    rng = random.Random(7)
    ruled_out = 0
    for _ in range(1000):
        texts = []
        for _ in range(rng.randint(0, 4)):
            negated = "!" if rng.random() < 0.2 else ""
            texts.append(f"rcpt to{negated}={','.join(rng.sample(TERMS, rng.randint(1, 2)))}")
            if rng.random() < 0.2:
                texts[-1] += "; mail from=*"
            if rng.random() < 0.1:
                texts[-1] = "mail from=sue@*"
        rules = [parse_rule(text, events=["data"]) for text in texts]
        recipients = tuple(map(Recipient, rng.sample(ADDRESSES, rng.randint(1, 3))))
        selected = any(rule.select(Facts(None, "sue@s.test", recipients)) is not None for rule in rules)
        may = Concern(rules).may(recipients)
        assert may or not selected, (texts, recipients)
        ruled_out += not may
    assert ruled_out > 200, "it does rule out what nobody wants"
