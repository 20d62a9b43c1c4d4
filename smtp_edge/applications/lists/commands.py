"""Commands by mail: how they are read, and what each one comes to. Pure but for the state that it is given.

    command                       who            what it does
    help, info                    anyone         how to, about the list
    join, leave                   anyone         asks for a confirmation; a closed list asks its owners
    confirm TOKEN                 who has it     does what was asked for (also: approve, refuse)
    add ADDRESS, remove ADDRESS   owners         asks that owner for a confirmation, once for all lines of a mail
    members                       owners         who is on it

The subject is a command, or each line of the text until one that is none. Only who can read the mail of an address can
confirm for it: From is not believed.
"""

from __future__ import annotations

import email
import email.message
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from smtp_edge.address import parse_mailbox
from smtp_edge.applications.lists.names import MailingList, Role
from smtp_edge.applications.lists.store import Effect, State

COMMANDS_MAX = 10
"""Lines of a mail; more are not read."""
OWNER_COMMANDS_MAX = 2000
ANSWERS_MAX = 10
"""Mails to one address in a day, who is no owner: From may be forged, and robots answer answers."""
WAITING_MAX = 10_000
"""Confirmations that one list waits for; who asks then is not answered."""
_WORDS = {
    "help": "help", "info": "info", "join": "join", "subscribe": "join", "leave": "leave", "unsubscribe": "leave",
    "confirm": "confirm", "approve": "confirm", "refuse": "confirm", "add": "add", "remove": "remove",
    "members": "members",
}  # fmt: skip
_WITH_ARGUMENT = {"confirm", "add", "remove"}
_REPLY = re.compile(r"(?:\w{1,5}\s*:\s*)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Command:
    """One of the table above."""

    word: str
    argument: str = ""


def read_commands(role: Role, detail: str, content: bytes, subject: str) -> list[Command]:
    """What a mail to an address of a list says. `content` may be cut off."""
    match role:
        case Role.JOIN | Role.LEAVE:
            return [Command(role.value)]
        case Role.CONFIRM:
            return [Command("confirm", detail)] if detail else [*_parse_lines([subject])]
    prefix = _REPLY.match(subject)
    found = [*_parse_lines([subject[prefix.end() :] if prefix else subject])]
    return found or [*_parse_lines(_read_text(content).splitlines())] or [Command("help")]


def _parse_lines(lines: Sequence[str]) -> Iterator[Command]:
    for line in lines:
        words = line.split()
        if not words or words[0].startswith(">"):
            continue
        word = _WORDS.get(words[0].lower(), "")
        if not word or len(words) != 1 + (word in _WITH_ARGUMENT):
            return
        yield Command(word, words[1] if len(words) > 1 else "")


def _read_text(content: bytes) -> str:
    """The first part that is plain text."""
    for part in email.message_from_bytes(content).walk():
        if part.get_content_type() == "text/plain":
            return _decode(part)
    return ""


def _decode(part: email.message.Message) -> str:
    text = part.get_payload(decode=True)
    assert isinstance(text, bytes)
    try:
        return text.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:
        return text.decode("utf-8", "replace")


def obey(state: State, of: MailingList, author: str, commands: Sequence[Command]) -> list[Effect]:
    """What the commands of one mail come to."""
    owner = of.is_owner(author)
    confirms = all(command.word == "confirm" for command in commands)
    if not (owner or confirms) and (state.waiting_count() >= WAITING_MAX or not state.may_answer(author, ANSWERS_MAX)):
        return []
    effects = list[Effect]()
    chosen = commands[: OWNER_COMMANDS_MAX if owner else COMMANDS_MAX]
    for command in chosen:
        if command.word in ("add", "remove", "members") and not owner:
            effects.append(("note", author, "for-owners"))
        elif command.word not in ("add", "remove"):
            effects += _obey_one(state, of, author, command)
    return [*dict.fromkeys(effects), *(_obey_batches(state, author, chosen) if owner else [])]


def _obey_one(state: State, of: MailingList, author: str, command: Command) -> list[Effect]:
    match command.word:
        case "join":
            return _join(state, of, author)
        case "leave" if not state.is_member(author):
            return [("note", author, "no-member")]
        case "leave":
            return [("confirm", "leave", author, author, state.make_token("leave", author))]
        case "confirm":
            return confirm(state, author, command.argument)
        case "members":
            return [("members", author, *state.members())]
    return [("note", author, command.word)]


def _join(state: State, of: MailingList, author: str) -> list[Effect]:
    if state.gets_mail(author):
        return [("note", author, "member")]
    if of.joins == "closed":
        return [("ask-owners", author, state.make_token("add", author)), ("note", author, "owners-decide")]
    return [("confirm", "join", author, author, state.make_token("join", author))]


def _obey_batches(state: State, author: str, commands: Sequence[Command]) -> list[Effect]:
    effects = list[Effect]()
    for word in ("add", "remove"):
        named = [command.argument for command in commands if command.word == word]
        if named:
            wrong = [address for address in named if not _is_address(address)]
            right = "\n".join(address for address in named if _is_address(address))
            effects += [("note", author, "no-address", address) for address in wrong[:1]]
            effects += [("confirm", word, author, right, state.make_token(word, right))] if right else []
    return effects


def _is_address(text: str) -> bool:
    try:
        return "@" in parse_mailbox(text)
    except ValueError:
        return False


def confirm(state: State, author: str, token: str) -> list[Effect]:
    """Do what was asked for."""
    found = state.take_token(token)
    if found is None:
        return [("note", author, "no-token")] if state.may_answer(author, ANSWERS_MAX) else []
    action, argument = found
    match action:
        case "join" | "add":
            added = [address for address in argument.split("\n") if not state.gets_mail(address)]
            for address in added:
                state.add(address)
            return [("welcome", address) for address in added]
        case "leave" | "remove":
            return [("goodbye", address) for address in argument.split("\n") if state.remove(address)]
        case "approve":
            return [("release", argument)] if state.decide(argument) is not None else []
    post = state.decide(argument)
    return [("refused", *post)] if post is not None and post[0] else []
