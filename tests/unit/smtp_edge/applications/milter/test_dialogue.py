"""What is told, what the answers come to, and answers that do not fit."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtp_edge.applications.milter import dialogue as dialogue_module
from smtp_edge.applications.milter.dialogue import CHANGED_BYTES_MAX, CHANGES_MAX, Dialogue
from smtp_edge.applications.milter.wire import (
    OFFERED,
    Action,
    AddHeader,
    AddRecipient,
    Answer,
    ChangeHeader,
    Command,
    Hold,
    MilterError,
    Options,
    Plain,
    ReplaceBody,
    ReplyCode,
    Stage,
    Step,
)
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Discard, Disconnect, Reject, TempFail, Verdict

STEPS = [command for command in Command if command not in (Command.OPTIONS, Command.MACROS, Command.QUIT)]
OPTIONAL = [command for command in STEPS if command is not Command.END]


def agreed(steps: int = 0, actions: int = OFFERED, **options: object) -> Dialogue:
    dialogue = Dialogue(OFFERED)
    dialogue.agree(Options(6, Action(actions), Step(steps), **options))  # type: ignore[arg-type]
    return dialogue


def test_everything_is_told_and_answered_unless_the_filter_wants_less() -> None:
    eager, lazy, mute = agreed(), agreed(0x27F), agreed(0xDF080)
    assert [command for command in STEPS if eager.wants(command) and eager.answers(command)] == STEPS
    assert [command for command in STEPS if lazy.wants(command)] == [Command.END]
    assert [command for command in STEPS if mute.answers(command)] == [Command.END]
    assert all(mute.wants(command) for command in STEPS)


def test_macros_are_the_usual_ones_or_those_that_the_filter_asks_for() -> None:
    known = {"i": "7", "auth_type": "PLAIN", "mail_addr": "a@b", "cipher": ""}
    assert agreed().build(Command.RCPT, b"x\0", known) == b"\0\0\0\x06DRi\x007\0\0\0\0\x03Rx\0"
    assert agreed().build(Command.HELO, b"x\0", known) == b"\0\0\0\x03Hx\0", "what nobody knows is not sent"
    assert agreed().build(Command.BODY, b"x", known) == b"\0\0\0\x02Bx"
    picky = agreed(macros=((Stage.MAIL, ("mail_addr", "nobody_knows")), (Stage.RCPT, ())))
    assert picky.build(Command.MAIL, b"", known) == b"\0\0\0\x12DM{mail_addr}\0a@b\0\0\0\0\x01M"
    assert picky.build(Command.RCPT, b"", known) == b"\0\0\0\x01R"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Plain.ACCEPT, None),
        (Plain.REJECT, Reject("Command rejected", 550, "5.7.1")),
        (Plain.TEMPFAIL, TempFail("Service unavailable - try again later", 451, "4.7.1")),
        (Plain.DISCARD, Discard()),
        (Plain.SHUTDOWN, Disconnect("Server closing connection")),
        (Plain.CONN_FAIL, Disconnect("Server closing connection")),
        (ReplyCode(Reply(554, "no\nnever", "5.7.2")), Reject("no never", 554, "5.7.2")),
        (ReplyCode(Reply(452, "")), TempFail("refused by a filter", 452, "4.7.1")),
        (ReplyCode(Reply(421, "bye", "4.3.2")), Disconnect("bye")),
        (ReplyCode(Reply(550, "x" * 5000)), Reject("x" * 400, 550, "5.7.1")),
    ],
)
@pytest.mark.parametrize("command", [Command.MAIL, Command.RCPT, Command.BODY, Command.END])
def test_a_ruling_ends_it(command: Command, answer: Answer, verdict: Verdict | None) -> None:
    dialogue = agreed()
    assert dialogue.hear(command, answer)
    assert dialogue.ended
    assert dialogue.verdict == verdict
    assert not dialogue.wants(Command.END)


def test_a_body_that_is_skipped_is_told_no_further_but_its_end_is() -> None:
    dialogue = agreed()
    assert dialogue.hear(Command.BODY, Plain.SKIP)
    assert not dialogue.wants(Command.BODY)
    assert dialogue.wants(Command.END)


def test_changes_are_collected_until_the_last_answer() -> None:
    dialogue = agreed()
    changes = [AddHeader(b"A", b"b"), ChangeHeader(1, b"C", b""), Hold(b"x")]
    assert [dialogue.hear(Command.END, answer) for answer in (*changes, Plain.PROGRESS)] == [False] * 4
    assert not dialogue.ended
    assert dialogue.hear(Command.END, Plain.CONTINUE)
    assert dialogue.ended
    assert dialogue.changes == changes


def test_changes_of_a_message_that_is_refused_are_forgotten() -> None:
    dialogue = agreed()
    dialogue.hear(Command.END, AddHeader(b"A", b"b"))
    dialogue.hear(Command.END, Plain.REJECT)
    assert dialogue.changes == []


@pytest.mark.parametrize(
    ("command", "answer", "words"),
    [
        (Command.BODY, ReplaceBody(b"x"), "before the end of the message: ReplaceBody"),
        (Command.BODY, AddHeader(b"A", b"b"), "before the end of the message: AddHeader"),
        (Command.HELO, Plain.SKIP, "SKIP"),
        (Command.HELO, Plain.DISCARD, "discarded"),
        (Command.MAIL, Options(6, Action(0), Step(0)), "options"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_fault(command: Command, answer: Answer, words: str) -> None:
    with pytest.raises(MilterError, match=words):
        agreed(0, 0xFFFF).hear(command, answer)


def test_a_new_body_is_counted_and_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue_module, "NEW_BODY_BYTES_MAX", 5)
    dialogue = agreed()
    assert dialogue.new_body_bytes is None
    for chunk, size in ((b"", 0), (b"abc", 3), (b"de", 5)):
        assert not dialogue.hear(Command.END, ReplaceBody(chunk))
        assert dialogue.new_body_bytes == size
    assert dialogue.changes == []
    with pytest.raises(MilterError, match="new body of more than"):
        dialogue.hear(Command.END, ReplaceBody(b"f"))
    refused = agreed()
    refused.hear(Command.END, ReplaceBody(b"x"))
    refused.hear(Command.END, Plain.REJECT)
    assert refused.new_body_bytes is None


def test_a_filter_may_do_only_what_it_asked_for() -> None:
    with pytest.raises(MilterError, match="not agreed on: ReplaceBody"):
        agreed(0, Action.ADD_HEADERS).hear(Command.END, ReplaceBody(b"x"))
    with pytest.raises(MilterError, match="not agreed on: AddRecipient"):
        agreed(0, Action.ADD_HEADERS).hear(Command.END, AddRecipient(b"<x@y.test>"))


@pytest.mark.parametrize("change", [AddHeader(b"A", b"b"), Hold(b"x" * (CHANGED_BYTES_MAX // 4))])
def test_changes_without_end_are_a_fault(change: Answer) -> None:
    dialogue = agreed()
    for _ in range(CHANGES_MAX if isinstance(change, AddHeader) else 4):
        dialogue.hear(Command.END, change)
    with pytest.raises(MilterError, match="more than"):
        dialogue.hear(Command.END, change)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(7, Action(0), Step(0)), "version 7"),
        (Options(1, Action(0), Step(0)), "version 1"),
        (Plain.CONTINUE, "no options"),
    ],
)
def test_a_filter_of_another_protocol_is_of_no_use(options: Answer, words: str) -> None:
    with pytest.raises(MilterError, match=words):
        Dialogue(OFFERED).agree(options)


ANSWERS = st.sampled_from([*Plain, ReplyCode(Reply(550, "x")), AddHeader(b"a", b"b"), Hold(b"x"), ReplaceBody(b"z")])


@given(st.integers(0, 0xFFFFFFFF), st.lists(st.tuples(st.sampled_from(STEPS), ANSWERS), max_size=40))
@example(0, [(Command.END, AddHeader(b"a", b"b")), (Command.CONNECT, Plain.DISCARD)])
def test_any_answers_end_it_or_are_one_error(steps: int, said: list[tuple[Command, Answer]]) -> None:
    dialogue = agreed(steps)
    try:
        for command, answer in said:
            if dialogue.wants(command) and dialogue.hear(command, answer) and command is Command.END:
                assert dialogue.ended
    except MilterError:
        pass
    assert dialogue.verdict is None or dialogue.changes == []
