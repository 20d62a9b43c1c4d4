"""Every own edge as a candidate for one message: all terms of the rule, and why it won or lost. Pure; for people.

Edges to the exchangers of other domains are left out: there may be thousands, and none has anything to do with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from router.backlog import Backlogs, Heard
from router.decision import Candidate, EdgeState, HopKind, Pin, Query, Verdict
from router.edge import Edge
from router.forwarding import DETOUR, LARGEST_GAIN, PLANNED_PEER, ClassView, ForwardingRule
from router.planning import ClassPlan

EXIT_BACKLOG = "exit"
NOTHING_AT_AN_EXIT = Heard(0, None, EXIT_BACKLOG)


@dataclass(frozen=True, slots=True)
class Case:
    """One message's decision, to be explained."""

    query: Query
    view: ClassView
    no_transit: frozenset[str]
    chosen: Edge | None
    rule: str
    hops_max: int
    now: float
    plan: ClassPlan | None = None
    draining: bool = False
    """This relay."""
    pin: Pin | None = None
    """In force."""


def explain_candidates(
    case: Case, edges: Iterable[Edge], forwarding: ForwardingRule, backlogs: Backlogs
) -> tuple[Candidate, ...]:
    """All candidates: the chosen one first, then what was allowed, then the rest."""
    serving = {edge.hop for edge in case.view.exits}
    total = sum(edge.plan_weight(case.now) for edge in case.view.exits if edge.open)
    found = [
        _build(case, edge, forwarding, backlogs, total if edge.hop in serving and edge.open else 0.0)
        for edge in edges
        if edge.hop.kind is not HopKind.MX or edge.hop in serving
    ]
    return tuple(sorted(found, key=_order))


def _build(case: Case, edge: Edge, forwarding: ForwardingRule, backlogs: Backlogs, planned_total: float) -> Candidate:
    class_id, now = case.query.class_id, case.now
    heard, rank_there, gain = _terms(case, edge, forwarding, backlogs)
    verdict, reason = _judge(case, edge, gain)
    return Candidate(
        hop=edge.hop,
        label=edge.label,
        verdict=verdict,
        gain=gain or 0.0,
        backlog_here=backlogs.here(class_id),
        backlog_there=heard.count,
        backlog_age_s=now - heard.at if heard.at is not None else None,
        backlog_source=heard.source,
        rank_here=case.view.here,
        rank_there=rank_there,
        availability=edge.availability.at(now),
        reliability=edge.reliability.value,
        capacity_mps=edge.capacity.at(now),
        capacity_proven=edge.capacity.proven(now),
        latency_s=edge.latency.peak,
        window=edge.breaker.slots(edge.window.size, now),
        inflight=edge.inflight,
        state=edge.breaker.state,
        share=edge.plan_weight(now) / planned_total if planned_total else 0.0,
        cost=edge.cost,
        reason=reason,
        serves=(edge.exit and edge in case.view.exits) or (rank_there is not None and not edge.exit),
        usable=edge.usable,
        awaits_probe=edge.awaits_probe,
        free_slots=edge.free_slots(now),
        free_slots_in_panic=edge.free_slots(now, panic=True),
        stride=edge.stride(now),
        sideways=0.0 if edge.exit or rank_there is None else forwarding.sideways(class_id, rank_there, case.view),
        plan_share=_plan_share(case.plan, edge),
        plan_stride=_plan_stride(case.plan, edge),
    )


def _plan_share(plan: ClassPlan | None, edge: Edge) -> float | None:
    if plan is None:
        return None
    return plan.exits if edge.exit else plan.peers.get(edge.hop.name, 0.0)


def _plan_stride(plan: ClassPlan | None, edge: Edge) -> float:
    if plan is None:
        return math.inf
    return plan.stride_of_exits() if edge.exit else plan.stride_of(edge.hop.name)


def _terms(
    case: Case, edge: Edge, forwarding: ForwardingRule, backlogs: Backlogs
) -> tuple[Heard, float | None, float | None]:
    """Backlog, rank and gain of the hop; None = it reaches no exit."""
    class_id = case.query.class_id
    if edge.exit:
        return NOTHING_AT_AN_EXIT, 0.0, forwarding.exit_gain(edge, class_id, case.view)
    there = case.view.there.get(edge.hop.name)
    gain = None if there is None else forwarding.gain(edge, there, class_id, case.view, case.now)
    return backlogs.there(edge.hop.name, class_id, case.now), there, gain


