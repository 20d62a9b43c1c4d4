"""Sinks that note each question in a file, and answer when a gate (a file) is gone: for nodes that tests kill."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from smtp_edge.envelope import Recipient
from smtp_edge.sinks.api import Expansion, Message, NextHop, Route, RouteRequest, Sink, Unreachable


class Noting(Sink):
    """`folder` has the notes and the gates."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    async def note(self, what: str, message: Message) -> None:
        """One line for each question, then wait at the gate."""
        number = os.open(self.folder / f"{what}.notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(number, f"{self.node.hostname} {message.headers.get('subject')}\n".encode())
        os.close(number)
        while (self.folder / f"{what}.gate").exists():  # noqa: ASYNC110  (another process takes it away)
            await asyncio.sleep(0.01)


class Scans(Noting):
    async def data(self, message: Message) -> None:
        message.add_header("X-Scanned", f"by {self.node.hostname}")
        await self.note("scan", message)


class Marks(Noting):
    async def data(self, message: Message) -> None:
        message.add_header("X-Marked", f"by {self.node.hostname}", last=True)
        await self.note("mark", message)


class Expands(Noting):
    async def expand(self, message: Message) -> Expansion | None:
        (recipient,) = message.envelope.recipients
        await self.note("expand", message)
        if not recipient.address.startswith("all@"):
            return None
        message.add_header("X-Expanded", f"by {self.node.hostname}")
        members = tuple(Recipient(f"member{number}@members.test") for number in range(3))
        return Expansion(members, sender="all-bounces@demo.test")


class Fails(Noting):
    """Cannot say who gets it, as long as the gate is there."""

    async def expand(self, message: Message) -> Expansion:
        if (self.folder / "expand.gate").exists():
            raise OSError("no members today")
        return Expansion((Recipient("ann@people.test"),), sender="bounces@lists.test")


class Table(Sink):
    """Routing by a static table: a domain's host, or why there is none. The mesh's own router is not asked."""

    def __init__(self, table: dict[str, str]) -> None:
        self.table = table

    async def route(self, delivery: RouteRequest) -> Route | Unreachable:
        host = self.table.get(delivery.recipients[0].domain, "")
        if host == "gone":
            return Unreachable("that domain is gone", for_good=True, status="5.1.2")
        return Route((NextHop(f"host:{host}"),)) if host else Unreachable("not today", retry_in_s=0.2)
