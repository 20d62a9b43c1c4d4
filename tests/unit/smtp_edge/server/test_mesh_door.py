"""The peers' listener: members of the cluster only, with what a transfer carries."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gossip.identity import Authority
from smtp_edge.envelope import Transfer
from smtp_edge.transfer import TransferFault, build_parameters, parse_backlogs, parse_transfer
from tests.unit.smtp_edge.server.doors import build_identity, open_mesh_door

NODE = "ab" * 16


@pytest.fixture
def authority() -> Authority:
    return Authority.create("test", at=datetime.now(UTC))


async def test_a_member_transfers_with_token_trace_and_age(tmp_path: Path, authority: Authority) -> None:
    peer = build_identity(authority, "peer")
    async with open_mesh_door(tmp_path, build_identity(authority, "self")) as door:
        client = await door.dial(peer.client_context())
        await client.reply()
        assert "XSMTPMESH STATE" in await client.say("EHLO peer.test")
        assert (await client.say(f"MAIL FROM:<a@b.c> XTOKEN={NODE}/Q1/0 XTRACE={NODE},{NODE} XAGE=12")).startswith(
            "250"
        )
        await client.say("RCPT TO:<x@anywhere.test>")
        await client.send(b"x\r\n")
        (message,) = door.acceptor.messages
        assert message.client.peer_id == peer.node_id
        assert message.transfer == Transfer(f"{NODE}/Q1/0", (NODE, NODE), 12)


@pytest.mark.parametrize("stranger", ["no certificate", "other authority"])
async def test_strangers_are_refused_with_one_line(tmp_path: Path, authority: Authority, stranger: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if stranger == "other authority":
        context = build_identity(Authority.create("test", at=datetime.now(UTC)), "intruder").client_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with capture_logs() as lines:
        async with open_mesh_door(tmp_path, build_identity(authority, "self")) as door:
            try:
                client = await door.dial(context)
                assert await client.reply() == ""
            except (OSError, ssl.SSLError):
                pass
            async with asyncio.timeout(5):
                while not lines:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert [line["event"] for line in lines] == ["mesh.peer_refused"]
    assert lines[0]["reason"] in {"it showed no certificate", "its certificate is not of this cluster's authority"}


async def test_a_member_tells_the_state_of_mail_that_it_hands_over(tmp_path: Path, authority: Authority) -> None:
    peer = build_identity(authority, "peer")
    async with open_mesh_door(tmp_path, build_identity(authority, "self")) as door:
        client = await (await door.dial(peer.client_context())).hello()
        transfer = Transfer(f"{NODE}/Q1/0", (NODE,), 12, 3, 600, True)
        words = " ".join(build_parameters(transfer, "STATE"))
        assert (await client.say(f"MAIL FROM:<a@b.c> {words}")).startswith("250")
        await client.say("RCPT TO:<x@anywhere.test>")
        await client.send(b"x\r\n")
        assert door.acceptor.messages[0].transfer == transfer


def taken_apart(transfer: Transfer, features: str) -> dict[str, str | None]:
    words = (word.partition("=") for word in build_parameters(transfer, features))
    return {name: value if equals else None for name, equals, value in words}


@pytest.mark.parametrize(
    "transfer",
    [
        Transfer(f"{NODE}/Q1/0.ab12", (NODE,), 3),
        Transfer(f"{NODE}/Q1/0.ab12", (), 0, 7, 3600, True),
        Transfer(f"{NODE}/Q1/0.ab12", (), 0, 0, 1),
    ],
)
def test_a_transfer_survives_the_wire(transfer: Transfer) -> None:
    parameters = taken_apart(transfer, "state NEWER")
    assert parse_transfer(parameters) == transfer
    assert parameters == {}


def test_an_older_peer_is_told_nothing_that_it_does_not_know() -> None:
    deferred = Transfer(f"{NODE}/Q1/0", (NODE,), 3, 7, 3600, True)
    assert list(taken_apart(deferred, "")) == ["XTOKEN", "XTRACE", "XAGE"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"XTOKEN": "short"},
        {"XTOKEN": f"{NODE}/Q1/0/../x"},
        {"XTOKEN": f"{NODE}/Q1/0", "XTRACE": "zz"},
        {"XTOKEN": f"{NODE}/Q1/0", "XTRACE": ",".join([NODE] * 101)},
        {"XTOKEN": f"{NODE}/Q1/0", "XAGE": "-1"},
        {"XTOKEN": f"{NODE}/Q1/0", "XAGE": "12345678901"},
        {"XTOKEN": f"{NODE}/Q1/0", "XATTEMPTS": "many"},
        {"XTOKEN": f"{NODE}/Q1/0", "XDUE": "1.5"},
        {"XTOKEN": f"{NODE}/Q1/0", "XDUE": "\u0663"},
    ],
)
def test_nonsense_of_a_peer_is_a_fault(parameters: dict[str, str | None]) -> None:
    with pytest.raises(TransferFault):
        parse_transfer(parameters)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ok: queued as Q1; backlog default=3 mx:example.org=0", {"default": 3, "mx:example.org": 0}),
        ("Ok: queued as Q1", {}),
        ("Ok; backlog a=b =3 c=4", {"c": 4}),
        ("Ok; backlog a=99999999999999", {}),
    ],
)
def test_backlogs_of_an_acknowledgement(text: str, expected: dict[str, int]) -> None:
    assert parse_backlogs(text) == expected
