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
    check_s: float = 1.0
    """Other neighbours have this long to say that they still hear a silent one."""
    pause_s: float = 2.0
    """An own timer this late means that we were paused, not that others died."""
    pause_grace_s: float = 3.0
    linger_s: float = 1.5
    """A session that was reset may be dialled again this long before its link is withdrawn; a refusal ends that."""

    hold_first_s: float = 1.0
    hold_max_s: float = 30.0
    hold_sessions_max_s: float = 4.0
    hold_quiet_s: float = 60.0
    hold_bypass_s: float = 5.0
    """Worse news passes the hold once in this time, and what is gone on average."""
    trifle_s: float = 10.0
    """Changes of less than two score levels wait this long."""
    load_s: float = 0.25
    load_per_s: float = 40.0
    """LOAD records of the whole cluster together; more members speak less often."""
    refresh_s: float = 900.0
    refresh_per_s: float = 0.33
    """Refreshed nodes of the whole cluster together."""
    refresh_jitter: float = 0.25
    refresh_max_s: float = 28_800.0
    lifetime_factor: int = 3

    batch_s: float = 0.02
    batch_busy_s: float = 0.2
    tree_above: int = 200
    """Members above which bodies travel on a tree of sessions and the rest only announces."""
    graft_s: float = 0.3
    verify_per_s: float = 1000.0
    verify_burst: float = 5000.0
    quarantine_first_s: float = 60.0
    quarantine_max_s: float = 3600.0

    track_reach: bool = True
    """Walk over all sessions to tell who can be reached; simulations of thousands of nodes do without."""

    unwanted_s: float = 10.0
    """A session that neither side's overlay names is closed after this."""
    redial_first_s: float = 0.25
    redial_max_s: float = 5.0
    """While a neighbour was lost less than `redial_late_after_s` ago."""
    redial_late_after_s: float = 600.0
    redial_late_s: float = 60.0
    silent_node_s: float = 30.0
    """Every so often one random lost member is dialled: what heals a partition that the overlay stepped over."""
    dial_anyway_s: float = 2.0
    """The node with the larger id leaves dialling to the other one for this long."""
    dial_timeout_s: float = 5.0
