"""The mail rate of a relay with no, one and ten sinks bound that concern none of the messages.

    python3 deploy/run.py bench sinks_rate [--messages 3000] [--rounds 7] [--size 4096]

Three relays of their own process, equal but for their [[sink]] sections, take mail in turn (the order changes with each
round) from Postfix's smtp-source and hand it to smtp-sink. The rate is messages by the time until the last one was
taken; beside it the processor time of the relay for each message, which the machine's other work disturbs less. The bar
is that of the ratio to the relay without sinks, in the same round.

The ten are bound to `rcpt` and `data`, as a scanner would be, each with a rule for other recipients.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from smtp_edge.demo.cluster import Cluster, Relay, find_port
from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.sinks.api import Message, Sink, Verdict
from tests.bench.lab.account import own_s
from tests.bench.lab.figures import table

BOUND = (0, 1, 10)
SESSIONS = 20
BAR = 0.95
SECTION = """\
[[sink]]
use = "tests.bench.sinks_rate:Nobody"
rule = "rcpt to=*@nobody-{number}.test"
"""


class Nobody(Sink):
    """Would be asked about recipients and messages, but for its rule."""

    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        raise AssertionError("its rule is for others")

    async def data(self, message: Message) -> Verdict | None:
        raise AssertionError("its rule is for others")


def processor_s(relay: Relay) -> float:
    """User and system time of its process so far."""
    assert relay.server.process is not None
    return own_s(relay.server.process.pid)


def run_once(source: str, relay: Relay, messages: int, size: int) -> tuple[float, float]:
    """(messages a second, processor microseconds of the relay a message)."""
    host, port = relay.smtp
    before, began = processor_s(relay), time.perf_counter()
    command = [
        source,
        "-s",
        str(SESSIONS),
        "-m",
        str(messages),
        "-l",
        str(size),
        "-f",
        "a@from.test",
        "-t",
        "b@to.test",
    ]
    subprocess.run([*command, f"{host}:{port}"], check=True, timeout=300)
    took_s = time.perf_counter() - began
    return messages / took_s, (processor_s(relay) - before) / messages * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=4096)
    options = parser.parse_args()
    source, sink = (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("smtp-source", "smtp-sink"))
    if source is None or sink is None:
        sys.exit("smtp-source and smtp-sink are needed: the Debian package postfix has them")
    with tempfile.TemporaryDirectory(prefix="sm-") as folder:
        measure(source, sink, Path(folder), options.messages, options.rounds, options.size)


def measure(source: str, sink: str, folder: Path, messages: int, rounds: int, size: int) -> None:
    """Print the table."""
    clusters: dict[int, Cluster] = {}
    port = find_port(set())
    server = subprocess.Popen([sink, "-u", "nobody", f"127.0.0.1:{port}", "200"])
    try:
        for count in BOUND:
            sections = "".join(SECTION.format(number=number) for number in range(count))
            clusters[count] = Cluster(
                folder / str(count), relays=("A",), hosts=(), external={"sink": port}, settings=sections
            )
            clusters[count].start()
        figures: dict[int, list[tuple[float, float]]] = {count: [] for count in BOUND}
        for relay in (cluster.relays["relay A"] for cluster in clusters.values()):
            run_once(source, relay, messages // 4, size)
        for number in range(rounds):
            order = random.Random(number).sample(BOUND, len(BOUND))
            for count in order:
                figures[count].append(run_once(source, clusters[count].relays["relay A"], messages, size))
                time.sleep(0.5)
        print_figures(figures)
    finally:
        for cluster in clusters.values():
            cluster.stop()
        server.terminate()
        server.wait()


def print_figures(figures: dict[int, list[tuple[float, float]]]) -> None:
    """Medians, spreads and the ratios of each round."""
    rows = []
    for count, runs in figures.items():
        ratios = [rate / base for (rate, _), (base, _) in zip(runs, figures[0], strict=True)]
        costs = [base / cost for (_, cost), (_, base) in zip(runs, figures[0], strict=True)]
        rates, work = [rate for rate, _ in runs], [cost for _, cost in runs]
        met = "" if not count else "met" if statistics.median(costs) >= BAR else "MISSED"
        rows.append(
            [
                str(count),
                f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})",
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f})",
                f"{statistics.median(work):.0f} ({min(work):.0f}-{max(work):.0f})",
                f"{statistics.median(costs):.3f} ({min(costs):.3f}-{max(costs):.3f})",
                met,
            ]
        )
    header = ["sinks", "messages/s", "rate, to none", "processor us", "work, none to it", f"bar {BAR}"]
    print(table([header, *rows]))


if __name__ == "__main__":
    main()
