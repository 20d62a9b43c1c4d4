"""ETRN (RFC 1985): a site that dials in has its waiting mail sent now, a sink at `command`.

    [[sink]]
    use = "etrn"
    rule = "listener=smtp"
    with = { allow = { "192.0.2.0/24" = ["example.org", "*.example.net"] }, pause_s = 60 }

    ETRN example.org       mail to that domain               253 and how many deliveries, 251 if none waits
    ETRN @example.org      and to all domains below it       (both must be allowed)
    ETRN #queue            no queue has a name here          459

`allow` says which network may ask for which domains, `*.example.net` being all below example.net. Who asks for others
is told 459, and whoever is in no network of it does not know the command. A queue that takes longer than `ANSWER_S` to
walk through is walked through behind the answer, which is 250 then. A domain is flushed every `pause_s` at most
(458): each time costs a walk through the queue and calls a host that may be down. The answer says that deliveries are
due now; where they go is for the routes, and it is we who open the session with the site (RFC 1985 section 5).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence

import structlog

from smtp_edge.globs import covers
from smtp_edge.networks import Networks
from smtp_edge.queue.errors import StoreError
from smtp_edge.reply import Reply
from smtp_edge.setting_kinds import parse_network
from smtp_edge.sinks.api import Command, Sink, Verb

log = structlog.get_logger()

DOMAINS_MAX = 10_000
"""Whose last time is remembered."""
ANSWER_S = 5.0
"""The client waits no longer: well below the time limit of a sink."""
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*")
SYNTAX = Reply(501, "syntax: ETRN domain, or ETRN @domain", "5.5.4")
NOT_ALLOWED = Reply(459, "not for this client", "4.7.1")
NO_QUEUE = Reply(459, "no queue has a name here", "4.5.4")
TOO_SOON = Reply(458, "that was asked for a moment ago", "4.7.0")
UNABLE = Reply(458, "unable to queue messages now", "4.3.0")


class ETRN(Sink):
    """See the module. ValueError for settings that mean nothing."""

    def __init__(self, allow: Mapping[str, Sequence[str]], pause_s: float = 60.0) -> None:
        if not allow:
            raise ValueError('allow is empty: write allow = { "192.0.2.0/24" = ["example.org"] }')
        if pause_s < 0:
            raise ValueError("pause_s is a number of seconds, 0 or more")
        self._allowed = [_parse(network, domains) for network, domains in allow.items()]
        everyone = Networks([parse_network(network) for network in allow])
        self.verbs = (Verb("ETRN", "ETRN", 256, origins=everyone),)
        self._pause_s = pause_s
        self._flushed: dict[str, float] = {}
        """Domain -> when; monotonic seconds."""
        self._working = set[asyncio.Task[int]]()

    async def stop(self) -> None:
        """What is not marked as due by now has its turn when it would have had it."""
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    async def command(self, command: Command) -> Reply:
        """Flush, if it may be."""
        node = command.argument.strip()
        if node.startswith("#"):
            return NO_QUEUE
        domain = node.removeprefix("@").lower()
        if not _DOMAIN.fullmatch(domain):
            return SYNTAX
        wanted = [domain, f".{domain}"] if node.startswith("@") else [domain]
        if not all(self._may(command.client.address, name) for name in wanted):
            log.warning("etrn.refused", client=command.client.address, domain=node)
            return NOT_ALLOWED
        now = asyncio.get_running_loop().time()
        if now - self._flushed.get(node.lower(), float("-inf")) < self._pause_s:
            return TOO_SOON
        self._note(node.lower(), now)
        task = asyncio.create_task(self._flush(node, wanted))
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        await asyncio.wait({task}, timeout=ANSWER_S)
        return _answer(node, task.result() if task.done() else None)

    async def _flush(self, node: str, wanted: Sequence[str]) -> int:
        """How many; -1 if the store fails, and then it may be asked again at once."""
        try:
            return await self.node.flush(wanted)
        except StoreError as error:
            log.error("etrn.failed", domain=node, reason=str(error))
            self._flushed.pop(node.lower(), None)
            return -1

    def _may(self, client: str, domain: str) -> bool:
        """`.example.org` is all domains below it: a pattern must hold each of them, not one by chance."""
        name = f"*{domain}" if domain.startswith(".") else domain
        found = (globs for networks, globs in self._allowed if networks.hold(client))
        return any(covers(glob, name) for globs in found for glob in globs)

    def _note(self, node: str, now: float) -> None:
        self._flushed.pop(node, None)
        self._flushed[node] = now
        if len(self._flushed) > DOMAINS_MAX:
            del self._flushed[next(iter(self._flushed))]


def _answer(node: str, count: int | None) -> Reply:
    """None: it is not known yet."""
    if count is None:
        return Reply(250, f"queuing for {node} started", "2.0.0")
    if count < 0:
        return UNABLE
    if not count:
        return Reply(251, f"no messages waiting for {node}", "2.0.0")
    return Reply(253, f"{count} pending messages for {node} started", "2.0.0")


def _parse(network: str, domains: Sequence[str]) -> tuple[Networks, tuple[str, ...]]:
    if isinstance(domains, str) or not domains:
        raise ValueError(f'allow: {network} wants a list of domains, as ["example.org"]')
    return Networks([parse_network(network)]), tuple(domain.lower() for domain in domains)
