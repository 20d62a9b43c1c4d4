"""Answers of `deliver` sinks, to each recipient. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from smtp_edge.envelope import Recipient
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Quarantine

DELIVERED = Reply(250, "delivered", "2.0.0")
Answer = Reply | Quarantine


def spread(recipients: Sequence[Recipient], answer: Reply | Sequence[object] | None) -> dict[Recipient, Answer]:
    """What each recipient was told. ValueError for what is no answer."""
    if answer is None or isinstance(answer, Reply):
        answer = [answer or DELIVERED] * len(recipients)
    if isinstance(answer, str | bytes) or len(answer) != len(recipients):
        raise ValueError(f"an answer has one reply for all, or one for each of {len(recipients)} recipients")
    found: dict[Recipient, Answer] = {}
    for recipient, one in zip(recipients, answer, strict=True):
        if not (isinstance(one, Quarantine) or (isinstance(one, Reply) and one.code // 100 in (2, 4, 5))):
            raise ValueError(f"{one!r} is no answer: a Reply of 2yz, 4yz or 5yz, or Quarantine")
        found[recipient] = one
    return found
