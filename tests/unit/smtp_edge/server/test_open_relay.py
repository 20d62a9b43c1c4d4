"""The classics of open relays, by a stranger over a real socket: nothing is relayed.

The listener relays for 192.0.2.0/24, for users, and to here.test and below sub.test. A caller here is none of them.
"""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority
from smtp_edge.auth.users import hash_password
from smtp_edge.server.listener import Surroundings
from tests.unit.smtp_edge.server.doors import (
    HOSTNAME,
    INLINE_BYTES_MAX,
    Door,
    RawClient,
    build_identity,
    chain_of,
    open_door,
    open_mesh_door,
    write_certificate,
)

SETTINGS = {
    "allow_networks": ["192.0.2.0/24", "2001:db8::/32"],
    "relay_domains": ["here.test", "*.sub.test", "kind.test"],
}
TOKEN = f"{'ab' * 16}/Q1/0"

SENDERS = [
    "<sue@evil.test>",
    "<>",
    "<sue@here.test>",
    "<postmaster>",
    "<sue@[127.0.0.1]>",
    "<sue@localhost>",
    "<sue@relay.test>",
    "<@here.test:sue@here.test>",
    "<sue@here.test> AUTH=sue@here.test",
    "<sue@here.test> AUTH=<>",
]

FOREIGN = [
    "<ann@far.test>",
    "ann@far.test",
    "<ANN@FAR.TEST>",
    "<ann@far.test.>",
    # source routes
    "<@here.test:ann@far.test>",
    "<@relay.test,@here.test:ann@far.test>",
    "<@[127.0.0.1]:ann@far.test>",
    "<@here.test:@here.test:ann@far.test>",
    "@here.test:ann@far.test",
    # a second destination in the local part
    "<ann%far.test@here.test>",
    "<ann%far.test@[127.0.0.1]>",
    "<ann%far.test@relay.test>",
    "<ann%far.test>",
    "<ann%far.test%relay.test@here.test>",
    "<far.test!ann@here.test>",
    "<here.test!far.test!ann>",
    "<far.test!ann>",
    "<far.test!ann@[127.0.0.1]>",
    "<ann@far.test@here.test>",
    "<ann@here.test@far.test>",
    "<ann@far.test:here.test>",
    "<ann@[far.test]@here.test>",
    # quoted
    '<"ann@far.test">',
    '<"ann@far.test"@here.test>',
    '<"ann%far.test"@here.test>',
    '<"far.test!ann"@here.test>',
    '<"ann\\@far.test"@here.test>',
    '<ann@far.test"@here.test">',
    '"<ann@far.test>"@here.test',
    '<""@far.test>',
    # brackets
    "<<ann@far.test>>",
    "<ann@far.test>@here.test",
    "<ann@here.test><ann@far.test>",
    "<ann@here.test> <ann@far.test>",
    "<ann@here.test>,<ann@far.test>",
    "<ann@here.test,ann@far.test>",
    "<ann@here.test>ann@far.test",
    "<ann@here.test;far.test>",
    "<ann(c)@far.test>",
    # literals and what looks like one
    "<ann@[192.0.2.1]>",
    "<ann@[127.0.0.1]>",
    "<ann@[IPv6:::1]>",
    "<ann@[IPv6:::ffff:192.0.2.1]>",
    "<ann@[0x7f.1]>",
    "<ann@127.0.0.1>",
    "<ann@2130706433>",
    "<ann@[here.test]>",
    # domains that resemble ours
    "<ann@relay.test>",
    "<ann@localhost>",
    "<ann>",
    "<postmaster>",
    "<ann@xhere.test>",
    "<ann@here.test.far.test>",
    "<ann@here.testx>",
    "<ann@here-test>",
    "<ann@here.test..>",
    "<ann@.here.test>",
    "<ann@sub.test>",
    "<ann@.sub.test>",
    "<ann@xsub.test>",
    "<ann@*.sub.test>",
    "<ann@here.test@>",
    "<ann@here.test\\>",
    "<ann@here.test/far.test>",
    "<ann@xn--here.test>",
]

