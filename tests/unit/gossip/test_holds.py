"""Holds: what may be told at once, and what waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossip.holds import PASSES_IN_A_ROW, Hold
from gossip.linkstate import LinkState, LinkStatus, TlsLevel, Urgency
from gossip.scores import is_return, urgency_of


@pytest.fixture
def hold() -> Hold:
    """In the middle of changes: the next version would have to wait until 101 s."""
    made = Hold(first_s=1, max_s=30, quiet_s=60, bypass_s=5)
    made.record_issue(Urgency.RECOVER, 100)
    return made


def test_good_news_waits_longer_the_more_of_it_there_is(hold: Hold) -> None:
    assert hold.due(Urgency.RECOVER) == 101
    hold.record_issue(Urgency.RECOVER, 101)
    assert hold.due(Urgency.RECOVER) == 103
    hold.record_issue(Urgency.RECOVER, 103)
    assert hold.due(Urgency.RECOVER) == 107
    hold.record_issue(Urgency.RECOVER, 200)
    assert hold.due(Urgency.RECOVER) == 201, "after quiet it begins again"


def test_what_is_worse_passes_once_in_a_while(hold: Hold) -> None:
    assert hold.due(Urgency.DEGRADE) <= 100
    hold.record_issue(Urgency.DEGRADE, 100.1)
    hold.record_issue(Urgency.DEGRADE, 102.1)  # when the hold was over
    hold.record_issue(Urgency.RECOVER, 106.1)
    assert 105 < hold.due(Urgency.DEGRADE) < 110


def test_worse_news_never_takes_the_turn_of_a_withdrawal(hold: Hold) -> None:
    hold.record_issue(Urgency.DEGRADE, 100.1)
    assert hold.due(Urgency.DEGRADE) > 101
    assert hold.due(Urgency.WITHDRAW) <= 100.1


def test_some_withdrawals_pass_in_a_row_and_the_right_comes_back(hold: Hold) -> None:
    now = 100.1
    for _ in range(int(PASSES_IN_A_ROW)):
        assert hold.due(Urgency.WITHDRAW) <= now
        hold.record_issue(Urgency.WITHDRAW, now)
        now += 0.1
    assert now < hold.due(Urgency.WITHDRAW) <= now + 5


def test_some_returns_pass_in_a_row_and_take_no_turn_of_a_withdrawal(hold: Hold) -> None:
    now = 100.1
    for _ in range(int(PASSES_IN_A_ROW)):
        assert hold.due(Urgency.RECOVER, returned=True) <= now
        hold.record_issue(Urgency.RECOVER, now, returned=True)
        now += 0.1
    assert now < hold.due(Urgency.RECOVER, returned=True) <= now + 5
    assert hold.due(Urgency.WITHDRAW) <= now


def test_what_is_gone_may_pass_with_what_is_back_and_costs_no_withdrawal_then(hold: Hold) -> None:
    now = 100.1
    for _ in range(int(PASSES_IN_A_ROW)):
        hold.record_issue(Urgency.WITHDRAW, now)
        now += 0.1
    due = hold.due(Urgency.WITHDRAW)
    assert due > now
    assert hold.due(Urgency.WITHDRAW, returned=True) <= now
    hold.record_issue(Urgency.WITHDRAW, now, returned=True)
    assert hold.due(Urgency.WITHDRAW) == due
    assert hold.returns.left == PASSES_IN_A_ROW - 1


def test_a_return_that_came_when_the_hold_was_over_took_no_pass(hold: Hold) -> None:
    hold.record_issue(Urgency.RECOVER, 102, returned=True)
    assert hold.returns.left == PASSES_IN_A_ROW


@pytest.mark.parametrize(
    ("before", "after", "returned"),
    [
        (LinkStatus.DOWN, LinkStatus.UP, True),
        (LinkStatus.HALF_OPEN, LinkStatus.UP, True),
        (LinkStatus.SUSPECT, LinkStatus.UP, False),
        (LinkStatus.UP, LinkStatus.UP, False),
        (LinkStatus.DOWN, LinkStatus.SUSPECT, False),
    ],
)
def test_a_link_is_back_when_it_was_down_and_is_up(before: LinkStatus, after: LinkStatus, returned: bool) -> None:
    was, link = (LinkState("host:a", status, 1000, 1000, 10_000, 1000) for status in (before, after))
    assert is_return([was], [link]) is returned


def test_scores_of_a_link_that_is_down_are_no_news() -> None:
    was = LinkState("host:a", LinkStatus.DOWN, 1000, 1000, 0, 1000)
    assert urgency_of([was], [replace(was, availability_permille=500)]) is None


@pytest.mark.parametrize(
    ("before", "after", "urgency"),
    [
        (LinkStatus.UP, LinkStatus.DOWN, Urgency.WITHDRAW),
        (LinkStatus.SUSPECT, LinkStatus.DOWN, Urgency.WITHDRAW),
        (LinkStatus.UP, LinkStatus.SUSPECT, Urgency.DEGRADE),
        (LinkStatus.DOWN, LinkStatus.HALF_OPEN, Urgency.RECOVER),
        (LinkStatus.HALF_OPEN, LinkStatus.DOWN, Urgency.RECOVER),
        (LinkStatus.HALF_OPEN, LinkStatus.UP, Urgency.RECOVER),
        (LinkStatus.DOWN, LinkStatus.DRAINING, Urgency.DEGRADE),
    ],
)
def test_trials_of_what_is_down_are_no_bad_news(before: LinkStatus, after: LinkStatus, urgency: Urgency) -> None:
    was, link = (LinkState("host:a", status, 1000, 1000, 10_000, 1000) for status in (before, after))
    assert urgency_of([was], [link]) is urgency


@pytest.mark.parametrize("changed", [{"tags": ("eu",)}, {"tls": TlsLevel.VERIFIED}, {"size_bytes_max": 1}, {"cost": 1}])
def test_what_an_operator_changed_is_told_at_once(changed: dict[str, object]) -> None:
    was = LinkState("host:a", LinkStatus.UP, 1000, 1000, 10_000, 1000)
    assert urgency_of([was], [replace(was, **changed)]) is Urgency.RECOVER  # type: ignore[arg-type]
