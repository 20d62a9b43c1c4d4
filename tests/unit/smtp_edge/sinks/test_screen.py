"""Sinks before the 250, over sockets: verdicts at each event, edits, failures and what each comes to on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.server.session import Session
from smtp_edge.sinks import chain as chain_module
from smtp_edge.sinks import screen as screen_module
from smtp_edge.sinks.api import (
    Accept,
    Discard,
    Disconnect,
    Message,
    Quarantine,
    Reject,
    Sink,
    TempFail,
    Verdict,
)
from smtp_edge.sinks.chain import BREAK_AFTER, Binding, SinkChain
from smtp_edge.sinks.rules import parse_rule
from smtp_edge.sinks.testing import ask
from tests.unit.smtp_edge.server import ordeal
from tests.unit.smtp_edge.server.doors import HOSTNAME, INLINE_BYTES_MAX, Door, Surroundings, chain_of, open_door

ANN, BOB = "ann@example.org", "bob@example.com"
MAIL = b"Subject: hi\r\n\r\nbody\r\n"


class Says(Sink):
    """The same at one event; notes who is asked what."""

    def __init__(self, verdict: object = None) -> None:
        self.verdict, self.asked = verdict, list[str]()

    def say(self, asked: str) -> Verdict | None:
        self.asked.append(asked)
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict  # type: ignore[return-value]


class AtConnect(Says):
    async def connect(self, client: Client) -> Verdict | None:
        return self.say(client.address)


class AtHelo(Says):
    async def helo(self, client: Client) -> Verdict | None:
        return self.say(client.helo)


class AtMail(Says):
    async def mail(self, client: Client, envelope: Envelope) -> Verdict | None:
        return self.say(envelope.sender)


class AtRcpt(Says):
    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        return self.say(recipient.address)


class AtData(Says):
    async def data(self, message: Message) -> Verdict | None:
        message.add_header("X-Seen", str(len(self.asked)))
        return self.say(",".join(recipient.address for recipient in message.envelope.recipients))


class AtEnd(Says):
    async def disconnect(self, client: Client) -> None:
        self.say(client.helo)


@asynccontextmanager
async def door(directory: Path, *bindings: Binding, **settings: object) -> AsyncIterator[Door]:
    chain = SinkChain(bindings)
    await chain.start()
    around = Surroundings(HOSTNAME, INLINE_BYTES_MAX, sinks=chain)
    async with open_door(directory, around, **settings) as opened:
        yield opened
    await asyncio.wait_for(chain.retire(), 5)


def bound(sink: Sink, rule: str = "", **more: object) -> Binding:
    events = [event for event in ("connect", "helo", "mail", "rcpt", "data") if Binding("x", sink).handles(event)]
    return Binding(type(sink).__name__, sink, parse_rule(rule, events=events), **more)  # type: ignore[arg-type]


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def submit(opened: Door, *recipients: str, data: bytes = MAIL) -> list[str]:
    """Replies to MAIL, each RCPT, and the final dot."""
    client = await opened.client()
    said = [await client.say("MAIL FROM:<sue@example.net>")]
    said += [await client.say(f"RCPT TO:<{address}>") for address in recipients or (ANN,)]
    said.append(await client.send(data))
    return said


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        (Reject("go away"), "554 5.7.1 go away"),
        (TempFail("later"), "421 4.3.0 later"),
        (Disconnect("bye"), "421 4.7.0 bye"),
    ],
)
async def test_at_connect_the_greeting_is_the_refusal(tmp_path: Path, verdict: Verdict, reply: str) -> None:
    async with door(tmp_path, bound(AtConnect(verdict))) as opened:
        client = await opened.dial()
        assert await client.reply() == reply
        assert await client.reply() == ""


async def test_a_client_that_xclient_tells_of_is_asked_about_like_one_that_connects(tmp_path: Path) -> None:
    sink = AtConnect(Reject("go away"))
    filters = chain_of(tmp_path, {"use": "xclient", "with": {"networks": ["127.0.0.0/8"]}}).bindings
    async with door(tmp_path, bound(sink, "client=192.0.2.0/24"), *filters) as opened:
        client = await opened.client()
        assert (await client.say("XCLIENT ADDR=198.51.100.7")).startswith("220")
        assert await client.say("XCLIENT ADDR=192.0.2.7") == "554 5.7.1 go away"
        assert await client.reply() == ""
        assert sink.asked == ["192.0.2.7"]


@pytest.mark.parametrize("sink", [AtHelo(Reject("no")), AtMail(Reject("no")), AtRcpt(Reject("no"))])
async def test_a_refused_command_was_never_said(tmp_path: Path, sink: Says) -> None:
    async with door(tmp_path, bound(sink)) as opened:
        client = await opened.dial()
        await client.reply()
        client.write(b"EHLO c.test\r\n")
        said = [await client.reply()]
        client.write(b"MAIL FROM:<sue@example.net>\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n")
        said += await client.replies(3)
        codes = [line[:3] for line in said]
        assert (
            codes
            == {
                AtHelo: ["550", "503", "503", "503"],
                AtMail: ["250", "550", "503", "503"],
                AtRcpt: ["250", "250", "550", "554"],
            }[type(sink)]
        )
        assert sink.asked == {AtHelo: ["c.test"], AtMail: ["sue@example.net"], AtRcpt: [ANN]}[type(sink)]


async def test_a_refused_recipient_leaves_the_others(tmp_path: Path) -> None:
    async with door(tmp_path, bound(AtRcpt(TempFail("later")), f"rcpt to={BOB}")) as opened:
        said = await submit(opened, ANN, BOB)
        assert [line[:3] for line in said] == ["250", "250", "451", "250"]
        assert [item.address for item in opened.acceptor.messages[0].envelope.recipients] == [ANN]


@pytest.mark.parametrize(
    ("verdict", "reply", "stored"),
    [
        (None, "250", 1),
        (Accept(), "250", 1),
        (Reject("a virus", 554, "5.7.0"), "554 5.7.0 a virus", 0),
        (TempFail("later", 450, "4.2.0"), "450 4.2.0 later", 0),
        (Discard(), "250 2.0.0 Ok", 0),
        (Disconnect("bye"), "421 4.7.0 bye", 0),
    ],
)
async def test_the_final_dot_is_answered_as_the_verdict_has_it(
    tmp_path: Path, verdict: Verdict | None, reply: str, stored: int
) -> None:
    async with door(tmp_path, bound(AtData(verdict))) as opened:
        assert (await submit(opened))[-1].startswith(reply)
        assert len(opened.acceptor.messages) == stored


@pytest.mark.parametrize("sink", [AtConnect, AtHelo, AtMail, AtRcpt, AtData])
async def test_quarantine_at_any_event_holds_the_message_with_its_reason(tmp_path: Path, sink: type[Says]) -> None:
    async with door(tmp_path, bound(sink(Quarantine("odd")))) as opened:
        assert (await submit(opened, ANN, BOB))[-1].startswith("250")
        (message,) = opened.acceptor.messages
        assert message.held == ((Recipient(ANN), "odd"), (Recipient(BOB), "odd"))


@pytest.mark.parametrize("sink", [AtConnect, AtHelo, AtMail, AtRcpt, AtData])
async def test_discard_at_any_event_drops_the_message_after_a_250(tmp_path: Path, sink: type[Says]) -> None:
    async with door(tmp_path, bound(sink(Discard()))) as opened:
        assert (await submit(opened, ANN, BOB))[-1] == "250 2.0.0 Ok"
        assert opened.acceptor.messages == []


async def test_what_a_transaction_was_told_is_forgotten_with_it(tmp_path: Path) -> None:
    async with door(
        tmp_path, bound(AtMail(Quarantine("odd")), "mail from=bad@*"), bound(AtRcpt(Discard()), f"rcpt to={BOB}")
    ) as opened:
        client = await opened.client()
        for sender in ("bad@example.net", "sue@example.net"):
            await client.say(f"MAIL FROM:<{sender}>")
            await client.say(f"RCPT TO:<{ANN}>")
            if sender.startswith("bad"):
                await client.say(f"RCPT TO:<{BOB}>")
            await client.send(MAIL)
        first, second = opened.acceptor.messages
        assert first.held == ((Recipient(ANN), "odd"),)
        assert second.held == ()


# -- for some of the recipients ----------------------------------------------------------------------------------------


async def test_a_rule_narrows_what_is_refused_and_the_refused_part_waits_for_an_operator(tmp_path: Path) -> None:
    sink = AtData(Reject("a virus"))
    async with door(tmp_path, bound(sink, f"rcpt to={BOB}")) as opened:
        assert (await submit(opened, ANN, BOB))[-1].startswith("250")
        assert sink.asked == [BOB]
        (message,) = opened.acceptor.messages
        assert message.held == ((Recipient(BOB), "refused by sink AtData: 550 5.7.1 a virus"),)
        assert b"X-Seen" not in (message.data.inline or b""), "a sink that refuses edits nothing"


async def test_a_sender_who_is_known_gets_a_report_of_the_refused_part() -> None:
    known = Client("192.0.2.1", helo="client.example.net", user="sue", listener="test")
    outcome = await ask(AtData(Reject("a virus")), MAIL, recipients=(ANN, BOB), rule=f"rcpt to={BOB}", client=known)
    assert (outcome.reply, outcome.held) == ("", ())
    assert outcome.refused == ((BOB, "550 5.7.1 a virus"),)


async def test_all_refused_one_after_another_is_the_first_refusal(tmp_path: Path) -> None:
    first, second = AtData(Reject("one")), AtData(Reject("two"))
    async with door(tmp_path, bound(first, f"rcpt to={BOB}"), bound(second)) as opened:
        assert (await submit(opened, ANN, BOB))[-1] == "550 5.7.1 two"
        assert second.asked == [ANN], "nobody is asked about what is refused already"
        assert opened.acceptor.messages == []


# -- order and edits ---------------------------------------------------------------------------------------------------


async def test_sinks_are_asked_by_priority_and_see_the_edits_before_them(tmp_path: Path) -> None:
    class Reads(Says):
        async def data(self, message: Message) -> Verdict | None:
            self.asked += message.headers.all("X-Seen")
            return Accept()

    last, reader = AtData(), Reads()
    async with door(
        tmp_path, bound(last, priority=30), bound(reader, "header x-seen=*", priority=20), bound(AtData(), priority=10)
    ) as opened:
        assert (await submit(opened))[-1].startswith("250")
        assert reader.asked == ["0"]
        assert last.asked == [], "Accept ends the questions"
        assert (opened.acceptor.messages[0].data.inline or b"").startswith(b"X-Seen: 0\r\nSubject: hi\r\n\r\n")


@pytest.mark.parametrize("size", [10, 10 * INLINE_BYTES_MAX])
async def test_an_edited_message_keeps_its_body_and_leaves_no_file_behind(tmp_path: Path, size: int) -> None:
    body = b"..line\r\n" * size
    async with door(tmp_path, bound(AtData()), size_bytes_max=10_000_000) as opened:
        assert (await submit(opened, data=b"A: b\r\n\r\n" + body))[-1].startswith("250")
        (message,) = opened.acceptor.messages
        data = message.data.path.read_bytes() if message.data.path else message.data.inline
        assert data == b"X-Seen: 0\r\nA: b\r\n\r\n" + body
        assert files_in(tmp_path) == ([message.data.path] if message.data.path else [])


async def test_a_refused_file_is_removed(tmp_path: Path) -> None:
    async with door(tmp_path, bound(AtData(Reject("no"))), size_bytes_max=10_000_000) as opened:
        assert (await submit(opened, data=b"A: b\r\n\r\n" + b"x\r\n" * INLINE_BYTES_MAX))[-1].startswith("550")
        assert files_in(tmp_path) == []


# -- failures ----------------------------------------------------------------------------------------------------------


class Hangs(Sink):
    async def data(self, message: Message) -> Verdict | None:
        message.add_header("X-Half", "done")
        await asyncio.Event().wait()
        return None


class Lies(Sink):
    async def data(self, message: Message) -> Verdict | None:
        return "250 fine"  # type: ignore[return-value]


@pytest.mark.parametrize("sink", [AtData(ZeroDivisionError("inside")), Hangs(), Lies()])
@pytest.mark.parametrize("policy", ["tempfail", "accept", "quarantine"])
async def test_a_failing_sink_means_what_its_binding_says(tmp_path: Path, sink: Sink, policy: str) -> None:
    async with door(tmp_path, bound(sink, timeout_s=0.05, on_failure=policy)) as opened:
        reply = (await submit(opened))[-1]
        if policy == "tempfail":
            assert reply == "451 4.3.0 local error in processing"
            assert opened.acceptor.messages == []
            return
        (message,) = opened.acceptor.messages
        assert message.data.inline == MAIL, "its edits are undone"
        assert bool(message.held) is (policy == "quarantine")


@pytest.mark.parametrize("sink", [AtConnect, AtHelo, AtMail, AtRcpt])
async def test_a_failure_before_the_message_is_for_now(tmp_path: Path, sink: type[Says]) -> None:
    async with door(tmp_path, bound(sink(KeyError("inside")))) as opened:
        client = await opened.dial()
        said = [await client.reply()]
        for line in ("EHLO c.test", "MAIL FROM:<sue@example.net>", f"RCPT TO:<{ANN}>"):
            if said[-1][:1] == "2":
                said.append(await client.say(line))
        number = [AtConnect, AtHelo, AtMail, AtRcpt].index(sink)
        assert said[number].startswith(("421 4.3.0", "451 4.3.0"))
        assert "inside" not in said[number]


async def test_the_time_from_the_final_dot_to_the_reply_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen_module, "TOTAL_S", 0.05)
    async with door(tmp_path, bound(Hangs(), on_failure="accept")) as opened:
        assert (await submit(opened))[-1] == "451 4.3.0 local error in processing"
        assert opened.acceptor.messages == []


async def test_one_that_fails_again_and_again_is_asked_now_and_then_until_it_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain_module, "PROBE_S", 1e6)
    sink = AtData(KeyError("inside"))
    binding = bound(sink, on_failure="accept")
    async with door(tmp_path, binding) as opened:
        for _ in range(BREAK_AFTER + 3):
            await submit(opened)
        assert len(sink.asked) == BREAK_AFTER
        binding.trust.probe_at = 0.0
        await submit(opened)
        await submit(opened)
        assert len(sink.asked) == BREAK_AFTER + 1, "one probe, and it failed"
        sink.verdict, binding.trust.probe_at = None, 0.0
        await submit(opened)
        await submit(opened)
        assert len(sink.asked) == BREAK_AFTER + 3, "well again"


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_every_session_ends_with_one_disconnect(tmp_path: Path) -> None:
    sink = AtEnd()
    async with door(tmp_path, bound(sink)) as opened:
        await submit(opened)
        client = await opened.client()
        await client.say("QUIT")
    assert sorted(sink.asked) == ["client.test", "client.test"]


async def test_a_chain_that_is_replaced_stops_with_its_last_session(tmp_path: Path) -> None:
    stopped: list[str] = []

    class Stops(AtData):
        async def stop(self) -> None:
            stopped.append("stopped")

    chain = SinkChain([bound(Stops())])
    async with open_door(tmp_path, Surroundings(HOSTNAME, INLINE_BYTES_MAX, sinks=chain)) as opened:
        client = await opened.client()
        retiring = asyncio.create_task(chain.retire())
        await client.say("MAIL FROM:<sue@example.net>")
        await client.say(f"RCPT TO:<{ANN}>")
        await client.send(MAIL)
        assert b"X-Seen" in (opened.acceptor.messages[0].data.inline or b"")
        assert stopped == []
        await client.say("QUIT")
        await asyncio.wait_for(retiring, 5)
        assert stopped == ["stopped"]


class Spoken:
    """A session without a socket; `said` is what it has replied so far."""

    def __init__(self, *bindings: Binding) -> None:
        options = replace(ordeal.build_options(0), sinks=SinkChain(bindings))
        self.session = Session(options, ordeal._Acceptor(0), ordeal._House(), loop=asyncio.get_running_loop())
        self.transport = ordeal.Transport(False)
        self.transport.session = self.session

    async def begin(self) -> None:
        self.session.connection_made(self.transport)
        await self.turn()
        self.session.data_received(b"EHLO client.test\r\n")
        await self.turn()
        self.said()

    async def turn(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def hear(self, text: str) -> None:
        self.session.data_received(text.encode() + b"\r\n")

    def said(self) -> list[str]:
        """Codes of the replies since the last time."""
        lines = self.transport.written.decode().splitlines()
        self.transport.written.clear()
        return [line[:3] for line in lines]


async def test_recipients_whom_no_sink_wants_are_answered_as_they_come() -> None:
    sink = AtRcpt()
    spoken = Spoken(bound(sink, "rcpt to=*@wanted.test, someone@*"), bound(AtData()))
    await spoken.begin()
    spoken.hear("MAIL FROM:<sue@example.net>")
    spoken.hear("RCPT TO:<ann@here.test>")
    assert spoken.said() == ["250", "250"], "without a turn of the loop"
    assert sink.asked == []
    spoken.hear("QUIT")
    await spoken.turn()


async def test_replies_keep_their_order_while_a_sink_thinks_about_one_of_them() -> None:
    gate = asyncio.Event()

    class Thinks(Says):
        async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
            await gate.wait()
            return Reject("no") if recipient.address.startswith("bad") else None

    spoken = Spoken(bound(Thinks(), "rcpt to=*@here.test"))
    await spoken.begin()
    spoken.hear("MAIL FROM:<sue@example.net>")
    spoken.hear("RCPT TO:<bad@here.test>")
    spoken.hear("NOOP")  # before the session's task had its turn
    await spoken.turn()
    spoken.hear("VRFY x")  # while the sink is asked
    await spoken.turn()
    assert spoken.said() == ["250"]
    gate.set()
    await spoken.turn()
    assert spoken.said() == ["550", "250", "252"]
    spoken.hear("DATA")
    await spoken.turn()
    assert spoken.said() == ["554"], "a recipient that a sink refuses was never said"
    spoken.hear("QUIT")
    await spoken.turn()


@pytest.mark.parametrize(("begun", "replies"), [(False, ["421"]), (True, ["250", "421"])])
async def test_a_session_that_is_closed_when_a_sink_is_to_be_asked(begun: bool, replies: list[str]) -> None:
    """What the sink thinks about already is answered first."""
    gate = asyncio.Event()

    class Thinks(Says):
        async def mail(self, client: Client, envelope: Envelope) -> Verdict | None:
            await gate.wait()
            return None

    spoken = Spoken(bound(Thinks()))
    await spoken.begin()
    spoken.hear("MAIL FROM:<sue@example.net>")
    if begun:
        await spoken.turn()
    spoken.session.close_soon()
    await spoken.turn()
    gate.set()
    await spoken.turn()
    assert spoken.said() == replies
    spoken.transport.close()
    await spoken.turn()


async def test_a_verdict_about_a_recipient_says_nothing_of_the_next_message(tmp_path: Path) -> None:
    class Once(AtRcpt):
        async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
            self.say(recipient.address)
            return Quarantine("odd") if len(self.asked) == 1 else None

    async with door(tmp_path, bound(Once())) as opened:
        client = await opened.client()
        for _ in range(2):
            await client.say("MAIL FROM:<sue@example.net>")
            await client.say(f"RCPT TO:<{ANN}>")
            await client.send(MAIL)
        assert [len(message.held) for message in opened.acceptor.messages] == [1, 0]


# -- the envelope ------------------------------------------------------------------------------------------------------


class Readdresses(Sink):
    """Takes Ann out, adds others, and says what it is told to."""

    def __init__(self, *verdicts: Verdict | None, add: tuple[str, ...] = ("archive@example.org",)) -> None:
        self.verdicts, self.add, self.seen = list(verdicts), add, list[tuple[str, ...]]()

    async def data(self, message: Message) -> Verdict | None:
        self.seen.append(tuple(recipient.address for recipient in message.envelope.recipients))
        message.remove_recipient(ANN)
        for address in self.add:
            message.add_recipient(address)
        message.set_sender("")
        return self.verdicts.pop(0) if self.verdicts else None


async def test_edits_of_the_envelope_count_for_those_who_come_after_and_are_stored() -> None:
    first, second = Readdresses(), Readdresses()
    both = [bound(first, priority=1), bound(second, "mail from=<>", priority=2)]
    outcome = await ask(both, MAIL, recipients=(ANN, BOB))
    assert (outcome.sender, outcome.recipients) == ("", (BOB, "archive@example.org"))
    assert second.seen == [(BOB, "archive@example.org")]


@pytest.mark.parametrize("verdict", [Discard(), None])
async def test_edits_of_one_who_sees_some_recipients_leave_the_others(verdict: Verdict | None) -> None:
    outcome = await ask(
        Readdresses(verdict, add=(BOB, "jörg@example.org")), MAIL, recipients=(ANN, BOB), rule=f"rcpt to={ANN}"
    )
    if verdict is not None:  # who drops a message has edited nothing
        assert (outcome.sender, outcome.recipients) == ("sender@example.net", (BOB,))
    else:
        assert (outcome.sender, outcome.recipients) == ("", (BOB, "jörg@example.org"))


@pytest.mark.parametrize("address", ["no-address", "a@b\r\nRCPT TO:<c@d>", "<a@example.org>"])
async def test_what_is_no_address_is_the_sinks_failure(address: str) -> None:
    outcome = await ask(Readdresses(add=(address,)), MAIL, recipients=(ANN,))
    assert outcome.reply.startswith("451 4.3.0")


async def test_a_message_whose_recipients_are_all_removed_is_done_with() -> None:
    assert (await ask(Readdresses(add=()), MAIL, recipients=(ANN,))).reply.startswith("250")