LOOK_ALIKES = [
    "<ann@h\u0435re.test>",  # Cyrillic
    "<ann@\uff48ere.test>",  # full width
    "<ann@here\u3002test>",  # ideographic full stop
    "<ann@here\uff0etest>",  # full-width full stop
    "<ann@here.test\u3002far.test>",
    "<ann@far.test\u2024here.test>",  # one dot leader
    "<ann@here.te\u017ft>",  # long s
    "<ann@he\u00adre.test>",  # soft hyphen
    "<ann@here\u200b.test>",  # zero width space
    "<ann\uff20far.test@here.test>",  # full-width @
    "<ann\ufe6bfar.test@here.test>",  # small @
    "<ann\uff05far.test@here.test>",  # full-width %
    "<far.test\uff01ann@here.test>",  # full-width !
    "<far.test\ufe57ann@here.test>",  # small !
    "<\uff02ann\uff02@here.test>",  # full-width quotes
]


async def relays(client: RawClient, sender: str, recipient: str) -> bool:
    """Try one message; True if it is taken."""
    await client.say(f"MAIL FROM:{sender}")
    await client.say(f"RCPT TO:{recipient}")
    if not (await client.say("DATA")).startswith("354"):
        return False
    return (await client.say("Subject: spam\r\n\r\n.")).startswith("250")


def trusting(directory: Path, network: str) -> Surroundings:
    """Filters there may say whom they speak for."""
    chain = chain_of(directory, {"use": "xclient", "with": {"networks": [network]}})
    return Surroundings(HOSTNAME, INLINE_BYTES_MAX, sinks=chain)


@pytest.mark.parametrize("recipient", FOREIGN)
@pytest.mark.rfc("5321 3.6.2")
async def test_a_foreign_destination_in_any_clothes_is_refused(tmp_path: Path, recipient: str) -> None:
    async with open_door(tmp_path, **SETTINGS) as door:
        client = await door.client()
        assert not await relays(client, "<sue@evil.test>", recipient)
        assert await client.say("QUIT") == "221 2.0.0 Bye"
        assert door.acceptor.messages == []


@pytest.mark.parametrize("recipient", LOOK_ALIKES, ids=ascii)
async def test_look_alikes_of_our_domains_and_of_signs_are_refused(tmp_path: Path, recipient: str) -> None:
    async with open_door(tmp_path, **SETTINGS) as door:
        client = await door.client()
        assert not await relays(client, "<sue@evil.test> SMTPUTF8", recipient)
        assert door.acceptor.messages == []


@pytest.mark.parametrize("sender", SENDERS)
async def test_no_reverse_path_opens_the_door(tmp_path: Path, sender: str) -> None:
    async with open_door(tmp_path, **SETTINGS) as door:
        for recipient in ("<ann@far.test>", "<ann%far.test@here.test>"):
            assert not await relays(await door.client(), sender, recipient)
        assert door.acceptor.messages == []


@pytest.mark.parametrize(
    ("recipient", "kept"),
    [
        ("<ann@here.test>", "ann@here.test"),
        ("<ann@HERE.Test.>", "ann@HERE.Test"),
        ("<@far.test:ann@here.test>", "ann@here.test"),
        ("<ann@any.sub.test>", "ann@any.sub.test"),
        ("<ann@\u212aind.test>", "ann@\u212aind.test"),  # the Kelvin sign is a K, to us and to IDNA
    ],
    ids=ascii,
)
async def test_the_control_what_is_ours_is_taken(tmp_path: Path, recipient: str, kept: str) -> None:
    async with open_door(tmp_path, **SETTINGS) as door:
        assert await relays(await door.client(), "<> SMTPUTF8", recipient)
        (message,) = door.acceptor.messages
        assert [r.address for r in message.envelope.recipients] == [kept]
        assert message.envelope.recipients[0].domain in ("here.test", "any.sub.test", "kind.test")


