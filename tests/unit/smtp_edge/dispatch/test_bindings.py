"""Bindings and rules: order, narrowing, failures that never drop mail, and errors that name the way out."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import structlog

from smtp_edge.envelope import Recipient
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.api import PRIORITY_MAX, Avoid, NextHop, Route, RouteRequest, Sink, Unreachable, offload
from smtp_edge.sinks.bindings import digest_of, load_bindings
from smtp_edge.sinks.chain import FAILURE_RETRY_S, Binding, SinkChain, SinkError
from smtp_edge.sinks.rules import Facts, RuleError, parse_rule
from smtp_edge.sinks.watch import steps
from tests.unit.smtp_edge.dispatch.fakes import Ordered

HERE = "tests.unit.smtp_edge.dispatch.test_bindings"


class Static(Sink):
    """The static table of the documentation: everything through one smart host."""

    def __init__(self, host: str) -> None:
        self.host = host

    async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
        return Route((NextHop(f"host:{self.host}"),))


class Silent(Sink):
    async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
        return None


class Broken(Sink):
    async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
        raise ZeroDivisionError


class Hanging(Sink):
    async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
        await asyncio.Event().wait()
        return None


class Lying(Sink):
    async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
        return "host:a"  # type: ignore[return-value]


class Nothing(Sink):
    """Handles no event."""


def request(*addresses: str, sender: str = "sue@example.net") -> RouteRequest:
    recipients = tuple(Recipient(address) for address in addresses or ("ann@example.org",))
    return RouteRequest("Q1", sender, recipients, "default", 100, (), 0)


class Noted(Sink):
    """Says what is done to it, and answers when it may."""

    def __init__(self, name: str, events: list[str], fault: str = "") -> None:
        self.name, self.events, self.fault = name, events, fault
        self.gate = asyncio.Event()

    async def start(self) -> None:
        if self.fault == "start":
            raise KeyError("table")
        self.events.append(f"start {self.name}")

    async def stop(self) -> None:
        self.events.append(f"stop {self.name}")
        if self.fault == "stop":
            raise RuntimeError("cannot")

    async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
        await self.gate.wait()
        return Route((NextHop("host:old"),))


async def test_one_that_does_not_start_stops_the_others_and_is_named() -> None:
    events: list[str] = []
    chain = SinkChain([Binding("a", Noted("a", events)), Binding("b", Noted("b", events, "start"))])
    with pytest.raises(SinkError, match="sink b does not start: 'table'"):
        await chain.start()
    assert events == ["start a", "stop a"]


async def test_one_that_does_not_stop_keeps_nobody_from_it() -> None:
    events: list[str] = []
    await SinkChain([Binding("a", Noted("a", events)), Binding("b", Noted("b", events, "stop"))]).stop()
    assert events == ["stop b", "stop a"]


async def test_a_chain_that_retires_answers_what_it_was_asked_and_stops_then() -> None:
    events: list[str] = []
    sink = Noted("a", events)
    chain = SinkChain([Binding("a", sink)])
    asked = [asyncio.create_task(chain.route(request())) for _ in range(2)]
    await asyncio.sleep(0)
    retiring = asyncio.create_task(chain.retire())
    asked[0].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert events == []
    sink.gate.set()
    await retiring
    assert events == ["stop a"]
    assert await asked[1] == Route((NextHop("host:old"),))


async def test_the_lowest_priority_number_is_asked_first() -> None:
    chain = SinkChain([Binding("late", Static("late"), priority=200), Binding("early", Static("early"), priority=100)])
    assert await chain.route(request()) == Route((NextHop("host:early"),))


async def test_ties_are_asked_in_file_order() -> None:
    chain = SinkChain([Binding("one", Static("one"), priority=5), Binding("two", Static("two"), priority=5)])
    assert await chain.route(request()) == Route((NextHop("host:one"),))


async def test_none_passes_the_question_on() -> None:
    chain = SinkChain([Binding("silent", Silent(), priority=1), Binding("static", Static("a"), priority=2)])
    assert await chain.route(request()) == Route((NextHop("host:a"),))


async def test_a_binding_whose_rule_does_not_match_is_not_asked() -> None:
    rule = parse_rule("rcpt to=*@example.com", events=("route",))
    chain = SinkChain([Binding("narrow", Static("narrow"), rule, 1), Binding("wide", Static("wide"), priority=2)])
    assert await chain.route(request("ann@example.org")) == Route((NextHop("host:wide"),))
    assert await chain.route(request("ann@example.com")) == Route((NextHop("host:narrow"),))


@pytest.mark.parametrize("sink", [Broken(), Hanging(), Lying()])
async def test_a_failing_sink_makes_mail_wait(sink: Sink) -> None:
    answer = await SinkChain([Binding("bad", sink, priority=1, timeout_s=0.01)]).route(request())
    assert isinstance(answer, Unreachable)
    assert (answer.for_good, answer.retry_in_s) == (False, FAILURE_RETRY_S)


async def test_nobody_answering_makes_mail_wait() -> None:
    answer = await SinkChain([]).route(request())
    assert isinstance(answer, Unreachable)
    assert not answer.for_good


def test_a_binding_is_loaded_by_module_and_class_with_its_settings() -> None:
    section = SinkSettings.model_validate({"use": f"{HERE}:Static", "with": {"host": "a"}, "timeout": "500ms"})
    (binding,) = load_bindings([section])
    assert isinstance(binding.sink, Static)
    assert (binding.sink.host, binding.timeout_s, binding.priority) == ("a", 0.5, 24575)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"use": "nonsense"}, "no such sink"),
        ({"use": f"{HERE}:Nobody"}, "no such sink"),
        ({"use": f"{HERE}:RouteRequest"}, "not a class derived from"),
        ({"use": f"{HERE}:Static", "with": {"port": 1}}, "it takes: host"),
        ({"use": f"{HERE}:Nothing"}, "it handles no event; there are: connect, helo"),
        ({"use": f"{HERE}:Silent", "on_failure": "accept"}, "when one after it fails, the mail waits"),
        ({"use": f"{HERE}:Silent", "timeout": "soon"}, "not a duration"),
        ({"use": f"{HERE}:Silent", "rule": "client=10.0.0.0/8"}, "means nothing for the event 'route'"),
    ],
)
def test_a_wrong_binding_is_named_with_the_way_out(section: dict[str, object], words: str) -> None:
    with pytest.raises(SinkError, match=r"^sink\[0\]") as caught:
        load_bindings([SinkSettings.model_validate(section)])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "facts", "expected"),
    [
        ("", {}, True),
        ("rcpt to=*@example.org", {"rcpt to": ["ann@EXAMPLE.org"]}, True),
        ("rcpt to=*@a.test,*@b.test", {"rcpt to": ["x@b.test"]}, True),
        ("rcpt to=*@example.org; mail from=sue@*", {"rcpt to": ["ann@example.org"], "mail from": ["tom@x"]}, False),
        ("mail from!=*@spam.test", {"mail from": ["x@spam.test"]}, False),
        ("mail from!=*@spam.test", {"mail from": ["x@ham.test"]}, True),
        ("rcpt to=a.b@c", {"rcpt to": ["aXb@c"]}, False),
    ],
)
def test_rules(rule: str, facts: dict[str, list[str]], expected: bool) -> None:
    recipients = tuple(Recipient(address) for address in facts.get("rcpt to", []))
    known = Facts(sender="".join(facts.get("mail from", [])), recipients=recipients)
    assert (parse_rule(rule, events=("route",)).select(known) is not None) is expected


@pytest.mark.parametrize("text", ["rcpt to", "rcpt to=", "=x", "colour=red"])
def test_an_unreadable_rule_is_an_error(text: str) -> None:
    with pytest.raises(RuleError):
        parse_rule(text, events=("route",))


# -- pruning and watching ----------------------------------------------------------------------------------------------


class Prunes(Sink):
    def __init__(self, *hops: str) -> None:
        self.hops = hops

    async def route(self, delivery: RouteRequest) -> Avoid | None:
        return Avoid(self.hops)


async def test_an_earlier_sink_prunes_what_a_later_one_may_choose() -> None:
    router = Ordered("host:a", "host:b")
    chain = SinkChain([Binding("prune", Prunes("host:a")), Binding("router", router, priority=PRIORITY_MAX)])
    assert await chain.route(request()) == Route((NextHop("host:b"),))
    assert router.requests[0].avoid == ("host:a",)


async def test_what_is_no_hop_is_the_fault_of_who_said_it() -> None:
    chain = SinkChain([Binding("prune", Prunes("uplink-1")), Binding("router", Ordered("host:a"))])
    answer = await chain.route(request())
    assert isinstance(answer, Unreachable)
    assert answer.reason == "sink prune failed: ValueError"


async def test_a_sink_that_holds_the_loop_is_named_now_and_then() -> None:
    class Blocking(Sink):
        async def route(self, delivery: RouteRequest) -> Route | None:
            await asyncio.sleep(0)
            time.sleep(0.11)  # noqa: ASYNC251  (that is what it is about)
            return None

    binding = Binding("blocking", Blocking())
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            await SinkChain([binding]).route(request())
    (line,) = [line for line in logs if line["event"] == "sink.held_loop"]
    assert line["sink"] == "blocking"
    assert line["took_s"] >= 0.1


async def test_a_watched_question_is_cancelled_and_fails_like_any_other() -> None:
    seen: list[str] = []

    async def question(fault: Exception | None) -> str:
        try:
            await asyncio.sleep(0 if fault or not seen else 10)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        if fault:
            raise fault
        seen.append("answered")
        return "answer"

    assert await steps(question(None), lambda _: None) == "answer"
    with pytest.raises(KeyError):
        await steps(question(KeyError("x")), lambda _: None)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(steps(question(None), lambda _: None), 0.01)
    assert seen == ["answered", "cancelled"]


async def test_blocking_work_has_threads_of_its_own() -> None:
    assert (await offload(lambda prefix: prefix + threading.current_thread().name, prefix="in ")).startswith("in sink")


def test_the_digest_says_which_sinks_are_bound_and_when() -> None:
    def digest(**more: object) -> str:
        return digest_of([SinkSettings.model_validate({"use": "clamav", **more})])

    assert digest_of([]) == ""
    same = digest(**{"with": {"address": "here:1"}})
    assert len(same) == 16
    assert same == digest(**{"with": {"address": "there:2"}}) == digest(name="clamav")
    others = {digest(name="scan"), digest(rule="rcpt to=*"), digest(priority=1), digest(on_failure="accept")}
    assert len({same, *others}) == 5
