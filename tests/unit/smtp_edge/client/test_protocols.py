"""LMTP, CHUNKING, LIMITS, HELO: what a next hop speaks besides plain ESMTP, and what it cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision import OutcomeKind
from smtp_edge.client.attempt import Job, Target
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.client.limits import Limits, choose_recipients, parse_limits
from smtp_edge.client.sending import CHUNK_BYTES
from smtp_edge.envelope import BodyType, MailData, Recipient
from smtp_edge.stuffing import Unstuff
from tests.unit.smtp_edge.client.certificates import issue, server_context
from tests.unit.smtp_edge.client.servers import DROP, KEYWORDS, Script, smtp_server
from tests.unit.smtp_edge.client.test_delivery import ANN, BOB, BODY, HOST, PREFIX, codes, job, target

CAROL = Recipient("carol@other.test")
TAKEN = "250 2.0.0 Ok"
LMTP_WORDS = ("PIPELINING", "8BITMIME")


@pytest.fixture
async def client() -> AsyncIterator[DeliveryClient]:
    made = DeliveryClient(hostname="relay.test", identity=None, connect_timeout_s=1, attempt_timeout_s=0.5)
    yield made
    await made.close()


# -- LMTP --------------------------------------------------------------------------------------------------------------


def answer(**replies: str) -> Callable[[str], str]:
    return lambda recipient: replies.get(recipient.partition("@")[0], TAKEN)


@pytest.mark.parametrize("keywords", [LMTP_WORDS, (), ("CHUNKING",)])
@pytest.mark.rfc("2033 4.1", "2033 4.2a", "2033 4.2b", "2033 4.3")
async def test_lmtp_answers_for_each_recipient(client: DeliveryClient, keywords: tuple[str, ...]) -> None:
    script = Script(keywords=keywords, finals=answer(bob="452 4.2.2 over quota", carol="550 5.2.1 disabled"))
    async with smtp_server(script) as server:
        result = await client.attempt(target(server, protocol="lmtp"), job(ANN, BOB, CAROL))
        assert (result.kind, codes(result), result.delivered) == (OutcomeKind.ACCEPTED, [250, 452, 550], True)
        assert server.seen.said("LHLO") == ["LHLO relay.test"]
        assert server.seen.said("EHLO") == []
        again = await client.attempt(target(server, protocol="lmtp"), job(ANN))
        assert (again.kind, server.seen.connections) == (OutcomeKind.ACCEPTED, 1)


@pytest.mark.rfc("2033 4.2a")
async def test_lmtp_waits_for_no_reply_for_those_refused_at_rcpt(client: DeliveryClient) -> None:
    script = Script(keywords=LMTP_WORDS, rcpt=lambda line: "550 5.1.1 who" if "bob" in line else TAKEN, finals=answer())
    async with smtp_server(script) as server:
        result = await client.attempt(target(server, protocol="lmtp"), job(ANN, BOB, CAROL))
        assert codes(result) == [250, 550, 250]


@pytest.mark.rfc("2033 4.2b")
async def test_a_connection_lost_among_the_replies_leaves_the_rest_in_doubt(client: DeliveryClient) -> None:
    async with smtp_server(Script(keywords=LMTP_WORDS, finals=answer(bob=DROP))) as server:
        result = await client.attempt(target(server, protocol="lmtp"), job(ANN, BOB, CAROL))
        assert (result.kind, codes(result)) == (OutcomeKind.IN_DOUBT, [250, None, None])


async def test_all_refused_after_the_dot(client: DeliveryClient) -> None:
    async with smtp_server(Script(keywords=LMTP_WORDS, finals=lambda _: "452 4.2.2 over quota")) as server:
        result = await client.attempt(target(server, protocol="lmtp"), job(ANN, BOB))
        assert (result.kind, codes(result)) == (OutcomeKind.MESSAGE_REFUSED, [452, 452])


async def test_lmtp_over_a_unix_socket(client: DeliveryClient, tmp_path: Path) -> None:
    path = tmp_path / "lmtp"
    async with smtp_server(Script(keywords=LMTP_WORDS, finals=answer()), path=path) as server:
        result = await client.attempt(Target(HOST, "", 25, protocol="lmtp", socket=path), job(ANN))
        assert (result.kind, result.remote) == (OutcomeKind.ACCEPTED, str(path))
        assert server.seen.bodies == [PREFIX + BODY]
    client.forget(HOST)
    result = await client.attempt(Target(HOST, "", 25, protocol="lmtp", socket=path), job(ANN))
    assert result.kind is OutcomeKind.CONNECT_FAILED


@pytest.mark.rfc("2033 4.1")
async def test_a_server_that_speaks_no_lmtp_is_not_greeted_otherwise(client: DeliveryClient) -> None:
    async with smtp_server(Script(ehlo="500 5.5.1 what")) as server:
        result = await client.attempt(target(server, protocol="lmtp"), job())
        assert (result.kind, result.reason) == (OutcomeKind.HOP_TEMPFAIL, "LHLO: 500 5.5.1 what")
        assert server.seen.said("HELO") == []


# -- CHUNKING ----------------------------------------------------------------------------------------------------------

UNSTUFFED = PREFIX + b"Subject: x\r\n\r\n.hello\r\n"


@pytest.mark.parametrize(
    ("keywords", "body_type", "chunks"),
    [
        ((*KEYWORDS, "CHUNKING"), BodyType.SEVEN_BIT, []),
        (("CHUNKING",), BodyType.SEVEN_BIT, [f"BDAT {len(UNSTUFFED)} LAST"]),
        ((*KEYWORDS, "CHUNKING", "BINARYMIME"), BodyType.BINARY_MIME, [f"BDAT {len(UNSTUFFED)} LAST"]),
    ],
)
@pytest.mark.rfc("3030 2h")
async def test_bdat_is_used_where_it_must_be_and_where_it_saves_a_round_trip(
    client: DeliveryClient, keywords: tuple[str, ...], body_type: BodyType, chunks: list[str]
) -> None:
    async with smtp_server(Script(keywords=keywords)) as server:
        result = await client.attempt(target(server), job(body_type=body_type))
        assert (result.kind, server.seen.chunks) == (OutcomeKind.ACCEPTED, chunks)
        assert server.seen.bodies == [UNSTUFFED if chunks else PREFIX + BODY]
        assert ("BODY=BINARYMIME" in server.seen.said("MAIL")[0]) is (body_type is BodyType.BINARY_MIME)


def spooled(tmp_path: Path, body: bytes, **changes: object) -> Job:
    path = tmp_path / "spooled"
    path.write_bytes(body)
    return replace(job(**changes), data=MailData(len(body), path=path, header=b"Subject: x\r\n\r\n"))  # type: ignore[arg-type]


@pytest.mark.rfc("3030 2h")
async def test_a_spool_file_goes_out_in_chunks_unstuffed(client: DeliveryClient, tmp_path: Path) -> None:
    body = b"Subject: large\r\n\r\n" + b"..dots\r\nplain\r\n" * 40_000
    async with smtp_server(Script(keywords=("CHUNKING",))) as server:
        result = await client.attempt(target(server), spooled(tmp_path, body))
        assert result.kind is OutcomeKind.ACCEPTED
        assert server.seen.bodies == [PREFIX + body.replace(b"\r\n..", b"\r\n.")]
        assert len(server.seen.chunks) >= 2
        assert all(int(chunk.split()[1]) <= CHUNK_BYTES for chunk in server.seen.chunks)
        assert [chunk.endswith("LAST") for chunk in server.seen.chunks].index(True) == len(server.seen.chunks) - 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [("552 5.3.4 too much", OutcomeKind.MESSAGE_REFUSED), ("451 4.3.0 broken", OutcomeKind.HOP_TEMPFAIL)],
)
@pytest.mark.rfc("3030 2g")
async def test_a_chunk_that_is_refused_ends_the_transfer(
    client: DeliveryClient, tmp_path: Path, reply: str, kind: OutcomeKind
) -> None:
    body = b"Subject: large\r\n\r\n" + b"0123456789\r\n" * 60_000
    script = Script(keywords=("CHUNKING",), data=reply)
    async with smtp_server(script) as server:
        result = await client.attempt(target(server), spooled(tmp_path, body))
        assert (result.kind, codes(result)) == (kind, [int(reply[:3])])
        assert server.seen.bodies == []
        script.data = "354 again"
        assert (await client.attempt(target(server), job())).kind is OutcomeKind.ACCEPTED
        assert server.seen.connections == 1


async def test_doubt_begins_with_the_last_chunk(client: DeliveryClient) -> None:
    async with smtp_server(Script(keywords=("CHUNKING",), final=DROP)) as server:
        assert (await client.attempt(target(server), job())).kind is OutcomeKind.IN_DOUBT


@given(st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"x", b""]), max_size=20), st.data())
def test_unstuffing_does_not_depend_on_how_data_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    body = b"".join(parts)
    stuffed = (b"\r\n" + body).replace(b"\r\n.", b"\r\n..")[2:]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stuffed)), max_size=5)))
    unstuff = Unstuff()
    pieces = [stuffed[start:end] for start, end in zip([0, *cuts], [*cuts, len(stuffed)], strict=True)]
    assert b"".join([*(unstuff.feed(piece) for piece in pieces), unstuff.finish()]) == body


# -- LIMITS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "limits"),
    [
        ("MAILMAX=10 RCPTMAX=100 RCPTDOMAINMAX=2", Limits(10, 100, 2)),
        ("rcptmax=5 FUTURE=7 FLAG", Limits(0, 5, 0)),
        ("RCPTMAX=0 MAILMAX=-1 RCPTDOMAINMAX=x", Limits()),
        ("RCPTMAX=12345678", Limits()),
        ("", Limits()),
    ],
)
@pytest.mark.rfc("9422 3b")
def test_limits(argument: str, limits: Limits) -> None:
    assert parse_limits(argument) == limits


@pytest.mark.rfc("9422 4.3")
def test_recipients_are_chosen_in_order_and_by_domain() -> None:
    people = [Recipient(f"p@{domain}.test") for domain in "abacb"]
    assert choose_recipients(Limits(0, 2, 0), set(), people) == [0, 1]
    assert choose_recipients(Limits(0, 0, 1), set(), people) == [0, 2]
    named = {"c.test"}
    assert choose_recipients(Limits(0, 0, 2), named, people) == [0, 2, 3]
    assert named == {"c.test", "a.test"}
    assert choose_recipients(Limits(0, 0, 1), {"x.test"}, people) == []


CROWD = [Recipient(f"p{n}@example.org") for n in range(7)]


@pytest.mark.parametrize("keywords", [KEYWORDS, ()])
@pytest.mark.rfc("9422 4.2")
async def test_more_recipients_than_a_transaction_takes_follow_at_once(
    client: DeliveryClient, keywords: tuple[str, ...]
) -> None:
    async with smtp_server(Script(keywords=(*keywords, "LIMITS RCPTMAX=3"))) as server:
        result = await client.attempt(target(server), job(*CROWD))
        assert (result.kind, codes(result), result.left_out) == (OutcomeKind.ACCEPTED, [250] * 7, ())
        assert [len(group) for group in server.seen.accepted] == [3, 3, 1]
        assert server.seen.connections == 1


@pytest.mark.rfc("9422 4.3")
async def test_domains_beyond_the_limit_get_another_session(client: DeliveryClient) -> None:
    async with smtp_server(Script(keywords=(*KEYWORDS, "LIMITS RCPTDOMAINMAX=1"))) as server:
        result = await client.attempt(target(server), job(ANN, CAROL, BOB))
        assert codes(result) == [250, 250, 250]
        assert server.seen.accepted == [("ann@example.org", "bob@example.org"), ("carol@other.test",)]
        assert server.seen.connections == 2
        await client.attempt(target(server), job(CAROL))
        assert server.seen.connections == 2, "a session that has named the domain takes more of it"


@pytest.mark.rfc("9422 4.1")
async def test_a_session_ends_after_as_many_messages_as_the_remote_wants(client: DeliveryClient) -> None:
    async with smtp_server(Script(keywords=(*KEYWORDS, "LIMITS MAILMAX=2"))) as server:
        for _ in range(4):
            await client.attempt(target(server), job())
        assert server.seen.connections == 2


@pytest.mark.parametrize("too_many", ["452 4.5.3 too many", "552 5.5.3 too many", "552 too many recipients"])
@pytest.mark.rfc("5321 4.5.3.1.10b")
async def test_recipients_that_were_too_many_follow_at_once(client: DeliveryClient, too_many: str) -> None:
    taken: list[str] = []

    def two_at_a_time(line: str) -> str:
        taken.append(line)
        return "250 2.1.5 Ok" if len(server.seen.accepted) * 2 + 2 > taken.index(line) else too_many

    async with smtp_server(Script(rcpt=two_at_a_time)) as server:
        result = await client.attempt(target(server), job(*CROWD[:5]))
        assert codes(result) == [250] * 5
        assert [len(group) for group in server.seen.accepted] == [2, 2, 1]


async def test_nobody_taken_is_no_reason_to_ask_again(client: DeliveryClient) -> None:
    async with smtp_server(Script(rcpt=lambda line: "452 4.5.3 too many recipients")) as server:
        result = await client.attempt(target(server), job(*CROWD))
        assert (result.kind, codes(result)) == (OutcomeKind.MESSAGE_REFUSED, [452] * 7)
        assert len(server.seen.said("MAIL")) == 1


async def test_a_later_transaction_that_breaks_leaves_only_its_own_recipients(client: DeliveryClient) -> None:
    script = Script(keywords=(*KEYWORDS, "LIMITS RCPTMAX=3"))

    def third_time_lost(line: str) -> str:
        if "p3@" in line:
            script.final = DROP
        return "250 2.1.5 Ok"

    script.rcpt = third_time_lost
    async with smtp_server(script) as server:
        result = await client.attempt(target(server), job(*CROWD))
        assert (result.kind, codes(result)) == (OutcomeKind.IN_DOUBT, [250] * 3 + [None] * 4)
        assert server.seen.connections == 1


# -- old and odd servers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["500 what", "502 5.5.1 not implemented", "550 no"])
@pytest.mark.rfc("5321 3.2b")
async def test_helo_where_ehlo_is_unknown(client: DeliveryClient, answer: str) -> None:
    async with smtp_server(Script(ehlo=answer)) as server:
        result = await client.attempt(target(server), job())
        assert result.kind is OutcomeKind.ACCEPTED
        assert server.seen.said("MAIL") == ["MAIL FROM:<sue@example.net>"]


async def test_refused_by_helo_as_well(client: DeliveryClient) -> None:
    async with smtp_server(Script(ehlo="500 what", helo="501 no")) as server:
        result = await client.attempt(target(server), job())
        assert (result.kind, result.reason) == (OutcomeKind.HOP_TEMPFAIL, "HELO: 501 no")


@pytest.mark.rfc("5321 4.2c")
async def test_an_ehlo_answer_of_many_words_is_read_to_its_end(client: DeliveryClient) -> None:
    words = tuple(f"X-WORD-{number} with some arguments" for number in range(60))
    async with smtp_server(Script(keywords=(*words, "DSN"))) as server:
        result = await client.attempt(target(server), job())
        assert result.takes_reports


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        ("AUTH LOGIN", ["AUTH LOGIN"]),
        ("AUTH CRAM-MD5 LOGIN PLAIN", ["AUTH PLAIN AHN1ZQBzZWNyZXQ="]),
        ("AUTH=LOGIN", ["AUTH LOGIN"]),
        ("AUTH GSSAPI", []),
    ],
)
@pytest.mark.rfc("4954 4i")
async def test_authentication_takes_what_is_offered(
    client: DeliveryClient, tmp_path: Path, offered: str, said: list[str]
) -> None:
    context = server_context(issue("x", names=("x.test",)).write(tmp_path / "x.pem"))
    secret = tmp_path / "password"
    secret.write_text("secret\n")
    script = Script(keywords=("STARTTLS",), keywords_tls=(offered,), context=context)
    async with smtp_server(script) as server:
        chosen = target(server, user="sue", password_file=secret, tls="encrypted")
        result = await client.attempt(chosen, job())
        assert server.seen.said("AUTH") == said
        if not said:
            assert (result.kind, result.reason) == (
                OutcomeKind.HOP_TEMPFAIL,
                "AUTH: 504 5.5.4 the host offers no mechanism that we have",
            )
