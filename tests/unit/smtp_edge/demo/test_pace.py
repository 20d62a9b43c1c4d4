"""The rate of a smart host, in arithmetic."""

import pytest

from smtp_edge.demo.pace import Pace


def test_an_idle_host_answers_after_one_turn() -> None:
    assert Pace(20, workers=4).take(100.0) == pytest.approx(100.2)


def test_no_more_turns_than_workers() -> None:
    pace = Pace(20, workers=2)
    assert [pace.take(0.0), pace.take(0.0), pace.take(0.0)] == [pytest.approx(0.1), pytest.approx(0.1), None]


def test_idleness_saves_nothing_up() -> None:
    pace = Pace(10, workers=1)
    ends_at = pace.take(0.0)
    assert ends_at is not None
    pace.give_back(ends_at, ends_at)
    assert pace.take(50.0) == pytest.approx(50.1)


def test_a_late_timer_costs_no_rate_while_work_waits() -> None:
    pace = Pace(10, workers=1)
    ends_at = pace.take(0.0)
    assert ends_at is not None
    pace.give_back(ends_at, 0.13)
    assert pace.take(0.05) == pytest.approx(0.2)


def test_a_stalled_client_costs_its_own_time_only() -> None:
    pace = Pace(10, workers=1)
    ends_at = pace.take(0.0)
    assert ends_at is not None
    pace.give_back(ends_at, 7.0)
    assert pace.take(0.05) == pytest.approx(7.1)


def test_a_pace_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="positive rate"):
        Pace(0, workers=1)
