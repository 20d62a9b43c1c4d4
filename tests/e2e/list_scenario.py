"""One story of a mailing list, told to whatever keeps lists: people join, post, are held, leave. What everybody gets is
written down in words that mean the same whoever sent it.

    join    two people, each confirms by answering the mail that asks
    post    of a member: to both members, each once, under the list's reverse-path
    held    a post of a stranger waits; the owner lets one through and refuses another
    robot   what answers by itself is not answered
    loop    what has been through the list stops
    leave   one confirms; the next post goes to the other alone
"""

from __future__ import annotations

import email
import email.message
import email.policy
import re
from dataclasses import dataclass
from typing import Protocol

from tests.e2e.keeper import Kept

OWNER, ANN, BOB, EVE = "owner@people.test", "ann@people.test", "bob@people.test", "eve@people.test"
FIELDS = ("List-Id", "List-Post", "List-Help", "List-Subscribe", "List-Unsubscribe", "List-Owner", "Precedence")
"""Of a post, as members get it (RFC 2919, RFC 2369)."""
LIST, OWNERS = "talk@lists.test", "talk-owner@lists.test"


class Keeper(Protocol):
    """Who keeps the list, and the mailboxes of all people."""

    def send(self, sender: str, to: str, subject: str, **fields: str) -> None:
        """A mail of somebody to an address of the list."""
        ...

    def take(self) -> list[Kept]:
        """All mail that people have got since the last time, when nothing more comes."""
        ...

    def approve(self, notices: list[Kept]) -> None:
        """As the owner: let the post through that waits. `notices`: what she got."""
        ...

    def refuse(self, notices: list[Kept]) -> None:
        """As the owner: it is not wanted."""
        ...


@dataclass(frozen=True, slots=True)
class Copy:
    """A post as somebody got it."""

    recipient: str
    sender: str
    """The reverse-path, in words: `the list's own for this member`, `the list's`, `nobody`, or an address."""
    fields: tuple[str, ...]
    subject: str


def parse(kept: Kept) -> email.message.Message:
    return email.message_from_bytes(kept.data, policy=email.policy.compat32)


def name_sender(sender: str, recipient: str) -> str:
    """In words. Whose it is may be told by the address, or by a tag that only the list can read."""
    if not sender:
        return "nobody"
    address = re.escape(recipient.replace("@", "="))
    if re.fullmatch(rf"talk-bounces\+({address}|[a-z2-7]{{16}})@lists\.test", sender):
        return "the list's own for this member"
    return "the list's" if sender == "talk-bounces@lists.test" else sender


def copies(mails: list[Kept], subject: str) -> list[Copy]:
    """Of the post with this subject; whatever else came is left out."""
    found = []
    for kept in mails:
        message = parse(kept)
        if str(message.get("Subject", "")).endswith(subject) and message.get("X-Post") == subject:
            fields = tuple(name for name in FIELDS if name in message)
            found += [Copy(who, name_sender(kept.sender, who), fields, subject) for who in kept.recipients]
    return sorted(found, key=lambda copy: copy.recipient)


def answer(keeper: Keeper, mails: list[Kept], who: str) -> None:
    """As people confirm: by answering the mail that asks them to."""
    asked = [kept for kept in mails if who in kept.recipients and "confirm" in str(parse(kept).get("From", ""))]
    assert len(asked) == 1, f"{who} was asked {len(asked)} times to confirm"
    message = parse(asked[0])
    address = email.utils.parseaddr(str(message.get("Reply-To") or message.get("From")))[1]
    keeper.send(who, address, f"Re: {message.get('Subject')}")


def tell(keeper: Keeper) -> dict[str, object]:
    """The story; what happened at each step."""
    seen: dict[str, object] = {}
    for who in (ANN, BOB):
        keeper.send(who, "talk-join@lists.test", "join")
        answer(keeper, keeper.take(), who)
        welcome = keeper.take()
        seen[f"{who} joins"] = who in {address for kept in welcome for address in kept.recipients}

    def post(sender: str, subject: str, **fields: str) -> list[Kept]:
        keeper.send(sender, LIST, subject, X_Post=subject, **fields)
        return keeper.take()

    seen["a member posts"] = copies(post(ANN, "hello"), "hello")

    notices = post(EVE, "may I")
    seen["a stranger posts"] = [copy for copy in copies(notices, "may I") if copy.recipient in (ANN, BOB)]
    seen["the owner hears of it"] = any({OWNER, OWNERS} & set(kept.recipients) for kept in notices)
    keeper.approve(notices)
    seen["the owner lets it through"] = copies(keeper.take(), "may I")
    notices = post(EVE, "buy this")
    keeper.refuse(notices)
    seen["the owner refuses"] = [copy for copy in copies(keeper.take(), "buy this") if copy.recipient in (ANN, BOB)]

    keeper.send(EVE, "talk-request@lists.test", "help", Auto_Submitted="auto-replied")
    seen["a robot asks"] = [kept.recipients for kept in keeper.take()]
    keeper.send("", "talk-request@lists.test", "help")
    seen["nobody asks"] = [kept.recipients for kept in keeper.take()]
    keeper.send(EVE, "talk-request@lists.test", "help")
    seen["a person asks"] = [kept.recipients for kept in keeper.take()]

    once = post(ANN, "once")
    through = parse(next(kept for kept in once if BOB in kept.recipients))
    again = {
        name.replace("-", "_"): str(through[name]) for name in ("List-Id", "List-Post", "X-Loop") if name in through
    }
    seen["a post comes back"] = copies(post(ANN, "again", **again), "again")

    keeper.send(BOB, "talk-leave@lists.test", "leave")
    asked = keeper.take()
    if any("confirm" in str(parse(kept).get("From", "")) for kept in asked):
        answer(keeper, asked, BOB)
        keeper.take()
    seen["one has left"] = [copy.recipient for copy in copies(post(ANN, "last"), "last")]
    return seen
