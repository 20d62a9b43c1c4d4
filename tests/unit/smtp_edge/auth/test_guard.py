"""Guessing passwords: who is not listened to, and who still is."""

from __future__ import annotations

from smtp_edge.auth.guard import HOUR_S, NAMES_MAX, Failures, Guard


def fail(guard: Guard, user: str, client: str, count: int, now: float = 0) -> None:
    for _ in range(count):
        guard.note_failure(user, client, now)


def test_a_client_that_guesses_is_not_listened_to_for_anybody() -> None:
    guard = Guard(per_client=3, per_user=100)
    fail(guard, "sue", "a", 2)
    assert guard.may_try("sue", "a", 0)
    fail(guard, "bob", "a", 1)
    assert not guard.may_try("sue", "a", 0)
    assert not guard.may_try("anna", "a", 0)
    assert guard.may_try("sue", "b", 0)


def test_failures_are_forgotten_within_an_hour() -> None:
    guard = Guard(per_client=3, per_user=100)
    fail(guard, "sue", "a", 3)
    assert not guard.may_try("sue", "a", HOUR_S / 3 - 1)
    assert guard.may_try("sue", "a", HOUR_S / 3 + 1)
    fail(guard, "sue", "a", 1000, HOUR_S)
    assert guard.may_try("sue", "a", 2 * HOUR_S + 1)


def test_a_user_who_is_guessed_at_from_many_places_still_logs_in_where_he_was() -> None:
    guard = Guard(per_client=3, per_user=5)
    guard.note_success("sue", "home", 0)
    for number in range(10):
        fail(guard, "sue", f"stranger {number}", 1)
    assert not guard.may_try("sue", "new", 0)
    assert guard.may_try("sue", "home", 0)
    assert guard.may_try("bob", "new", 0)


def test_his_own_slips_at_home_do_not_lock_him_out_elsewhere() -> None:
    guard = Guard(per_client=100, per_user=5)
    guard.note_success("sue", "home", 0)
    fail(guard, "sue", "home", 20)
    assert guard.may_try("sue", "new", 0)


def test_places_are_forgotten_after_a_month() -> None:
    guard = Guard(per_client=100, per_user=1)
    guard.note_success("sue", "home", 0)
    fail(guard, "sue", "stranger", 1, 31 * 86400)
    assert not guard.may_try("sue", "home", 31 * 86400)


def test_zero_is_no_limit() -> None:
    guard = Guard(per_client=0, per_user=0)
    fail(guard, "sue", "a", 1000)
    assert guard.may_try("sue", "a", 0)


def test_names_that_strangers_invent_do_not_grow_the_memory() -> None:
    failures = Failures(3)
    for number in range(NAMES_MAX + 5):
        failures.add(str(number), 0)
    assert len(failures._levels) == NAMES_MAX
