"""So much and no more, for each key by itself; and the memory of it stays bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.applications import ratelimit
from smtp_edge.applications.ratelimit import Buckets, RateLimit
from smtp_edge.sinks.testing import CLIENT, ask

MAIL = b"Subject: x\r\n\r\nhello\r\n"


@given(st.integers(1, 20), st.floats(1, 100), st.lists(st.floats(0, 30), max_size=80))
def test_no_more_pass_in_any_time_than_a_full_bucket_and_what_flows_in(
    size: int, per_s: float, pauses: list[float]
) -> None:
    buckets, now, passed = Buckets(size, per_s), 0.0, list[float]()
    for pause in pauses:
        now += pause
        wait_s = buckets.take("k", now)
        if wait_s:
            assert buckets.take("k", now + wait_s * 0.99 - 1e-6) > 0
        else:
            passed.append(now)
    for number, began in enumerate(passed):
        within = sum(began <= at <= began + per_s for at in passed[number:])
        assert within <= 2 * size + 1


def test_it_fills_evenly_and_says_when() -> None:
    buckets = Buckets(2, 60)
    assert [buckets.take("k", 0) for _ in range(3)] == [0, 0, 30]
    assert buckets.take("other", 0) == 0
    assert buckets.take("k", 29) == pytest.approx(1)
    assert buckets.take("k", 30) == 0
    assert buckets.take("k", 1000) == buckets.take("k", 1000) == 0
    assert buckets.take("k", 1000) == 30


def test_the_fullest_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "KEYS_MAX", 10)
    buckets = Buckets(5, 1000)
    for _ in range(5):
        buckets.take("busy", 0)
    for number in range(100):
        buckets.take(f"k{number}", number / 100)
        assert len(buckets.levels) <= 10
    assert buckets.take("busy", 1) > 0


@pytest.mark.parametrize(
    ("by", "same", "other"),
    [
        ("user", {"user": "sue"}, {"user": "tom"}),
        ("client", {"address": "192.0.2.1"}, {"address": "192.0.2.2"}),
    ],
)
async def test_each_has_an_allowance_of_its_own(by: str, same: dict[str, str], other: dict[str, str]) -> None:
    sink = RateLimit(by, messages=1)  # type: ignore[arg-type]
    replies = [(await ask(sink, MAIL, client=replace(CLIENT, **who))).reply for who in (same, same, other)]  # type: ignore[arg-type]
    assert [reply[:9] for reply in replies] == ["", "450 4.7.1", ""]
    assert replies[1].startswith("450 4.7.1 too many messages, try again in ")


@pytest.mark.parametrize(("by", "taken"), [("sender", ["", "", "450"]), ("sender domain", ["", "450", "450"])])
async def test_senders_count_by_address_or_domain(by: str, taken: list[str]) -> None:
    sink = RateLimit(by, messages=1)  # type: ignore[arg-type]
    senders = ("a@x.test", "b@x.test", "A@X.test")
    assert [(await ask(sink, MAIL, sender=sender)).reply[:3] for sender in senders] == taken


async def test_recipients_beyond_it_are_refused_one_by_one_and_who_has_no_key_is_not_counted() -> None:
    sink = RateLimit("sender", recipients=2)
    outcome = await ask(sink, MAIL, recipients=("a@x.test", "b@x.test", "c@x.test"))
    assert outcome.recipients == ("a@x.test", "b@x.test")
    assert (await ask(sink, MAIL, sender="")).reply == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"by": "colour", "messages": 1}, "is none of"),
        ({"by": "user"}, "how many"),
        ({"messages": -1}, "how many"),
        ({"messages": 1, "per_s": 0}, "above 0"),
    ],
)
def test_settings_that_mean_nothing_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RateLimit(**settings)  # type: ignore[arg-type]
