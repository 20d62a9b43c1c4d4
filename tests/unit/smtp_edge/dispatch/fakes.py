"""Fakes that remember, around the real store: a client that answers as told, an observer, a clock of hand."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from router.decision import Hop, OutcomeKind
from router.policy import RouteRule, RouteTable
from smtp_edge.acceptor import QueueAcceptor
from smtp_edge.client.attempt import AttemptResult, Job, Target
from smtp_edge.counters import Counters
from smtp_edge.dispatch.attempts import Attempter
from smtp_edge.dispatch.dispatcher import Dispatcher, DispatcherLimits
from smtp_edge.dispatch.settlement import Reporting
from smtp_edge.dsn import Reporter
from smtp_edge.envelope import Client, Envelope, MailData, ReceivedMessage, Recipient, Transfer
from smtp_edge.queue.retry import RetryPolicy
from smtp_edge.queue.spool import Spool
from smtp_edge.queue.sqlite import SQLiteStore
from smtp_edge.reply import Reply
from smtp_edge.settings import QueueSettings
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Sink, Unreachable
from smtp_edge.sinks.chain import Binding, SinkChain

NODE = "a" * 32
OK = Reply(250, "ok", "2.0.0")
BODY = b"Subject: hello\r\n\r\nhello\r\n"


class ScriptedClient:
    """Answers attempts by `answer(hop_id, job)`; remembers what was asked."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, Job]] = []
        self.answer: Callable[[str, Job], AttemptResult] = accepted
        self.gate: asyncio.Event | None = None
        """While set and not open, attempts hang."""

    async def attempt(self, target: Target, job: Job) -> AttemptResult:
        self.attempts.append((target.hop.id, job))
        if self.gate is not None:
            await self.gate.wait()
        return self.answer(target.hop.id, job)


def accepted(_hop: str, job: Job) -> AttemptResult:
    return AttemptResult(OutcomeKind.ACCEPTED, (OK,) * len(job.envelope.recipients), OK)


def refused(_hop: str, _job: Job) -> AttemptResult:
    return AttemptResult(OutcomeKind.CONNECT_FAILED, reason="connection refused")


class Observer:
    """Remembers what the routing engine would learn."""

    def __init__(self) -> None:
        self.busy: dict[str, int] = {}
        self.ends: list[tuple[str, OutcomeKind]] = []

    def began(self, hop: Hop, class_id: str, size_bytes: int) -> None:
        self.busy[hop.id] = self.busy.get(hop.id, 0) + 1

    def ended(
        self, hop: Hop, class_id: str, result: AttemptResult, began: float, size_bytes: int, message: str
    ) -> None:
        self.busy[hop.id] -= 1
        self.ends.append((hop.id, result.kind))

    def arrived(self, class_id: str) -> None:
        pass

    def backlog_changed(self, class_id: str) -> None:
        pass


class Ordered(Sink):
    """Routes by a fixed order of hops, skipping those to avoid; `hops` may be changed at any time."""

    def __init__(self, *hops: str) -> None:
        self.hops = list(hops)
        self.requests: list[RouteRequest] = []

    async def route(self, delivery: RouteRequest) -> Route | Unreachable | None:
        self.requests.append(delivery)
        usable = [hop for hop in self.hops if hop not in delivery.avoid]
        if not usable:
            return Unreachable("nothing left")
        return Route(tuple(NextHop(hop) for hop in usable))


class Bench:
    """A queue with everything around it that is not under test."""

    def __init__(
        self,
        directory: Path,
        sink: Sink,
        *,
        active_max: int = 100,
        connections_max: int = 5,
        client: Attempter | None = None,
        retry_first_s: float = 10,
        cut_through: bool = False,
    ) -> None:
        self.sink = sink
        self.client = ScriptedClient()
        self.observer = Observer()
        self.counters = Counters()
        self.settings = QueueSettings(free_bytes_min=0)
        self.table = RouteTable(
            [RouteRule("default", ("example.org",), ("h",)), RouteRule("other", ("o.test",), ("h",))]
        )
        self.store = SQLiteStore(
            directory,
            incarnation="one",
            history_s=3600,
            entries_max=1000,
            clock=lambda: datetime.now(UTC),
            cut_through=cut_through,
        )
        self.spool = Spool(directory)
        self.refusal: Reply | None = None
        """Of whatever comes."""
        numbers: Iterator[int] = itertools.count(1)
        self.new_queue_id: Callable[[datetime], str] = lambda at: f"Q{next(numbers):011d}"
        self.targets: dict[str, Target] = {}
        self.connections_max = connections_max
        self.reporting = Reporting(
            policy=RetryPolicy(first_s=retry_first_s, factor=2, max_s=3600, lifetime_s=432000, delay_notice_s=14400),
            reporter=Reporter(
                hostname="relay.test",
                node_id=NODE,
                new_queue_id=self.new_queue_id,
                class_of=lambda recipient: recipient.domain,
                lifetime=timedelta(days=5),
            ),
        )
        self.on_late: Callable[[], None] = lambda: None
        self.dispatcher = Dispatcher(
            self.store,
            SinkChain([Binding("test", sink)]),
            client or self.client,
            self.observer,
            node_id=NODE,
            target_of=self.target_of,
            reporting=self.reporting,
            limits=DispatcherLimits(active_max=active_max, in_doubt_hold_s=30, park_retry_s=10),
            counters=self.counters,
            now=self.now,
            rng=random.Random(1),
            on_late=lambda: self.on_late(),
        )
        self.acceptor = QueueAcceptor(
            self.store,
            self.spool,
            self.table,
            self.dispatcher,
            self.observer,
            node_id=NODE,
            hostname="relay.test",
            settings=self.settings,
            counters=self.counters,
            backlogs=self.store.moving,
            new_queue_id=self.new_queue_id,
            refuse=lambda size_bytes: self.refusal,
            now=self.now,
            on_late=lambda: self.on_late(),
        )

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def target_of(self, hop_id: str) -> Target | None:
        if hop_id.endswith("unknown"):
            return None
        if hop_id in self.targets:
            return self.targets[hop_id]
        return Target(Hop.parse(hop_id), "127.0.0.1", 1, connections_max=self.connections_max)

    async def __aenter__(self) -> Bench:
        await self.store.open()
        await self.dispatcher.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dispatcher.stop(0.1)
        await self.store.close()


def message(
    *addresses: str,
    body: bytes = BODY,
    transfer: Transfer | None = None,
    peer: str = "",
    sender: str = "sue@example.net",
) -> ReceivedMessage:
    """A received message for the addresses."""
    recipients = tuple(Recipient(address) for address in addresses or ("ann@example.org",))
    header = body.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    return ReceivedMessage(
        Client("127.0.0.1", 1, helo="client.test", protocol="ESMTP", peer_id=peer),
        Envelope(sender, recipients),
        MailData(len(body), inline=body, header=header),
        transfer,
    )


async def until(condition: Callable[[], bool], *, limit_s: float = 5.0) -> None:
    """Let the loop run until the condition holds; AssertionError after `limit_s`."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  (conditions of fakes have no event)
            await asyncio.sleep(0.002)
