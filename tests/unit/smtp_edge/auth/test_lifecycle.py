"""Authenticators are started before the first question and stopped after the last, all of them or none."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from smtp_edge.auth.api import Authenticator, AuthError
from smtp_edge.auth.lifecycle import start_authenticators, stop_authenticators
from smtp_edge.settings_inbound import AuthSettings

HERE = f"{__name__}:Noted"
events: list[str] = []


class Noted(Authenticator):
    """Says what is done to it."""

    def __init__(self, name: str, fault: str = "") -> None:
        self.name, self.fault = name, fault

    async def start(self) -> None:
        if self.fault == "hang":
            await asyncio.Event().wait()
        if self.fault == "refuse":
            raise AuthError("no such base")
        if self.fault == "bug":
            raise KeyError("base")
        events.append(f"start {self.name}")

    async def stop(self) -> None:
        events.append(f"stop {self.name}")
        if self.fault == "stop":
            raise RuntimeError("cannot stop")


def section(name: str, **words: str) -> AuthSettings:
    return AuthSettings.model_validate({"name": name, "use": HERE, "timeout_s": 0.05, "with": {"name": name, **words}})


@pytest.fixture(autouse=True)
def clean() -> None:
    events.clear()


async def test_each_is_started_once_and_stopped_once() -> None:
    started = await start_authenticators([section("a"), section("b")])
    assert list(started) == ["a", "b"]
    await stop_authenticators(started)
    assert events == ["start a", "start b", "stop a", "stop b"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("refuse", "auth b: no such base"),
        ("bug", f"auth b: {HERE} does not start: 'base'"),
        ("hang", f"auth b: {HERE} does not start: TimeoutError"),
    ],
)
async def test_one_that_does_not_start_stops_the_others_and_is_named(fault: str, words: str) -> None:
    with pytest.raises(AuthError) as caught:
        await start_authenticators([section("a"), section("b", fault=fault), section("c")])
    assert str(caught.value) == words
    assert events == ["start a", "stop a"]


async def test_one_that_does_not_stop_keeps_nobody_from_it() -> None:
    started = await start_authenticators([section("a", fault="stop"), section("b")])
    with capture_logs() as lines:
        await stop_authenticators(started)
    assert events[2:] == ["stop a", "stop b"]
    assert [(line["event"], line["auth"]) for line in lines] == [("auth.stop_failed", "a")]
