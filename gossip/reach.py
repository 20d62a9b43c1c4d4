"""Who can be reached: a walk over two-way sessions from this node, as every node's own records list them. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from gossip.linkstate import NodeId

Sessions = Callable[[NodeId], Iterable[NodeId]]
"""The peers that a node lists."""


def reachable(origin: NodeId, own: Iterable[NodeId], sessions: Sessions) -> frozenset[NodeId]:
    """Nodes on a path of two-way sessions from `origin`, itself included. `own` are its sessions of this moment."""
    found = {origin, *own}
    queue = deque(own)
    while queue:
        node = queue.popleft()
        for peer in sessions(node):
            if peer not in found and node in sessions(peer):
                found.add(peer)
                queue.append(peer)
    return frozenset(found)


def path_to_neighbour(
    origin: NodeId, own: Iterable[NodeId], target: NodeId, sessions: Sessions, *, skipped: frozenset[NodeId], hops: int
) -> list[NodeId] | None:
    """The shortest path to another neighbour of `target` that avoids it and `skipped`; both ends included."""
    wanted = {node for node in sessions(target) if target in sessions(node)} - skipped - {origin}
    before: dict[NodeId, NodeId] = {}
    queue = deque((node, 1) for node in own if node != target and node not in skipped)
    before.update((node, origin) for node, _ in queue)
    while queue:
        node, distance = queue.popleft()
        if node in wanted:
            path = [node]
            while path[-1] != origin:
                path.append(before[path[-1]])
            return path[::-1]
        if distance < hops:
            for peer in sessions(node):
                if peer not in before and peer not in (origin, target) and peer not in skipped:
                    before[peer] = node
                    queue.append((peer, distance + 1))
    return None
