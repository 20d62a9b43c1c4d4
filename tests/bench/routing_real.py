"""Relays, smart hosts and mail on real sockets: shares, failures and wake-ups (rows 16 and 17).

    python3 deploy/run.py bench routing_real [--scale 1.0] [--trials 3]

Five relay processes and three smart-host processes that take 100, 200 and 400 messages a second; nobody tells the
relays these numbers. Clients offer a tenth more than the hosts take together. Where the machine cannot carry that much
mail through the five relays (they share its cores with the hosts and the clients), every rate is smaller by one factor:
a third of what it carries to hosts without a limit, measured first and printed; `--scale` sets it by hand.

Row 16: what was delivered in 20 s, and who got it; then the fastest host is killed, and what the other two got in the
10 s that begin 2 s later. Row 17: the last attempt that any relay begins at a dead host, and the last transfer to a
dead relay, while it holds it for usable (single trials of what is known to be dead come later, they find out when it
is back); what is lost in the end. Wake: mail for a dead host waits on every relay; from its return until each delivers.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smtp_edge.demo.cluster import Cluster, HostPlan
from smtp_edge.demo.ledger import Arrival, Reroute, count_shares
from smtp_edge.demo.smart_host import ID_HEADER
from smtp_edge.demo.submit import Submitter
from smtp_edge.demo.watch import AdminCalls, DownWatch, measure_reroute, read_attempts
from tests.bench.lab.bars import Row, bar, show
from tests.e2e.scene import account, admin_calls, cut_off, drain, wait_members, wait_until

RELAYS = ("A", "B", "C", "D", "E")
RATES = {"A": 100.0, "B": 200.0, "C": 400.0}
OFFERED = 1.1
CALM_LOAD = 0.6
CARRIED_S, WARM_S, STEADY_S, REACT_S, AFTER_S = 8.0, 15.0, 20.0, 2.0, 10.0
SCALE_SHARE = 1 / 3
"""Of what the machine carries: queues that grow must cost no host its speed."""
TOLERANCE = 0.1
WANTED_S = 1.0
WAKE_DEAD_S = 12.0
WAKE_MPS = 2.0
"""Of each relay, while the host is dead."""
THREADS = 16


@contextmanager
def running(hosts: Sequence[HostPlan], without_exits: Iterable[str] = ()) -> Iterator[tuple[Cluster, AdminCalls]]:
    """A cluster that serves, in a folder of its own. Some relays may have no way out of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="smtpmesh-bench-") as folder,
        Cluster(Path(folder) / "cluster", relays=RELAYS, hosts=hosts) as cluster,
    ):
        for name in without_exits:
            cut_off(cluster, name)
        cluster.start()
        calls = admin_calls(cluster)
        wait_members(cluster, calls, 30.0)
        yield cluster, calls
        calls.close()


def small(message_id: str) -> bytes:
    """Cheap for the clients, who share the machine."""
    body = ".a line that begins with a dot\r\n" + "x" * 70 + "\r\n"
    return f"{ID_HEADER}: {message_id}\r\nSubject: {message_id}\r\n\r\n{body}".encode()


def submitter_to(cluster: Cluster, rate_mps: float, prefix: str = "m") -> Submitter:
    """Clients of all relays."""
    return Submitter(
        cluster.submission_targets(), rate_mps=rate_mps, thread_count=THREADS, prefix=prefix, message=small
    )


def plans(scale: float) -> list[HostPlan]:
    """The three hosts; each works on so many messages at once that waiting for a turn does not slow it."""
    return [HostPlan(letter, rate * scale, workers=8) for letter, rate in RATES.items()]


def measure_carried() -> float:
    """Messages a second that this machine brings through the relays to hosts without a limit."""
    with running([HostPlan(letter) for letter in RATES]) as (cluster, calls):
        submitter = submitter_to(cluster, 10_000.0)
        submitter.start()
        time.sleep(CARRIED_S)
        since = time.time() - CARRIED_S / 2
        submitter.stop()
        until = time.time()
        drain(cluster, calls, submitter)
        return len(within(cluster.arrivals(), since, until)) / (until - since)


def within(arrivals: Sequence[Arrival], since: float, until: float) -> list[Arrival]:
    """Those of a time, Unix seconds."""
    return [arrival for arrival in arrivals if since <= arrival.at < until]


