"""The rule applied to a record of one decision, and to nothing else: the terms shown are the terms that decided. Pure.

A second telling of `router.forwarding` from the outside: it sees candidates, not edges. The tests hold the two against
each other over random meshes; an operator may hold it against any `explain`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from router.decision import Candidate, Decision, EdgeState, Hop, HopKind, Pin
from router.forwarding import (
    BACKING_OFF,
    DETOUR,
    EVERY_WAY_BACK,
    IN_DOUBT,
    LARGEST_GAIN,
    NO_GAIN,
    NO_PATH,
    NO_SLOT,
    PANIC_SHARE,
    PIN_BACKING_OFF,
    PIN_DOWN,
    PIN_NO_SLOT,
    PIN_NOT_DUE,
    PINNED,
    PLANNED,
    PLANNED_PEER,
    STEP_BACK,
    TOO_MANY_HOPS,
    TRIAL,
    TRUSTED,
)


def recompute(decision: Decision) -> tuple[Hop | None, str]:
    """The hop and the rule that the recorded terms lead to."""
    return _Case(decision).choose()


def recompute_gain(candidate: Candidate, beta: float) -> float:
    """Messages: reliability x (backlog here - there + beta x (rank here - there) - sideways)."""
    there = candidate.rank_there
    if there is None:
        return 0.0
    default = 0.0 if candidate.hop.kind is not HopKind.PEER else there + 1
    here = candidate.rank_here if candidate.rank_here is not None else default
    gradient = candidate.backlog_here - candidate.backlog_there
    return candidate.reliability * (gradient + beta * (here - there) - candidate.sideways)


class _Case:
    def __init__(self, decision: Decision) -> None:
        self.decision, self.query = decision, decision.query
        serving = sorted((item for item in decision.candidates if item.serves), key=lambda item: item.hop.id)
        self.exits = [item for item in serving if item.hop.kind is not HopKind.PEER]
        self.peers = [item for item in serving if item.hop.kind is HopKind.PEER]

    def choose(self) -> tuple[Hop | None, str]:
        in_doubt = self._in_doubt()
        if in_doubt is not None:
            return in_doubt.hop, IN_DOUBT
        if self.decision.pin is not None:
            return self._pinned(self.decision.pin)
        due = not self.query.peers_only
        for found, rule in (
            (self._planned(), PLANNED_PEER),
            (self._exit() if due else None, PLANNED),
            (self._peer(), LARGEST_GAIN),
            (self._trial() if due else None, TRIAL),
            (self._detour(), DETOUR),
            (self._step_back(), STEP_BACK),
        ):
            if found is not None:
                return found.hop, rule
        return None, self._hold()

    def _pinned(self, pin: Pin) -> tuple[Hop | None, str]:
        item = next((item for item in (*self.exits, *self.peers) if item.hop == pin.hop), None)
        if item is None or not item.usable or item.awaits_probe:
            return None, PIN_DOWN
        leaves = item.hop.kind is not HopKind.PEER
        if not leaves and (item.hop.name in self.query.trace or len(self.query.trace) >= self.decision.hops_max):
            return None, PIN_DOWN
        if leaves and self.query.peers_only:
            return None, PIN_NOT_DUE
        if item.hop in self.query.avoid:
            return None, PIN_BACKING_OFF
        return (item.hop, PINNED) if item.free_slots > 0 else (None, PIN_NO_SLOT)

    def _in_doubt(self) -> Candidate | None:
        prefer = (item for item in self.decision.candidates if item.hop == self.query.prefer)
        return next((item for item in prefer if item.free_slots > 0), None)

    def _exit(self) -> Candidate | None:
        open_ = [item for item in self._here_and_now(self.exits) if not item.awaits_probe]
        free = [item for item in open_ if item.free_slots > 0]
        if free:
            return min(free, key=lambda item: item.stride)
        states = [item.state for item in self.exits if item.state is not EdgeState.DRAINING]
        if sum(state in TRUSTED for state in states) < len(states) * (1 - PANIC_SHARE):
            return next((item for item in open_ if item.free_slots_in_panic > 0), None)
        return None

    def _planned(self) -> Candidate | None:
        if len(self.query.trace) >= self.decision.hops_max:
            return None
        exit_ = self._exit() if not self.query.peers_only else None
        fresh = [item for item in self._here_and_now(self.peers) if item.hop.name not in self.query.trace]
        behind = [
            item
            for item in fresh
            if item.free_slots > 0
            and not item.awaits_probe
            and self._pull(item) > 0
            and item.plan_stride < (exit_.plan_stride if exit_ is not None else math.inf)
        ]
        return min(behind, key=lambda item: item.plan_stride, default=None)

    def _peer(self) -> Candidate | None:
        if len(self.query.trace) >= self.decision.hops_max:
            return None
        fresh = [item for item in self._here_and_now(self.peers) if item.hop.name not in self.query.trace]
        free = [item for item in fresh if item.free_slots > 0 and not item.awaits_probe and self._gains(item)]
        return max(free, key=self._gain, default=None)

    def _trial(self) -> Candidate | None:
        waiting = (item for item in self._here_and_now(self.exits) if item.awaits_probe and item.free_slots > 0)
        return next(waiting, None)

    def _needs_detour(self) -> bool:
        trace = self.query.trace
        if not trace or (not self.query.peers_only and any(item.usable for item in self.exits)):
            return False
        return not any(
            item.usable and item.hop.name not in trace
            for item in self.peers
            if item.rank_here is None or (item.rank_there is not None and item.rank_there < item.rank_here)
        )

    def _detour(self) -> Candidate | None:
        if len(self.query.trace) >= self.decision.hops_max or not self._needs_detour():
            return None
        fresh = [item for item in self._here_and_now(self.peers) if item.hop.name not in self.query.trace]
        free = [item for item in fresh if item.free_slots > 0 and not item.awaits_probe and item.rank_there is not None]
        return min(free, key=lambda item: item.rank_there or 0.0, default=None)

    def _step_back(self) -> Candidate | None:
        trace, own = self.query.trace, self.decision.node_id
        if not trace or len(trace) >= self.decision.hops_max:
            return None
        if not self.query.peers_only and any(item.usable for item in self.exits):
            return None
        if any(item.usable and item.hop.name not in trace for item in self.peers):
            return None
        visits = trace.index(own) if own in trace else len(trace)
        back = [item for item in self._here_and_now(self.peers) if visits and item.hop.name == trace[visits - 1]]
        return next((item for item in back if item.free_slots > 0), None)

    def _hold(self) -> str:
        exits = [item for item in self.exits if item.usable and not self.query.peers_only]
        if exits:
            return NO_SLOT if list(self._here_and_now(exits)) else BACKING_OFF
        peers = [item for item in self.peers if item.usable]
        fresh = [item for item in peers if item.hop.name not in self.query.trace]
        if not fresh:
            return EVERY_WAY_BACK if peers else self.decision.blocked or NO_PATH
        if len(self.query.trace) >= self.decision.hops_max:
            return TOO_MANY_HOPS
        open_ = list(self._here_and_now(fresh))
        if not open_:
            return BACKING_OFF
        if self._needs_detour():
            return NO_SLOT
        return NO_SLOT if any(self._gains(item) for item in open_) else NO_GAIN

    def _here_and_now(self, candidates: Iterable[Candidate]) -> Iterable[Candidate]:
        return (item for item in candidates if item.hop not in self.query.avoid)

    def _gains(self, candidate: Candidate) -> bool:
        """Worth a transfer: to a relay that gives its mail away, always."""
        return self.decision.draining or self._gain(candidate) > 0

    def _gain(self, candidate: Candidate) -> float:
        return recompute_gain(candidate, self.decision.beta)

    def _pull(self, candidate: Candidate) -> float:
        """The gain without the sideways term."""
        return recompute_gain(dataclasses.replace(candidate, sideways=0.0), self.decision.beta)
