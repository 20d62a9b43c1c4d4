"""The demo's story: start a mesh, send real mail through it, break it twice, account for every message.

    0 s   three relays and three smart hosts of 20, 40 and 80 msg/s, as separate processes on loopback
    12 s  kill -9 of the fastest smart host under full load; it comes back 8 s later
    25 s  kill -9 of a relay with mail in its hands; it comes back 4 s later
    35 s  the clients stop, the queues drain, the ledger

The offered load is lowered while the fastest host is dead, and said so: what is left carries 60 msg/s.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from smtp_edge.demo.cluster import Cluster, ClusterError, HostPlan
from smtp_edge.demo.ledger import Ledger, build_ledger, to_json, to_text
from smtp_edge.demo.screen import Moment, Screen, choose_screen, describe_routes
from smtp_edge.demo.submit import Submitter
from smtp_edge.demo.watch import AdminCalls, DownWatch, LogReader, find_doubts, measure_reroute, read_attempts

HOSTS = (HostPlan("A", 20), HostPlan("B", 40), HostPlan("C", 80))
VICTIM_HOST, VICTIM_RELAY = "smart host C", "relay B"
FULL_MPS = 126.0
"""Nine tenths of what the smart hosts take together: enough that the shares must follow the capacities."""
REDUCED_MPS = 40.0
"""Below the 60 msg/s of smart hosts A and B, so that what queued up in the first seconds drains too."""

MEMBERS_TIMEOUT_S = 10.0
WARM_UP_S = 5.0
"""Shares are counted from here to the first kill."""
KILL_HOST_S, SLOW_DOWN_S, HOST_BACK_S, SPEED_UP_S = 12.0, 14.0, 20.0, 22.0
KILL_RELAY_S, RELAY_BACK_S = 25.0, 29.0
STOP_S, DRAIN_MAX_S = 35.0, 15.0
REROUTE_WAIT_S = 5.0
QUIET_S = 0.5
"""Queues must be empty this long before the drain is believed."""

EXIT_BALANCED, EXIT_UNBALANCED, EXIT_INTERRUPTED = 0, 1, 130


def run(*, json_output: bool, keep: bool, directory: Path | None, seconds_scale: float) -> int:
    """Tell the story; the exit code of the command."""
    folder = directory or Path(tempfile.mkdtemp(prefix="smtpmesh-demo-"))
    screen = choose_screen(json_output)
    balanced = False
    try:
        with terminate_as_interrupt(), Cluster(folder, hosts=HOSTS) as cluster:
            story = Story(cluster, screen, seconds_scale)
            ledger = story.tell()
            balanced = ledger.balanced
            screen.close()
            _print_ledger(ledger, screen, json_output)
            _print_next(cluster, screen, keep)
            if keep:
                signal.pause()
    except ClusterError as error:
        screen.close()
        screen.say(f"the demo could not run: {error}")
    except KeyboardInterrupt:
        screen.close()
        screen.say("stopped")
        return EXIT_BALANCED if balanced else EXIT_INTERRUPTED
    finally:
        screen.close()
        if directory is None and balanced:
            shutil.rmtree(folder, ignore_errors=True)
    if not balanced:
        screen.say(f"logs and ledgers are kept in {folder}")
    return EXIT_BALANCED if balanced else EXIT_UNBALANCED


class Story:
    """One run. Seconds are since the first message and multiplied by `scale`."""

    def __init__(self, cluster: Cluster, screen: Screen, scale: float) -> None:
        self._cluster, self._screen, self._scale = cluster, screen, scale
        self._rate_mps = FULL_MPS
        self._began = time.monotonic()
        self._began_at = time.time()
        self._readers = [LogReader(name, host.ledger) for name, host in cluster.hosts.items()]
        self._delivered: set[str] = set()
        self._shown_at = self._began

    def tell(self) -> Ledger:
        """All of it."""
        say = self._screen.say
        rates = "/".join(f"{host.plan.rate_mps:.0f}" for host in self._cluster.hosts.values())
        say(f"3 relays, 3 smart hosts of {rates} msg/s, all on 127.0.0.1; queues and logs in {self._cluster.directory}")
        say("Ctrl-C stops everything. Starting six processes ...")
        started = time.monotonic()
        self._cluster.start()
        self._calls = AdminCalls({name: relay.admin for name, relay in self._cluster.relays.items()})
        try:
            self._meet()
            say(f"ready after {time.monotonic() - started:.1f} s: every relay sees {len(self._cluster.relays)} members")
            self._say_routes("relay A")
            self._submitter = Submitter(self._cluster.submission_targets(), rate_mps=self._rate_mps)
            self._began, self._began_at = time.monotonic(), time.time()
            self._shown_at = self._began
            self._submitter.start()
            say(f"clients (smtplib) submit {FULL_MPS:.0f} msg/s to all relays in turn; no weights are configured")
            self._host_dies()
            self._relay_dies()
            self._drain()
            return self._account()
        finally:
            self._calls.close()

    # -- chapters ------------------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        deadline = time.monotonic() + MEMBERS_TIMEOUT_S
        relays = list(self._cluster.relays)
        while not all(self._calls.members(relay) == len(relays) for relay in relays):
            if time.monotonic() > deadline:
                raise ClusterError(f"the relays did not find each other within {MEMBERS_TIMEOUT_S:.0f} s")
            time.sleep(0.1)

    def _host_dies(self) -> None:
        say, hop = self._screen.say, self._cluster.hosts[VICTIM_HOST].plan.hop
        self._until(KILL_HOST_S)
        watch = DownWatch(self._calls, self._cluster.relays, hop)
        watch.start()
        say(f"{self._elapsed_s():5.1f} s  kill -9 {VICTIM_HOST} (57 % of the capacity)")
        killed_at = self._cluster.kill(VICTIM_HOST)
        watch.finish(REROUTE_WAIT_S)
        self._watched = (watch, killed_at, hop)
        self._say_reroute(watch, killed_at)
        self._until(SLOW_DOWN_S)
        self._set_rate(REDUCED_MPS, "the survivors carry 60")
        self._say_routes("relay A")
        self._until(HOST_BACK_S)
        self._cluster.restart(VICTIM_HOST)
        say(f"{self._elapsed_s():5.1f} s  {VICTIM_HOST} is back; relays try single messages, then more and more")
        self._until(SPEED_UP_S)
        self._set_rate(FULL_MPS, "as before")

    def _relay_dies(self) -> None:
        say = self._screen.say
        self._until(KILL_RELAY_S)
        waiting = self._calls.waiting(VICTIM_RELAY)
        self._cluster.kill(VICTIM_RELAY)
        say(f"{self._elapsed_s():5.1f} s  kill -9 {VICTIM_RELAY} with {waiting} messages in its hands")
        self._until(RELAY_BACK_S)
        self._cluster.restart(VICTIM_RELAY)
        say(f"{self._elapsed_s():5.1f} s  {VICTIM_RELAY} is back with its queue, and delivers what it had accepted")
        self._until(STOP_S)

    def _drain(self) -> None:
        self._submitter.stop()
        self._rate_mps = 0.0
        self._screen.say(f"{self._elapsed_s():5.1f} s  the clients stop; waiting for the queues to drain")
        deadline = time.monotonic() + DRAIN_MAX_S
        empty_since: float | None = None
        while time.monotonic() < deadline:
            self._show_if_due()
            waiting = [self._calls.waiting(relay) for relay in self._cluster.relays]
            if any(count != 0 for count in waiting):
                empty_since = None
            elif empty_since is None:
                empty_since = time.monotonic()
            elif time.monotonic() - empty_since >= QUIET_S:
                break
            time.sleep(0.1)
        self._say_routes("relay A")

    def _account(self) -> Ledger:
        cluster = self._cluster
        attempts = read_attempts(cluster.logs())
        waiting = [self._calls.waiting(relay) for relay in cluster.relays]
        watch, killed_at, hop = self._watched
        host_names = {host.plan.hop: name for name, host in cluster.hosts.items()}
        kill_host_at = next(kill.at for kill in cluster.kills if kill.name == VICTIM_HOST)
        return build_ledger(
            self._submitter.submissions(),
            cluster.arrivals(),
            kills=cluster.kills,
            doubts=find_doubts(attempts, host_names),
            reroutes=[measure_reroute(VICTIM_HOST, hop, killed_at, watch.seen_at, attempts)],
            rates={name: host.plan.rate_mps for name, host in cluster.hosts.items()},
            window=(self._began_at + WARM_UP_S * self._scale, kill_host_at),
            waiting=None if None in waiting else sum(count or 0 for count in waiting),
        )

    # -- telling -------------------------------------------------------------------------------------------------------

    def _set_rate(self, rate_mps: float, why: str) -> None:
        self._rate_mps = rate_mps
        self._submitter.set_rate(rate_mps)
        self._screen.say(f"{self._elapsed_s():5.1f} s  clients now offer {rate_mps:.0f} msg/s ({why})")

    def _say_reroute(self, watch: DownWatch, killed_at: float) -> None:
        for relay, at in watch.seen_at.items():
            after = "did not notice" if at is None else f"took it out after {max(0.0, at - killed_at) * 1000:.0f} ms"
            self._screen.say(f"           {relay} {after}")

    def _say_routes(self, relay: str) -> None:
        view = self._calls.view(relay)
        if view is not None:
            for line in describe_routes(view):
                self._screen.say(line)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def _until(self, second: float) -> None:
        """Show moments until that second of the story."""
        until = self._began + second * self._scale
        while (left_s := until - time.monotonic()) > 0:
            self._show_if_due()
            time.sleep(min(0.2, max(0.0, left_s)))

    def _show_if_due(self) -> None:
        now = time.monotonic()
        since_s = now - self._shown_at
        if since_s < self._screen.period_s:
            return
        recent: Counter[str] = Counter()
        for reader in self._readers:
            lines = reader.read()
            recent[reader.relay] = len(lines)
            self._delivered.update(line["id"] for line in lines)
        self._shown_at = now
        self._screen.show(
            Moment(
                elapsed_s=self._elapsed_s(),
                offered_mps=self._rate_mps,
                accepted=self._submitter.counts().accepted,
                delivered=len(self._delivered),
                recent_shares={host: count / max(1, recent.total()) for host, count in sorted(recent.items())},
                recent_mps=recent.total() / since_s,
                relays=self._calls.views(),
            )
        )


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: the children are stopped."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_ledger(ledger: Ledger, screen: Screen, json_output: bool) -> None:
    if json_output:
        sys.stdout.write(json.dumps(to_json(ledger), indent=2) + "\n")
        sys.stdout.flush()
    else:
        screen.say("\n" + to_text(ledger) + "\n")


def _print_next(cluster: Cluster, screen: Screen, keep: bool) -> None:
    relay = cluster.relays["relay A"]
    host, port = relay.smtp
    command = _command()
    screen.say(
        "the cluster stays up until Ctrl-C; try:" if keep else "with --keep the cluster stays up, and you can try:"
    )
    screen.say(f"  {command} routes --admin {relay.admin}")
    screen.say(f"  {command} explain reader@example.test --admin {relay.admin}")
    screen.say(f"  {command} nodes --admin {relay.admin}")
    mail = "'me@example.test', 'you@example.test', 'Subject: hello\\n\\nhello'"
    screen.say(f"  python3 -c \"import smtplib; smtplib.SMTP('{host}', {port}).sendmail({mail})\"")
    if keep:
        screen.say(f"what arrives is written to {cluster.directory}/smart-host-*.ledger")


def _command() -> str:
    """How to call the CLI from here."""
    python = Path(sys.executable)
    with contextlib.suppress(ValueError):
        python = python.relative_to(Path.cwd())
    script = python.with_name("smtpmesh")
    return str(script) if script.exists() else f"{python} -m smtp_edge.cli"
