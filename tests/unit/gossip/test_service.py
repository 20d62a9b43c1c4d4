"""The grpc.aio shell on real sockets: convergence, lost sessions, strangers, the state file."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gossip.identity import Authority, Identity
from gossip.linkstate import Key, Kind, LinkState, LinkStatus, NodeId, NodeInfo
from gossip.service import GossipError, GossipService, ShownCertificates
from gossip.settings import GossipSettings


class Node:
    """A service with everything that it told."""

    def __init__(self, directory: Path, authority: Authority, name: str, *, join: tuple[str, ...] = ()) -> None:
        certificate, key = authority.issue(name, at=datetime.now(UTC))
        self.name = name
        self.identity = Identity(authority.certificate_pem, certificate, key)
        self.sessions: list[tuple[NodeId, bool]] = []
        self.settings = GossipSettings(listen="127.0.0.1:0", join=join)
        self.state = directory / f"{name}.state"
        self.service = self.build()
        self.address = ""

    def build(self) -> GossipService:
        return GossipService(
            self.identity,
            self.settings,
            state_path=self.state,
            on_change=lambda snapshot: None,
            on_session=lambda node, up, reason: self.sessions.append((node, up)),
        )

    async def start(self) -> str:
        self.address = await self.service.start()
        self.service.publish_info(NodeInfo(self.name, self.address, "127.0.0.1:1"))
        return self.address

    def names(self) -> set[str]:
        return {node.info.name for node in self.service.snapshot().nodes}

    def members_up(self) -> int:
        return sum(session.up for session in self.service.sessions())


@pytest.fixture
def authority() -> Authority:
    return Authority.create("test", at=datetime.now(UTC))


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for node in nodes:
            await node.service.stop()


async def until(condition: Callable[[], object], limit_s: float = 8.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110  (the other side is another service, with no event of ours)
            await asyncio.sleep(0.01)


async def three(directory: Path, authority: Authority) -> list[Node]:
    first = Node(directory, authority, "n1")
    seed = await first.start()
    others = [Node(directory, authority, name, join=(seed,)) for name in ("n2", "n3")]
    for node in others:
        await node.start()
    return [first, *others]


async def test_three_services_converge_to_equal_databases_over_a_full_mesh(
    tmp_path: Path, authority: Authority
) -> None:
    nodes = await three(tmp_path, authority)
    async with running(*nodes):
        await until(lambda: all(node.members_up() == 2 for node in nodes))
        nodes[0].service.publish_links([LinkState("host:a", LinkStatus.UP, 1000, 900, 5000, 60)])
        await until(lambda: len({node.service.snapshot().root for node in nodes}) == 1)
        await until(lambda: all(_link_of(node, "n1") for node in nodes))
        assert all(node.names() == {"n1", "n2", "n3"} for node in nodes)


def _link_of(node: Node, origin: str) -> tuple[LinkState, ...]:
    return next((found.links for found in node.service.snapshot().nodes if found.info.name == origin), ())


async def test_a_node_that_goes_is_lost_to_all_and_its_records_stay(tmp_path: Path, authority: Authority) -> None:
    nodes = await three(tmp_path, authority)
    async with running(*nodes[:2]):
        gone = nodes[2]
        await until(lambda: all((gone.identity.node_id, True) in node.sessions for node in nodes[:2]))
        await gone.service.stop()
        await until(lambda: all((gone.identity.node_id, False) in node.sessions for node in nodes[:2]))
        assert all("n3" in node.names() for node in nodes[:2])


async def test_a_node_that_comes_back_is_found_again(tmp_path: Path, authority: Authority) -> None:
    first = Node(tmp_path, authority, "n1")
    seed = await first.start()
    second = Node(tmp_path, authority, "n2", join=(seed,))
    await second.start()
    async with running(first, second):
        await until(lambda: first.members_up() == 1)
        await second.service.stop()
        await until(lambda: first.members_up() == 0)
        second.service = second.build()
        await second.start()
        await until(lambda: first.members_up() == 1)


async def test_a_restarted_node_remembers_whom_to_dial_without_a_seed(tmp_path: Path, authority: Authority) -> None:
    first = Node(tmp_path, authority, "n1")
    seed = await first.start()
    second = Node(tmp_path, authority, "n2", join=(seed,))
    await second.start()
    async with running(first, second):
        await until(lambda: second.names() == {"n1", "n2"})
        await second.service.stop()
        second.settings = GossipSettings(listen="127.0.0.1:0")
        second.service = second.build()
        await second.start()
        await until(lambda: second.members_up() == 1)


async def test_a_state_file_that_cannot_be_read_is_a_warning(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "n1.state").write_text("{ this is no state")
    with capture_logs() as lines:
        node = Node(tmp_path, authority, "n1")
        async with running(node):
            await node.start()
    assert "gossip.state_unreadable" in [line["event"] for line in lines]


async def test_a_node_of_another_authority_is_told_no_and_says_so_once(tmp_path: Path, authority: Authority) -> None:
    first = Node(tmp_path, authority, "n1")
    seed = await first.start()
    stranger = Node(tmp_path, Authority.create("test", at=datetime.now(UTC)), "stranger", join=(seed,))
    with capture_logs() as lines:
        async with running(first, stranger):
            await stranger.start()
            await until(lambda: [line for line in lines if line["event"] == "gossip.peer_refused"])
            await asyncio.sleep(1)  # further dials, which say nothing new
            assert first.names() == {"n1"}
    refusals = [line for line in lines if line["event"] == "gossip.peer_refused"]
    assert len(refusals) == 1
    assert "authority" in refusals[0]["reason"]


async def test_a_caller_without_a_certificate_gets_no_session(tmp_path: Path, authority: Authority) -> None:
    node = Node(tmp_path, authority, "n1")
    host, _, port = (await node.start()).rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    async with running(node):
        try:
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            async with asyncio.timeout(5):
                while await reader.read(4096):  # until the server hangs up
                    pass
            writer.close()
        except (OSError, ssl.SSLError):
            pass
        assert node.sessions == []


async def test_a_port_in_use_is_a_sentence(tmp_path: Path, authority: Authority) -> None:
    first = Node(tmp_path, authority, "n1")
    address = await first.start()
    second = Node(tmp_path, authority, "n2")
    second.settings = GossipSettings(listen=address)
    second.service = second.build()
    async with running(first):
        with pytest.raises(GossipError, match="in use"):
            await second.service.start()


async def test_a_revoked_node_is_shut_out_by_all_also_by_those_who_hear_of_it_from_others(
    tmp_path: Path, authority: Authority
) -> None:
    nodes = await three(tmp_path, authority)
    async with running(*nodes):
        await until(lambda: all(node.members_up() == 2 for node in nodes))
        gone = nodes[2].identity.node_id
        revocation = authority.revoke(gone, at=datetime.now(UTC), reason="stolen")
        nodes[0].service.revoke([(revocation.encode(), authority.sign_revocation(revocation))])
        await until(lambda: all(node.names() == {"n1", "n2"} for node in nodes[:2]))
        await until(lambda: all(node.members_up() == 1 for node in nodes[:2]))
        await asyncio.sleep(1.0)  # it dials again and again
        assert [node.names() for node in nodes[:2]] == [{"n1", "n2"}] * 2


async def test_a_revocation_survives_a_restart(tmp_path: Path, authority: Authority) -> None:
    first = Node(tmp_path, authority, "n1")
    seed = await first.start()
    second = Node(tmp_path, authority, "n2", join=(seed,))
    revocation = authority.revoke(second.identity.node_id, at=datetime.now(UTC), reason="")
    first.service.revoke([(revocation.encode(), authority.sign_revocation(revocation))])
    await first.service.stop()
    fresh = Identity(first.identity.ca_pem, first.identity.certificate_pem, first.identity.key_pem)
    first.identity, first.settings = fresh, GossipSettings(listen=first.address)
    first.service = first.build()
    await first.start()
    await second.start()
    async with running(first, second):
        await asyncio.sleep(1.0)
        assert first.names() == {"n1"}


async def test_a_renewed_certificate_is_shown_and_advertised_and_no_session_ends(
    tmp_path: Path, authority: Authority
) -> None:
    nodes = await three(tmp_path, authority)
    async with running(*nodes):
        await until(lambda: all(node.members_up() == 2 for node in nodes))
        renewing, before = nodes[0], [list(node.sessions) for node in nodes]
        renewed = authority.renew(renewing.identity.certificate_der, at=datetime.now(UTC), days=9)
        fresh = Identity(authority.certificate_pem, renewed, renewing.identity.key_pem)
        assert renewing.identity.renew(fresh)
        renewing.service.renewed()
        await until(lambda: all(_certificate_at(node, renewing) == fresh.certificate_der for node in nodes))
        assert [node.sessions for node in nodes] == before
        context = nodes[1].identity.client_context()
        context.set_alpn_protocols(["h2"])
        host, port = renewing.address.rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        assert writer.get_extra_info("ssl_object").getpeercert(binary_form=True) == fresh.certificate_der
        writer.close()


def _certificate_at(node: Node, of: Node) -> bytes:
    record = node.service._machine.database.get(Key(of.identity.node_id, Kind.NODE))
    return record.certificate if record is not None else b""


async def test_a_session_ends_with_the_peers_certificate(tmp_path: Path, authority: Authority) -> None:
    first = Node(tmp_path, authority, "n1")
    seed = await first.start()
    second = Node(tmp_path, authority, "n2", join=(seed,))
    short = authority.renew(second.identity.certificate_der, at=datetime.now(UTC) - timedelta(seconds=86_397), days=1)
    second.identity = Identity(authority.certificate_pem, short, second.identity.key_pem)
    second.service = second.build()
    await second.start()
    async with running(first, second):
        await until(lambda: first.members_up() == 1, 2.9)
        await until(lambda: first.members_up() == 0)
        assert "expired" in first.service.members()[-1].reason + first.service.members()[0].reason


async def test_a_node_is_joining_until_its_database_equals_a_peers(tmp_path: Path, authority: Authority) -> None:
    first = Node(tmp_path, authority, "n1")
    assert not first.service.joining, "the first of its cluster waits for nobody"
    second = Node(tmp_path, authority, "n2", join=(await first.start(),))
    assert second.service.joining
    await second.start()
    async with running(first, second):
        await until(lambda: not second.service.joining)
        assert second.names() == {"n1", "n2"}


def test_certificates_that_did_not_change_are_not_given_to_grpc_again(authority: Authority) -> None:
    certificate, key = authority.issue("n1", at=datetime.now(UTC))
    identity = Identity(authority.certificate_pem, certificate, key)
    shown = ShownCertificates(identity)
    assert shown.renewed() is None
    renewed = authority.renew(identity.certificate_der, at=datetime.now(UTC))
    assert identity.renew(Identity(authority.certificate_pem, renewed, key))
    assert shown.renewed() is not None
    assert shown.renewed() is None
