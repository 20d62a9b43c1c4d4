"""Timing and bounds of gossip. Seconds unless the name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """The first three come from the configuration; the rest are the protocol's own."""

    listen: str = "127.0.0.1:0"
    advertise: str = ""
    join: tuple[str, ...] = ()
    hello_s: float = 1.0
    silence_min_s: float = 3.0
    silence_max_s: float = 10.0
    phi: float = 8.0
    """Phi-accrual threshold (Hayashibara et al. 2004), between the two bounds on silence."""
    pause_s: float = 2.0
    """An own timer this late means that we were paused, not that others died."""
    pause_grace_s: float = 3.0
    origination_s: float = 0.2
    """Between two advertisements of one key, unless a link changed its state."""
    load_s: float = 0.25
    refresh_s: float = 900.0
    refresh_jitter: float = 0.25
    lifetime_s: float = 2700.0
    redial_first_s: float = 0.25
    redial_max_s: float = 30.0
    dial_anyway_s: float = 2.0
    """The node with the larger id leaves dialling to the other one for this long."""
    dial_timeout_s: float = 5.0
