"""What a filter wants to hear of one message, and what its answers come to. Pure.

    answer        before the end                            at the end of the message
    CONTINUE      the next step is told                     it goes on, changed
    SKIP          the same, without the rest of the body    (a fault)
    ACCEPT        it goes on, nothing more is told          as CONTINUE
    REJECT ...    refused, nothing more is told             refused, its changes are forgotten
    DISCARD       dropped; at CONNECT and HELO a fault      dropped
    PROGRESS      the answer is still to come               the same
    a change      (a fault)                                 another answer comes

A fault, and a change that was not agreed on, is a `MilterError`.
"""

from __future__ import annotations

from collections.abc import Mapping

from smtp_edge.applications.milter.wire import (
    STEPS,
    VERSION,
    VERSION_MIN,
    Action,
    AddHeader,
    AddRecipient,
    Answer,
    ChangeHeader,
    ChangeSender,
    Command,
    DeleteRecipient,
    Hold,
    InsertHeader,
    MilterError,
    Modification,
    Options,
    Plain,
    ReplaceBody,
    ReplyCode,
    Stage,
    Step,
    encode,
    encode_macros,
    size_bytes,
)
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Discard, Disconnect, Reject, TempFail, Verdict

CHANGES_MAX = 10_000
"""Of one message. Lists of recipients are the longest that filters make."""
CHANGED_BYTES_MAX = 4 * 1024 * 1024
"""Of one message, without its body; they are kept in memory until it ends."""
NEW_BODY_BYTES_MAX = 256 * 1024 * 1024
"""Of the body that a filter sends; a filter that writes without end is stopped here."""
TEXT_MAX = 400
"""Characters of a reply's text: with code and status it is one line (RFC 5321 section 4.5.3.1.5)."""

UNWANTED: Mapping[Command, Step] = {
    Command.CONNECT: Step.NO_CONNECT,
    Command.HELO: Step.NO_HELO,
    Command.MAIL: Step.NO_MAIL,
    Command.RCPT: Step.NO_RCPT,
    Command.DATA: Step.NO_DATA,
    Command.HEADER: Step.NO_HEADERS,
    Command.EOH: Step.NO_EOH,
    Command.BODY: Step.NO_BODY,
}
UNANSWERED: Mapping[Command, Step] = {
    Command.CONNECT: Step.NO_REPLY_CONNECT,
    Command.HELO: Step.NO_REPLY_HELO,
    Command.MAIL: Step.NO_REPLY_MAIL,
    Command.RCPT: Step.NO_REPLY_RCPT,
    Command.DATA: Step.NO_REPLY_DATA,
    Command.HEADER: Step.NO_REPLY_HEADER,
    Command.EOH: Step.NO_REPLY_EOH,
    Command.BODY: Step.NO_REPLY_BODY,
}
NEEDS: Mapping[type, Action] = {
    AddHeader: Action.ADD_HEADERS,
    InsertHeader: Action.ADD_HEADERS,
    ChangeHeader: Action.CHANGE_HEADERS,
    AddRecipient: Action.ADD_RECIPIENT | Action.ADD_RECIPIENT_PARAMETERS,
    DeleteRecipient: Action.DELETE_RECIPIENT,
    ChangeSender: Action.CHANGE_SENDER,
    ReplaceBody: Action.CHANGE_BODY,
    Hold: Action.QUARANTINE,
}
"""Any one of them."""
STAGES: Mapping[Command, Stage] = {
    Command.CONNECT: Stage.CONNECT,
    Command.HELO: Stage.HELO,
    Command.MAIL: Stage.MAIL,
    Command.RCPT: Stage.RCPT,
    Command.DATA: Stage.DATA,
    Command.EOH: Stage.EOH,
    Command.END: Stage.END,
}
USUAL: Mapping[Stage, tuple[str, ...]] = {
    Stage.CONNECT: ("j", "daemon_name", "v", "_"),
    Stage.HELO: ("tls_version", "cipher"),
    Stage.MAIL: ("i", "auth_type", "auth_authen", "mail_addr", "mail_host", "mail_mailer"),
    Stage.RCPT: ("i", "rcpt_addr", "rcpt_host", "rcpt_mailer"),
    Stage.DATA: ("i",),
    Stage.EOH: ("i",),
    Stage.END: ("i",),
}
"""As Postfix has them (milter_connect_macros and the like), of those that a sink knows."""


