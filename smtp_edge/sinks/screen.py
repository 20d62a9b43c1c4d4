"""What the sinks say of one session, before each 250: which questions are asked, and what the verdicts come to.

    verdict        connect, helo, auth     mail                 rcpt                    data
    Reject         refused                 refused              this recipient          its recipients
    TempFail       refused for now         the same             the same                the whole message, for now
    Discard        all of the session      the transaction      this recipient          its recipients
    Quarantine     all of the session      the transaction      this recipient          its recipients
    Disconnect     421 and the end         the same             the same                the same

One reply is all that the final dot has. If some recipients are refused there and others are not, it is 250. A sender
who has authenticated gets a report of the refused ones; else their mail waits in quarantine: a bounce to a sender that
anybody could have forged helps nobody. Between
the final dot and its reply there are `TOTAL_S` at most; nothing is stored yet, so a 451 doubles nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from smtp_edge.envelope import Client, Envelope, ReceivedMessage, Recipient
from smtp_edge.queue.errors import StoreError, StoreFull
from smtp_edge.queue.reading import MailDataLost
from smtp_edge.reply import LOCAL_ERROR, NO_SPACE, Goodbye, Reply
from smtp_edge.sinks.api import Accept, Discard, Disconnect, Quarantine, Reject, Sink, TempFail, Verdict
from smtp_edge.sinks.bodies import Scratch, Writer
from smtp_edge.sinks.chain import ACCEPT, QUARANTINE, Binding, SinkChain, SinkFailure
from smtp_edge.sinks.fields import Field, join_header
from smtp_edge.sinks.message import Content, Editing, Headers, Message, narrowed, read, remove, rewrite
from smtp_edge.sinks.protection import detect, find_broken
from smtp_edge.sinks.rules import Facts

log = structlog.get_logger()

TOTAL_S = 120.0
VERDICTS = (Accept, Reject, TempFail, Discard, Quarantine, Disconnect)
TAKEN = Reply(250, "Ok", "2.0.0")


@dataclass(slots=True)
class Fate:
    """Verdicts that act on the message."""

    discard: bool = False
    quarantine: str = ""
    """The reason."""

    @property
    def acts(self) -> bool:
        """There is one."""
        return self.discard or bool(self.quarantine)


@dataclass(slots=True)
class Screening:
    """A message and what became of its recipients so far."""

    message: ReceivedMessage
    content: Content
    fields: tuple[Field, ...]
    envelope: Envelope
    """With the edits so far."""
    editing: Editing
    """The same, of the body."""
    told: bool = False
    """That an edit of the header breaks a signature is in the log."""
    dropped: set[Recipient] = field(default_factory=set)
    refused: dict[Recipient, tuple[Binding, Reply]] = field(default_factory=dict)
    held: dict[Recipient, str] = field(default_factory=dict)
    answer: Reply | None = None
    """To all of it, whatever else was said."""

    def facts(self) -> Facts:
        """For the rules: who is still there."""
        message = self.message
        left = tuple(item for item in self.envelope.recipients if item not in self.refused and item not in self.dropped)
        headers = Headers(self.fields)
        body = self.editing.body
        size_bytes = message.data.size_bytes if body is None else len(join_header(self.fields)) + body.data.size_bytes
        return Facts(message.client, self.envelope.sender, left, size_bytes, headers.all)


class Screen:
    """See the module. One session's; `close` it at the end."""

    def __init__(self, chain: SinkChain) -> None:
        self._chain = chain
        self._session, self._transaction = Fate(), Fate()
        self._recipients: dict[str, Fate] = {}
        self._fated = False
        """A verdict has acted on some message of the session."""
        self.asked = chain.asked
        """Commands that are a question, or the end of what was said of recipients before: their replies may wait."""
        chain.hold()

    def asks(self, event: str) -> bool:
        """Somebody wants to be asked."""
        return bool(self._chain.of(event))

    def wants_recipient(self, recipient: Recipient) -> bool:
        """Of RCPT, if it is `asked`: somebody may want this one."""
        return self._chain.may_concern("rcpt", (recipient,))

    async def close(self, client: Client) -> None:
        """The session has ended. Once."""
        if not self.asks("disconnect"):
            self._chain.release()
            return
        try:
            for binding, _ in self._chain.matching("disconnect", lambda: Facts(client)):
                try:
                    await binding.ask("disconnect", binding.sink.disconnect(client), ())
                except SinkFailure:
                    continue  # it is in the log
        finally:
            self._chain.release()

    # -- before the message --------------------------------------------------------------------------------------------

    async def connect(self, client: Client) -> Reply | None:
        """A client connected: None, or the refusal. Goodbye."""
        return self._take(self._session, await self._ask("connect", Facts(client), lambda sink: sink.connect(client)))

    async def helo(self, client: Client) -> Reply | None:
        """HELO or EHLO was right."""
        return self._take(self._session, await self._ask("helo", Facts(client), lambda sink: sink.helo(client)))

    async def auth(self, client: Client) -> Reply | None:
        """Authentication succeeded."""
        return self._take(self._session, await self._ask("auth", Facts(client), lambda sink: sink.auth(client)))

    async def mail(self, client: Client, envelope: Envelope) -> Reply | None:
        """MAIL was right: a transaction begins."""
        self._transaction, self._recipients, self.asked = Fate(), {}, self._chain.asked
        facts = Facts(client, envelope.sender)
        return self._take(self._transaction, await self._ask("mail", facts, lambda sink: sink.mail(client, envelope)))

    async def rcpt(self, client: Client, recipient: Recipient, envelope_of: Callable[[], Envelope]) -> Reply | None:
        """RCPT was right. `envelope_of`: the transaction so far, the recipient included."""
        if not self._chain.may_concern("rcpt", (recipient,)):
            return None
        envelope = envelope_of()
        facts, fate = Facts(client, envelope.sender, (recipient,)), Fate()
        verdict = await self._ask("rcpt", facts, lambda sink: sink.rcpt(client, envelope, recipient))
        refusal = self._take(fate, verdict)
        if refusal is None and fate.acts:
            self._recipients[recipient.address], self.asked = fate, self._chain.asked | {b"MAIL"}
        return refusal

    async def _ask(self, event: str, facts: Facts, question: Callable[[Sink], Awaitable[object]]) -> Verdict | None:
        """The first verdict, or what the first failure comes to."""
        for binding, _ in self._chain.matching(event, lambda: facts):
            try:
                verdict = await _answer(binding, event, question)
            except SinkFailure as failure:
                verdict = _on_failure(binding, failure)
            if verdict is not None:
                log.info("sink.verdict", sink=binding.name, event_name=event, verdict=type(verdict).__name__)
                return verdict
        return None

    def _take(self, fate: Fate, verdict: Verdict | None) -> Reply | None:
        if verdict is None:
            return None
        match verdict:
            case Reject() | TempFail():
                return verdict.reply
            case Disconnect():
                raise Goodbye(verdict.reply)
            case Discard():
                fate.discard = self._fated = True
            case Quarantine():
                fate.quarantine, self._fated = verdict.reason, True
            case _:
                pass
        return None

    # -- the message ---------------------------------------------------------------------------------------------------

    async def data(self, message: ReceivedMessage, begin_file: Callable[[], Writer]) -> ReceivedMessage | Reply:
        """All mail data is there, and it `concerns` somebody: as it is to be stored, or the reply to it. Goodbye.

        A file that is no longer wanted is removed.
        """
        try:
            result = await self._screen(message, begin_file)
        except BaseException:
            await remove(message.data)
            raise
        if isinstance(result, Reply) or result.data is not message.data:
            await remove(message.data)
        return result

    async def _screen(self, message: ReceivedMessage, begin_file: Callable[[], Writer]) -> ReceivedMessage | Reply:
        scratch = Scratch(begin_file)
        try:
            work = await self._begin(message, scratch)
            async with asyncio.timeout(TOTAL_S):
                await self._ask_about(work)
            if work.answer is not None:
                return work.answer
            return await _conclude(work, begin_file)
        except TimeoutError:
            log.error("sink.no_verdict", sender=message.envelope.sender, after_s=TOTAL_S)
            return LOCAL_ERROR
        except (OSError, StoreError, MailDataLost) as error:
            log.error("sink.data_failed", reason=str(error))
            return NO_SPACE if isinstance(error, StoreFull) else LOCAL_ERROR
        finally:
            await scratch.close()

    def concerns(self, message: ReceivedMessage) -> bool:
        """Somebody has said something about it, or will be asked: else `data` is not needed. The header is not taken
        apart for that."""
        if self._fated and (self._recipients or self._transaction.acts or self._session.acts):
            return True
        if not self._chain.of("data"):
            return False
        data, envelope, header = message.data, message.envelope, message.data.header
        if not header.endswith(b"\r\n\r\n"):  # more of it than is kept, or none: whoever looks must read the file
            return True
        if self._chain.may_concern("data", envelope.recipients):
            facts = Facts(message.client, envelope.sender, envelope.recipients, data.size_bytes, partial(read, data))
            if self._chain.claimed("data", facts):
                return True
        if not self._chain.owned_names:
            return False
        lower = header.lower()
        return any(name in lower for name in self._chain.owned_names)

    async def _begin(self, message: ReceivedMessage, scratch: Scratch) -> Screening:
        """With what was said before the mail data came."""
        content = await Content.load(message.data)
        fields, owned = content.header.fields, self._chain.owned
        if any(field.name.lower() in owned for field in fields):
            fields = tuple(field for field in fields if field.name.lower() not in owned)
        work = Screening(message, content, fields, message.envelope, Editing(scratch, guarded=detect(fields)))
        for recipient in message.envelope.recipients:
            for fate in (self._session, self._transaction, self._recipients.get(recipient.address)):
                if fate is not None and fate.discard:
                    work.dropped.add(recipient)
                if fate is not None and fate.quarantine:
                    work.held.setdefault(recipient, fate.quarantine)
        return work

    async def _ask_about(self, work: Screening) -> None:
        for binding, facts in self._chain.matching("data", work.facts):
            if not facts.recipients:
                return
            work.editing = replace(work.editing, signer_follows=self._signer_follows(binding, facts))
            verdict = await _ask_one(work, binding, facts.recipients)
            if verdict is not None:
                log.info("sink.verdict", sink=binding.name, event_name="data", verdict=type(verdict).__name__)
            if _apply(work, binding, verdict, facts.recipients):
                return

    def _signer_follows(self, binding: Binding, facts: Facts) -> bool:
        bindings = self._chain.of("data")
        later = bindings[bindings.index(binding) + 1 :]
        return any(item.sink.signs and item.rule.select(facts) is not None for item in later)