@dataclass(frozen=True)
class Shared:
    """Row 16, one trial."""

    delivered: float
    """Of what the hosts take."""
    off: float
    """The largest distance of a host's share from its part of the capacity, as a part of that."""
    after: float
    after_off: float
    lost: int


def play_shares(scale: float) -> Shared:
    """All five relays full, then without the fastest host."""
    total, left = sum(RATES.values()) * scale, {name: rate for name, rate in RATES.items() if name != "C"}
    with running(plans(scale)) as (cluster, calls):
        submitter = submitter_to(cluster, OFFERED * total)
        submitter.start()
        time.sleep(WARM_S + STEADY_S)
        killed = cluster.kill("smart host C")
        time.sleep(REACT_S + AFTER_S)
        arrivals = cluster.arrivals()
        cluster.restart("smart host C")
        drain(cluster, calls, submitter, 120.0)
        before, after = (killed - STEADY_S, killed), (killed + REACT_S, killed + REACT_S + AFTER_S)
        return Shared(
            delivered=len(within(arrivals, *before)) / STEADY_S / total,
            off=_distance(count_shares(arrivals, before), RATES),
            after=len(within(arrivals, *after)) / AFTER_S / (sum(left.values()) * scale),
            after_off=_distance(count_shares(arrivals, after), left),
            lost=len(account(cluster, submitter).lost),
        )


def _distance(shares: dict[str, float], rates: dict[str, float]) -> float:
    """`shares`: by the host's name for people."""
    parts = {f"smart host {letter}": rate / sum(rates.values()) for letter, rate in rates.items()}
    return max(abs(shares.get(name, 0.0) - part) / part for name, part in parts.items())


@dataclass(frozen=True)
class Failed:
    """Row 17, one trial."""

    reroute: Reroute
    lost: int
    doubled_inside: int


def play_host_dies(scale: float) -> Failed:
    """Under load, with all its connections open."""
    with running(plans(scale)) as (cluster, calls):
        submitter = submitter_to(cluster, CALM_LOAD * sum(RATES.values()) * scale)
        submitter.start()
        time.sleep(WARM_S)
        reroute = _kill(cluster, calls, "smart host C", "host:c", cluster.relays)
        return _end(cluster, calls, submitter, reroute)


def play_relay_dies(scale: float) -> Failed:
    """Two of the relays have no way out of their own, so that mail passes between relays; one that has is killed."""
    with running(plans(scale), without_exits=("relay A", "relay B")) as (cluster, calls):
        submitter = submitter_to(cluster, CALM_LOAD * sum(RATES.values()) * scale)
        submitter.start()
        time.sleep(WARM_S)
        peer = f"peer:{node_id(calls, 'relay E')}"
        reroute = _kill(cluster, calls, "relay E", peer, [name for name in cluster.relays if name != "relay E"])
        return _end(cluster, calls, submitter, reroute)


def node_id(calls: AdminCalls, relay: str) -> str:
    """Of a relay that answers."""
    return str(calls.call(relay, "GetStatus").node_id)  # type: ignore[union-attr]


def _kill(cluster: Cluster, calls: AdminCalls, name: str, hop: str, watchers: Iterable[str]) -> Reroute:
    watch = DownWatch(calls, watchers, hop)
    watch.start()
    killed = cluster.kill(name)
    watch.finish(15.0)
    time.sleep(1.0)
    return measure_reroute(name, hop, killed, watch.seen_at, read_attempts(cluster.logs()))


def _end(cluster: Cluster, calls: AdminCalls, submitter: Submitter, reroute: Reroute) -> Failed:
    cluster.restart(reroute.hop)
    drain(cluster, calls, submitter, 120.0)
    ledger = account(cluster, submitter)
    return Failed(reroute, len(ledger.lost), ledger.doubled_in_mesh)


