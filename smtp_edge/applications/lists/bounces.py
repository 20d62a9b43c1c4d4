"""Reports about members' mail (RFC 3464): which of them say that an address takes no mail any more. Pure.

Anybody can write a report. One counts at the reverse-path of that member alone, whose tag nobody can make up who has
not seen a copy of the member's (the member, its mail servers, those to whom they passed it on with its Return-Path).
"""

from __future__ import annotations

import email
import email.message
import hmac
from collections.abc import Iterable, Iterator

from smtp_edge.applications.lists.names import MailingList
from smtp_edge.applications.lists.store import Effect, State
from smtp_edge.sinks.api import verp_tag

_NOT_OF_THE_ADDRESS = ("5.2.3", "5.3.4", "5.6.", "5.7.")
"""Too large, not readable, not wanted (RFC 3463): the next post may well be taken."""


def find_member(tag: str, key: str, members: Iterable[str]) -> str:
    """Whose copy it was, by the tag that VERP made of the address; empty if it is nobody's."""
    known = tag.encode("utf-8", "surrogateescape")
    return next((member for member in members if hmac.compare_digest(verp_tag(key, member).encode(), known)), "")


def is_hard(report: bytes) -> bool:
    """A report of a failure for good, because of the address. The end of the report may be missing."""
    return any(_is_hard(fields) for fields in _delivery_fields(email.message_from_bytes(report)))


def _delivery_fields(report: email.message.Message) -> Iterator[email.message.Message]:
    if report.get_content_type() != "multipart/report":
        return
    for part in report.walk():
        if part.get_content_type() in ("message/delivery-status", "message/global-delivery-status"):
            blocks = part.get_payload()
            yield from (
                (item for item in blocks if isinstance(item, email.message.Message)) if isinstance(blocks, list) else ()
            )
            return


def _is_hard(fields: email.message.Message) -> bool:
    action, status = (str(fields.get(name, "")).strip().lower() for name in ("action", "status"))
    return action == "failed" and status.startswith("5.") and not status.startswith(_NOT_OF_THE_ADDRESS)


def take_bounce(state: State, of: MailingList, member: str) -> list[Effect]:
    """A hard bounce of a member's mail."""
    if not state.gets_mail(member) or state.count_bounce(member) < of.bounces_max:
        return []
    state.disable(member)
    return [("disabled", member)]
