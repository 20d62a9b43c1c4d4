"""A sink for dialogues: commands that answer in every way a sink can."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Become, Command, Disconnect, Sink, Verb

TURNS = 20
"""Of the loop, before an answer that takes time."""
NONSENSE = {
    "300": Reply(354, "go on"),
    "421": Reply(421, "closing"),
    "CR": Reply(250, "one\r\n250 two"),
    "UTF8": Reply(250, "grün"),
    "TYPE": "250 fine",
    "NESTED": Become,
}


class Toys(Sink):
    """See the module."""

    verbs = (
        Verb("XECHO", "XECHO 10", argument_max=10),
        Verb("XEARLY", hello_first=False),
        Verb("XWITHIN", in_transaction=True),
        Verb("XPEER", "XPEER", peers_only=True),
        Verb("XSLOW"),
        Verb("XANEW"),
        Verb("XTOLD"),
        Verb("XNONE"),
        Verb("XBAD"),
        Verb("XBYE"),
        Verb("EXPN"),
    )

    async def command(self, command: Command) -> Reply | Become | Disconnect | None:
        """By its verb."""
        match command.verb:
            case "XNONE":
                return None
            case "XBYE":
                return Disconnect("enough")
            case "XANEW":
                return Become(replace(command.client, address="192.0.2.7", helo=""), Reply(220, "anew"))
            case "XTOLD":
                return Become(replace(command.client, user="sue"), Reply(250, "told", "2.0.0"), anew=False)
            case "XBAD":
                return await self._fail(command)
            case "XSLOW":
                for _ in range(TURNS):
                    await asyncio.sleep(0)
        return Reply(250, f"{command.verb} {len(command.argument)} {command.client.protocol}\nend", "2.0.0")

    async def _fail(self, command: Command) -> Reply | Become:
        if command.argument == "RAISE":
            raise ZeroDivisionError("inside")
        if command.argument == "HANG":
            await asyncio.Event().wait()
        if command.argument == "BECOME":
            return Become(command.client, Reply(421, "closing"))
        return NONSENSE[command.argument]  # type: ignore[return-value]
