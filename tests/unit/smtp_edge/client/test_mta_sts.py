"""MTA-STS: records, policies, and the first table at the head of `smtp_edge.client.mta_sts`, followed by the keeper."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtp_edge.client import sts_keeper
from smtp_edge.client.mta_sts import (
    CachedPolicy,
    Mode,
    Policy,
    PolicyError,
    pack,
    parse_policy,
    parse_record,
    permits_host,
    unpack,
)
from smtp_edge.client.sts_fetch import FetchFailed
from smtp_edge.client.sts_keeper import PolicyKeeper
from tests.unit.smtp_edge.client.names import SERVFAIL, Table, names

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY_S = 86_400
POLICY = b"version: STSv1\r\nmode: enforce\r\nmx: mx.example.org\r\nmx: *.example.net\r\nmax_age: 86400\r\n"


@pytest.mark.parametrize(
    ("texts", "record_id"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=a1"], "a1"),
        (["v=spf1 -all", "v=STSv1; id=a1; future=x"], "a1"),
        ([], None),
        (["v=STSv1; id=a1", "v=STSv1; id=a2"], None),
        (["v=STSv1"], None),
        (["v=STSv1; id="], None),
        (["v=STSv1; id=with-dash"], None),
        (["v=STSv1; id=" + "a" * 33], None),
        (["v=STSv10; id=a1"], None),
    ],
)
@pytest.mark.rfc("8461 3.1")
def test_the_record(texts: list[str], record_id: str | None) -> None:
    assert parse_record(texts) == record_id


@pytest.mark.rfc("8461 3.2")
def test_a_policy() -> None:
    assert parse_policy(POLICY) == Policy(Mode.ENFORCE, ("mx.example.org", "*.example.net"), 86400)
    assert parse_policy(POLICY.replace(b"\r\n", b"\n")) == parse_policy(POLICY)
    assert parse_policy(b"version: STSv1\nmode: none\nmax_age: 99999999999"[:-1]).max_age_s == 31_557_600
    assert (
        parse_policy(b"version:STSv1\nfuture: x\nmode:testing\nmode: none\nmx:a.test\nmax_age:0").mode is Mode.TESTING
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"STSv1", b"STSv2"),
        (b"mode: enforce", b"mode: strict"),
        (b"mode: enforce\r\n", b""),
        (b"max_age: 86400", b"max_age: x"),
        (b"max_age: 86400\r\n", b""),
        (b"mx: mx.example.org\r\nmx: *.example.net\r\n", b""),
        (b"mx: mx.example.org", b"mx: a b"),
        (b"mx: mx.example.org", b"mx: *"),
        (b"mx: mx.example.org", b"mx: a.*.org"),
        (b"mode: enforce", b"no field"),
        (b"mx.example.org", b"\xff"),
        (b"mx.example.org", b"x" * 70_000),
    ],
)
@pytest.mark.rfc("8461 3.2")
def test_what_is_no_policy(before: bytes, after: bytes) -> None:
    with pytest.raises(PolicyError):
        parse_policy(POLICY.replace(before, after, 1))


@given(st.binary(max_size=300))
def test_garbage_only_ever_raises_our_error(body: bytes) -> None:
    try:
        parse_policy(body)
    except PolicyError:
        pass


@pytest.mark.parametrize(
    ("host", "permitted"),
    [
        ("mx.example.org", True),
        ("MX.Example.ORG.", True),
        ("a.example.net", True),
        ("a.b.example.net", False),
        ("example.net", False),
        ("mx.example.com", False),
    ],
)
@pytest.mark.rfc("8461 4.1")
def test_hosts_of_a_policy(host: str, permitted: bool) -> None:
    assert permits_host(parse_policy(POLICY), host) is permitted


@given(
    st.sampled_from(list(Mode)),
    st.lists(st.from_regex(r"[a-z]{1,9}\.test", fullmatch=True)),
    st.integers(0, 31_557_600),
)
def test_a_policy_comes_back_from_its_file(mode: Mode, hosts: list[str], age: int) -> None:
    cached = CachedPolicy(Policy(mode, tuple(hosts), age), "a1", AT, AT)
    assert unpack(json.loads(json.dumps(pack(cached)))) == cached


GOOD_ENTRY = pack(CachedPolicy(Policy(Mode.NONE, (), 1), "", AT, AT))


@pytest.mark.parametrize("packed", [None, {}, {"mode": "x"}, [1], {**GOOD_ENTRY, "max_age_s": -1}])
def test_a_damaged_entry_of_the_file_is_one(packed: object) -> None:
    with pytest.raises(PolicyError):
        unpack(packed)


# -- the keeper --------------------------------------------------------------------------------------------------------


class Hosts:
    """Policy hosts that answer as told, and a clock of hand."""

    def __init__(self) -> None:
        self.body: bytes | None = POLICY
        self.fetched: list[str] = []
        self.gate: asyncio.Event | None = None
        self.at = AT

    async def fetch(self, domain: str) -> bytes:
        self.fetched.append(domain)
        if self.gate is not None:
            await self.gate.wait()
        if self.body is None:
            raise FetchFailed("no answer")
        return self.body


RECORD = "_mta-sts.example.org TXT"


@asynccontextmanager
async def keeper(
    folder: Path, table: Table, hosts: Hosts, *, policies_max: int = 10, wait_s: float = 5
) -> AsyncIterator[PolicyKeeper]:
    async with names(table) as resolver:
        # what the resolver remembers would hide what the zone says now
        resolver._settings = resolver._settings.model_copy(update={"cache_max": 0})
        made = PolicyKeeper(
            resolver,
            hosts,
            path=folder / "mta-sts.json",
            clock=lambda: hosts.at,
            policies_max=policies_max,
            wait_s=wait_s,
        )
        await made.start()
        yield made
        await made.close()


def zone(record_id: str = "a1") -> Table:
    return Table({RECORD: [f'"v=STSv1; id={record_id};"']})


async def settled(kept: PolicyKeeper) -> None:
    """Until nothing is asked any more."""
    while kept._learning:
        await asyncio.gather(*kept._learning.values())


async def test_the_first_mail_waits_for_the_policy_and_the_next_ask_nobody(tmp_path: Path) -> None:
    table, hosts = zone(), Hosts()
    async with keeper(tmp_path, table, hosts) as kept:
        both = await asyncio.gather(kept.find("example.org"), kept.find("example.org"))
        assert both == [parse_policy(POLICY)] * 2
        assert await kept.find("example.org") == parse_policy(POLICY)
        assert (hosts.fetched, table.asked) == (["example.org"], [RECORD])


@pytest.mark.rfc("8461 3.1")
async def test_a_domain_without_a_record_is_asked_again_only_after_a_while(tmp_path: Path) -> None:
    table, hosts = Table({"example.org A": ["192.0.2.1"]}), Hosts()
    async with keeper(tmp_path, table, hosts) as kept:
        assert [await kept.find("example.org") for _ in range(3)] == [None] * 3
        assert (len(table.asked), hosts.fetched) == (1, [])
        hosts.at += timedelta(seconds=301)
        table.records[RECORD] = ['"v=STSv1; id=a1"']
        assert await kept.find("example.org") is not None


@pytest.mark.parametrize("body", [None, b"garbage"])
async def test_a_record_without_a_policy_behind_it_is_no_policy(tmp_path: Path, body: bytes | None) -> None:
    hosts = Hosts()
    hosts.body = body
    async with keeper(tmp_path, zone(), hosts) as kept:
        assert [await kept.find("example.org") for _ in range(2)] == [None, None]
        assert hosts.fetched == ["example.org"]


@pytest.mark.rfc("8461 3.3b")
async def test_a_policy_host_that_hangs_does_not_hold_mail_for_long(tmp_path: Path) -> None:
    hosts = Hosts()
    hosts.gate = asyncio.Event()
    async with keeper(tmp_path, zone(), hosts, wait_s=0.05) as kept:
        assert await kept.find("example.org") is None
        hosts.gate.set()
        await settled(kept)
        assert await kept.find("example.org") is not None


@pytest.mark.parametrize(
    ("later_s", "record", "body", "fetches", "kept_mode"),
    [
        (60, "a1", POLICY, 1, "enforce"),  # not even asked
        (700, "a1", POLICY, 1, "enforce"),
        (700, "a2", POLICY.replace(b"enforce", b"testing"), 2, "testing"),
        (700, "a2", None, 2, "enforce"),
        (700, "a2", b"garbage", 2, "enforce"),
        (700, None, POLICY, 1, "enforce"),
        (700, SERVFAIL, POLICY, 1, "enforce"),
        (DAY_S * 0.6, "a1", POLICY.replace(b"enforce", b"testing"), 2, "testing"),  # refreshed ahead
        (DAY_S * 0.6, "a1", None, 2, "enforce"),
        (DAY_S + 1, "a1", POLICY, 2, "enforce"),
        (DAY_S + 1, None, POLICY, 1, None),
        (DAY_S + 1, "a1", None, 2, None),
    ],
)
@pytest.mark.rfc("8461 5.1a")
async def test_what_becomes_of_a_policy_that_is_known(
    tmp_path: Path,
    later_s: float,
    record: str | tuple[str, ...] | None,
    body: bytes | None,
    fetches: int,
    kept_mode: str | None,
) -> None:
    table, hosts = zone(), Hosts()
    async with keeper(tmp_path, table, hosts) as kept:
        await kept.find("example.org")
        hosts.at += timedelta(seconds=later_s)
        hosts.body = body
        if isinstance(record, str):
            table.records[RECORD] = [f'"v=STSv1; id={record}"']
        else:
            table.records = {"example.org A": ["192.0.2.1"]} if record is None else {RECORD: record}
        await kept.find("example.org")
        await settled(kept)
        policy = await kept.find("example.org")
        assert (policy.mode.value if policy else None) == kept_mode
        assert len(hosts.fetched) == fetches


@pytest.mark.rfc("8461 5.1a")
async def test_a_cached_enforce_policy_survives_a_restart_and_trouble_everywhere(tmp_path: Path) -> None:
    hosts = Hosts()
    async with keeper(tmp_path, zone(), hosts) as kept:
        await kept.find("example.org")
    hosts.body, hosts.at = None, hosts.at + timedelta(seconds=3600)
    async with keeper(tmp_path, Table({RECORD: SERVFAIL}), hosts) as kept:
        assert await kept.find("example.org") == parse_policy(POLICY)
        await settled(kept)
        assert await kept.find("example.org") == parse_policy(POLICY)


async def test_the_file_is_written_while_the_node_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sts_keeper, "SAVE_S", 0.0)
    async with keeper(tmp_path, zone(), Hosts()) as kept:
        await kept.find("example.org")
        async with asyncio.timeout(5):
            while not (tmp_path / "mta-sts.json").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"example.org": {"mode": "x"}}'])
async def test_a_damaged_file_costs_the_policies_and_nothing_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "mta-sts.json").write_text(text)
    async with keeper(tmp_path, zone(), Hosts()) as kept:
        assert await kept.find("example.org") is not None


async def test_the_number_of_policies_is_bounded(tmp_path: Path) -> None:
    table = Table({f"_mta-sts.d{n}.test TXT": ['"v=STSv1; id=a1"'] for n in range(5)})
    hosts = Hosts()
    async with keeper(tmp_path, table, hosts, policies_max=3) as kept:
        for n in range(5):
            await kept.find(f"d{n}.test")
        for n in range(5):
            await kept.find(f"none{n}.test")
        assert (len(kept._known), len(kept._absent)) == (3, 3)


@pytest.mark.rfc("8461 10.2a")
async def test_policies_in_use_are_refreshed_ahead_and_others_may_expire(tmp_path: Path) -> None:
    table = Table({f"_mta-sts.{name}.test TXT": ['"v=STSv1; id=a1"'] for name in ("used", "idle")})
    hosts = Hosts()
    async with keeper(tmp_path, table, hosts) as kept:
        for name in ("used", "idle", "used"):
            await kept.find(f"{name}.test")
        hosts.at += timedelta(seconds=DAY_S * 0.6)
        hosts.fetched.clear()
        kept.refresh()
        await settled(kept)
        assert hosts.fetched == ["used.test"]
