"""One gossip process and nothing else of a relay: what the gossip benchmarks and namespace tests start many times.

    python -m tests.bench.gossip_node FOLDER HOST:PORT [SEED ...]

FOLDER holds ca.crt, node.crt and node.key (`tests.bench.lab.cluster` issues them) and keeps the state file. It writes
one JSON object a line on stdout, each with `at`, seconds of CLOCK_MONOTONIC, which processes of one machine share:

    ready    node_id, address
    session  node, up, reason
    lost     node: it was within reach, and is not (`lost_nodes`)
    found    node: it is within reach, for the first time or again
    stored   origin, mark: a change by `publish` is in the database here (at its origin too)
    status   root, names, sessions, lost, found, bytes_sent: the answer to `status`

and reads commands on stdin: `publish MARK` (a link with that mark in place of the last one), `every SECONDS` (publish
by itself, 0 ends it), `status`, `stop`. The end of stdin stops it too, so that no process outlives its starter.

Bytes are TCP_INFO's `tcpi_bytes_sent` over the process' own sockets: payload with TLS and HTTP/2, without IP and TCP
headers, with retransmissions. /proc/PID/net counts a whole namespace, and /proc/PID/io no sendmsg(2), which gRPC uses.
Sockets that were closed are no longer counted: take differences while nothing connects or leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import structlog
import uvloop

from gossip.identity import Identity
from gossip.linkstate import LinkState, LinkStatus, NodeId, NodeInfo, Snapshot
from gossip.service import GossipService
from gossip.settings import GossipSettings
from gossip.status import MemberState

POLL_S = 0.05
"""Verdicts that come from a timer are seen this much late; those that come with a frame or a session at once."""
MARK = "host:mark-"
"""A new hop for each change, not a toggled one: flap damping at the origin is not what is measured here."""
BYTES_SENT_OFFSET = 200
"""Of tcpi_bytes_sent in struct tcp_info (linux/tcp.h, since Linux 4.19)."""


def lost_nodes(service: GossipService) -> set[NodeId]:
    """Known nodes out of reach as this node sees it."""
    return {member.node_id for member in service.members() if member.state is MemberState.UNREACHABLE}


def known_nodes(service: GossipService) -> set[NodeId]:
    """All others that this node has heard of."""
    return {session.node_id for session in service.sessions()}


class Node:
    """A service, and a line for everything that it concludes."""

    def __init__(self, folder: Path, listen: str, seeds: tuple[str, ...]) -> None:
        self.identity = Identity.load(folder / "ca.crt", folder / "node.crt", folder / "node.key")
        self.listen = listen
        self.found: set[NodeId] = set()
        """Within reach. Only these can be lost: a node that was just started has not lost what it never met."""
        self.marks: dict[NodeId, str] = {}
        self.changed = asyncio.Event()
        self.numbers = itertools.count(1)
        self.every_s = 0.0
        self.service = GossipService(
            self.identity,
            GossipSettings(listen=listen, join=seeds),
            state_path=folder / "gossip.state",
            on_change=self.on_change,
            on_session=self.on_session,
        )

    async def run(self) -> None:
        """Until `stop` or the end of stdin."""
        address = await self.service.start()
        self.service.publish_info(NodeInfo(self.identity.name, address, "127.0.0.1:1"))
        say("ready", node_id=self.identity.node_id, address=address)
        tasks = [asyncio.create_task(self.watch()), asyncio.create_task(self.publish_often())]
        try:
            await self.obey()
        finally:
            for task in tasks:
                task.cancel()
            await self.service.stop()

    # -- what it sees --------------------------------------------------------------------------------------------------

    def on_session(self, node: NodeId, up: bool, reason: str) -> None:
        """A session came or went."""
        say("session", node=node, up=up, reason=reason)
        self.changed.set()

    def on_change(self, snapshot: Snapshot) -> None:
        """The database is different."""
        for record in snapshot.nodes:
            mark = next((link.hop for link in record.links if link.hop.startswith(MARK)), "")
            if mark and mark != self.marks.get(record.node_id):
                self.marks[record.node_id] = mark
                say("stored", origin=record.node_id, mark=mark.removeprefix(MARK))
        self.changed.set()

    async def watch(self) -> None:
        """Say who was lost and found, at once after a callback and otherwise every `POLL_S`."""
        while True:
            lost = lost_nodes(self.service)
            for node in sorted(lost & self.found):
                say("lost", node=node)
            reached = known_nodes(self.service) - lost
            for node in sorted(reached - self.found):
                say("found", node=node)
            self.found = reached
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.changed.wait()

    def status(self) -> None:
        """Answer the command."""
        snapshot = self.service.snapshot()
        say(
            "status",
            root=snapshot.root,
            names=[record.info.name for record in snapshot.nodes],
            sessions=[session.node_id for session in self.service.sessions() if session.up],
            lost=sorted(lost_nodes(self.service)),
            found=sorted(self.found),
            bytes_sent=bytes_sent(),
        )

    # -- what it is told -----------------------------------------------------------------------------------------------

    async def obey(self) -> None:
        """Commands, one a line."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            match line.decode("ascii").split():
                case ["publish", mark]:
                    self.publish(mark)
                case ["every", seconds]:
                    self.every_s = float(seconds)
                case ["status"]:
                    self.status()
                case ["stop"]:
                    return
                case words:
                    say("unknown", words=words)

    def publish(self, mark: str) -> None:
        """Another link in place of the last one."""
        self.service.publish_links([LinkState(MARK + mark, LinkStatus.UP, 1000, 950, 5000, 2000, samples=10)])

    async def publish_often(self) -> None:
        """One change every `every_s`, out of step with the other nodes."""
        while True:
            if self.every_s == 0.0:
                await asyncio.sleep(0.2)
                continue
            await asyncio.sleep(self.every_s * random.uniform(0.5, 1.5))
            self.publish(f"{self.identity.name}-{next(self.numbers)}")


def bytes_sent() -> int:
    """By TCP over all open sockets of this process."""
    total = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError, struct.error):
            if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(number))) as own:
                if own.family in (socket.AF_INET, socket.AF_INET6) and own.type == socket.SOCK_STREAM:
                    info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("=Q", info, BYTES_SENT_OFFSET)[0]
    return total


def say(event: str, **fields: Any) -> None:
    """One line on stdout."""
    print(json.dumps({"at": time.monotonic(), "event": event, **fields}), flush=True)


def main() -> None:
    """See the module."""
    if len(sys.argv) < 3:
        sys.exit("usage: python -m tests.bench.gossip_node FOLDER HOST:PORT [SEED ...]")
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    folder, listen, *seeds = sys.argv[1:]

    async def work() -> None:
        await Node(Path(folder), listen, tuple(seeds)).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as relays do
        runner.run(work())


if __name__ == "__main__":
    main()