async def _ask_one(work: Screening, binding: Binding, recipients: tuple[Recipient, ...]) -> Verdict | None:
    """What a sink says of the message; its edits are taken over if it neither fails nor refuses."""
    envelope = narrowed(work.envelope, recipients)
    seen = Message(work.message.client, envelope, work.content, work.fields, work.editing)
    try:
        verdict = await _answer(binding, "data", lambda sink: sink.data(seen))
    except SinkFailure as failure:
        if work.editing.scratch.fault is not None:
            raise work.editing.scratch.fault from failure
        return _on_failure(binding, failure)
    if not isinstance(verdict, Reject | TempFail | Discard):
        _take_edits(work, binding, seen)
    return verdict


def _take_edits(work: Screening, binding: Binding, seen: Message) -> None:
    assert seen.editing is not None
    if seen.editing is not work.editing:
        log.info("sink.body_replaced", sink=binding.name, protected=str(seen.protected), size_bytes=seen.size_bytes)
    broken = find_broken(work.fields, seen.fields)
    if broken and not work.told:
        log.warning("sink.breaks_signature", sink=binding.name, fields=broken)
        work.told = True
    work.fields, work.envelope, work.editing = seen.fields, seen.readdress(work.envelope), seen.editing


def _apply(work: Screening, binding: Binding, verdict: Verdict | None, recipients: tuple[Recipient, ...]) -> bool:
    """True if no further sink is asked."""
    match verdict:
        case Reject():
            work.refused.update(dict.fromkeys(recipients, (binding, verdict.reply)))
        case TempFail():
            work.answer = verdict.reply
        case Discard():
            work.dropped.update(recipients)
        case Quarantine():
            for recipient in recipients:
                work.held.setdefault(recipient, verdict.reason)
        case Disconnect():
            raise Goodbye(verdict.reply)
        case _:
            pass
    return isinstance(verdict, Accept | TempFail)


