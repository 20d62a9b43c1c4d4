"""From what an operator calls things to a hypothesis of the engine, and its answers back to messages. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from router.decision import Hop, HopKind
from router.whatif import Answer, Forecast, Hypothesis
from smtpmesh.admin.v1 import admin_pb2 as pb


class HypothesisError(ValueError):
    """It cannot be asked so; `str()` says why, and what there is."""


class Names:
    """What can fail: nodes and smart hosts by their names."""

    def __init__(self, nodes: Mapping[str, str], hosts: Iterable[str]) -> None:
        """`nodes`: node id -> name."""
        self._nodes = {**{node_id: node_id for node_id in nodes}, **{name: node_id for node_id, name in nodes.items()}}
        self._shown = sorted(nodes.values())
        self._hosts = sorted(set(hosts))

    def node(self, name: str) -> str:
        """The node's id."""
        found = self._nodes.get(name)
        if found is None:
            raise HypothesisError(f"no node {name!r}; there are: {', '.join(self._shown)}")
        return found

    def host(self, name: str) -> Hop:
        """The smart host; `host:` in front may be left out."""
        bare = name.removeprefix(f"{HopKind.SMART_HOST.value}:")
        if bare not in self._hosts:
            raise HypothesisError(f"no smart host {bare!r}; there are: {', '.join(self._hosts)}")
        return Hop(HopKind.SMART_HOST, bare)

    def either(self, name: str) -> str | Hop:
        """A node's id, or a smart host."""
        is_node, is_host = name in self._nodes, name in self._hosts
        if is_node and is_host:
            raise HypothesisError(f"{name!r} is a node and a smart host; say host:{name} for the host")
        if is_node:
            return self._nodes[name]
        if is_host or name.startswith(f"{HopKind.SMART_HOST.value}:"):
            return self.host(name)
        raise HypothesisError(
            f"no node or smart host {name!r}; there are the nodes {', '.join(self._shown)}"
            f" and the hosts {', '.join(self._hosts) or '(none)'}"
        )


def read_hypothesis(request: pb.WhatIfRequest, names: Names) -> Hypothesis:
    """What the request supposes. HypothesisError if a name is unknown or a number makes no sense."""
    down = [names.either(name) for name in request.down]
    for change in request.slow:
        if not (math.isfinite(change.factor) and change.factor >= 0):
            raise HypothesisError(f"{change.host}: the factor is {change.factor:g}; it is 0 or more")
    if not (math.isfinite(request.load_mps) and request.load_mps >= 0):
        raise HypothesisError(f"the load is {request.load_mps:g} messages a second; it is more than 0")
    return Hypothesis(
        relays_down=frozenset(item for item in down if isinstance(item, str)),
        exits_down=frozenset(item for item in down if isinstance(item, Hop)),
        factors={names.host(change.host): change.factor for change in request.slow},
    )


def convert_answer(answer: Answer, names: Mapping[str, str]) -> pb.ClassForecast:
    """One class. `names`: node id -> name."""
    return pb.ClassForecast(
        class_id=answer.class_id, now=_convert(answer.now, names), then=_convert(answer.then, names)
    )


def _convert(forecast: Forecast, names: Mapping[str, str]) -> pb.Forecast:
    def name(node_id: str) -> pb.NodeName:
        return pb.NodeName(node_id=node_id, name=names.get(node_id, ""))

    return pb.Forecast(
        offered_mps=forecast.offered_mps,
        delivered_mps=forecast.delivered_mps,
        bound_mps=forecast.bound_mps,
        exits=[
            pb.ExitForecast(
                hop=item.hop.id,
                delivered_mps=item.delivered_mps,
                capacity_mps=item.capacity_mps,
                share=forecast.share(item.hop),
            )
            for item in forecast.exits
        ],
        transfers=[pb.TransferForecast(sender=name(u), receiver=name(v), mps=mps) for u, v, mps in forecast.transfers],
        stranded=[name(node_id) for node_id in forecast.stranded],
    )
