"""The part of a report that is for programs (RFC 3464 section 2, RFC 6533 for addresses beyond ASCII)."""

from __future__ import annotations

from datetime import datetime
from email.utils import format_datetime

from smtp_edge.dsn.text import decode_xtext, one_line, spell_address, to_ascii
from smtp_edge.queue.entry import Action, Entry, RecipientResult

_STATUSES = {
    Action.FAILED: "5.0.0",
    Action.DELAYED: "4.0.0",
    Action.RELAYED: "2.0.0",
    Action.EXPANDED: "2.0.0",
    Action.DELIVERED: "2.0.0",
}
"""Status where no reply gives one."""
OWN_DIAGNOSTIC = "x-smtpmesh"
"""Type of a diagnostic code that no remote has said (RFC 3464 section 2.3.6)."""


def build_message_fields(entry: Entry, hostname: str) -> list[str]:
    """The block about the message."""
    kind = "dns" if "." in hostname else "x-local-hostname"
    fields = [f"Reporting-MTA: {kind}; {hostname}"]
    if entry.envelope.envid:
        fields.insert(0, f"Original-Envelope-Id: {to_ascii(decode_xtext(entry.envelope.envid))}")
    return [*fields, f"Arrival-Date: {format_datetime(entry.received_at)}"]


def build_recipient_fields(entry: Entry, result: RecipientResult, at: datetime, *, utf8: bool) -> list[str]:
    """The block about one recipient."""
    recipient, reply = result.recipient, result.reply
    fields = []
    if recipient.orcpt:
        kind, _, address = recipient.orcpt.partition(";")
        fields.append(f"Original-Recipient: {to_ascii(kind)};{spell_address(kind, decode_xtext(address), utf8)}")
    kind = "rfc822" if recipient.address.isascii() else "utf-8"
    fields.append(f"Final-Recipient: {kind}; {spell_address(kind, recipient.address, utf8)}")
    fields.append(f"Action: {result.action}")
    fields.append(f"Status: {_status(result)}")
    if result.remote:
        fields.append(f"Remote-MTA: dns; {to_ascii(_host(result.remote))}")
    if reply is not None:
        text = str(reply)
        who = "smtp" if result.remote else OWN_DIAGNOSTIC
        fields.append(f"Diagnostic-Code: {who}; {one_line(text) if utf8 else to_ascii(text)}")
    fields.append(f"Last-Attempt-Date: {format_datetime(at)}")
    fields.append(f"Final-Log-ID: {entry.queue_id}")
    if result.action is Action.DELAYED:
        fields.append(f"Will-Retry-Until: {format_datetime(entry.expires_at)}")
    return fields


def _host(remote: str) -> str:
    """The name in `host[address]:port`; an address literal where the host is known by its address only."""
    host, _, rest = remote.partition("[")
    address = rest.partition("]")[0]
    if host == address and address:
        return f"[IPv6:{address}]" if ":" in address else f"[{address}]"
    return host


def _status(result: RecipientResult) -> str:
    if result.reply is None:
        return _STATUSES[result.action]
    return result.reply.status or f"{result.reply.code // 100}.0.0"
