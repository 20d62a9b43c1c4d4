"""The grpc.aio shell on real sockets: convergence, lost sessions, strangers, the state file."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gossip.identity import Authority, Identity
from gossip.linkstate import LinkState, LinkStatus, NodeId, NodeInfo
from gossip.service import GossipError, GossipService
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
        await until(lambda: all(node.members_up() == 2 for node in nodes))
        gone = nodes[2]
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
