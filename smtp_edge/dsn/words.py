"""The part of a report that is for people, and its subject."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from email.utils import format_datetime

from smtp_edge.dsn.text import one_line
from smtp_edge.queue.entry import Action, Entry, RecipientResult

WIDTH = 76
ORDER = (Action.FAILED, Action.DELAYED, Action.RELAYED, Action.EXPANDED, Action.DELIVERED)
"""The gravest gives the report its subject."""
_SUBJECTS = {
    Action.FAILED: "Your message could not be delivered",
    Action.DELAYED: "Your message is delayed",
    Action.RELAYED: "Your message was passed on",
    Action.EXPANDED: "Your message went to a list",
    Action.DELIVERED: "Your message was delivered",
}
_WORDS = {
    Action.FAILED: "Your message could not be delivered to the recipients below. It will not be tried again.",
    Action.DELAYED: "Your message could not be delivered to the recipients below so far. You need not do anything: "
    "delivery is tried until {until}.",
    Action.RELAYED: "Your message was passed on to the mail system of the recipients below, "
    "which sends no further reports.",
    Action.EXPANDED: "Your message was accepted for the recipients below and sent on to their members.",
    Action.DELIVERED: "Your message was delivered to the recipients below.",
}
_DOUBLE = (
    "A message with an empty sender, most likely a report such as this one, could not be delivered to the recipients "
    "below. Nobody else is told: this copy is for the postmaster."
)


def build_subject(results: Sequence[RecipientResult], *, double: bool) -> str:
    """The subject field's text."""
    gravest = next(action for action in ORDER if any(result.action is action for result in results))
    return "Undeliverable report" if double else _SUBJECTS[gravest]


def explain(entry: Entry, results: Sequence[RecipientResult], hostname: str, *, double: bool) -> list[str]:
    """The lines, without trailing empty one."""
    lines = [f"This is the mail relay {hostname}."]
    for action in ORDER:
        group = [result for result in results if result.action is action]
        if group:
            text = _DOUBLE if double else _WORDS[action].format(until=format_datetime(entry.expires_at))
            lines += ["", *textwrap.wrap(text, WIDTH)]
            for result in group:
                lines += ["", *_explain_one(result)]
    return lines


def _explain_one(result: RecipientResult) -> Iterator[str]:
    yield f"<{one_line(result.recipient.address)}>"
    if result.reply is not None:
        host = result.remote.partition("[")[0]
        said = f"{one_line(host)} said: " if host else ""
        yield from textwrap.wrap(
            said + one_line(str(result.reply)),
            WIDTH,
            initial_indent="    ",
            subsequent_indent="    ",
            break_long_words=False,
        )