async def _conclude(work: Screening, begin_file: Callable[[], Writer]) -> ReceivedMessage | Reply:
    envelope = work.envelope
    left = [item for item in envelope.recipients if item not in work.dropped and item not in work.refused]
    refusals = [work.refused[item] for item in envelope.recipients if item in work.refused]
    if not left:
        if refusals:
            return refusals[0][1]
        log.info("message.discarded", sender=envelope.sender, recipients=len(envelope.recipients))
        return TAKEN
    held, known = dict(work.held), bool(work.message.client.user)
    for recipient, (binding, reply) in work.refused.items() if not known else ():
        held[recipient] = f"refused by sink {binding.name}: {reply}"
    kept = tuple(item for item in envelope.recipients if item not in work.dropped)
    data, body = work.message.data, work.editing.body
    if body is not None or work.fields is not work.content.header.fields:
        data = await rewrite(work.content, work.fields, begin_file, body)
    if body is not None:
        envelope = replace(envelope, body_type=body.declare(envelope.body_type, join_header(work.fields)))
    return replace(
        work.message,
        envelope=narrowed(envelope, kept),
        data=data,
        held=tuple((item, held[item]) for item in kept if item in held),
        refused=tuple((item, work.refused[item][1]) for item in kept if known and item in work.refused),
    )


async def _answer(binding: Binding, event: str, question: Callable[[Sink], Awaitable[object]]) -> Verdict | None:
    """SinkFailure, also for one that is not asked because it failed too often."""
    if not binding.trust.permits(asyncio.get_running_loop().time()):
        raise SinkFailure(f"sink {binding.name} failed {binding.trust.failures} times in a row")
    answer: Verdict | None = await binding.ask(event, question(binding.sink), VERDICTS)
    return answer


def _on_failure(binding: Binding, failure: SinkFailure) -> Verdict | None:
    """As the binding has it. What the client hears says nothing of our inside."""
    if binding.on_failure == ACCEPT:
        return None
    if binding.on_failure == QUARANTINE:
        return Quarantine(str(failure))
    return TempFail(LOCAL_ERROR.text, LOCAL_ERROR.code, LOCAL_ERROR.status)
