"""Relay policy: for whom this node carries mail. Pure.

    client                                     may send to
    in `allow_networks`, or authenticated      anything that a route takes
    an authenticated peer (mesh listener)      the same
    anyone else                                `relay_domains` only, plain addresses only

An empty configuration relays for nobody. Addresses that hide a second destination in the local part (`a%b@here`,
`b!a@here`, a quoted `"a@b"@here`) are refused from anyone else, because some next hop may still believe in them.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from smtp_edge.envelope import Client, Recipient
from smtp_edge.reply import Reply
from smtp_edge.settings import ListenerSettings

NO_RELAY = Reply(550, "relaying denied", "5.7.1")
HIDDEN_DESTINATION = frozenset('%!@"')


class RelayPolicy:
    """The policy of one listener."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._networks = settings.allow_networks
        domains = [domain.lower() for domain in settings.relay_domains]
        self._exact = frozenset(domain for domain in domains if not domain.startswith("*."))
        self._suffixes = frozenset(domain[2:] for domain in domains if domain.startswith("*."))

    def permits(self, client: Client, recipient: Recipient) -> Reply | None:
        """None if the client may send to the recipient, else the refusal."""
        if client.user or client.peer_id or self._listed(client.address):
            return None
        local = recipient.address.rpartition("@")[0]
        if HIDDEN_DESTINATION.intersection(local) or not self._takes(recipient.domain):
            return NO_RELAY
        return None

    def _listed(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            parsed: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)

    def _takes(self, domain: str) -> bool:
        if domain in self._exact:
            return True
        labels = domain.split(".")
        return any(".".join(labels[start:]) in self._suffixes for start in range(1, len(labels)))
