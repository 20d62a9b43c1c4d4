"""Which bindings run for a message that somebody describes in words, in which order and for whom. Pure.

    listener=inbound; client=192.0.2.7; mail from=sue@example.net; rcpt to=ann@example.org,bob@example.com

The keys are those of rules; what is not said is empty. A binding whose rule asks for it does not run then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smtp_edge.envelope import Client, Recipient
from smtp_edge.sinks.api import EVENTS
from smtp_edge.sinks.chain import Binding, SinkChain
from smtp_edge.sinks.rules import AT_RCPT, COMMAND, HEADER, Facts, RuleError


@dataclass(frozen=True, slots=True)
class Step:
    """One binding that is asked."""

    event: str
    binding: Binding
    recipients: tuple[str, ...]
    """That it sees."""


def parse_facts(text: str) -> Facts:
    """A message in words. RuleError says what is wrong with them."""
    said: dict[str, str] = {}
    for part in (part.strip() for part in text.split(";") if part.strip()):
        key, separator, value = part.partition("=")
        key = " ".join(key.lower().split())
        if not separator:
            raise RuleError(f"{part!r} is not of the form key=value")
        if key not in (*AT_RCPT, COMMAND, "size") and not key.startswith(HEADER):
            raise RuleError(f"{key!r} is no key; there are: {', '.join(AT_RCPT)}, command, size, header NAME")
        if key == "size" and not value.strip().isdecimal():
            raise RuleError(f"size is a number of bytes, not {value.strip()!r}")
        said[key] = value.strip()
    addresses = [address.strip() for address in said.get("rcpt to", "").split(",") if address.strip()]
    client = Client(
        said.get("client", ""),
        helo=said.get("ehlo", ""),
        user=said.get("auth", ""),
        listener=said.get("listener", ""),
    )

    def headers(name: str) -> Sequence[str]:
        value = said.get(f"{HEADER}{name}")
        return () if value is None else (value,)

    recipients, size = tuple(map(Recipient, addresses)), int(said.get("size", 0))
    return Facts(client, said.get("mail from", ""), recipients, size, headers, said.get(COMMAND, "").upper())


def explain(chain: SinkChain, facts: Facts) -> list[Step]:
    """Everything that is asked about it, if nobody refuses it on the way."""
    found = []
    for event in EVENTS:
        for binding, seen in chain.matching(event, lambda: facts):
            if event == COMMAND and facts.command not in ("", *(verb.name for verb in binding.sink.verbs)):
                continue
            found.append(Step(event, binding, tuple(recipient.address for recipient in seen.recipients)))
    return found
