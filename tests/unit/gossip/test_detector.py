"""Silence: bounds, phi in between, and no accusation for one's own pause."""

from __future__ import annotations

from gossip.detector import Silence
from gossip.settings import GossipSettings

SETTINGS = GossipSettings()


def heard(*intervals_s: float) -> Silence:
    silence, now = Silence(SETTINGS, 0.0), 0.0
    for interval in intervals_s:
        now += interval
        silence.hear(now)
    return silence


def test_regular_frames_are_missed_after_the_lower_bound() -> None:
    silence = heard(*[1.0] * 20)
    assert silence.limit_s == SETTINGS.silence_min_s
    assert 20 + 3.0 - silence.heard_at <= silence.limit_s
    assert 20 + 3.01 - silence.heard_at > silence.limit_s


def test_irregular_frames_are_given_more_time() -> None:
    assert SETTINGS.silence_min_s < heard(*[0.5, 2.5] * 10).limit_s < SETTINGS.silence_max_s


def test_no_session_is_waited_for_longer_than_the_upper_bound() -> None:
    assert heard(*[0.1, 30.0] * 10).limit_s == SETTINGS.silence_max_s


def test_an_own_pause_is_no_silence_of_others() -> None:
    silence = heard(*[1.0] * 10)
    silence.excuse(100.0)
    assert 102.9 - silence.heard_at <= silence.limit_s
    assert 103.1 - silence.heard_at > silence.limit_s


def test_many_frames_in_a_row_do_not_make_it_hasty() -> None:
    assert heard(*[0.001] * 200).limit_s >= SETTINGS.silence_min_s
