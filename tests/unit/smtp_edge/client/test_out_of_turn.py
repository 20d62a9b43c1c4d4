"""What we send is one message, whatever a next hop says, when it says it, and whatever is in the message.

The dot (or LAST) goes out behind a whole message and nowhere else; a session in which more was said than asked carries
nothing further; and no server, however it understands line ends, finds an end inside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision import OutcomeKind
from smtp_edge.client.attempt import Job
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.client.replies import ReplyStream
from smtp_edge.client.sending import send_stuffed
from smtp_edge.envelope import MailData
from smtp_edge.server.bulk import DataReader, LineEnds
from smtp_edge.server.chunks import TextChunks
from tests.unit.smtp_edge.client.servers import KEYWORDS, Script, smtp_server
from tests.unit.smtp_edge.client.test_delivery import ANN, BOB, BODY, PREFIX, codes, job, target

TWICE = "250 2.0.0 yes\r\n250 2.0.0 yes"
ONE_BY_ONE, BDAT, UNBOUND = (), ("CHUNKING",), ("PIPELINING",)
LARGE = b"Subject: large\r\n\r\n" + (b"0" * 60_000 + b"\r\n") * 100
"""Lines as long as the fake server's answers may be rare, and more of them than sockets hold."""


@pytest.fixture
async def client() -> AsyncIterator[DeliveryClient]:
    made = DeliveryClient(hostname="relay.test", identity=None, connect_timeout_s=1, attempt_timeout_s=5)
    yield made
    await made.close()


@pytest.fixture(params=["in a file", "in memory"])
def large(tmp_path: Path, request: pytest.FixtureRequest) -> Job:
    path = tmp_path / "spooled"
    path.write_bytes(LARGE)
    header = b"Subject: large\r\n\r\n"
    in_file, in_memory = MailData(len(LARGE), path=path, header=header), MailData(len(LARGE), LARGE, header=header)
    return replace(job(), data=in_file if request.param == "in a file" else in_memory)


# -- a remote that speaks out of turn ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [KEYWORDS, ONE_BY_ONE], ids=["pipelined", "one by one"])
@pytest.mark.parametrize(
    "answer", ["250 2.0.0 taken", "354 go ahead\r\n250 2.0.0 taken", "220 what"], ids=["250", "354 and 250", "220"]
)
@pytest.mark.rfc("2920 3.1b", "5321 4.3.2")
async def test_no_answer_to_data_but_354_lets_a_message_go_or_counts_as_its_acceptance(
    client: DeliveryClient, keywords: tuple[str, ...], answer: str
) -> None:
    async with smtp_server(Script(data=answer, keywords=keywords)) as server:
        result = await client.attempt(target(server), job(ANN, BOB))
        assert (result.kind, result.replies) == (OutcomeKind.DISCONNECTED, ())
        assert server.seen.accepted == []


@pytest.mark.parametrize("keywords", [KEYWORDS, ONE_BY_ONE, BDAT], ids=["pipelined", "one by one", "BDAT"])
@pytest.mark.rfc("2920 3.1b")
async def test_a_greeting_with_one_reply_too_many_is_no_session(
    client: DeliveryClient, keywords: tuple[str, ...]
) -> None:
    hello = "\r\n".join([f"250-{word}" for word in ("sink.test", *keywords)] + ["250 HELP", "250 2.1.0 Ok"])
    async with smtp_server(Script(ehlo=hello)) as server:
        result = await client.attempt(target(server), job())
        assert (result.kind, result.reason) == (
            OutcomeKind.CONNECT_FAILED,
            "EHLO: the remote answered what was not asked yet",
        )
        assert server.seen.said("MAIL") == []


@pytest.mark.parametrize("keywords", [KEYWORDS, ONE_BY_ONE], ids=["pipelined", "one by one"])
@pytest.mark.rfc("2920 3.1c")
async def test_replies_that_come_twice_are_not_taken_for_those_to_the_next_commands(
    client: DeliveryClient, keywords: tuple[str, ...]
) -> None:
    async with smtp_server(Script(mail=TWICE, rcpt=lambda line: "550 5.1.1 who", keywords=keywords)) as server:
        result = await client.attempt(target(server), job(ANN, BOB))
        assert result.kind is not OutcomeKind.ACCEPTED
        assert not any(reply is not None and reply.positive for reply in result.replies)
        assert server.seen.accepted == []