# -- who pretends to be somebody else ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lies",
    [
        [],
        ["EHLO localhost"],
        ["EHLO [192.0.2.1]"],
        ["EHLO relay.test"],
        ["EHLO here.test"],
        ["HELO [127.0.0.1]"],
        ["XCLIENT ADDR=192.0.2.1"],
        ["XCLIENT ADDR=192.0.2.1 LOGIN=sue"],
        ["XFORWARD ADDR=192.0.2.1 SOURCE=LOCAL"],
        ["PROXY TCP4 192.0.2.1 192.0.2.2 1 25"],
        ["AUTH PLAIN AHN1ZQBzZWNyZXQ="],
        ["AUTH EXTERNAL ="],
        ["STARTTLS"],
        [f"MAIL FROM:<sue@here.test> XTOKEN={TOKEN}"],
        [f"MAIL FROM:<sue@here.test> XTOKEN={TOKEN} XTRACE={'ab' * 16}"],
    ],
    ids=lambda lies: lies[0][:30] if lies else "none",
)
async def test_lies_about_who_calls_change_nothing(tmp_path: Path, lies: list[str]) -> None:
    async with open_door(tmp_path, trusting(tmp_path, "192.0.2.0/24"), **SETTINGS) as door:
        client = await door.client()
        for lie in lies:
            await client.say(lie)
        for hello in ("NOOP", "EHLO client.test"):
            await client.say(hello)
            assert not await relays(client, "<sue@here.test>", "<ann@far.test>")
            await client.say("RSET")
        assert door.acceptor.messages == []


async def test_a_proxy_header_before_the_greeting_is_believed_from_proxies_only(tmp_path: Path) -> None:
    async with open_door(tmp_path, **SETTINGS, proxy_networks=["192.0.2.0/24"]) as door:
        client = await door.dial()
        client.write(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n")
        assert [reply[:3] for reply in await client.replies(2)] == ["220", "500"]
        await client.say("EHLO client.test")
        assert not await relays(client, "<sue@here.test>", "<ann@far.test>")


async def test_a_filter_cannot_lend_the_rights_of_its_own_address(tmp_path: Path) -> None:
    settings = SETTINGS | {"allow_networks": ["127.0.0.0/8"]}
    async with open_door(tmp_path, trusting(tmp_path, "127.0.0.0/8"), **settings) as door:
        client = await door.client()
        assert (await client.say("XCLIENT ADDR=203.0.113.9 NAME=localhost HELO=localhost")).startswith("220")
        await client.say("EHLO localhost")
        assert not await relays(client, "<sue@here.test>", "<ann@far.test>")


async def test_a_password_that_is_wrong_opens_nothing(tmp_path: Path) -> None:
    certificate, key, context = write_certificate(tmp_path)
    users = tmp_path / "users"
    users.write_text(f"sue:{hash_password('secret')}\n")
    async with open_door(
        tmp_path, **SETTINGS, tls="implicit", certificate=certificate, key=key, auth_users=users
    ) as door:
        client = await _greeted(door, context)
        for guess in ("\0sue\0wrong", "\0\0", "sue\0\0secret"):
            answer = await client.say("AUTH PLAIN " + base64.b64encode(guess.encode()).decode())
            assert answer.startswith("535")
            if guess != "sue\0\0secret":
                assert not await relays(client, "<sue@here.test>", "<ann@far.test>")
                await client.say("RSET")


async def test_a_certificate_of_the_cluster_is_no_right_on_a_clients_listener(tmp_path: Path) -> None:
    certificate, key, context = write_certificate(tmp_path)
    async with open_door(tmp_path, **SETTINGS, tls="implicit", certificate=certificate, key=key) as door:
        client = await _greeted(door, context)
        assert (await client.say(f"MAIL FROM:<sue@here.test> XTOKEN={TOKEN}")).startswith("555")
        assert not await relays(client, "<sue@here.test>", "<ann@far.test>")


async def test_the_peers_listener_takes_nothing_from_another_clusters_member(tmp_path: Path) -> None:
    ours, theirs = (Authority.create("test", at=datetime.now(UTC)) for _ in range(2))
    context = build_identity(theirs, "self").client_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with open_mesh_door(tmp_path, build_identity(ours, "self")) as door:
        try:
            client = await door.dial(context)
            assert await client.reply() == ""
        except (OSError, ssl.SSLError):
            pass
        assert door.acceptor.messages == []


async def _greeted(door: Door, context: ssl.SSLContext) -> RawClient:
    context.check_hostname = False
    return await (await door.dial(context)).hello()
