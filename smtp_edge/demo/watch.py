"""What the relays say while the demo runs: routing tables by the admin call, attempts by their logs.

Nothing here enters the balance of the ledger. It serves the live table, the time to reroute and the reasons of
duplicates at an exit.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from smtp_edge.demo.ledger import Doubt, Reroute

CALL_TIMEOUT_S = 1.0
POLL_S = 0.05
UNUSABLE = frozenset({"down", "half-open"})
"""States in which a hop gets no ordinary mail (a half-open one gets single trials)."""


@dataclass(frozen=True, slots=True)
class HopView:
    """One next hop in one relay's routing table."""

    hop: str
    label: str
    state: str
    verdict: str
    share: float
    capacity_mps: float
    latency_s: float | None
    window: int
    inflight: int
    backlog_there: int
    reason: str


@dataclass(frozen=True, slots=True)
class RelayView:
    """One relay's answer to GetStatus and GetRoutes (its first class)."""

    relay: str
    backlog: int
    accepted: int
    relayed: int
    duplicates_dropped: int
    hops: tuple[HopView, ...]
    node_count: int = 0

    def hop(self, hop: str) -> HopView | None:
        """The next hop of that id."""
        return next((view for view in self.hops if view.hop == hop), None)


class AdminCalls:
    """Blocking admin calls to several relays. Any thread; a relay that does not answer in time is None."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        import grpc

        from smtpmesh.admin.v1 import admin_pb2, admin_pb2_grpc

        self._grpc, self._messages, self._service = grpc, admin_pb2, admin_pb2_grpc
        self._addresses = dict(addresses)
        self._stubs: dict[str, Any] = {}
        self._channels: list[Any] = []
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 200)]
        for relay, address in self._addresses.items():
            channel = grpc.insecure_channel(address, options=options)
            self._channels.append(channel)
            self._stubs[relay] = admin_pb2_grpc.AdminStub(channel)

    def call(self, relay: str, method: str, **fields: object) -> Any | None:
        """The answer of one method, or None."""
        request = getattr(self._messages, f"{method}Request")(**fields)
        try:
            return getattr(self._stubs[relay], method)(request, timeout=CALL_TIMEOUT_S)
        except self._grpc.RpcError:
            return None

    def view(self, relay: str) -> RelayView | None:
        """Status and routing table of one relay."""
        status, routes = self.call(relay, "GetStatus"), self.call(relay, "GetRoutes")
        if status is None or routes is None:
            return None
        entry = routes.routes[0] if routes.routes else None
        return RelayView(
            relay=relay,
            backlog=entry.backlog if entry else 0,
            accepted=status.accepted,
            relayed=status.relayed,
            duplicates_dropped=status.duplicates_dropped,
            hops=tuple(_hop_view(hop) for hop in entry.next_hops) if entry else (),
        )

    def views(self) -> dict[str, RelayView | None]:
        """All relays."""
        return {relay: self.view(relay) for relay in self._addresses}

    def state(self, relay: str, hop: str) -> str | None:
        """State of a hop in a relay's routing table."""
        routes = self.call(relay, "GetRoutes")
        found = [view.state for entry in routes.routes for view in entry.next_hops if view.hop == hop] if routes else []
        return found[0] if found else None

    def members(self, relay: str) -> int:
        """Nodes with a live session that a relay knows, itself included."""
        answer = self.call(relay, "ListNodes")
        return sum(1 for node in answer.nodes if node.self or node.session) if answer else 0

    def waiting(self, relay: str) -> int | None:
        """Undelivered messages in a relay's queue; None if it does not answer."""
        answer = self.call(relay, "GetQueue", limit=1)
        return sum(backlog.count for backlog in answer.classes) + answer.held if answer else None

    def close(self) -> None:
        """Close all channels."""
        for channel in self._channels:
            channel.close()


def _hop_view(hop: Any) -> HopView:
    return HopView(
        hop=hop.hop,
        label=hop.label,
        state=hop.state,
        verdict=hop.verdict,
        share=hop.share,
        capacity_mps=hop.capacity_mps,
        latency_s=hop.latency_s if hop.HasField("latency_s") else None,
        window=hop.window,
        inflight=hop.inflight,
        backlog_there=hop.backlog_there,
        reason=hop.reason,
    )


class DownWatch:
    """Polls every relay until its routing table shows a hop unusable; one thread for each relay."""

    def __init__(self, calls: AdminCalls, relays: Iterable[str], hop: str) -> None:
        self._calls, self._hop = calls, hop
        self.seen_at: dict[str, float | None] = dict.fromkeys(relays)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._poll, args=(relay,), daemon=True) for relay in self.seen_at]

    def start(self) -> None:
        """Begin, before the hop is killed."""
        for thread in self._threads:
            thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait until all have seen it, at most so long."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._stop.set()

    def _poll(self, relay: str) -> None:
        while not self._stop.wait(POLL_S):
            if self._calls.state(relay, self._hop) in UNUSABLE:
                self.seen_at[relay] = time.time()
                return


# -- logs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attempt:
    """One canonical `attempt` line of a relay's log."""

    relay: str
    hop: str
    outcome: str
    queue_id: str
    began_at: float
    ended_at: float


@dataclass(slots=True)
class LogReader:
    """Reads on where it stopped; a line that is not JSON (a torn one after kill -9) is skipped."""

    relay: str
    path: Path
    _offset: int = 0
    _rest: bytes = field(default=b"")

    def read(self) -> list[dict[str, Any]]:
        """New complete lines, as objects."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            chunk = self._rest + file.read()
            self._offset = file.tell()
        *lines, self._rest = chunk.split(b"\n")
        found = [parse_log_line(line) for line in lines]
        return [line for line in found if line is not None]


def parse_log_line(line: bytes) -> dict[str, Any] | None:
    """A log line as an object; None if it is not one."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_attempts(logs: Mapping[str, Path]) -> list[Attempt]:
    """All attempts that the relays logged, in the order of their beginning."""
    found = [_attempt(relay, line) for relay, path in logs.items() for line in LogReader(relay, path).read()]
    return sorted((attempt for attempt in found if attempt), key=lambda attempt: attempt.began_at)


def _attempt(relay: str, line: Mapping[str, Any]) -> Attempt | None:
    if line.get("event") != "attempt":
        return None
    ended_at = datetime.fromisoformat(line["timestamp"]).timestamp()
    began_at = ended_at - float(line["duration_s"])
    return Attempt(relay, line["next_hop"], line["outcome"], line["queue_id"], began_at, ended_at)


def find_doubts(attempts: Iterable[Attempt], host_names: Mapping[str, str]) -> list[Doubt]:
    """Attempts that ended in doubt. `host_names`: hop id -> name for people."""
    return [
        Doubt(attempt.relay, host_names.get(attempt.hop, attempt.hop), attempt.ended_at)
        for attempt in attempts
        if attempt.outcome == "in-doubt"
    ]


def measure_reroute(
    label: str, hop: str, killed_at: float, seen_at: Mapping[str, float | None], attempts: Iterable[Attempt]
) -> Reroute:
    """From the relays' tables and logs: when the hop was last used as usable, when each table showed it down."""
    uses = [
        attempt.began_at - killed_at
        for attempt in attempts
        if attempt.hop == hop and killed_at <= attempt.began_at < (seen_at.get(attempt.relay) or float("inf"))
    ]
    seen_s = {relay: None if at is None else max(0.0, at - killed_at) for relay, at in seen_at.items()}
    return Reroute(label, killed_at, max(uses, default=None), seen_s)
