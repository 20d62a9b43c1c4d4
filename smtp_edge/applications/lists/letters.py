"""What a list writes by itself: confirmations, greetings, notes, and what owners have to decide about.

    effect                                          to
    confirm ACTION TO ADDRESSES TOKEN               who asked: reply, and it is done
    welcome ADDRESS, goodbye ADDRESS                that address
    note TO KIND [WHAT]                             that address; the texts are below
    members TO ADDRESS...                           that owner
    ask-owners ADDRESS TOKEN                        the owners: somebody asks to join
    held AUTHOR SUBJECT REASON APPROVE REFUSE       the owners: a post waits
    refused AUTHOR SUBJECT MESSAGE-ID               the author of a held post
    disabled ADDRESS                                the owners: a member's mail comes back

All have the null reverse-path and say Auto-Submitted (RFC 3834 section 3): nothing answers them, nothing bounces.
"""

from __future__ import annotations

import email.policy
import email.utils
from collections.abc import Sequence
from email.headerregistry import Address
from email.message import EmailMessage

from smtp_edge.applications.lists.commands import COMMANDS_MAX
from smtp_edge.applications.lists.names import MailingList, Role
from smtp_edge.applications.lists.posts import list_fields
from smtp_edge.applications.lists.store import Effect
from smtp_edge.envelope import Notify, Recipient
from smtp_edge.sinks.api import Mail

EXCERPT_BYTES_MAX = 16 * 1024
"""Of a held post, for its owners to see."""
_FOOT = "\n\n-- \n{name} <{address}>\nHelp: {request}, Subject: help\nPeople: {owner}\n"
_ASKS = {
    "join": "Somebody, probably you, asked that this address joins the list.",
    "leave": "Somebody, probably you, asked that this address leaves the list.",
    "add": "As an owner of the list you asked that these addresses are added:\n\n{what}",
    "remove": "As an owner of the list you asked that these addresses are removed:\n\n{what}",
}
_NOTES = {
    "help": (
        "Commands, as the subject or line by line in the text of a mail to\n{request}:\n\n"
        "  help, info           this text, about the list\n"
        "  join, leave          join or leave the list\n"
        "  confirm TOKEN        confirm what you have asked for\n"
        "  add ADDRESS, remove ADDRESS, members      for owners\n\n"
        f"At most {COMMANDS_MAX} lines are read; a line that is no command ends them."
    ),
    "info": "{name} <{address}>\n\nPosts are taken from {posts}; those of others are {others}.\nJoining is {joins}.",
    "member": "This address is a member of the list already.",
    "no-member": "This address is no member of the list.",
    "no-token": "What you have confirmed is not known, is done already, or was asked for too long ago.",
    "no-address": "This is no address: {what}",
    "for-owners": "Only owners of the list may do that.",
    "owners-decide": "The owners of the list have been asked whether you may join.",
    "held": "Your mail waits for an owner of the list, who decides about it: {what}",
}


class Letters:
    """Writes the mail of one list. `reply_to`: the Message-ID that they answer; empty if there is none."""

    def __init__(self, of: MailingList, reply_to: str = "") -> None:
        self._of, self._reply_to = of, reply_to
        self._words = {
            "name": of.name,
            "address": of.address,
            "request": of.address_of(Role.REQUEST),
            "owner": of.address_of(Role.OWNER),
            "posts": {"anyone": "anyone", "members": "members", "owners": "owners"}[of.posts],
            "others": {"hold": "held for the owners", "refuse": "refused"}[of.others],
            "joins": {"open": "open to everybody", "closed": "decided by the owners"}[of.joins],
        }

    def write(self, effect: Effect, excerpt: bytes = b"") -> Mail:
        """The mail for an effect. `excerpt`: of a held post."""
        match effect:
            case ("confirm", action, to, what, token):
                return self._confirm([to], token, _ASKS[action].format(what=what))
            case ("ask-owners", address, token):
                return self._confirm(self._of.owners, token, f"{address} asks to join the list.")
            case ("welcome", address):
                text = "You are a member of the list now. To leave it, write to\n" + self._of.address_of(Role.LEAVE)
                return self._send([address], f"Welcome to {self._of.name}", text)
            case ("goodbye", address):
                return self._send(
                    [address], f"You have left {self._of.name}", "You are no member of the list any more."
                )
            case ("note", to, kind, *what):
                text = _NOTES[kind].format(**self._words, what=" ".join(what))
                return self._send([to], f"{self._of.name}: {'your post waits' if kind == 'held' else kind}", text)
            case ("members", to, *addresses):
                return self._send([to], f"Members of {self._of.name}: {len(addresses)}", "\n".join(sorted(addresses)))
        return self._write_about_posts(effect, excerpt)

    def _write_about_posts(self, effect: Effect, excerpt: bytes) -> Mail:
        match effect:
            case ("held", author, subject, reason, approve, refuse):
                text = (
                    f"A post to {self._of.address} waits for you: {reason}.\n\n"
                    f"  From:     {author}\n  Subject:  {subject}\n\n"
                    f"To approve it, write to\n  {self._of.address_of(Role.CONFIRM, approve)}\n"
                    f"To refuse it, write to\n  {self._of.address_of(Role.CONFIRM, refuse)}\n\n"
                    "If nobody does either, it is removed in a month. How it begins is attached."
                )
                return self._send(self._of.owners, f"{self._of.name}: a post waits", text, excerpt=excerpt)
            case ("refused", author, subject, message_id):
                text = f"The owners of the list have refused your post.\n\n  Subject:  {subject}"
                return self._send([author], f"{self._of.name}: your post was refused", text, reply_to=message_id)
            case ("disabled", member):
                text = f"Mail to {member} comes back. The list sends it none, until it joins again."
                return self._send(self._of.owners, f"{self._of.name}: a member cannot be reached", text)
        raise ValueError(f"no letter for {effect[0]}")

    def _confirm(self, to: Sequence[str], token: str, text: str) -> Mail:
        whole = f"{text}\n\nIf that is right, reply to this mail, and leave the subject as it is.\nIf not, do nothing."
        return self._send(to, f"confirm {token}", whole, by=self._of.address_of(Role.CONFIRM, token))

    def _send(
        self, to: Sequence[str], subject: str, text: str, *, by: str = "", reply_to: str = "", excerpt: bytes = b""
    ) -> Mail:
        whole = text + _FOOT.format(**self._words)
        plain = all(word.isascii() for word in (*to, self._of.address))
        letter = EmailMessage(policy=email.policy.SMTP if plain else email.policy.SMTPUTF8)
        letter["From"] = Address(self._of.name, addr_spec=by or self._of.address_of(Role.REQUEST))
        letter["To"] = tuple(Address(addr_spec=address) for address in to)
        letter["Subject"] = subject
        letter["Date"] = email.utils.localtime()
        letter["Message-ID"] = email.utils.make_msgid(domain=self._of.domain.encode("idna").decode())
        answers = reply_to or self._reply_to
        if answers:
            letter["In-Reply-To"] = letter["References"] = answers
        letter["Auto-Submitted"] = "auto-replied" if answers else "auto-generated"
        for name, value in list_fields(self._of):
            if name in ("Precedence", "List-Id", "List-Help", "X-Loop"):
                letter[name] = value
        letter.set_content(whole, cte="7bit" if whole.isascii() else "quoted-printable")
        if excerpt:
            shown = excerpt[:EXCERPT_BYTES_MAX].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
            letter.add_attachment(shown, filename="post.txt", cte="base64")
        recipients = tuple(Recipient(address, notify=Notify.NEVER) for address in to)
        return Mail("", recipients, letter.as_bytes())
