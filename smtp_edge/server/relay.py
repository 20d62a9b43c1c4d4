"""Relay policy: for whom this node carries mail. Pure.

    client                                     may send to
    in `allow_networks`, or authenticated      anything that a route takes
    an authenticated peer (mesh listener)      the same
    anyone else                                `relay_domains` only, plain addresses only; `<postmaster>` without
                                               domain (RFC 5321 4.5.1) if this node's own name is in one of them

An empty configuration relays for nobody. Addresses that hide a second destination in the local part (`a%b@here`,
`b!a@here`, a quoted `"a@b"@here`) are refused from anyone else, because some next hop may still believe in them.
"""

from __future__ import annotations

import unicodedata

from smtp_edge.envelope import Client, Recipient
from smtp_edge.networks import Networks
from smtp_edge.reply import Reply
from smtp_edge.settings_inbound import ListenerSettings

NO_RELAY = Reply(550, "relaying denied", "5.7.1")
HIDDEN_DESTINATION = frozenset('%!@"')


class RelayPolicy:
    """The policy of one listener."""

    def __init__(self, settings: ListenerSettings, hostname: str = "") -> None:
        self._networks = Networks(settings.allow_networks)
        domains = [domain.lower() for domain in settings.relay_domains]
        self._exact = frozenset(domain for domain in domains if not domain.startswith("*."))
        self._suffixes = frozenset(domain[2:] for domain in domains if domain.startswith("*."))
        self._home = hostname.lower()

    def permits(self, client: Client, recipient: Recipient) -> Reply | None:
        """None if the client may send to the recipient, else the refusal."""
        if client.user or client.peer_id or self._networks.hold(client.address):
            return None
        local = recipient.address.rpartition("@")[0]
        if not local.isascii():  # a next hop that normalises may find one in a full-width sign
            local = unicodedata.normalize("NFKC", local)
        if HIDDEN_DESTINATION.intersection(local) or not self._takes(recipient.domain or self._home):
            return NO_RELAY
        return None

    def _takes(self, domain: str) -> bool:
        if domain in self._exact:
            return True
        labels = domain.split(".")
        return any(".".join(labels[start:]) in self._suffixes for start in range(1, len(labels)))
