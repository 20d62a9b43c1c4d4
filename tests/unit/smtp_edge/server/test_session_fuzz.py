"""The session against a model of it, and against nonsense: `SessionOrdeal` under hypothesis, bounded, always the same.

The long form is `python3 deploy/run.py bench session_fuzz`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.unit.smtp_edge.server.ordeal import CANARY, CUT, REPAIR, TLS, SessionOrdeal, run


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


# -- a model -----------------------------------------------------------------------------------------------------------

LINES = st.lists(st.sampled_from([b"x", b"..", b".dot", b"", b"Received: by x", b"\xff\0"]), max_size=4)
RECIPIENTS = {b"<ann@here.test>": "250 2.1.5", b"<ann@far.test>": "550 5.7.1", b"<ann@nowhere.test>": "550 5.4.4"}


class Model(RuleBasedStateMachine):
    """What RFC 5321 and 3030 say of the order of commands, in a few variables."""

    loop: asyncio.AbstractEventLoop
    accepted_total = 0
    """Of all runs: a model that never gets as far as a message says nothing about messages."""

    @initialize(flags=st.sampled_from([0, REPAIR, TLS]))
    def begin(self, flags: int) -> None:
        self.ordeal = SessionOrdeal(self.loop, flags)
        self.greeted = self.mail = self.chunked = False
        self.recipients_count = self.accepted_count = 0
        self.octets = b""
        assert self.ordeal.say(b"") == ["220 relay.test ESMTP smtpmesh"]

    def say(self, data: bytes) -> str:
        """The last line of what is answered; there is one reply."""
        lines = self.ordeal.say(data)
        assert all(line[3] == "-" for line in lines[:-1])
        return lines[-1]

    def forget(self) -> None:
        self.mail = self.chunked = False
        self.recipients_count, self.octets = 0, b""

    @rule(verb=st.sampled_from([b"HELO", b"EHLO"]))
    def hello(self, verb: bytes) -> None:
        assert self.say(verb + b" client.test\r\n").startswith("250 ")
        self.greeted = True
        self.forget()

    @rule(verb=st.sampled_from([b"NOOP", b"HELP", b"VRFY x"]))
    def talk(self, verb: bytes) -> None:
        assert self.say(verb + b"\r\n")[:3] in ("250", "214", "252")

    @rule()
    def reset(self) -> None:
        assert self.say(b"RSET\r\n") == "250 2.0.0 Ok"
        self.forget()

    @rule(sender=st.sampled_from([b"<>", b"<sue@example.net>"]))
    def begin_mail(self, sender: bytes) -> None:
        expected = "250 2.1.0" if self.greeted and not self.mail else "503 5.5.1"
        assert self.say(b"MAIL FROM:" + sender + b"\r\n")[:9] == expected
        self.mail = self.mail or expected.startswith("250")

    @rule(path=st.sampled_from(sorted(RECIPIENTS)))
    def add_recipient(self, path: bytes) -> None:
        expected = RECIPIENTS[path] if self.mail and not self.chunked else "503 5.5.1"
        assert self.say(b"RCPT TO:" + path + b"\r\n")[:9] == expected
        self.recipients_count += expected == "250 2.1.5"

    @rule(path=st.sampled_from(sorted(RECIPIENTS)))
    def begin_transaction(self, path: bytes) -> None:
        """A start that the single commands find too seldom."""
        self.hello(b"EHLO")
        self.begin_mail(b"<>")
        self.add_recipient(b"<ann@here.test>")
        self.add_recipient(path)

    @rule(lines=LINES)
    def send_data(self, lines: list[bytes]) -> None:
        if not self.mail or self.chunked:
            assert self.say(b"DATA\r\n")[:9] == "503 5.5.1"
        elif not self.recipients_count:
            assert self.say(b"DATA\r\n")[:9] == "554 5.5.1"
        else:
            assert self.say(b"DATA\r\n").startswith("354 ")
            data = b"".join(line + b"\r\n" for line in lines)
            assert self.say(data + b".\r\n").startswith("250 2.0.0")
            self.take(data)

    @rule(octets=st.sampled_from([b"", b"x", b".", b"\r\n", b".\r\n", b"\r\n.\r\nQUIT\r\n"]), last=st.booleans())
    def send_chunk(self, octets: bytes, last: bool) -> None:
        reply = self.say(b"BDAT %d%s\r\n" % (len(octets), b" LAST" if last else b"") + octets)
        if not self.mail or not self.recipients_count:
            assert reply[:9] == ("554 5.5.1" if self.mail else "503 5.5.1")
            return
        self.chunked = True
        self.octets += octets
        assert reply.startswith("250 2.0.0")
        if last:
            stuffed = (b"\r\n" + self.octets).replace(b"\r\n.", b"\r\n..")[2:]
            self.take(stuffed if stuffed.endswith(b"\r\n") or not stuffed else stuffed + b"\r\n")

    @rule(line=st.binary(max_size=20).filter(lambda line: b"\n" not in line))
    def talk_nonsense(self, line: bytes) -> None:
        assert self.say(b"X" + line + b"\r\n")[:3] == "500"

    def take(self, data: bytes) -> None:
        """A message is accepted."""
        self.accepted_count += 1
        Model.accepted_total += 1
        assert self.ordeal.acceptor.messages[-1].data.inline == data
        assert len(self.ordeal.acceptor.messages[-1].envelope.recipients) == self.recipients_count
        self.forget()

    @invariant()
    def nothing_was_accepted_beside(self) -> None:
        if hasattr(self, "ordeal"):
            assert len(self.ordeal.acceptor.messages) == self.accepted_count

    def teardown(self) -> None:
        if hasattr(self, "ordeal"):
            self.ordeal.end()


@pytest.mark.rfc("5321 4.2a")
def test_the_session_follows_its_model(loop: asyncio.AbstractEventLoop) -> None:
    Model.loop, Model.accepted_total = loop, 0
    slow = [HealthCheck.too_slow]  # of the machine: the examples are always the same
    bounded = settings(
        max_examples=250,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=slow,
    )
    run_state_machine_as_test(Model, settings=bounded)  # type: ignore[no-untyped-call]
    assert Model.accepted_total > 60


# -- nonsense ----------------------------------------------------------------------------------------------------------

GROUP = b"EHLO x\r\n" + CUT + b"MAIL FROM:<a@b.c>\r\nRCPT TO:<a@here.test>\r\n"
WORDS = [
    *(GROUP, GROUP + b"DATA\r\n" + CUT, GROUP + b"BDAT 3\r\na\r\n", GROUP + b"DATA\r\n" + CUT + b"x\r\n.\r\n"),
    *(
        b"EHLO x\r\n",
        b"HELO x\r\n",
        b"MAIL FROM:<a@b.c>",
        b"RCPT TO:<a@here.test>",
        b"DATA\r\n",
        b"QUIT\r\n",
        b"RSET\r\n",
    ),
    *(
        b"BDAT 3\r\n",
        b"BDAT 9 LAST\r\n",
        b" BODY=BINARYMIME",
        b" SMTPUTF8",
        b" SIZE=9",
        b" NOTIFY=NEVER",
        b"\r\n",
        b"\n",
    ),
    *(
        b"\r",
        b".\r\n",
        b"\r\n.\r\n",
        b"\n.\n",
        b"..",
        b"AUTH PLAIN ",
        b"AUTH LOGIN\r\n",
        b"AHN1ZQBzZWNyZXQ=\r\n",
        b"*\r\n",
    ),
    *(
        b"XCLIENT ADDR=192.0.2.1\r\n",
        b"XFORWARD IDENT=x\r\n",
        b"STARTTLS\r\n",
        b"EHLO refused.test\r\n",
        b"GET / HTTP/1.1",
    ),
    *(
        CANARY.encode(),
        b"VRFY " + CANARY.encode(),
        b"\0",
        b"\xff",
        b"\xe2\x80\xae",
        CUT,
        CUT,
        b"x" * 700,
        b"Received: x\r\n",
    ),
]


@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flags=st.integers(0, 255),
    words=st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=20)), max_size=60),
)
@pytest.mark.rfc("5321 4.2a")
def test_whatever_is_said_no_bug_no_hang_no_foreign_text(
    loop: asyncio.AbstractEventLoop, flags: int, words: list[bytes]
) -> None:
    run(loop, bytes([flags]) + b"".join(words))


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(flags=st.integers(0, 255), data=st.binary(max_size=400))
def test_any_bytes(loop: asyncio.AbstractEventLoop, flags: int, data: bytes) -> None:
    run(loop, bytes([flags]) + b"EHLO x\r\n" + CUT + data)


@pytest.mark.parametrize(
    "said", [b"BDAT 5\r\none\r\n", b"BDAT 600\r\n" + b"x" * 600, b"DATA\r\n" + CUT + b"x" * 600, b""]
)
@pytest.mark.parametrize("asked", [b"", b"NOOP\r\n"])
def test_a_client_that_is_lost_leaves_nothing(loop: asyncio.AbstractEventLoop, said: bytes, asked: bytes) -> None:
    run(loop, b"\0" + GROUP + said + asked + CUT)
