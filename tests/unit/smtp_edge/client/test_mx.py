"""Mail exchangers: the order of records, and the answers of a real DNS server on loopback."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import Target
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.client.mx import EXCHANGERS_MAX, NULL_MX, NoExchanger, find_exchangers, order_exchangers
from tests.unit.smtp_edge.client.test_delivery import job

RNG = random.Random(1)


def test_preference_decides() -> None:
    assert order_exchangers([(20, "b."), (10, "a.")], "example.org", RNG) == ["a", "b"]


def test_equal_preferences_are_shuffled() -> None:
    records = [(10, "a."), (10, "b."), (10, "c.")]
    orders = {tuple(order_exchangers(records, "x", random.Random(seed))) for seed in range(50)}
    assert len(orders) == 6


def test_no_record_means_the_domain_itself() -> None:
    assert order_exchangers([], "example.org", RNG) == ["example.org"]


def test_a_null_mx_takes_no_mail() -> None:
    with pytest.raises(NoExchanger) as caught:
        order_exchangers([(0, ".")], "example.org", RNG)
    assert caught.value.reply == NULL_MX


def test_the_number_tried_is_bounded() -> None:
    assert len(order_exchangers([(n, f"h{n}.") for n in range(100)], "x", RNG)) == EXCHANGERS_MAX


TABLE: dict[str, list[str] | None] = {
    "good.test.": ["10 127.0.0.1.", "20 backup.test."],
    "null.test.": ["0 ."],
    "bare.test.": [],
    "gone.test.": None,
}


class Zone(asyncio.DatagramProtocol):
    """Answers MX questions from the table; None = the name does not exist, `silent.test` = no answer at all."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        name = query.question[0].name
        records = TABLE.get(name.to_text(), [])
        if name.to_text() == "silent.test.":
            return
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if records is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif records:
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "MX", *records))
        self.transport.sendto(response.to_wire(), addr)  # type: ignore[attr-defined]


@pytest.fixture
async def resolver() -> AsyncIterator[dns.asyncresolver.Resolver]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Zone, local_addr=("127.0.0.1", 0))
    made = dns.asyncresolver.Resolver(configure=False)
    made.nameservers = ["127.0.0.1"]
    made.port = transport.get_extra_info("sockname")[1]
    made.timeout = made.lifetime = 0.3
    yield made
    transport.close()


async def test_records_are_found_in_order(resolver: dns.asyncresolver.Resolver) -> None:
    assert await find_exchangers("good.test", resolver, RNG) == ["127.0.0.1", "backup.test"]


async def test_a_domain_without_records_is_its_own_exchanger(resolver: dns.asyncresolver.Resolver) -> None:
    assert await find_exchangers("bare.test", resolver, RNG) == ["bare.test"]


async def test_an_address_literal_asks_nobody(resolver: dns.asyncresolver.Resolver) -> None:
    assert await find_exchangers("[192.0.2.1]", resolver, RNG) == ["192.0.2.1"]


@pytest.mark.parametrize(("domain", "status"), [("null.test", "5.1.10"), ("gone.test", "5.1.2"), ("silent.test", None)])
async def test_where_there_is_none(resolver: dns.asyncresolver.Resolver, domain: str, status: str | None) -> None:
    with pytest.raises(NoExchanger) as caught:
        await find_exchangers(domain, resolver, RNG)
    assert (caught.value.reply.status if caught.value.reply else None) == status


async def test_an_attempt_says_whose_fault_it_was(resolver: dns.asyncresolver.Resolver) -> None:
    client = DeliveryClient(
        hostname="relay.test", identity=None, connect_timeout_s=1, attempt_timeout_s=1, resolver=resolver
    )
    kinds = {}
    for domain in ("null.test", "gone.test", "silent.test"):
        result = await client.attempt(Target(Hop.parse(f"mx:{domain}"), domain, 1), job())
        kinds[domain] = (result.kind, result.replies[0].code if result.replies and result.replies[0] else None)
    assert kinds == {
        "null.test": (OutcomeKind.MESSAGE_REFUSED, 556),
        "gone.test": (OutcomeKind.MESSAGE_REFUSED, 550),
        "silent.test": (OutcomeKind.CONNECT_FAILED, None),
    }
    await client.close()