def play_wake() -> list[float]:
    """Seconds of each relay, from the return of its only host."""
    with running([HostPlan("A", workers=20)]) as (cluster, calls):
        cluster.kill("smart host A")
        submitter = submitter_to(cluster, WAKE_MPS * len(RELAYS))
        submitter.start()
        time.sleep(WAKE_DEAD_S)
        submitter.stop()
        waiting = [name for name in cluster.relays if (calls.waiting(name) or 0) > 0]
        assert len(waiting) == len(RELAYS), f"mail waits only on {', '.join(waiting)}"
        cluster.restart("smart host A")
        back = cluster.hosts["smart host A"].ready.stat().st_mtime
        wait_until(lambda: len({arrival.relay for arrival in cluster.arrivals()}) == len(RELAYS), 60.0, "all deliver")
        drain(cluster, calls, submitter)
        first: dict[str, float] = {}
        for arrival in sorted(cluster.arrivals(), key=lambda arrival: arrival.at):
            first.setdefault(arrival.relay, max(0.0, arrival.at - back))
        return list(first.values())


@dataclass
class Trials:
    """Everything that was seen."""

    scale: float
    carried: float
    shares: list[Shared] = field(default_factory=list)
    hosts: list[Failed] = field(default_factory=list)
    relays: list[Failed] = field(default_factory=list)
    wakes: list[list[float]] = field(default_factory=list)


def gather(trials: int, scale: float = 0.0) -> Trials:
    """Run it all, one after another: everything shares the machine already."""
    carried = 0.0 if scale else measure_carried()
    scale = scale or min(1.0, SCALE_SHARE * carried / sum(RATES.values()))
    found = Trials(scale, carried)
    for _ in range(trials):
        found.shares.append(play_shares(scale))
        found.hosts.append(play_host_dies(scale))
        found.relays.append(play_relay_dies(scale))
        found.wakes.append(play_wake())
    return found


def bars(found: Trials) -> list[Row]:
    """Rows 16 and 17, and the wake-up."""
    hosts = "/".join(f"{rate * found.scale:.0f}" for rate in RATES.values())
    machine = f" (the machine carries {found.carried:.0f}/s)" if found.carried else ""
    delivered, after = [item.delivered for item in found.shares], [item.after for item in found.shares]
    lost = sum(item.lost for item in (*found.shares, *found.hosts, *found.relays))
    inside = sum(item.doubled_inside for item in (*found.hosts, *found.relays))
    return [
        bar(
            f"16 real sockets, hosts of {hosts}/s{machine}: delivered / what they take",
            "0.95",
            _low(delivered),
            met=min(delivered) >= 0.95,
        ),
        bar(
            "16 the fastest killed: the others' rate after 2 s / what they take",
            "0.95",
            _low(after),
            met=min(after) >= 0.95,
        ),
        _off_bar("16 shares off the proportion of the capacities", [item.off for item in found.shares]),
        _off_bar("16 the survivors' shares off, after 2 s", [item.after_off for item in found.shares]),
        *(
            _reroute_bar(f"17 kill -9 of a {what}: last use", [item.reroute for item in failed])
            for what, failed in (("smart host", found.hosts), ("relay", found.relays))
        ),
        bar("17 lost, doubled inside the mesh", "0, 0", f"{lost}, {inside}", met=lost == inside == 0),
        bar(
            f"wake real sockets, {len(RELAYS)} relays: until all deliver",
            f"{WANTED_S:g} s",
            _high([max(times) for times in found.wakes]),
            met=max(itertools.chain(*found.wakes)) <= WANTED_S,
        ),
    ]


def _off_bar(text: str, values: list[float]) -> Row:
    measured = f"{statistics.median(values):.1%} ({max(values):.1%})"
    return bar(text, f"{TOLERANCE:.0%}", measured, met=max(values) <= TOLERANCE)


def _reroute_bar(text: str, reroutes: list[Reroute]) -> Row:
    last = [item.last_use_s or 0.0 for item in reroutes]
    seen = [item.everywhere_s for item in reroutes]
    known = [value for value in seen if value is not None]
    shown = f"shown down everywhere {_high(known)}" if len(known) == len(seen) else "NOT SHOWN DOWN EVERYWHERE"
    return bar(
        text, f"{WANTED_S:g} s", f"{_high(last)}; {shown}", met=max(last) <= WANTED_S and len(known) == len(seen)
    )


def _low(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f})"


def _high(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({max(values):.2f})"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.0, help="of all rates; 0 = what the machine carries")
    parser.add_argument("--trials", type=int, default=3)
    arguments = parser.parse_args()
    began = time.monotonic()
    print(show(bars(gather(arguments.trials, arguments.scale))))
    print(f"{arguments.trials} trials each; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
