"""A DNS server on loopback that answers from a table, as a resolver would: what real ones say on demand of a test.

    {"good.test MX": ["10 a.test."], "gone.test": NXDOMAIN, "broken.test MX": SERVFAIL, "silent.test": SILENT}

A name that stands in the table for some type exists; `secure` names are answered with AD.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from smtp_edge.client.resolver import Resolver
from smtp_edge.settings import DnsSettings

NXDOMAIN, BARE_NXDOMAIN, SERVFAIL, SILENT = ("NXDOMAIN",), ("BARE",), ("SERVFAIL",), ("SILENT",)
"""BARE: without the SOA that a real resolver shows beside it."""
SOA = "ns.test. mail.test. 1 3600 600 86400 60"


@dataclass
class Table:
    """What the server knows; may be changed at any time."""

    records: dict[str, Sequence[str]]
    secure: set[str] = field(default_factory=set)
    """Names (and all below them) whose answers are validated."""
    asked: list[str] = field(default_factory=list)

    def find(self, name: str, kind: str) -> Sequence[str] | None:
        """The rows for a question; None if the name is in no row."""
        for key in (f"{name} {kind}", name):
            if key in self.records:
                return self.records[key]
        known = any(key.partition(" ")[0] == name or key.partition(" ")[0].endswith(f".{name}") for key in self.records)
        return [] if known else None

    def is_secure(self, name: str) -> bool:
        """DNSSEC vouches for it."""
        return any(name == zone or name.endswith(f".{zone}") for zone in self.secure)


class Server(asyncio.DatagramProtocol):
    """One question, one answer, over UDP."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        name = question.name.to_text(omit_final_dot=True).lower()
        self._table.asked.append(f"{name} {kind}")
        response = dns.message.make_response(query, recursion_available=True)
        if self._answer(response, name, kind):
            self._transport.sendto(response.to_wire(), addr)

    def _answer(self, response: dns.message.Message, name: str, kind: str) -> bool:
        secure = self._table.is_secure(name)
        rows = self._table.find(name, kind)
        while not rows and kind != "CNAME" and (alias := self._table.records.get(f"{name} CNAME")):
            response.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", *alias))
            name = alias[0].rstrip(".")
            secure = secure and self._table.is_secure(name)
            rows = self._table.find(name, kind)
        if rows in (SILENT, SERVFAIL):
            response.set_rcode(dns.rcode.SERVFAIL)
            return rows == SERVFAIL
        if rows is None or rows in (NXDOMAIN, BARE_NXDOMAIN):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if rows and rows not in (NXDOMAIN, BARE_NXDOMAIN):
            response.answer.append(dns.rrset.from_text(name.rstrip(".") + ".", 60, "IN", kind, *rows))
        elif rows != BARE_NXDOMAIN:
            response.authority.append(dns.rrset.from_text("test.", 60, "IN", "SOA", SOA))
        if secure:
            response.flags |= dns.flags.AD
        return True


@asynccontextmanager
async def names(table: Table, *, trust_ad: bool = True) -> AsyncIterator[Resolver]:
    """A resolver that asks a server with the table."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Server(table), local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    settings = DnsSettings(servers=(f"127.0.0.1:{port}",), timeout_s=0.5, trust_ad=trust_ad)
    try:
        yield Resolver(settings)
    finally:
        transport.close()
