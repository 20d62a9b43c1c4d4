"""Commands that sinks answer: what is checked of a verb at load, who knows it in a session, and how its sink is asked.

    a verb that is       is known
    `peers_only`         to relays of the cluster, at their own door
    any other            at the doors for clients, to those who are connected from its `origins`

and in both cases if the rule of its binding holds. The line of the EHLO reply follows the same, as things are then. To
everybody else the verb is what it is without the sink.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence

from smtp_edge.envelope import Client
from smtp_edge.reply import LOCAL_ERROR, Goodbye, Reply
from smtp_edge.sinks.api import Become, Command, Disconnect, Verb
from smtp_edge.sinks.chain import Binding, SinkChain, SinkError, SinkFailure
from smtp_edge.sinks.rules import Facts

ARGUMENT_MAX = 65536
"""Octets: no listener takes longer lines."""
_MAIL = {"HELO", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET"}
_OTHER = {"NOOP", "VRFY", "HELP", "QUIT", "STARTTLS", "AUTH"}
_HTTP = {"GET", "POST", "PUT", "HEAD", "CONNECT", "OPTIONS", "DELETE"}
BUILT_IN_VERBS = frozenset(_MAIL | _OTHER | _HTTP)
"""The server's own, and those of HTTP, which end a session. Those that it knows only to refuse them may be taken."""
_EXTENSIONS = {"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "DSN", "ENHANCEDSTATUSCODES"}
BUILT_IN_KEYWORDS = frozenset(_EXTENSIONS | {"LIMITS", "REQUIRETLS", "STARTTLS", "AUTH", "XSMTPMESH"})
_NAME = re.compile(r"[A-Z0-9]{1,12}")
_KEYWORD = re.compile(r"[A-Z0-9][A-Z0-9-]*(?: [!-~]+)*")
_TEXT = re.compile(r"[ -~]*(?:\n[ -~]*)*")


# -- at load -----------------------------------------------------------------------------------------------------------


def find_fault(verbs: Sequence[Verb]) -> str:
    """What is wrong with the verbs of a sink; empty if nothing is."""
    for verb in verbs:
        if not _NAME.fullmatch(verb.name):
            return f"its verb {verb.name!r} is not 1 to 12 upper-case letters and digits"
        if verb.name in BUILT_IN_VERBS:
            return f"its verb {verb.name} is built in"
        if verb.keyword and not _KEYWORD.fullmatch(verb.keyword):
            return f"the keyword {verb.keyword!r} of its verb {verb.name} is no line of an EHLO reply"
        if verb.keyword.partition(" ")[0] in BUILT_IN_KEYWORDS:
            return f"the keyword {verb.keyword!r} of its verb {verb.name} is built in"
        if not 0 <= verb.argument_max <= ARGUMENT_MAX:
            return f"argument_max of its verb {verb.name} is not 0 to {ARGUMENT_MAX}"
        if [other.name for other in verbs].count(verb.name) > 1:
            return f"its verb {verb.name} is there twice"
    return ""


def check_sole(bindings: Sequence[Binding]) -> None:
    """One verb, one binding: SinkError names both, as they stand in the file."""
    found: dict[str, str] = {}
    for number, binding in enumerate(bindings):
        where = f"sink[{number}] ({binding.name})"
        for verb in binding.sink.verbs if binding.handles("command") else ():
            if verb.name in found:
                raise SinkError(f"{found[verb.name]} and {where} both answer {verb.name}; one verb, one sink")
            found[verb.name] = where


# -- in a session ------------------------------------------------------------------------------------------------------


class Commands:
    """Those that one session may know. `close` it at the end."""

    def __init__(self, chain: SinkChain, *, peers: bool) -> None:
        """`peers`: it is the peers' door."""
        self._chain = chain
        self._found = {name: found for name, found in chain.verbs.items() if found[1].peers_only is peers}
        chain.hold()

    def close(self) -> None:
        """The session has ended. Once."""
        self._chain.release()

    @property
    def verbs(self) -> list[Verb]:
        """All of them, whoever may know them."""
        return [verb for _, verb in self._found.values()]

    def keywords(self, client: Client, origin: str) -> list[str]:
        """Lines of the EHLO reply. `origin`: the address that is connected."""
        known = [verb.keyword for verb in self.verbs if verb.keyword and self.knows(verb, client, origin)]
        return list(dict.fromkeys(known))

    def knows(self, verb: Verb, client: Client, origin: str) -> bool:
        """The client may say it, as things are now."""
        if verb.peers_only and not client.peer_id:
            return False
        if verb.origins is not None and not verb.origins.hold(origin):
            return False
        binding, _ = self._found[verb.name]
        return binding.rule.select(Facts(client, command=verb.name)) is not None

    async def ask(self, command: Command) -> Reply | Become | None:
        """The answer; 451 if there is none that can be used. Goodbye."""
        binding, _ = self._found[command.verb]
        if not binding.trust.permits(asyncio.get_running_loop().time()):
            return LOCAL_ERROR
        question = _check(binding.sink.command(command))
        try:
            answer: Reply | Become | Disconnect | None = await binding.ask(
                "command", question, (Reply, Become, Disconnect)
            )
        except SinkFailure:
            return LOCAL_ERROR
        if isinstance(answer, Disconnect):
            raise Goodbye(answer.reply)
        return answer


async def _check(question: Awaitable[object]) -> object:
    """The answer. ValueError if its reply is nonsense on the wire."""
    answer = await question
    reply = answer.reply if isinstance(answer, Become | Disconnect) else answer
    if isinstance(reply, Reply):
        if reply.code // 100 == 3 or (reply.code == 421 and not isinstance(answer, Disconnect)):
            raise ValueError(f"{reply.code} is no reply to a command of a sink")
        if not _TEXT.fullmatch(reply.text):
            raise ValueError("a reply's text is printable ASCII")
    return answer
