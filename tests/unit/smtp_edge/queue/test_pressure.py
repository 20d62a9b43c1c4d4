"""Headroom and overload from what was measured: a table, and the times."""

from __future__ import annotations

import pytest

from smtp_edge.pressure import Gauge, Limits, Readings, find_tightest

MIB = 2**20
LIMITS = Limits(free_bytes_min=100 * MIB, entries_max=1000, memory_bytes_max=400 * MIB)
PLENTY = Readings(free_bytes=2**40, entries=0, memory_bytes=100 * MIB)
FULL = Readings(free_bytes=100 * MIB, entries=0, memory_bytes=0)


def readings(**changes: int) -> Readings:
    fields = {"free_bytes": 2**40, "entries": 0, "memory_bytes": 0} | changes
    return Readings(**fields)


@pytest.mark.parametrize(
    ("measured", "headroom", "reason"),
    [
        (PLENTY, 1000, ""),
        (readings(free_bytes=400 * MIB), 1000, ""),
        (readings(free_bytes=250 * MIB), 500, "250 MiB free on the disk of node.data_dir"),
        (readings(free_bytes=100 * MIB), 0, "100 MiB free on the disk of node.data_dir"),
        (readings(free_bytes=0), 0, "0 MiB free on the disk of node.data_dir"),
        (readings(entries=750), 1000, ""),
        (readings(entries=875), 500, "875 undelivered messages"),
        (readings(entries=1000), 0, "1000 undelivered messages"),
        (readings(memory_bytes=350 * MIB), 500, "350 MiB of memory in use"),
        (readings(memory_bytes=500 * MIB), 0, "500 MiB of memory in use"),
        (readings(entries=875, free_bytes=130 * MIB), 100, "130 MiB free on the disk of node.data_dir"),
        (readings(entries=999), 4, "999 undelivered messages"),
    ],
)
def test_the_tightest_counts(measured: Readings, headroom: int, reason: str) -> None:
    found, why = find_tightest(LIMITS, measured)
    assert found == headroom
    if reason:
        assert why == reason


def test_a_disk_that_takes_nothing_is_no_room_at_all() -> None:
    assert find_tightest(LIMITS, Readings(2**40, 0, 0, "the queue's disk fails")) == (0, "the queue's disk fails")


def test_memory_without_a_limit_is_not_looked_at() -> None:
    assert find_tightest(Limits(0, 10, 0), Readings(1, 0, 2**50))[0] == 1000


def test_overload_begins_at_once_and_lasts_until_it_has_been_over_for_a_while() -> None:
    gauge = Gauge(LIMITS)
    assert not gauge.read(PLENTY, 0.0).overloaded
    began = gauge.read(FULL, 1.0)
    assert (began.overloaded, began.headroom_permille) == (True, 0)
    assert began.reason == "100 MiB free on the disk of node.data_dir"
    assert gauge.read(PLENTY, 2.0).reason == began.reason
    assert gauge.read(PLENTY, 6.9).overloaded
    ended = gauge.read(PLENTY, 7.0)
    assert (ended.overloaded, ended.headroom_permille, ended.reason) == (False, 1000, "")


def test_a_little_room_does_not_end_it() -> None:
    gauge = Gauge(LIMITS)
    gauge.read(FULL, 0.0)
    little = readings(free_bytes=150 * MIB)  # 167 permille
    assert all(gauge.read(little, float(second)).overloaded for second in range(1, 60))


def test_each_relapse_doubles_the_wait_and_a_quiet_time_forgets_it() -> None:
    gauge = Gauge(LIMITS)

    def last(at: float) -> float:
        """Seconds until mail is taken again after an overload at `at`."""
        gauge.read(FULL, at)
        return next(wait for wait in range(200) if not gauge.read(PLENTY, at + 1 + wait).overloaded)

    assert [last(0.0), last(10.0), last(30.0), last(60.0), last(110.0), last(250.0)] == [5, 10, 20, 40, 80, 80]
    assert last(1000.0) == 5


def test_what_is_told_moves_in_steps() -> None:
    gauge = Gauge(LIMITS)
    told = [gauge.read(readings(entries=entries), 0.0).headroom_permille for entries in range(740, 1000, 5)]
    assert told == sorted(told, reverse=True)
    assert len(set(told)) == 10
    assert min(told) == 100  # none at all means: nothing more


def test_what_is_told_does_not_flicker() -> None:
    gauge = Gauge(LIMITS)
    told = {gauge.read(readings(entries=entries), 0.0).headroom_permille for entries in [787, 788, 789, 786] * 20}
    assert len(told) == 1
