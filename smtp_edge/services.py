"""What sinks may ask of their node (`Sink.node`): who it is, a folder of their own, to send mail, to flush a queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from smtp_edge.acceptor import QueueAcceptor
from smtp_edge.postmaster import Order, Postmaster
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.queue.selection import Selection
from smtp_edge.queue.survey import FIRST
from smtp_edge.rulings import Action
from smtp_edge.sinks.api import Mail


@dataclass(frozen=True, slots=True)
class Services:
    """For one binding. Satisfies `smtp_edge.sinks.api.NodeServices`."""

    name: str
    """Of the binding."""
    node_id: str
    _hostname: Callable[[], str]
    _folder: Path
    _acceptor: Callable[[], QueueAcceptor]
    _postmaster: Callable[[], Postmaster]

    @property
    def hostname(self) -> str:
        """As the node greets now."""
        return self._hostname()

    @property
    def data_dir(self) -> Path:
        """See the protocol."""
        folder = self._folder / quote(self.name, safe="")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    async def submit(self, mail: Mail) -> str:
        """See the protocol."""
        if not mail.recipients:
            raise ValueError("a message needs a recipient")
        return await self._acceptor().originate(mail, f"sink {self.name}")

    async def flush(self, domains: Sequence[str]) -> int:
        """See the protocol."""
        if not domains:
            return 0
        selection = Selection(domains=tuple(name.lower() for name in domains), states=(DeliveryState.DEFERRED,))
        order = Order(Action.RETRY, selection, f"sink {self.name}")
        page = await self._postmaster().carry_out(order, FIRST)
        count = len(page.changed)
        while page.after is not None:
            page = await self._postmaster().carry_out(order, page.after)
            count += len(page.changed)
        return count
