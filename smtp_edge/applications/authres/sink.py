"""Who sent it: a `data` sink that checks SPF, DKIM, DMARC and ARC, and adds an Authentication-Results field (RFC 8601).

    [[sink]]
    use = "authres"
    priority = 100
    rule = "listener=inbound"
    with = { dns_servers = ["127.0.0.1:53"], enforce = true, arc_trusted = ["lists.example.org"] }

Bind it to listeners where strangers come in, and before sinks that edit: it checks what it sees. Install it with
`pip install 'smtpmesh[authres]'`.

    authserv_id = "mx.example.org"     who says so; usually the node's host name, or one name for the whole cluster
    dns_servers = ["[::1]:5353"]       addresses; usually those of the machine. They should validate, and be near
    timeout_s = 20                     for all questions of one message; less than the binding's `timeout`
    enforce = true                     DMARC `p=reject` is obeyed: 550. Else all is told, and nothing is refused
    arc_trusted = ["lists.example.org"]   whoever has sealed a message on its way: if these alone did, `enforce` lets
                                       a message through that they have changed
    temperror = "fail"                 no answer from the DNS is a failure (the binding's `on_failure`); with "label",
                                       as usual, it is a result like others, and the message goes on
    header = "last"                    where the field stands; "first" is usual, above all others
    remove = "all"                     fields of that name that a message brings along: "ours" are those that claim our
                                       authserv_id (RFC 8601 section 5); "all" go also if this sink fails
    threads_max = 16                   messages that are looked at at once

`enforce` lets a message with several authors through only if all of their domains agree; `pct` is honoured.
`p=quarantine` is told (`policy.dmarc`), and not acted on. A signature that leaves a part of the body unsigned (`l=`)
or is made with SHA-1 is `policy`, and counts for nothing. With `temperror = "fail"` and `on_failure = "accept"` forged
fields stay on messages that were not looked at: use `remove = "all"`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, TypeVar

import structlog

from smtp_edge.applications.authres.lookups import build_resolver
from smtp_edge.applications.authres.results import (
    FAIL,
    FIELD,
    TEMPERROR,
    TOO_MANY_AUTHORS,
    Result,
    build_value,
    claims,
    quote,
)
from smtp_edge.sinks.api import Message, Reject, Sink, Verdict

if TYPE_CHECKING:
    from smtp_edge.applications.authres.judging import Case, Judge, Signatures
    from smtp_edge.applications.authres.judging import Verdict as Dmarc

log = structlog.get_logger()

CHOICES = {"temperror": ("label", "fail"), "header": ("first", "last"), "remove": ("ours", "all")}

T = TypeVar("T")


class AuthResError(Exception):
    """The DNS gave no answer."""


class AuthRes(Sink):
    """See the module. ValueError for settings that mean nothing, and where a library is missing."""

    def __init__(
        self,
        authserv_id: str = "",
        dns_servers: Sequence[str] = (),
        timeout_s: float = 20.0,
        enforce: bool = False,
        arc_trusted: Sequence[str] = (),
        temperror: Literal["label", "fail"] = "label",
        header: Literal["first", "last"] = "first",
        remove: Literal["ours", "all"] = "ours",
        threads_max: int = 16,
        chance: Callable[[], float] = random.random,
    ) -> None:
        for name, value in (("temperror", temperror), ("header", header), ("remove", remove)):
            if value not in CHOICES[name]:
                raise ValueError(f"{name} = {value!r} is none of: {', '.join(CHOICES[name])}")
        for name, listed in (("dns_servers", dns_servers), ("arc_trusted", arc_trusted)):
            if isinstance(listed, str) or not all(isinstance(item, str) for item in listed):
                raise ValueError(f"{name} is a list of words")
        if not 0 < timeout_s <= 120 or threads_max < 1:
            raise ValueError("timeout_s is above 0 and at most 120, threads_max at least 1")
        if any(character in authserv_id for character in ' \t\r\n"();'):
            raise ValueError(f"authserv_id = {authserv_id!r} is no name")
        try:
            from smtp_edge.applications.authres.judging import Judge
        except ImportError as error:
            raise ValueError(f"{error.name} is not installed; pip install 'smtpmesh[authres]'") from None
        self._make_judge: Callable[[str], Judge] = lambda receiver: Judge(resolver, receiver)
        resolver = build_resolver(dns_servers)
        self._authserv_id, self._timeout_s, self._threads_max = authserv_id, timeout_s, threads_max
        self._enforce, self._trusted, self._chance = enforce, frozenset(map(str.lower, arc_trusted)), chance
        self._last, self._fails = header == "last", temperror == "fail"
        self.owns = (FIELD,) if remove == "all" else ()

    async def start(self) -> None:
        """Threads, and our name."""
        self._authserv_id = self._authserv_id or self.node.hostname
        self._judge = await asyncio.to_thread(self._make_judge, self._authserv_id)
        self._threads = ThreadPoolExecutor(2 * self._threads_max, "authres")
        self._turns = asyncio.Semaphore(self._threads_max)

    async def stop(self) -> None:
        """Questions that are asked come to their end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def data(self, message: Message) -> Verdict | None:
        """Check, remove what pretends to be ours, say so. AuthResError."""
        case = self._judge.begin(message, self._timeout_s)
        async with self._turns:
            found, dmarc, results = await self._check(message, case)
        if self._fails and any(result.result == TEMPERROR for result in results):
            raise AuthResError("there was no answer from the DNS to a question that matters")
        left = tuple(
            one for one in message.fields if not (one.is_named(FIELD) and claims(one.value, self._authserv_id))
        )
        if len(left) < len(message.fields):
            message.fields = left
        message.add_header(FIELD, build_value(self._authserv_id, results), last=self._last)
        return self._judge_policy(found, dmarc) if self._enforce else None

    async def _check(self, message: Message, case: Case) -> tuple[Signatures, Dmarc, list[Result]]:
        if case.wants_body:
            async for piece in message.body():
                await self._run(lambda piece=piece: case.feed(piece))  # type: ignore[misc]
        spf, found = await asyncio.gather(self._run(case.check_spf), self._run(case.check_signatures))
        dmarc = await self._run(lambda: case.check_dmarc(spf, found.dkim))
        return found, dmarc, [spf, *found.dkim, dmarc.result, found.arc]

    def _judge_policy(self, found: Signatures, dmarc: Dmarc) -> Verdict | None:
        if dmarc.result.reason == TOO_MANY_AUTHORS:
            return Reject(TOO_MANY_AUTHORS, 550, "5.6.0")
        if dmarc.result.result != FAIL or dmarc.policy.policy != "reject":
            return None
        domain = dmarc.result.domain
        if found.sealers and found.sealers <= self._trusted:
            log.info("authres.arc_trusted", domain=domain, sealers=sorted(found.sealers))
            return None
        if self._chance() * 100 >= dmarc.policy.percent:
            return None
        return Reject(f"refused by the DMARC policy of {quote(domain)}", 550, "5.7.1")

    async def _run(self, step: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, step)