def _judge(case: Case, edge: Edge, gain: float | None) -> tuple[Verdict, str]:
    """The first rule that excludes it, in the order in which the forwarding rule asks."""
    if edge is case.chosen:
        return Verdict.CHOSEN, case.rule
    if case.pin is not None and edge.hop != case.pin.hop:
        left_s = case.pin.until - case.now
        return Verdict.PINNED_ELSEWHERE, f"the class is pinned to {case.pin.hop.id} for {left_s:.0f} s more"
    return _judge_edge(case, edge) or _judge_peer(case, edge, gain) or _judge_moment(case, edge, gain)


def _judge_edge(case: Case, edge: Edge) -> tuple[Verdict, str] | None:
    """What holds for every message of the class."""
    breaker = edge.breaker
    if (refusal := case.view.refused.get(edge.hop)) is not None:
        return Verdict.POLICY, str(refusal)
    if edge.exit and edge not in case.view.exits:
        return Verdict.POLICY, f"the route {case.query.class_id} does not use it"
    if breaker.state is EdgeState.DRAINING:
        return Verdict.DRAINING, f"it is being drained: {breaker.reason}"
    if breaker.state is EdgeState.DOWN:
        wait_s = max(0.0, (breaker.retry_at or case.now) - case.now)
        return (
            Verdict.EDGE_DOWN,
            f"down for {case.now - breaker.since:.1f} s ({breaker.reason}), next trial in {wait_s:.1f} s",
        )
    return None


def _judge_peer(case: Case, edge: Edge, gain: float | None) -> tuple[Verdict, str] | None:
    if edge.exit:
        return None
    if edge.hop.name in case.query.trace:
        return Verdict.IN_TRACE, "the message was there already"
    if edge.hop.name in case.no_transit:
        return Verdict.NO_TRANSIT, "it takes no mail from other relays (policy, draining or overloaded)"
    if not edge.headroom_permille:
        return Verdict.NO_TRANSIT, "it has no room for more: its disk, its queue or its memory is full"
    if gain is None:
        return Verdict.NO_PATH, "it reaches no exit of the class without this node"
    if len(case.query.trace) >= case.hops_max:
        return Verdict.POLICY, f"the message made all {case.hops_max} transfers that it may"
    return None


def _judge_moment(case: Case, edge: Edge, gain: float | None) -> tuple[Verdict, str]:
    """What may be different a moment later."""
    if edge.exit and case.query.peers_only:
        return Verdict.NOT_DUE, "the next attempt is not due, and no other relay can take it now"
    if edge.hop in case.query.avoid:
        return Verdict.BACKING_OFF, "this message failed there a moment ago"
    if edge.awaits_probe:
        return Verdict.NO_SLOT, f"on trial, a probe goes first ({edge.breaker.reason})"
    if edge.free_slots(case.now) <= 0:
        return Verdict.NO_SLOT, f"all {edge.inflight} transactions that its window allows are in flight"
    if not edge.exit and (gain or 0.0) <= 0 and not case.draining:
        return Verdict.NO_GAIN, f"gain {gain or 0.0:.1f}: its backlog is no smaller, or it is no nearer to an exit"
    return Verdict.OUTRANKED, _outranked_by(case, edge)


def _outranked_by(case: Case, edge: Edge) -> str:
    """Something was chosen, or this edge would have been."""
    if case.chosen is not None and case.chosen.hop == case.query.prefer:
        return "another hop may have the message already"
    if edge.exit:
        return f"{'a relay of the plan' if case.rule == PLANNED_PEER else 'another exit'} is further behind its share"
    if case.rule == PLANNED_PEER:
        return "another relay of the plan is further behind its share"
    if case.rule == DETOUR:
        return "another relay that the message has not seen is nearer"
    return "another relay has the larger gain" if case.rule == LARGEST_GAIN else "an exit comes first"


def _order(candidate: Candidate) -> tuple[object, ...]:
    """Chosen first, then what was allowed, then the rest; exits before peers, larger shares first."""
    rank = {Verdict.CHOSEN: 0, Verdict.OUTRANKED: 1, Verdict.NO_SLOT: 2, Verdict.NO_GAIN: 3}
    return (
        rank.get(candidate.verdict, 4),
        candidate.hop.kind is HopKind.PEER,
        -candidate.share,
        -candidate.gain,
        candidate.hop.id,
    )
