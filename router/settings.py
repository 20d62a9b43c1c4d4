"""Constants of the forwarding rule, with unit and source. Change them in the simulation first (4-routing.md)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """All times in seconds."""

    beta_messages: float = 12
    """Bias toward the destination: messages of backlog that one unit of rank is worth (6-25 safe in simulation)."""
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
    """Consecutive failures of a session."""
    down_after: int = 5
    retry_first_s: float = 1
    retry_max_s: float = 3
    """Longest pause before a dead hop is tried again. Short, because a trial is one connection and mail is waiting."""
    retry_jitter: float = 0.2
    trial_successes: int = 3
    """Successes in HALF_OPEN before the link is UP."""
    ramp_first: float = 0.1
    """Share of the capacity that a recovered link is trusted with; doubles each second with a delivery."""
    probe_interval_s: float = 60
    """An edge without traffic is probed this often."""
    trial_interval_s: float = 0.3
    """Between probes of a HALF_OPEN or SUSPECT edge."""
    flap_penalty: float = 1000
    flap_half_life_s: float = 60
    flap_suppress: float = 2000
    flap_reuse: float = 750
    backlog_fresh_s: float = 2
    """A neighbour's backlog from an acknowledgement counts before gossip's for this long."""
    advertise_level: float = 0.1
    """Relative change of a score that is worth an advertisement."""
    report_fresh_s: float = 5
    """Age up to which other nodes' reports about an exit count."""
