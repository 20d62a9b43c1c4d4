"""A next hop that lies at every step, in every way: the real client, dispatcher and queue against it.

It lies once (or a few times) and is honest from then on. In the end nothing may be lost; nothing may be there twice
unless the answer to the final dot was the lie; and a refusal for good makes exactly one report.

    steps    greeting, EHLO, STARTTLS, MAIL, RCPT, DATA, mail data, final dot, QUIT
    lies     5yz, 4yz, 421, closing, resetting, silence, slowness, garbage, a flood of replies, a line without end,
             a reply of the wrong kind, two replies, an acceptance before there is anything to accept
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
import structlog.testing

from router.decision import Hop
from smtp_edge.client.attempt import Target
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.dispatch import dispatcher, lines, settlement
from smtp_edge.queue.entry import DeliveryState
from tests.unit.smtp_edge.client.servers import (
    DROP,
    ENDLESS,
    FLOOD,
    GARBAGE,
    HANG,
    KEYWORDS,
    RESET,
    SLOW,
    Script,
    SmtpServer,
    smtp_server,
)
from tests.unit.smtp_edge.dispatch.fakes import Bench, Ordered, message, until

STEPS = ("greeting", "ehlo", "starttls", "mail", "rcpt", "data", "body", "final", "quit")
LIES = {
    "5yz": "550 5.3.0 no\x1b[31m",
    "4yz": "451 4.3.0 later\u2028\x07",
    "421": "421 4.3.2 closing",
    "closing": DROP,
    "resetting": RESET,
    "silence": HANG,
    "slowness": SLOW,
    "garbage": GARBAGE,
    "flood": FLOOD,
    "endless": ENDLESS,
    "wrong": "250 2.0.0 yes",
    "twice": "250 2.0.0 yes\r\n250 2.0.0 yes",
    "early": "354 go ahead\r\n250 2.0.0 taken already",
}
BROKEN = ("closing", "resetting", "silence", "garbage", "flood", "endless")
ANN, BOB, SUE = "ann@example.org", "bob@example.org", "sue@example.net"
TIMEOUT_S = 0.4


class Liar(Script):
    """Lies `times` times at one step."""

    step = ""
    lie = ""
    times = 0
    lying = False
    """Tells whether it has begun."""

    def __getattribute__(self, name: str) -> object:
        usual = super().__getattribute__(name)
        if name != super().__getattribute__("step") or super().__getattribute__("times") <= 0:
            return usual
        self.lying = True
        if name != "rcpt":
            self.times -= 1
            return super().__getattribute__("lie")
        return self._lie_to_a_recipient

    def _lie_to_a_recipient(self, line: str) -> str:
        self.times -= 1
        return super().__getattribute__("lie") if self.times >= 0 else "250 2.1.5 Ok"


def build_liar(step: str, lie: str, times: int, keywords: tuple[str, ...]) -> Liar:
    liar = Liar(keywords=(*keywords, "STARTTLS") if step == "starttls" else keywords)
    liar.step, liar.lie, liar.times = step, lie, times
    return liar


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths, so that only what the liar does takes time."""
    monkeypatch.setattr(lines, "AVOID_FIRST_S", 0.02)
    monkeypatch.setattr(dispatcher, "SWEEP_S", 0.02)
    monkeypatch.setattr(settlement, "IN_DOUBT_RETRY_S", 0.02)


async def relay(folder: Path, server: SmtpServer) -> Counter[str]:
    """A message for two people through a relay; who got how many copies when all is over."""
    folder.mkdir()  # noqa: ASYNC240
    client = DeliveryClient(
        hostname="relay.test", identity=None, connect_timeout_s=TIMEOUT_S, attempt_timeout_s=TIMEOUT_S
    )
    bench = Bench(folder, Ordered("host:sink"), client=client, retry_first_s=0.02)
    bench.targets["host:sink"] = Target(Hop.parse("host:sink"), "127.0.0.1", server.port)
    async with bench:
        reply = await bench.acceptor.accept(message(ANN, BOB))
        assert reply.positive
        ended = (bench.counters.relayed, bench.counters.failed)
        await until(lambda: (bench.counters.relayed, bench.counters.failed) != ended, limit_s=20)
        while not await over(bench):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await client.close()
    return Counter(who for group in server.seen.accepted for who in group)


async def over(bench: Bench) -> bool:
    """Nothing waits any more: message, reports."""
    states = [claim.delivery.state for claim in await bench.store.list(limit=100)]
    return not any(state in (DeliveryState.QUEUED, DeliveryState.CLAIMED, DeliveryState.DEFERRED) for state in states)


def expected(step: str, lie: str) -> tuple[int, int, int]:
    """Copies for Ann, for Bob, and reports for the sender."""
    if lie == "5yz" and step in ("mail", "data", "final"):
        return 0, 0, 1
    if lie == "5yz" and step == "rcpt":
        return 0, 1, 1
    return 1, 1, 0


@pytest.mark.parametrize("keywords", [KEYWORDS, ("CHUNKING",)], ids=["pipelined", "one by one, BDAT"])
@pytest.mark.parametrize("lie", LIES)
async def test_nothing_is_lost_or_doubled_and_a_refusal_makes_one_report(
    tmp_path: Path, lie: str, keywords: tuple[str, ...]
) -> None:
    async def run(step: str) -> str:
        script = build_liar(step, LIES[lie], 1, keywords)
        async with smtp_server(script) as server:
            got = await relay(tmp_path / step, server)
            ann, bob, reports = expected(step, lie) if script.lying else (1, 1, 0)
            bdat = "CHUNKING" in keywords
            in_doubt = step == "final" and lie in (*BROKEN, "early")
            if in_doubt or (step == "body" and not bdat):  # the dot of a small message is written with its data
                right = got[ANN] in (1, 2) and got[BOB] in (1, 2) and got[SUE] == 0
            else:
                right = (got[ANN], got[BOB], got[SUE]) == (ann, bob, reports)
            reached = script.lying or step in ("quit", "starttls") or (step in ("data", "body") and bdat)
            return "" if right and reached else f"{step}: {dict(got)}, lied: {script.lying}"

    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(60):
            wrong = [problem for problem in await asyncio.gather(*map(run, STEPS)) if problem]
    assert wrong == []
    texts = [str(value) for line in logs for value in line.values()]
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u2028" for text in texts for c in text)


@pytest.mark.parametrize("step", ["mail", "rcpt", "data", "final"])
async def test_a_hop_that_defers_for_long_gets_the_message_once_in_the_end(tmp_path: Path, step: str) -> None:
    script = build_liar(step, "450 4.7.1 greylisted, come again", 6, KEYWORDS)
    async with smtp_server(script) as server:
        got = await relay(tmp_path / step, server)
        assert (got[ANN], got[BOB], got[SUE]) == (1, 1, 0)
        assert script.times <= 0


async def test_nobody_listens_at_first(tmp_path: Path) -> None:
    async with smtp_server() as server:
        port = server.port
    honest = SmtpServer(Script())
    honest.port = port
    waiting = asyncio.create_task(relay(tmp_path / "refused", honest))
    await asyncio.sleep(0.2)
    async with smtp_server(port=port) as server:
        honest.seen = server.seen
        got = await waiting
        assert (got[ANN], got[BOB], got[SUE]) == (1, 1, 0)
