"""Commands of sinks: what is refused at load, who answers what, and which chain a session keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority
from smtp_edge.envelope import Client
from smtp_edge.reply import Reply
from smtp_edge.server.conversation import Conversation
from smtp_edge.server.session import NOT_SMTP
from smtp_edge.settings import SinkSettings
from smtp_edge.sinks.api import Command, Message, Sink, Verb, Verdict
from smtp_edge.sinks.bindings import load_bindings
from smtp_edge.sinks.chain import SinkChain, SinkError
from smtp_edge.sinks.commands import BUILT_IN_KEYWORDS, BUILT_IN_VERBS
from smtp_edge.sinks.explaining import explain, parse_facts
from tests.unit.smtp_edge.server.doors import (
    HOSTNAME,
    INLINE_BYTES_MAX,
    Surroundings,
    build_identity,
    chain_of,
    open_door,
    open_mesh_door,
)
from tests.unit.smtp_edge.server.ordeal import TLS, SessionOrdeal

HERE = __name__
FREE = {"EXPN", "TURN", "ETRN", "SEND", "SOML", "SAML", "XCLIENT", "XFORWARD"}
"""The server knows them only to refuse them."""


class Answers(Sink):
    """Verbs as its settings have them."""

    def __init__(self, verbs: Sequence[dict[str, object]] = ({"name": "XONE"},)) -> None:
        self.verbs = [Verb(**verb) for verb in verbs]  # type: ignore[arg-type]
        self.stopped = False

    async def command(self, command: Command) -> Reply | None:
        return Reply(250, "known")

    async def stop(self) -> None:
        self.stopped = True


class AnswersAndReads(Answers):
    async def data(self, message: Message) -> Verdict | None:
        return None


class Verbless(Sink):
    async def command(self, command: Command) -> Reply | None:
        return None


class Dumb(Sink):
    verbs = (Verb("XONE"),)

    async def connect(self, client: Client) -> Verdict | None:
        return None


def section(use: str = "Answers", *verbs: dict[str, object], **more: object) -> dict[str, object]:
    return {"use": f"{HERE}:{use}", "with": {"verbs": list(verbs)} if verbs else {}, **more}


def load(*sections: dict[str, object]) -> SinkChain:
    return SinkChain(load_bindings([SinkSettings.model_validate(item) for item in sections]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (section("Answers", {"name": "EHLO"}), "its verb EHLO is built in"),
        (section("Answers", {"name": "XONE"}, {"name": "STARTTLS"}), "its verb STARTTLS is built in"),
        (section("Answers", {"name": "GET"}), "its verb GET is built in"),
        (section("Answers", {"name": "xone"}), "its verb 'xone' is not 1 to 12 upper-case letters and digits"),
        (section("Answers", {"name": ""}), "is not 1 to 12"),
        (section("Answers", {"name": "X" * 13}), "is not 1 to 12"),
        (section("Answers", {"name": "X-ONE"}), "is not 1 to 12"),
        (section("Answers", {"name": "X\r\nQUIT"}), "is not 1 to 12"),
        (section("Answers", {"name": "XONE", "keyword": "XONE\r\n250 X"}), "is no line of an EHLO reply"),
        (section("Answers", {"name": "XONE", "keyword": "x one"}), "is no line of an EHLO reply"),
        (section("Answers", {"name": "XONE", "keyword": "AUTH PLAIN"}), "the keyword 'AUTH PLAIN' of its verb XONE is"),
        (section("Answers", {"name": "XONE", "argument_max": -1}), "argument_max of its verb XONE is not 0 to 65536"),
        (section("Answers", on_failure="accept"), "on_failure = 'accept' means nothing for a command"),
        (section("AnswersAndReads", on_failure="quarantine"), "on_failure = 'quarantine' means nothing for a command"),
        (section("Verbless"), "it handles `command` and has no verbs"),
        (section("Dumb"), "it has verbs and does not handle `command`"),
        (section(rule="mail from=*"), "the rule key 'mail from' means nothing for the event 'command'"),
    ],
)
def test_what_cannot_be_a_command_is_named_at_load(given: dict[str, object], words: str) -> None:
    with pytest.raises(SinkError, match=r"^sink\[0\]") as caught:
        load(given)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("second", "named"),
    [
        (section("AnswersAndReads", {"name": "XTWO"}, {"name": "XONE"}), "XONE"),
        (section(rule="listener=other", priority=1), "XONE"),
    ],
)
def test_one_verb_has_one_sink_and_both_are_named(second: dict[str, object], named: str) -> None:
    with pytest.raises(SinkError) as caught:
        load(section("Answers", {"name": "XZERO"}), section(), second)
    assert str(caught.value).startswith(f"sink[1] ({HERE}:Answers-2) and sink[2] ({second['use']}")
    assert str(caught.value).endswith(f"both answer {named}; one verb, one sink")


def test_a_verb_that_one_sink_has_twice_is_named() -> None:
    with pytest.raises(SinkError, match="its verb XONE is there twice"):
        load(section("Answers", {"name": "XONE"}, {"name": "XONE", "keyword": "XONE"}))


def test_no_verb_and_no_keyword_of_the_servers_own_can_be_taken() -> None:
    loop = asyncio.new_event_loop()
    ordeal = SessionOrdeal(loop, TLS)
    try:
        conversation: Conversation = ordeal.session.conversation
        own = set(conversation.verbs) | set(ordeal.session._later) | NOT_SMTP
        assert {word.decode() for word in own} - FREE <= BUILT_IN_VERBS
        words = {line.partition(" ")[0] for line in conversation.keywords()[1:]}
        assert words | {"STARTTLS", "XSMTPMESH"} <= BUILT_IN_KEYWORDS
    finally:
        ordeal.end()
        loop.close()


def test_explain_tells_who_answers_a_command() -> None:
    chain = load(section("Answers", {"name": "XTWO"}), section(rule="command=xone,xthree; client=10.0.0.0/8"))

    def who(message: str) -> list[int]:
        return [chain.bindings.index(step.binding) for step in explain(chain, parse_facts(message))]

    assert who("command=XTWO") == [0]
    assert who("command=xone; client=10.1.1.1") == [1]
    assert who("command=xone; client=192.0.2.1") == []
    assert who("command=xthree; client=10.1.1.1") == []


async def test_a_session_keeps_the_sinks_whose_commands_it_knows(tmp_path: Path) -> None:
    chain = chain_of(tmp_path, section("Answers", {"name": "XONE"}, {"name": "XPEER", "peers_only": True}))
    identity = build_identity(authority := Authority.create("test", at=datetime.now(UTC)), "self")
    peer = build_identity(authority, "peer").client_context()
    sink = chain.bindings[0].sink
    assert isinstance(sink, Answers)
    around = Surroundings(HOSTNAME, INLINE_BYTES_MAX, sinks=chain)
    async with open_door(tmp_path, around) as door, open_mesh_door(tmp_path, identity, chain) as mesh:
        client, other = await door.client(), await (await mesh.dial(peer)).hello()
        retiring = asyncio.create_task(chain.retire())
        assert await client.say("XONE") == "250 known"
        await client.say("QUIT")
        assert await other.say("XPEER") == "250 known"
        assert not sink.stopped
        await other.say("QUIT")
        async with asyncio.timeout(5):
            await retiring
        assert sink.stopped
