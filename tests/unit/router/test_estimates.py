"""Estimators and the breaker of one edge."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.breaker import Breaker
from router.decision import EdgeState, OutcomeKind
from router.estimate import Availability, Capacity, Latency, Reliability
from router.settings import RouterSettings
from router.window import Window

OK, REFUSED, LATER = OutcomeKind.ACCEPTED, OutcomeKind.CONNECT_FAILED, OutcomeKind.HOP_TEMPFAIL


def build_breaker() -> Breaker:
    return Breaker(RouterSettings(), random.Random(1))


def test_availability_fades_with_the_time_down() -> None:
    availability = Availability()
    availability.observe(False, 0)
    assert availability.at(600) == pytest.approx(0.368, abs=0.001)
    availability.observe(True, 600)
    assert availability.at(1200) == pytest.approx(1 - 0.632 * 0.368, abs=0.001)


def test_reliability_starts_at_nine_tenths_and_forgets() -> None:
    reliability = Reliability()
    assert reliability.value == pytest.approx(0.9)
    for _ in range(50):
        reliability.observe(False, 0)
    assert reliability.value < 0.05
    reliability.observe(True, 3000)
    assert reliability.value > 0.6


@given(st.lists(st.booleans(), max_size=400))
def test_reliability_is_a_share_and_its_evidence_is_bounded(outcomes: list[bool]) -> None:
    reliability = Reliability()
    for number, outcome in enumerate(outcomes):
        reliability.observe(outcome, number * 0.1)
        assert 0 < reliability.value < 1
        assert reliability.samples <= 200


def feed(capacity: Capacity, rate: int, start: int, seconds: int, *, full: bool) -> None:
    for second in range(start, start + seconds):
        for number in range(rate):
            capacity.observe_full(full, second + number / rate)
            capacity.observe_accepted(second + number / rate)


def test_capacity_is_what_went_through_at_the_limit() -> None:
    capacity = Capacity()
    feed(capacity, 40, 0, 10, full=True)
    assert capacity.proven(10)
    assert capacity.at(10) == pytest.approx(40, abs=2)


def test_unproven_capacity_is_twice_the_best_so_that_demand_finds_the_limit() -> None:
    capacity = Capacity()
    feed(capacity, 10, 0, 5, full=False)
    assert not capacity.proven(5)
    assert capacity.at(5) == pytest.approx(20, abs=2)


def test_what_was_seen_is_the_mean_at_the_limit_and_before_that_the_best_second() -> None:
    capacity = Capacity()
    assert capacity.sustained(0) == 0
    feed(capacity, 12, 0, 2, full=False)
    feed(capacity, 40, 2, 2, full=False)
    assert capacity.sustained(4) == pytest.approx(40, rel=0.05)
    feed(capacity, 10, 4, 5, full=True)
    feed(capacity, 30, 9, 5, full=True)
    assert capacity.sustained(14) == pytest.approx(20, rel=0.1)
    assert capacity.at(14) > 28


def test_little_demand_does_not_lower_a_proven_capacity() -> None:
    capacity = Capacity()
    feed(capacity, 40, 0, 10, full=True)
    feed(capacity, 2, 10, 60, full=False)
    assert capacity.at(70) == pytest.approx(40, abs=2)


def test_proof_grows_old() -> None:
    capacity = Capacity()
    feed(capacity, 40, 0, 5, full=True)
    capacity.observe_full(False, 5)
    assert capacity.proven(299)
    assert not capacity.proven(400)


def test_latency_raises_its_minimum_slowly_and_its_peak_fades() -> None:
    latency = Latency()
    latency.observe(0.01, 0)
    latency.observe(1.0, 1)
    latency.observe(0.1, 11)
    assert latency.minimum == 0.01
    assert 0.1 < (latency.peak or 0) < 0.5
    latency.observe(0.1, 70)
    assert latency.minimum == pytest.approx(0.015)
    for second in range(71, 1000):
        latency.observe(0.1, second)
    assert latency.minimum == pytest.approx(0.1)


def build_window() -> Window:
    return Window(size=2, size_max=20, queued_low=3, queued_high=6, latency_floor_s=0.02)


def answer(window: Window, latency_s: float, minimum_s: float, count: int, *, filled: bool = True) -> None:
    for _ in range(count):
        if filled:
            window.note_filled()
        window.observe(latency_s, minimum_s)


def test_window_doubles_until_the_hop_queues() -> None:
    window = build_window()
    answer(window, 0.01, 0.01, 2)
    assert window.size == 4
    answer(window, 0.01, 0.01, 40)
    assert window.size == 20


def test_a_window_that_our_mail_does_not_fill_stays() -> None:
    window = build_window()
    answer(window, 0.01, 0.01, 100, filled=False)
    assert window.size == 2


def test_window_settles_where_a_few_messages_queue() -> None:
    window = build_window()
    for _ in range(300):
        answer(window, 0.05 * window.size, 0.05, 1)  # a hop that serves one at a time in 50 ms
    assert 3 <= window.size <= 7


def test_window_shrinks_when_only_the_latency_grows() -> None:
    window = build_window()
    answer(window, 0.03, 0.03, 100)
    assert window.size == 20
    answer(window, 0.3, 0.03, 400)
    assert window.size <= 7


def test_a_fast_hop_may_jitter() -> None:
    window = build_window()
    answer(window, 0.019, 0.001, 100)
    assert window.size == 20


def test_a_window_begins_again_small_and_fast_after_an_outage() -> None:
    window = build_window()
    answer(window, 0.01, 0.01, 100)
    for _ in range(40):
        window.shrink()
    assert window.size == 1
    window.reopen(2)
    answer(window, 0.01, 0.01, 6)
    assert window.size == 8


@given(st.lists(st.floats(0, 10), max_size=200))
def test_window_stays_within_its_bounds(latencies: list[float]) -> None:
    window = build_window()
    for latency in latencies:
        window.observe(latency, 0.01)
        assert 1 <= window.size <= 20
    window.shrink()
    assert 1 <= window.size <= 20


def test_first_success_opens_an_unknown_edge() -> None:
    breaker = build_breaker()
    assert breaker.record(OK, "", 0) == "first success"
    assert breaker.state is EdgeState.UP


def test_three_failures_are_suspect_five_are_down() -> None:
    breaker = build_breaker()
    breaker.record(OK, "", 0)
    states = []
    for _ in range(5):
        breaker.record(LATER, "421", 1)
        states.append(breaker.state.value)
    assert states == ["up", "up", "suspect", "suspect", "down"]


def test_a_success_in_between_starts_the_count_again() -> None:
    breaker = build_breaker()
    for _ in range(10):
        breaker.record(LATER, "421", 0)
        breaker.record(LATER, "421", 0)
        breaker.record(OK, "", 0)
    assert breaker.state is EdgeState.UP


def test_pauses_double_up_to_their_bound() -> None:
    breaker = build_breaker()
    now, pauses = 0.0, []
    breaker.record(REFUSED, "refused", now)
    for _ in range(7):
        assert breaker.retry_at is not None
        pauses.append(breaker.retry_at - now)
        now = breaker.retry_at
        assert breaker.on_timer(now)
        breaker.record(REFUSED, "refused", now)
    assert pauses == [pytest.approx(expected, rel=0.21) for expected in (1, 2, 3, 3, 3, 3, 3)]


def test_a_trial_that_got_no_answer_was_a_pause_already() -> None:
    breaker = build_breaker()
    breaker.record(REFUSED, "refused", 0)
    breaker.on_timer(2)
    breaker.record(REFUSED, "timed out", 7)  # its connection had hung for five seconds
    assert breaker.retry_at == 7


def test_a_trial_that_began_well_and_failed_then_is_followed_by_a_pause() -> None:
    breaker = build_breaker()
    breaker.record(REFUSED, "refused", 0)
    breaker.on_timer(2)
    breaker.record(OK, "", 3)
    breaker.record(REFUSED, "refused", 7)
    assert breaker.retry_at == pytest.approx(9, abs=0.41)


def test_a_recovered_edge_is_trusted_step_by_step() -> None:
    breaker = build_breaker()
    breaker.record(REFUSED, "refused", 0)
    breaker.on_timer(2)
    for _ in range(3):
        breaker.record(OK, "", 2)
    assert (breaker.state, breaker.ramp) == (EdgeState.UP, 0.1)
    for second in range(3, 8):
        breaker.record(OK, "", second)
    assert breaker.ramp == 1.0


def test_a_flapping_edge_is_kept_to_one_transaction_until_its_penalty_fades() -> None:
    breaker = build_breaker()
    now = 0.0
    for _ in range(3):
        breaker.record(REFUSED, "refused", now)
        breaker.on_timer(now + 2)
        for _ in range(3):
            breaker.record(OK, "", now + 2)
        now += 3
    assert breaker.slots(10, now) == 1
    assert breaker.slots(10, now + 300) == 10


def test_a_cancelled_attempt_says_nothing() -> None:
    breaker = build_breaker()
    assert breaker.record(OutcomeKind.CANCELLED, "", 0) is None
    assert breaker.state is EdgeState.UNKNOWN


@given(st.lists(st.tuples(st.sampled_from(list(OutcomeKind)), st.floats(0.01, 30)), max_size=100))
def test_slots_and_ramp_stay_within_bounds_whatever_happens(story: list[tuple[OutcomeKind, float]]) -> None:
    breaker, now = build_breaker(), 0.0
    for kind, pause in story:
        now += pause
        breaker.on_timer(now)
        breaker.record(kind, "x", now)
        assert 0 <= breaker.slots(10, now) <= 10
        assert 0 < breaker.ramp <= 1
        assert (breaker.state is EdgeState.DOWN) == (breaker.retry_at is not None)
