"""What bound sinks that concern none of the messages cost an inbound session: processor time, without sockets.

    python3 deploy/run.py bench sinks_cost [--sessions 300] [--rounds 60]

Sessions on a transport in memory, with an acceptor that takes everything, one after the other: with no, one and ten
sinks on `rcpt` and `data` as in `sinks_rate`, in turn (the order changes with each round), with one and with twenty
messages. Shown is user time for each session, and what is more than without sinks; medians of the rounds. The same
work without sinks stands in each round twice: what differs there is the noise.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.rules import parse_rule
from tests.bench.lab.figures import table
from tests.bench.sinks_rate import Nobody
from tests.unit.smtp_edge.server import ordeal
from tests.unit.smtp_edge.server.ordeal import Transport, build_options

BOUND = (0, "again", 1, 10)
COMMANDS = (b"MAIL FROM:<a@from.test> SIZE=2000\r\n", b"RCPT TO:<b@here.test>\r\n", b"DATA\r\n")
MESSAGE = b"Subject: x\r\n\r\n" + b"x" * 70 + b"\r\n" + b".\r\n"


def chain_of(count: int) -> SinkChain:
    """So many, for others."""
    return SinkChain(
        [
            Binding(f"s{number}", Nobody(), parse_rule(f"rcpt to=*@nobody-{number}.test", events=["rcpt", "data"]))
            for number in range(count)
        ]
    )


class House(ordeal._House):
    """Counts nobody."""


async def converse(session: ordeal.Session, transport: Transport, messages: int) -> None:
    """One session, whose client waits for each reply."""

    async def turn(ended: Callable[[], bool]) -> None:
        while not ended():  # noqa: ASYNC110  (it is the loop's turns that are measured)
            await asyncio.sleep(0)

    async def say(line: bytes) -> None:
        heard = len(transport.written)
        session.data_received(line)
        await turn(lambda: len(transport.written) > heard)

    transport.session = session
    session.connection_made(transport)
    await turn(lambda: bool(transport.written))
    await say(b"EHLO client.test\r\n")
    for _ in range(messages):
        for line in (*COMMANDS, MESSAGE):
            await say(line)
    await say(b"QUIT\r\n")
    await turn(transport.is_closing)
    await asyncio.sleep(0)


async def measure(sinks: SinkChain, sessions: int, messages: int) -> float:
    """Microseconds of user time for each session."""
    options = replace(build_options(0), sinks=sinks)
    loop, acceptor, house = asyncio.get_running_loop(), ordeal._Acceptor(0), House()
    before = time.process_time()
    for _ in range(sessions):
        await converse(ordeal.Session(options, acceptor, house, loop=loop), Transport(False), messages)
        acceptor.messages.clear()
    return (time.process_time() - before) / sessions * 1e6


def print_figures(messages: int, figures: dict[object, list[float]]) -> None:
    """Medians, and of each round what it is more than without sinks."""
    rows = [["sinks", "us a session", "more, us", "ratio"]]
    for name, costs in figures.items():
        more = statistics.median(cost - base for cost, base in zip(costs, figures[0], strict=True))
        ratio = statistics.median(base / cost for cost, base in zip(costs, figures[0], strict=True))
        rows.append([str(name), f"{statistics.median(costs):.1f}", f"{more:+.2f}", f"{ratio:.3f}"])
    print(f"{messages} messages a session\n{table(rows)}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    chains = {name: chain_of(name if isinstance(name, int) else 0) for name in BOUND}
    for messages in (1, 20):
        figures: dict[object, list[float]] = {name: [] for name in BOUND}
        for number in range(options.rounds + 1):
            for name in random.Random(number).sample(BOUND, len(BOUND)):
                cost = asyncio.run(measure(chains[name], options.sessions // messages, messages))
                if number:  # the first round warms up
                    figures[name].append(cost)
        print_figures(messages, figures)


if __name__ == "__main__":
    main()
