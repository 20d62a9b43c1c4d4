"""`XSMTPMESH`: what peers say to each other beside the envelope, in parameters of MAIL and in the final reply. Pure.

    250-XSMTPMESH STATE
    MAIL FROM:<...> XTOKEN=ORIGIN/QUEUEID/COPY XTRACE=NODE,NODE XAGE=SECONDS XATTEMPTS=COUNT XDUE=SECONDS XDELAYED
    250 2.0.0 Ok: queued as QUEUEID; backlog CLASS=COUNT CLASS=COUNT

The last three tell the state of mail that was deferred before. They are sent to a peer whose EHLO says STATE, and where
they say something; another one gets the mail without them.

Offered and understood on the mesh listener only, where both ends have shown a certificate of the cluster.
"""

from __future__ import annotations

import re

from smtp_edge.envelope import Transfer

KEYWORD, STATE = "XSMTPMESH", "STATE"
TRACE_MAX = 100
"""Relays in a trace; the mesh steps back long before (4-routing.md, section 6)."""
TOKEN_MAX = 200
BACKLOGS_MAX = 16

_TOKEN = re.compile(r"[0-9a-f]{32}/[0-9A-Za-z]{1,32}/[0-9A-Za-z.]{1,120}")
_NODE = re.compile(r"[0-9a-f]{32}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_BACKLOG = re.compile(r"; backlog ([^;]*)$")
_ITEM = re.compile(r"([^=\s]{1,260})=(\d{1,12})")


class TransferFault(ValueError):
    """A peer's parameters make no sense."""


def build_parameters(transfer: Transfer, features: str = "") -> list[str]:
    """Parameters of MAIL, in order. `features`: what stands behind the keyword in the peer's EHLO reply."""
    words = [f"XTOKEN={transfer.token}"]
    if transfer.trace:
        words.append(f"XTRACE={','.join(transfer.trace)}")
    words.append(f"XAGE={transfer.age_s}")
    if STATE in features.upper().split():
        words += [f"XATTEMPTS={transfer.attempts}"] if transfer.attempts else []
        words += [f"XDUE={transfer.due_s}"] if transfer.due_s else []
        words += ["XDELAYED"] if transfer.delay_notified else []
    return words


def parse_transfer(parameters: dict[str, str | None]) -> Transfer | None:
    """Take the parameters of a transfer out of `parameters`; None without XTOKEN. TransferFault for nonsense."""
    token = parameters.pop("XTOKEN", None)
    trace = parameters.pop("XTRACE", None) or ""
    age, attempts, due = (_pop_number(parameters, name) for name in ("XAGE", "XATTEMPTS", "XDUE"))
    delayed = "XDELAYED" in parameters
    parameters.pop("XDELAYED", None)
    if token is None:
        return None
    nodes = tuple(trace.split(",")) if trace else ()
    if len(token) > TOKEN_MAX or not _TOKEN.fullmatch(token):
        raise TransferFault("bad XTOKEN")
    if len(nodes) > TRACE_MAX or not all(_NODE.fullmatch(node) for node in nodes):
        raise TransferFault("bad XTRACE")
    return Transfer(token, nodes, age, attempts, due, delayed)


def _pop_number(parameters: dict[str, str | None], name: str) -> int:
    value = parameters.pop(name, None) or "0"
    if not _NUMBER.fullmatch(value):
        raise TransferFault(f"bad {name}")
    return int(value)


def parse_backlogs(text: str) -> dict[str, int]:
    """Class -> stored messages, from the text of a final reply; empty if there is none."""
    found = _BACKLOG.search(text)
    if found is None:
        return {}
    items = [_ITEM.fullmatch(word) for word in found[1].split()[:BACKLOGS_MAX]]
    return {item[1]: int(item[2]) for item in items if item is not None}
