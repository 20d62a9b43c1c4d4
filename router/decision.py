"""Values of a routing decision: next hops, candidates with every score term, and the rule that decided.

A decision can be replayed: it holds all that the rule looked at.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from functools import lru_cache

from router.terms import NO_TERMS, Terms


class HopKind(enum.StrEnum):
    """What a next hop is. Only a peer transits mail; smart hosts and MX destinations are exits."""

    PEER = "peer"
    SMART_HOST = "host"
    MX = "mx"


@dataclass(frozen=True, slots=True, order=True)
class Hop:
    """A next hop. `name` is the node id of a peer, the configured name of a smart host, or the domain of an MX."""

    kind: HopKind
    name: str
    id: str = field(init=False, repr=False, compare=False)
    """`peer:NODE_ID`, `host:NAME` or `mx:DOMAIN`: the spelling in gossip, logs and the admin API. Made once: it is
    asked for far more often than a hop is made."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.kind.value}:{self.name}")

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str) -> Hop:
        """Inverse of `id`; ValueError for anything else. The same few are asked for all the time."""
        kind, separator, name = text.partition(":")
        if not separator or not name:
            raise ValueError(f"not a hop id: {text!r}")
        return Hop(HopKind(kind), name)


class EdgeState(enum.StrEnum):
    """Breaker state of an own edge (4-7 in ARCHITECTURE.md, "An edge's life")."""

    UNKNOWN = "unknown"
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"
    HALF_OPEN = "half-open"
    DRAINING = "draining"


class OutcomeKind(enum.StrEnum):
    """How an attempt ended, reduced to whose fault it was."""

    ACCEPTED = "accepted"
    """Final 2yz reply."""
    MESSAGE_REFUSED = "message-refused"
    """5yz, or a 4yz to RCPT: about the message or its recipients; never blamed on the hop."""
    HOP_TEMPFAIL = "hop-tempfail"
    """421, or 4yz at connect, EHLO, STARTTLS, MAIL or DATA."""
    CONNECT_FAILED = "connect-failed"
    """Refused, unreachable, no address: no session came about."""
    TLS_FAILED = "tls-failed"
    """The session could not be secured as the policy demands."""
    TIMEOUT = "timeout"
    DISCONNECTED = "disconnected"
    IN_DOUBT = "in-doubt"
    """The connection was lost between the final dot and its reply: the hop may have the message."""
    CANCELLED = "cancelled"
    """Abandoned by ourselves (shutdown): says nothing about the hop."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one attempt or probe on an own edge."""

    hop: Hop
    kind: OutcomeKind
    began: float
    """Monotonic seconds."""
    latency_s: float = 0.0
    """MAIL to final reply; 0 when none came."""
    size_bytes: int = 0
    probe: bool = False
    message: str = ""
    """Names the message: one that fails again and again is one failure of the hop. Empty = each counts."""
    reason: str = ""
    """Reply text or error, for people."""


