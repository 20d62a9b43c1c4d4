"""An explanation holds every term: the rule applied to it alone gives the same hop by the same rule."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from router.decision import Decision, HopKind, Query
from router.forwarding import DETOUR, IN_DOUBT, LARGEST_GAIN, NO_SLOT, PLANNED, STEP_BACK, TRIAL
from router.replay import recompute, recompute_gain
from tests.unit.router.loops import DivergentMesh, Tally
from tests.unit.router.worlds import CLASS


@pytest.fixture(scope="module")
def decisions() -> list[Decision]:
    """From walks through random meshes whose edges are in every state, with slots taken here and there."""
    found: list[Decision] = []
    for seed in range(150):
        mesh = DivergentMesh(random.Random(seed), found.append)
        for engine in mesh.engines:
            engine.draining = mesh.rng.random() < 0.1
            for row in engine.decide(Query(CLASS), mesh.now).candidates:
                for _ in range(mesh.rng.choice((0, 0, 1, 2, 3))):
                    engine.begin(row.hop, CLASS, mesh.now)
        for _ in range(4):
            mesh.walk(Tally())
    return found


def test_the_terms_of_a_thousand_decisions_lead_to_the_same_choice(decisions: list[Decision]) -> None:
    assert len(decisions) > 1000
    for decision in decisions:
        assert recompute(decision) == (decision.chosen, decision.rule)
    rules = Counter(decision.rule for decision in decisions)
    assert {PLANNED, LARGEST_GAIN, TRIAL, DETOUR, STEP_BACK, IN_DOUBT, NO_SLOT} <= set(rules), rules


def test_the_gain_shown_is_the_sum_of_the_terms_shown(decisions: list[Decision]) -> None:
    shown = [(decision, item) for decision in decisions for item in decision.candidates if item.serves]
    assert len(shown) > 1000
    for decision, item in shown:
        assert recompute_gain(item, decision.beta) == pytest.approx(item.gain)


def test_other_terms_lead_to_another_choice(decisions: list[Decision]) -> None:
    changed = 0
    for decision in decisions:
        if decision.rule == LARGEST_GAIN:
            emptier = [
                replace(item, free_slots=0) if item.hop == decision.chosen else item for item in decision.candidates
            ]
            changed += recompute(replace(decision, candidates=tuple(emptier)))[0] != decision.chosen
    assert changed == sum(decision.rule == LARGEST_GAIN for decision in decisions) > 20


def test_a_relay_that_reaches_no_exit_has_no_gain(decisions: list[Decision]) -> None:
    lost = [item for decision in decisions for item in decision.candidates if item.rank_there is None]
    assert lost
    assert all(recompute_gain(item, 12.0) == 0 and item.hop.kind is HopKind.PEER for item in lost)
