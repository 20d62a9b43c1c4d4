"""Posts: who wrote one, whether it has been here before, and the header that it leaves with. Pure.

Fields of the list: RFC 2919 (List-Id), RFC 2369 (List-Help and its relatives), RFC 8058 (List-Unsubscribe-Post). Those
of another list that has passed it on are replaced, as RFC 2369 section 4 wants it; X-Loop stays. What asks members'
programs for a receipt is removed: one post would bring the author as many as there are members. Subject and text are
the author's, and so are signatures over them.
"""

from __future__ import annotations

import email.header
import email.utils
import re

from smtp_edge.address import parse_mailbox
from smtp_edge.applications.lists.names import MailingList, Role, fold
from smtp_edge.sinks.fields import Field, make_field
from smtp_edge.sinks.message import Headers

SUBJECT_MAX = 200
_REPLACED = {
    "list-id", "list-help", "list-post", "list-owner", "list-subscribe", "list-unsubscribe", "list-unsubscribe-post",
    "list-archive", "precedence", "return-path", "disposition-notification-to", "return-receipt-to",
    "x-confirm-reading-to",
}  # fmt: skip
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,900}>")
_LIST_ID = re.compile(r"<([^<>]*)>\s*$")
_ROBOTS = re.compile(r"(?:mailer-daemon|owner-.*|.*-(?:request|bounces|owner)|no-?reply)(?:\+.*)?@.*", re.IGNORECASE)


def find_author(headers: Headers, sender: str) -> str:
    """Who wrote it: the address in From, or without one the reverse-path; empty if there is neither."""
    for _, address in email.utils.getaddresses([headers.get("from")]):
        try:
            if "@" in parse_mailbox(address):
                return address
        except ValueError:
            continue
    return sender


def is_automatic(headers: Headers, sender: str) -> bool:
    """Nobody is answered who does not read answers, or answers by itself (RFC 3834 section 2)."""
    if not sender or _ROBOTS.fullmatch(sender) or _is_marked(headers):
        return True
    if headers.get("precedence").lower() in ("bulk", "list", "junk"):
        return True
    report = headers.get("content-type").lower().startswith("multipart/report")
    return report or any(name in headers for name in ("list-id", "x-auto-response-suppress"))


def _is_marked(headers: Headers) -> bool:
    return _first_word(headers.get("auto-submitted")) not in ("", "no")


def is_reply_of_a_program(headers: Headers, sender: str) -> bool:
    """No post that a person meant for the list: a bounce, an absence."""
    return not sender or _first_word(headers.get("auto-submitted")) in ("auto-replied", "auto-notified")


def _first_word(value: str) -> str:
    return value.partition(";")[0].strip().lower()


def has_been_here(headers: Headers, of: MailingList) -> bool:
    """It carries the name of this list already."""
    ids = [match[1] for match in map(_LIST_ID.search, headers.all("list-id")) if match is not None]
    loops = [value.strip() for value in headers.all("x-loop")]
    return fold(of.list_id) in map(fold, ids) or fold(of.address) in map(fold, loops)


def dress(fields: tuple[Field, ...], of: MailingList) -> tuple[Field, ...]:
    """A post's header as members get it."""
    kept = tuple(field for field in fields if field.name.lower() not in _REPLACED)
    return (*kept, *(make_field(name, value) for name, value in list_fields(of)))


def list_fields(of: MailingList) -> list[tuple[str, str]]:
    """Fields that all mail of a list has."""
    leave = f"<mailto:{of.address_of(Role.LEAVE)}>"
    fields = [
        ("X-Loop", of.address),
        ("Precedence", "list"),
        ("List-Id", f"{of.title} <{of.list_id}>" if of.title else f"<{of.list_id}>"),
        ("List-Help", f"<mailto:{of.address_of(Role.REQUEST)}?subject=help>"),
        ("List-Post", f"<mailto:{of.address}>"),
        ("List-Owner", f"<mailto:{of.address_of(Role.OWNER)}>"),
        ("List-Subscribe", f"<mailto:{of.address_of(Role.JOIN)}>"),
    ]
    if not of.unsubscribe_url:
        return [*fields, ("List-Unsubscribe", leave)]
    return [
        *fields,
        ("List-Unsubscribe", f"<{of.unsubscribe_url}>,\r\n {leave}"),
        ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
    ]


def read_subject(headers: Headers) -> str:
    """Decoded, one line, for people."""
    raw = headers.get("subject")
    try:
        text = str(email.header.make_header(email.header.decode_header(raw)))
    except (ValueError, LookupError):
        text = raw
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.encode("utf-8", "replace").decode()[:SUBJECT_MAX].strip()


def read_message_id(headers: Headers) -> str:
    """Empty if it is none that may stand in a header."""
    found = _MESSAGE_ID.search(headers.get("message-id"))
    return found[0] if found is not None else ""
