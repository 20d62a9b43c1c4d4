"""The modelled network: delays, loss, cuts in one direction or both. Pure: the world asks, this answers.

Sessions are TCP streams, so loss is delay: a lost segment comes again after a retransmission timeout that doubles
(RFC 6298 with Linux' 200 ms minimum), and what follows waits behind it. What is sent into a cut waits for its end.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from gossip.linkstate import NodeId

RTO_S = 0.2
RTO_MAX_S = 8.0


class Network:
    """`delay_s`: one way, lower and upper bound; each pair of nodes keeps its own value within them."""

    def __init__(self, rng: random.Random, *, delay_s: tuple[float, float] = (0.001, 0.001), loss: float = 0.0) -> None:
        self._rng, self._bounds, self.loss = rng, delay_s, loss
        self._salt = rng.getrandbits(32)
        self._cut: dict[tuple[NodeId, NodeId], int] = {}

    def delay_s(self, here: NodeId, there: NodeId) -> float:
        """The one-way time of a pair, both ways the same."""
        low, high = self._bounds
        if low == high:
            return low
        first, second = sorted((here, there))
        share = ((int(first[:8], 16) * 2_654_435_761 ^ int(second[:8], 16) ^ self._salt) % 9973) / 9973
        return low + (high - low) * share

    def flight_s(self, here: NodeId, there: NodeId) -> float:
        """The time of one segment, with its retransmissions."""
        flight_s, timeout_s = self.delay_s(here, there), RTO_S
        while self.loss and self._rng.random() < self.loss:
            flight_s += timeout_s
            timeout_s = min(RTO_MAX_S, timeout_s * 2)
        return flight_s

    def block(self, here: NodeId, there: NodeId) -> None:
        """Nothing passes from `here` to `there` any more."""
        self._cut[here, there] = self._cut.get((here, there), 0) + 1

    def unblock(self, here: NodeId, there: NodeId) -> None:
        """Undo one `block`."""
        left = self._cut.get((here, there), 0) - 1
        if left > 0:
            self._cut[here, there] = left
        else:
            self._cut.pop((here, there), None)

    def blocked(self, here: NodeId, there: NodeId) -> bool:
        """True while nothing passes."""
        return bool(self._cut) and (here, there) in self._cut

    def partition(self, one: Iterable[NodeId], other: Iterable[NodeId]) -> None:
        """Cut two groups from each other; lay it over other cuts."""
        others = list(other)
        for here in one:
            for there in others:
                self.block(here, there)
                self.block(there, here)

    def heal(self) -> list[tuple[NodeId, NodeId]]:
        """End all cuts; which there were."""
        cut = list(self._cut)
        self._cut.clear()
        return cut
