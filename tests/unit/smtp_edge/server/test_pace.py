"""How long a client may let us wait."""

from __future__ import annotations

import asyncio
import time

import pytest

from smtp_edge.server.pace import DATA_SLOW, DATA_TIMEOUT, IDLE, SESSION_OVER, Pace, PaceLimits
from tests.unit.smtp_edge.server.ordeal import TLS, SessionOrdeal

LIMITS = PaceLimits(idle_s=300, session_s=7200, bytes_per_s=100, window_s=60)


def test_silence_before_a_command_ends_the_session() -> None:
    pace = Pace(LIMITS, 0)
    pace.await_client(10)
    assert pace.overdue(309) is None
    assert pace.overdue(310) == IDLE


def test_a_command_has_to_be_whole_in_time() -> None:
    pace = Pace(LIMITS, 0)
    pace.await_client(0)
    for second in range(0, 300, 10):
        pace.received_count += 1
        assert pace.overdue(second) is None
    assert pace.overdue(300) == IDLE


def test_no_time_runs_while_we_work() -> None:
    pace = Pace(LIMITS, 0)
    pace.await_client(0)
    pace.work()
    assert pace.overdue(100_000) is None


def test_mail_data_may_pause_but_not_for_long() -> None:
    pace = Pace(PaceLimits(idle_s=300), 0)
    pace.await_client(0, data=True)
    pace.received_count += 1
    assert pace.overdue(299) is None
    assert pace.overdue(598) is None
    assert pace.overdue(599) == DATA_TIMEOUT


def test_mail_data_that_drips_ends_the_session() -> None:
    pace = Pace(LIMITS, 0)
    pace.await_client(0, data=True)
    pace.received_count += 6000
    assert pace.overdue(60) is None
    pace.received_count += 5999
    assert pace.overdue(119) is None
    assert pace.overdue(120) == DATA_SLOW


def test_the_rate_is_an_average_over_the_window_of_mail_data_alone() -> None:
    pace = Pace(LIMITS, 0)
    pace.await_client(0)
    assert pace.overdue(200) is None
    pace.await_client(200, data=True)
    assert pace.overdue(259) is None
    pace.await_client(259, data=True)  # the next chunk of the same message goes on in the same window
    assert pace.overdue(260) == DATA_SLOW


def test_a_session_ends_between_transactions_and_much_later_within_one() -> None:
    pace = Pace(LIMITS, 0)
    pace.await_client(7199)
    assert pace.overdue(7199.5) is None
    assert pace.overdue(7200) == SESSION_OVER
    pace.between_transactions = False
    assert pace.overdue(7200) is None
    pace.await_client(14_400)
    assert pace.overdue(14_400) == SESSION_OVER


def test_no_limit_means_no_limit() -> None:
    pace = Pace(PaceLimits(idle_s=300), 0)
    pace.await_client(1_000_000)
    assert pace.overdue(1_000_001) is None


def test_looks_are_frequent_enough() -> None:
    assert PaceLimits(idle_s=300).look_every_s == 1.0
    assert PaceLimits(idle_s=300, bytes_per_s=1, window_s=2).look_every_s == 0.2
    assert PaceLimits(idle_s=0.05).look_every_s == 0.01


@pytest.mark.parametrize("said", [[b"EHLO x\r\n"], [b"EHLO x\r\n", b"AUTH LOGIN\r\n"]], ids=["a command", "a response"])
def test_a_line_that_comes_in_drops_gets_no_more_time(said: list[bytes]) -> None:
    loop = asyncio.new_event_loop()
    ordeal = SessionOrdeal(loop, TLS)
    for segment in said:
        ordeal.say(segment)
    waits_since = time.monotonic()
    for drop in (b"c", b"3", b"V"):
        ordeal.say(drop)
    assert ordeal.session.pace.overdue(waits_since + LIMITS.idle_s) == IDLE
    ordeal.end()
    loop.close()
