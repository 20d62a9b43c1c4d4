"""What route sinks are asked about a delivery, and which of the hops that they name may take it now. Pure but for the
answers of the sinks themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.decision import HopKind
from router.forwarding import EVERY_WAY_BACK
from smtp_edge.client.attempt import Target
from smtp_edge.dispatch.lines import Waiting
from smtp_edge.sinks.api import NextHop, Route, RouteRequest, Unreachable


def make_request(waiting: Waiting, now: float) -> RouteRequest:
    """The question for the sinks.

    A delivery that was parked because every relay had seen it begins a second round: one of them may have a way out
    by now. The trace that travels goes on growing, and its length bounds the rounds.
    """
    claim = waiting.claim
    again = claim.delivery.last_reply == EVERY_WAY_BACK
    return RouteRequest(
        queue_id=claim.delivery.queue_id,
        sender=claim.entry.envelope.sender,
        recipients=claim.delivery.recipients,
        class_id=claim.delivery.class_id,
        size_bytes=claim.entry.data.size_bytes,
        trace=() if again else claim.entry.trace,
        attempts=claim.delivery.attempts,
        avoid=tuple(hop for hop, (until, _) in waiting.avoid.items() if now < until),
        prefer=waiting.hop_in_doubt(now),
        hand_over=waiting.early,
    )


def answer_refusal(waiting: Waiting) -> Unreachable:
    """For recipients that a sink refused after the others had been taken: the sender is told what it said."""
    status, _, text = waiting.claim.delivery.last_reply.partition(" ")
    return Unreachable(text, for_good=True, status=status)


def answer_order(waiting: Waiting, now: float) -> Route | Unreachable:
    """For one that the operator moves to a hop: nobody is asked which."""
    until, _ = waiting.avoid.get(waiting.only, (0.0, 0.0))
    return Route((NextHop(waiting.only),)) if until <= now else Unreachable(f"{waiting.only} failed")


def choose_free(
    waiting: Waiting,
    route: Route,
    target_of: Callable[[str], Target | None],
    inflight: Mapping[str, int],
    now: float,
) -> Target | str:
    """The first hop of a route that may take it and has a free connection; else why the last one may not, or ""."""
    in_doubt, why = waiting.hop_in_doubt(now), ""
    for hop in route.hops:
        if in_doubt and hop.hop != in_doubt:
            why = f"{in_doubt} may have it already; waiting for it to come back"
            continue
        target = target_of(hop.hop)
        if target is None:
            why = f"{hop.hop} is not known here"
        elif waiting.early and target.hop.kind is not HopKind.PEER:
            why = f"{hop.hop} is no relay, and the next attempt is not due"
        elif inflight.get(hop.hop, 0) < target.connections_max:
            return target
    return why