class Dialogue:
    """See the module. `offered`: what the filter may change."""

    def __init__(self, offered: Action) -> None:
        self._offered = offered
        self._steps = Step(0)
        self._macros = dict(USUAL)
        self._body_skipped = False
        self._changed_bytes = 0
        self.changes: list[Modification] = []
        """In their order, but for the body; complete when it has ended, empty if the message is not to go on."""
        self.new_body_bytes: int | None = None
        """Of the chunks so far that replace the body, which whoever hears them keeps; None = it stays."""
        self.verdict: Verdict | None = None
        self.ended = False
        """Nothing more is to be told."""

    @property
    def leading_space(self) -> bool:
        """Values of fields keep the blank behind the colon, in both directions."""
        return bool(self._steps & Step.LEADING_SPACE)

    def agree(self, answer: Answer) -> None:
        """What the filter says to our options. It gets what both have; some always ask for all that there is."""
        if not isinstance(answer, Options):
            raise MilterError("no options in answer to ours")
        if not VERSION_MIN <= answer.version <= VERSION:
            raise MilterError(f"version {answer.version} of the protocol")
        self._offered &= answer.actions
        self._steps = answer.steps & STEPS
        self._macros.update(answer.macros)

    def wants(self, command: Command) -> bool:
        """It is to be told."""
        if self.ended or (command is Command.BODY and self._body_skipped):
            return False
        return not self._steps & UNWANTED.get(command, Step(0))

    def answers(self, command: Command) -> bool:
        """An answer is to be waited for."""
        return not self._steps & UNANSWERED.get(command, Step(0))

    def build(self, command: Command, payload: bytes, known: Mapping[str, str]) -> bytes:
        """The packet, after one with the macros that the filter asked for at this stage, or the usual ones."""
        packet, stage = encode(command, payload), STAGES.get(command)
        if stage is None:
            return packet
        chosen = [(name, known[name]) for name in self._macros[stage] if known.get(name)]
        return encode_macros(command, chosen) + packet if chosen else packet

    def hear(self, command: Command, answer: Answer) -> bool:
        """What it says to a command; False: there is more to come."""
        match answer:
            case Plain.PROGRESS:
                return False
            case Options():
                raise MilterError("options in the middle of a session")
            case Plain() | ReplyCode():
                self._judge(command, answer)
                return True
            case _:
                self._collect(command, answer)
                return False

    def _judge(self, command: Command, answer: Plain | ReplyCode) -> None:
        if answer is Plain.DISCARD and command in (Command.CONNECT, Command.HELO):
            raise MilterError("a session cannot be discarded")
        self.verdict = read_verdict(answer)
        if answer is Plain.SKIP:
            if command is not Command.BODY:
                raise MilterError("SKIP, but not of a body")
            self._body_skipped = True
        self.ended = self.verdict is not None or answer is Plain.ACCEPT or command is Command.END
        if self.verdict is not None:
            self.changes, self.new_body_bytes = [], None

    def _collect(self, command: Command, change: Modification) -> None:
        name = type(change).__name__
        if command is not Command.END:
            raise MilterError(f"a change before the end of the message: {name}")
        if not self._offered & NEEDS[type(change)]:
            raise MilterError(f"a change that was not agreed on: {name}")
        if isinstance(change, ReplaceBody):
            self.new_body_bytes = (self.new_body_bytes or 0) + size_bytes(change)
            if self.new_body_bytes > NEW_BODY_BYTES_MAX:
                raise MilterError(f"a new body of more than {NEW_BODY_BYTES_MAX} bytes")
            return
        self._changed_bytes += size_bytes(change)
        if len(self.changes) >= CHANGES_MAX or self._changed_bytes > CHANGED_BYTES_MAX:
            raise MilterError(f"more than {CHANGES_MAX} changes or {CHANGED_BYTES_MAX} bytes of them")
        self.changes.append(change)


def read_verdict(answer: Plain | ReplyCode) -> Verdict | None:
    """In the words of sinks; None = it goes on. What no text comes with gets that of Postfix."""
    match answer:
        case ReplyCode(reply):
            return _refuse(reply)
        case Plain.REJECT:
            return Reject("Command rejected", 550, "5.7.1")
        case Plain.TEMPFAIL:
            return TempFail("Service unavailable - try again later", 451, "4.7.1")
        case Plain.SHUTDOWN | Plain.CONN_FAIL:
            return Disconnect("Server closing connection")
        case Plain.DISCARD:
            return Discard()
        case _:
            return None


def _refuse(reply: Reply) -> Verdict:
    text = " ".join(reply.text.split())[:TEXT_MAX] or "refused by a filter"
    if reply.code == 421:
        return Disconnect(text)
    if reply.transient:
        return TempFail(text, reply.code, reply.status or "4.7.1")
    return Reject(text, reply.code, reply.status or "5.7.1")
