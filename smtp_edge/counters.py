"""Counters of a node since its start. Plain integers on one event loop: metrics read them, nothing decides by them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Messages and deliveries by how they ended."""

    accepted: int = 0
    """Messages answered 250."""
    passed: int = 0
    """Of these: relayed before they were answered, without being stored (cut-through)."""
    relayed: int = 0
    """Deliveries answered 2yz by a next hop."""
    deferred: int = 0
    """Times that a delivery went back to wait on disk."""
    failed: int = 0
    """Deliveries refused for good or expired."""
    duplicates_dropped: int = 0
    """Repeated transfers answered without storing."""
