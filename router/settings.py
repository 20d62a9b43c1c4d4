"""Constants of the forwarding rule, with unit and source. Change them in the simulation first (4-routing.md).

What only an estimator needs (half-lives, bins) stands beside it in `router.estimate`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """All times in seconds."""

    beta_messages: float = 12
    """Bias toward the destination: messages of backlog that one unit of rank is worth (6-25 safe in simulation)."""
    sideways_share: float = 0.25
    """A peer that is no nearer must be emptier by this share of our backlog too: noise in a deep one is no gradient."""
    hops_max: int = 25
    """Transfers between relays that one message may make; twice the number of relays where that is less."""
    window_max: int = 20
    """Transactions in flight on a peer link; exits have their own bound."""
    window_first: int = 2
    """Transactions in flight before anything is known of a link."""
    queued_low: float = 3
    queued_high: float = 6
    """TCP Vegas: messages that may queue at the next hop; below `low` the window grows, above `high` it shrinks."""
    latency_floor_s: float = 0.02
    """Latency below this is no sign of queueing: a fast host's jitter must not close its window."""
    suspect_after: int = 3
    """Consecutive failures of a session, at least: more on a link that is known to lose some (`router.breaker`)."""
    down_after: int = 5
    retry_first_s: float = 1
    retry_max_s: float = 3
    """Longest pause before a dead hop is tried again. Short, because a trial is one connection and mail is waiting."""
    retry_smart_host_max_s: float = 0.8
    """The same for a smart host: no session tells that it is back, and its mail is to go within a second everywhere.
    Shorter: sooner, and a hundred relays knock more often than 125 times a second at one dead host."""
    retry_jitter: float = 0.2
    """Share of the pause by which it varies, so that relays do not knock in step."""
    trial_successes: int = 3
    """Successes in HALF_OPEN before the link is UP."""
    ramp_first: float = 0.1
    """Share of the capacity that a recovered link is trusted with; doubles each second with a delivery."""
    probe_interval_s: float = 60
    """An exit without traffic is probed this often."""
    stall_min_s: float = 1
    """Transactions in flight from which nothing comes back for so long make a hop suspect, and a probe finds out."""
    stall_latencies: float = 10
    """The same, in latencies of the hop, where that is longer."""
    stall_bytes_per_s: float = 125_000
    """Mail data in flight may take this long besides (1 Mbit/s)."""
    trial_interval_s: float = 0.3
    """Between probes of a HALF_OPEN or SUSPECT edge."""
    flap_penalty: float = 1000
    """Added each time an edge goes down."""
    flap_half_life_s: float = 60
    flap_suppress: float = 2000
    """Penalty above which an edge gets one transaction at a time, until it is below `flap_reuse`."""
    flap_reuse: float = 750
    backlog_fresh_s: float = 1
    """A neighbour's backlog from an acknowledgement counts before gossip's for this long."""
    advertise_level: float = 0.1
    """Change of availability or reliability that is worth an advertisement."""
    report_fresh_s: float = 5
    """Age up to which other nodes' reports about an exit count."""
    report_majority: float = 0.5
    """An exit that more than this share of the reports call down is looked at again at once."""