class Verdict(enum.StrEnum):
    """Why a candidate won or lost. Everything but CHOSEN and OUTRANKED is an exclusion."""

    CHOSEN = "chosen"
    OUTRANKED = "outranked"
    """Allowed, but another candidate came first in the order."""
    NO_GAIN = "no-gain"
    """Its backlog is as deep as ours, or it is no nearer to an exit."""
    NO_SLOT = "no-slot"
    """All transactions that the edge's window allows are in flight."""
    EDGE_DOWN = "edge-down"
    IN_TRACE = "in-trace"
    """The message was there already."""
    BACKING_OFF = "backing-off"
    """This message failed there a moment ago."""
    POLICY = "policy"
    NO_PATH = "no-path"
    """No exit of the class can be reached through it."""
    NO_TRANSIT = "no-transit"
    DRAINING = "draining"
    PINNED_ELSEWHERE = "pinned-elsewhere"
    """The operator sends all mail of the class by another hop."""
    NOT_DUE = "not-due"
    """Only another relay may take the message before its next attempt is due."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One own edge with every term that the rule used. `None` = not known."""

    hop: Hop
    label: str
    """Name for people (a peer's node name)."""
    verdict: Verdict
    gain: float
    backlog_here: int
    backlog_there: int
    backlog_age_s: float | None
    backlog_source: str
    """`acknowledgement`, `gossip`, `exit` or `unknown`."""
    rank_here: float | None
    rank_there: float | None
    availability: float
    reliability: float
    capacity_mps: float
    capacity_proven: bool
    latency_s: float | None
    window: int
    inflight: int
    state: EdgeState
    share: float
    """Planned share of the class among the free links, 0..1; 0 = outside the plan."""
    cost: int
    reason: str
    """One clause for people: why it won or lost."""
    serves: bool = True
    """It is an exit of the class, or a relay that reaches one without us and takes mail."""
    usable: bool = True
    """Its state permits mail at all."""
    awaits_probe: bool = False
    """Nothing has succeeded since it was down: a probe goes first."""
    free_slots: int = 0
    free_slots_in_panic: int = 0
    """The same when most exits of the class are in trouble and caution is off."""
    stride: float = 0.0
    """Among free exits the smallest wins: sent lately for its weight, plus cost in seconds."""
    sideways: float = 0.0
    """Messages by which a relay that is no nearer must be emptier."""
    plan_share: float | None = None
    """What the joint plan sends to this relay, or to the exits together, 0..1; None = nothing is planned here."""
    plan_stride: float = math.inf
    """Sent lately for that share: the smallest is furthest behind. The same for all exits."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The operator's order: all mail of a class goes by one own hop, and waits while that is down."""

    hop: Hop
    until: float
    """Monotonic seconds; from then on it counts for nothing."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a decision depends on besides the engine's own state."""

    class_id: str
    trace: tuple[str, ...] = ()
    """Node ids that the message visited, oldest first, without this node."""
    avoid: tuple[Hop, ...] = ()
    """Hops that are backing off for this message."""
    prefer: Hop | None = None
    """An in-doubt transfer goes back to the same hop first."""
    size_bytes: int = 0
    peers_only: bool = False
    """Its next attempt is not due: while this relay drains another one may take it over, but no exit."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer for one message. `chosen is None` means hold: waiting is correct in store-and-forward."""

    class_id: str
    chosen: Hop | None
    rule: str
    """The rule that decided, e.g. `planned share`, `largest gain`, `step back`, `hold: no slot`, `hold: no path`."""
    candidates: tuple[Candidate, ...]
    view: str
    """Root of the link-state database that was used."""
    now: float
    query: Query = Query("")
    node_id: str = ""
    hops_max: int = 0
    beta: float = 0.0
    """Messages of backlog that one unit of rank was worth."""
    blocked: str = ""
    """What keeps the class from a way that is there (`policy: require_tags eu`); empty = nothing does."""
    draining: bool = False
    """This relay gives its mail away: every other one that reaches an exit may have it, whatever waits there."""
    pin: Pin | None = None
    """In force at `now`."""


# -- what the engine tells its shell -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transition:
    """An own edge changed its breaker state: one log line, one advertisement."""

    hop: Hop
    before: EdgeState
    after: EdgeState
    reason: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What a call changed, for the shell to act on: log, advertise, ask again for held mail, wake deferred mail."""

    transitions: tuple[Transition, ...] = ()
    opened: tuple[Hop, ...] = ()
    """Hops that take mail again: deliveries deferred for the classes they lead to are due now."""
    woken: tuple[str, ...] = ()
    """Classes whose deferred deliveries are due now: what held them is over."""
    routes_changed: bool = False
    """Ranks or candidates changed: held deliveries are asked again."""
    links_changed: bool = False
    """`RoutingEngine.links` differs enough to be advertised."""

    def __bool__(self) -> bool:
        return bool(self.transitions or self.opened or self.woken or self.routes_changed or self.links_changed)


@dataclass(frozen=True, slots=True)
class ExitHop:
    """A configured exit of this node (smart host), as the engine needs it."""

    hop: Hop
    label: str
    cost: int = 0
    window_max: int = 20
    terms: Terms = NO_TERMS
    reserve: float = 0.0
    """Share of its capacity that planning leaves alone."""


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One class of the routing table: the decision that a fresh message of it would get now."""

    class_id: str
    exits: tuple[str, ...]
    decision: Decision
    backlog: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why, beyond the decision: what the mesh could carry at most, where it is narrow, which ways there are."""

    decision: Decision
    bound_mps: float
    """Maximum flow from this node to the exits of the class, messages per second."""
    bottleneck: tuple[str, ...]
    """Edges of a minimum cut, `NODE_NAME -> HOP_LABEL`."""
    paths: tuple[str, ...]
    """At most 4 simple paths by rank, `a -> b -> host:x`."""
