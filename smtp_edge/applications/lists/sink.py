"""Mailing lists: `rcpt` refuses what no list wants, `expand` turns a post into its copies and obeys commands.

    [[sink]]
    use = "lists"
    rule = "rcpt to=*@lists.example.org"
    [sink.with.lists."talk@lists.example.org"]
    owners = ["ann@example.org"]
    title = "Talk"                  # default: the local part
    posts = "members"               # anyone | members | owners: who posts freely
    others = "hold"                 # hold | refuse: the posts of others
    joins = "open"                  # open | closed: the owners say yes to each
    unsubscribe_url = ""            # https: one click (RFC 8058); the same for all copies
    bounces_max = 5                 # days with hard bounces in two weeks, then a member gets no mail

`names.py` has the addresses of a list, `commands.py` what can be said to them. Members are kept in `lists.sqlite` in
the folder of this binding, held posts beside it: back it up. A list that is no longer configured is not forgotten. All
relays may have the binding, but members are where they joined: let one relay alone have it, of one process
(`workers = 1`), and give it the domain.

A post goes to all members as one entry of the queue, each with a reverse-path that tells whose copy it was
(`bounces.py`). Nothing is added to its subject and text. Whether somebody is a member is told by the reverse-path at
RCPT, and by From too when the post is there; neither is proof. A domain of lists takes mail for its lists and
`postmaster` alone; with `unknown = "pass"` other addresses in it are somebody else's business.

A post that comes again within 45 days is not posted again: the same Message-ID with the same text. That is what a
client does that has lost a 250, a robot that is restarted, a loop that takes our fields away. RFC 5322 (3.6.4) has one
Message-ID for one message, and Sympa goes by it alone; but programs exist that give all their mail the same one, and
their posts differ. One without Message-ID is posted as often as it comes; Mailman does that with all.

Crashes: what a message changes is written down with what came of it (`store.py`); asked again, the sink says the same.
Not guaranteed: a client that sends the same command twice, byte for byte, is answered twice.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import structlog

from smtp_edge.applications.lists.bounces import find_member, is_hard, take_bounce
from smtp_edge.applications.lists.commands import obey, read_commands
from smtp_edge.applications.lists.letters import EXCERPT_BYTES_MAX, Letters
from smtp_edge.applications.lists.names import Book, MailingList, Role, Target
from smtp_edge.applications.lists.posts import (
    dress,
    find_author,
    has_been_here,
    is_automatic,
    is_reply_of_a_program,
    read_message_id,
    read_subject,
)
from smtp_edge.applications.lists.store import DAY_S, HELD_LIFE_S, Effect, State, Store
from smtp_edge.envelope import Client, Envelope, Notify, Recipient
from smtp_edge.sinks.api import Expansion, Mail, Message, Reject, Sink, TempFail, Verdict, offload
from smtp_edge.sinks.fields import join_header, split_header

log = structlog.get_logger()

READ_BYTES_MAX = 256 * 1024
"""Of a mail with commands, of a report."""
HELD_MAX = 1000
"""Posts that wait for the owners of one list; then others are told to try later."""
ENDED = Expansion()


class Lists(Sink):
    """See the module. ValueError for settings that mean nothing."""

    alone = True

    def __init__(
        self, lists: Mapping[str, Mapping[str, object]], unknown: Literal["refuse", "pass"] = "refuse"
    ) -> None:
        """`lists`: settings by address. `unknown`: other recipients in their domains."""
        if unknown not in ("refuse", "pass"):
            raise ValueError(f"unknown = {unknown!r} is none of: refuse, pass")
        self._book, self._refuses = Book(lists), unknown == "refuse"
        self.clock: Callable[[], float] = time.time
        self._tidied_at = 0.0

    async def start(self) -> None:
        """sqlite3.Error, OSError: there is no place to remember anything."""
        self.store = await offload(Store, self.node.data_dir)

    async def stop(self) -> None:
        """Close the file."""
        await offload(self.store.close)

    # -- before the 250 ------------------------------------------------------------------------------------------------

    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        """Is there such a list, and may they post to it?"""
        target = self._book.find(recipient.address)
        if target is None:
            mine = self._refuses and recipient.domain in self._book.domains
            if mine and recipient.address.lower() != f"postmaster@{recipient.domain}":
                return Reject("there is no such list", 550, "5.1.1")
            return None
        if target.role is not Role.POST or await self._may_post(target.of, envelope.sender):
            return None
        if target.of.others == "refuse":
            return Reject(f"only {target.of.posts} may post to this list", 550, "5.7.1")
        if await offload(self.store.ask(target.of.address).held_count) >= HELD_MAX:
            return TempFail("too many posts wait for the owners of this list", 452, "4.3.1")
        return None

    async def _may_post(self, of: MailingList, *authors: str) -> bool:
        if of.posts == "anyone" or of.is_owner(*authors):
            return True
        return of.posts == "members" and await offload(self.store.ask(of.address).is_member, *authors)

    # -- after it ------------------------------------------------------------------------------------------------------

    async def expand(self, message: Message) -> Expansion | None:
        """A post, a command, a bounce, or mail to the owners. sqlite3.Error, OSError."""
        (recipient,) = message.envelope.recipients
        target = self._book.find(recipient.address)
        if target is None:
            return None
        await self._tidy()
        if target.role is Role.OWNER:
            return Expansion(tuple(Recipient(owner, notify=recipient.notify) for owner in target.of.owners))
        if target.role is Role.BOUNCES:
            return await self._take_bounce(message, target)
        if target.role is Role.POST:
            return await self._take_post(message, target.of)
        return await self._take_commands(message, target)

    async def _tidy(self) -> None:
        now = self.clock()
        if now - self._tidied_at > DAY_S:
            self._tidied_at = now
            await offload(self.store.forget, now)

    async def _change(
        self, of: MailingList, identity: str, decide: Callable[[State], Sequence[Effect]]
    ) -> list[Effect]:
        return await offload(self.store.change, of.address, identity, self.clock(), decide)

    # -- posts ---------------------------------------------------------------------------------------------------------

    async def _take_post(self, message: Message, of: MailingList) -> Expansion:
        headers, sender = message.headers, message.envelope.sender
        if has_been_here(headers, of):
            log.warning("lists.loop", list=of.address, sender=sender, message_id=headers.get("message-id"))
            return ENDED
        if await self._is_repeat(message, of):
            log.warning("lists.repeat", list=of.address, sender=sender, message_id=headers.get("message-id"))
            return ENDED
        if is_reply_of_a_program(headers, sender):
            return await self._hold(message, of, "it is the answer of a program")
        if not await self._may_post(of, sender, find_author(headers, sender)):
            return await self._hold(message, of, f"only {of.posts} may post without asking")
        message.fields = dress(message.fields, of)
        copies = await self._recipients(of)
        log.info("lists.post", list=of.address, sender=sender, copies=len(copies))
        if not copies:
            return ENDED
        key = await offload(self.store.verp_key, of.address)
        return Expansion(copies, of.address_of(Role.BOUNCES), verp=True, verp_key=key)

    async def _is_repeat(self, message: Message, of: MailingList) -> bool:
        """The list has had it before, in another message. Asked again about one message it is none."""
        message_id = read_message_id(message.headers)
        if not message_id:
            return False
        named = hashlib.sha256(f"post\0{of.address}\0{message_id}\0".encode("utf-8", "surrogateescape"))
        async for chunk in message.body():
            named.update(chunk)
        first = await self._change(of, named.hexdigest(), lambda _: [("post", message.key)])
        return first != [("post", message.key)]

    async def _recipients(self, of: MailingList) -> tuple[Recipient, ...]:
        """A list is the end of the author's way, and its own copies are not reported to them (RFC 3461 5.2.7.3)."""
        addresses = await offload(self.store.recipients, of.address)
        return tuple(Recipient(address, notify=Notify.FAILURE) for address in addresses)

    async def _hold(self, message: Message, of: MailingList, reason: str) -> Expansion:
        headers, sender = message.headers, message.envelope.sender
        identity, excerpt = await _keep(message, self.store.held_path)
        author, subject = find_author(headers, sender), read_subject(headers)
        answered = "" if is_automatic(headers, sender) else author
        message_id = read_message_id(headers)

        def decide(state: State) -> list[Effect]:
            state.hold(identity, answered, subject, message_id)
            tokens = [state.make_token(word, identity, HELD_LIFE_S) for word in ("approve", "refuse")]
            notice: Effect = ("held", author or "(nobody)", subject, reason, *tokens)
            return [notice, ("note", answered, "held", reason)] if answered else [notice]

        return await self._answer(of, await self._change(of, identity, decide), message_id, excerpt)

    async def _release(self, of: MailingList, identity: str) -> Mail | None:
        """A held post as members get it."""
        copies = await self._recipients(of)
        content = await offload(self.store.held_path(identity).read_bytes)
        header = split_header(content)
        whole = join_header(dress(header.fields, of)) + content[header.length :]
        key = await offload(self.store.verp_key, of.address)
        return Mail(of.address_of(Role.BOUNCES), copies, whole, verp=True, verp_key=key) if copies else None

    # -- commands and bounces ------------------------------------------------------------------------------------------

    async def _take_commands(self, message: Message, target: Target) -> Expansion:
        headers, sender = message.headers, message.envelope.sender
        if is_automatic(headers, sender) or has_been_here(headers, target.of):
            log.info("lists.not_answered", list=target.of.address, sender=sender)
            return ENDED
        identity, content = await _read(message)
        author = find_author(headers, sender)
        commands = read_commands(target.role, target.detail, content, read_subject(headers))
        effects = await self._change(target.of, identity, lambda state: obey(state, target.of, author, commands))
        log.info("lists.commands", list=target.of.address, author=author, effects=[effect[0] for effect in effects])
        return await self._answer(target.of, effects, read_message_id(headers))

    async def _take_bounce(self, message: Message, target: Target) -> Expansion:
        member = await offload(self._find_member, target)
        identity, content = await _read(message)
        hard = not message.envelope.sender and bool(member) and is_hard(content)
        log.info("lists.bounce", list=target.of.address, member=member, hard=hard)
        if not hard:
            return ENDED
        effects = await self._change(target.of, identity, lambda state: take_bounce(state, target.of, member))
        return await self._answer(target.of, effects, "")

    def _find_member(self, target: Target) -> str:
        address = target.of.address
        return find_member(target.detail, self.store.verp_key(address), self.store.recipients(address))

    async def _answer(
        self, of: MailingList, effects: Sequence[Effect], message_id: str, excerpt: bytes = b""
    ) -> Expansion:
        letters = Letters(of, message_id)
        mails = list[Mail]()
        for effect in effects:
            mail = await self._release(of, effect[1]) if effect[0] == "release" else letters.write(effect, excerpt)
            mails += [mail] if mail is not None else []
        return Expansion(also=tuple(mails))


def _begin_identity(message: Message) -> hashlib._Hash:
    (recipient,) = message.envelope.recipients
    return hashlib.sha256(f"{message.envelope.sender}\0{recipient.address}\0".encode("utf-8", "surrogateescape"))


async def _read(message: Message) -> tuple[str, bytes]:
    """(what names the message, how it begins)."""
    identity, begun = _begin_identity(message), bytearray()
    async for chunk in message.content():
        identity.update(chunk)
        begun += chunk[: READ_BYTES_MAX - len(begun)]
    return identity.hexdigest(), bytes(begun)


async def _keep(message: Message, path_of: Callable[[str], Path]) -> tuple[str, bytes]:
    """As `_read`; the message is in its file then, for good. Once more changes nothing."""
    identity, begun = await _read(message)
    path = path_of(identity)
    partial = path.with_suffix(f".{os.urandom(4).hex()}")
    with partial.open("wb") as file:
        try:
            async for chunk in message.content():
                await offload(file.write, chunk)
            await offload(_sync, file)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    await offload(_sync_folder, path.parent)
    return identity, begun[:EXCERPT_BYTES_MAX]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