async def test_a_reply_behind_the_last_one_ends_the_use_of_the_connection(client: DeliveryClient) -> None:
    async with smtp_server(Script(final=TWICE)) as server:
        for _ in range(2):
            assert (await client.attempt(target(server), job())).kind is OutcomeKind.ACCEPTED
        assert server.seen.connections == 2


async def test_a_remote_that_will_not_begin_afresh_is_left_for_a_new_connection(client: DeliveryClient) -> None:
    script = Script(rcpt=lambda line: "550 5.1.1 who", rset="502 5.5.1 what")
    async with smtp_server(script) as server:
        await client.attempt(target(server), job())
        script.rcpt = lambda line: "250 2.1.5 Ok"
        assert (await client.attempt(target(server), job())).kind is OutcomeKind.ACCEPTED
        assert server.seen.connections == 2


# -- a message that cannot be sent to its end --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [552, 451])
async def test_a_refusal_in_the_middle_of_the_mail_data_counts_and_the_session_is_over(
    client: DeliveryClient, large: Job, code: int
) -> None:
    script = Script(body=f"{code} {code // 100}.3.4 enough", keywords=UNBOUND)
    async with smtp_server(script) as server:
        result = await client.attempt(target(server), large)
        assert (codes(result), server.seen.bodies) == ([code], [])
        script.body = ""
        assert (await client.attempt(target(server), job())).kind is OutcomeKind.ACCEPTED
        assert (server.seen.connections, server.seen.bodies) == (2, [PREFIX + BODY])


async def test_an_acceptance_in_the_middle_of_the_mail_data_is_none(client: DeliveryClient, large: Job) -> None:
    async with smtp_server(Script(body="250 2.0.0 taken", keywords=UNBOUND)) as server:
        result = await client.attempt(target(server), large)
        assert (result.kind, result.replies) == (OutcomeKind.DISCONNECTED, ())
        assert server.seen.accepted == []


# -- line ends ---------------------------------------------------------------------------------------------------------

PIECES = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"x", b"\0", b"\r\n.\r\n"]), max_size=30)
LINE_ENDS = (b"\r\n", b"\n", b"\r")
ENDS = [before + b"." + after for before in LINE_ENDS for after in LINE_ENDS]
"""What some server takes, or once took, for the end of the mail data (CVE-2023-51764 and its kin)."""


class Wire:
    """A stream that takes what is written."""

    def __init__(self) -> None:
        self.sent, self.waiting = b"", False

    def write(self, *parts: bytes) -> None:
        self.sent += b"".join(parts)

    async def drain(self) -> None:
        pass


async def send(data: bytes) -> bytes:
    wire = Wire()
    await send_stuffed(cast(ReplyStream, wire), replace(job(), data=MailData(len(data), inline=data)), lambda: None)
    return wire.sent


def receive(sent: bytes, policy: str) -> bytes | None:
    """What a listener keeps of mail data by DATA; None if it is refused."""
    ends, reader = LineEnds(repair=policy == "normalise"), DataReader()
    kept = ends.feed(reader.feed(sent + b"\r\n.\r\n")) + ends.finish()
    return None if ends.bare and policy == "refuse" else kept


@pytest.mark.parametrize("policy", ["refuse", "normalise"])
@given(pieces=PIECES)
@pytest.mark.rfc("5321 2.3.8a")
async def test_nothing_inside_of_what_we_send_ends_it(policy: str, pieces: list[bytes]) -> None:
    kept = receive(b"".join(pieces), policy)
    if kept is not None:
        sent = await send(kept)
        assert sent.endswith(b"\r\n.\r\n")
        assert not any(end in sent[:-3] for end in ENDS)


@pytest.mark.parametrize("policy", ["refuse", "normalise"])
@given(pieces=PIECES)
async def test_what_came_by_bdat_ends_nowhere_else_either(policy: str, pieces: list[bytes]) -> None:
    chunks = TextChunks(repair=policy == "normalise")
    kept = chunks.feed(b"".join(pieces)) + chunks.finish()
    if policy == "normalise" or not chunks.bare:
        sent = await send(kept)
        assert not any(end in sent[:-3] for end in ENDS)
