"""The classic tricks of relay hunters, against the policy and against a listener."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtp_edge.envelope import Client, Recipient
from smtp_edge.server.relay import NO_RELAY, RelayPolicy
from smtp_edge.settings_inbound import ListenerSettings
from tests.unit.smtp_edge.server.doors import open_door

STRANGER = Client("203.0.113.9")


def policy(**settings: object) -> RelayPolicy:
    return RelayPolicy(ListenerSettings.model_validate(settings))


def test_an_empty_configuration_relays_for_nobody() -> None:
    assert policy().permits(Client("127.0.0.1"), Recipient("a@example.org")) == NO_RELAY


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "fd00::1%eth0"])
def test_listed_networks_relay_anywhere(address: str) -> None:
    chosen = policy(allow_networks=["10.0.0.0/8", "fd00::/8"])
    assert chosen.permits(Client(address), Recipient("a@example.org")) is None


@pytest.mark.parametrize("address", ["11.1.2.3", "::1", "not an address", ""])
def test_others_do_not(address: str) -> None:
    chosen = policy(allow_networks=["10.0.0.0/8", "fd00::/8"])
    assert chosen.permits(Client(address), Recipient("a@example.org")) == NO_RELAY


def test_users_and_peers_relay_anywhere() -> None:
    assert policy().permits(Client("203.0.113.9", user="sue"), Recipient("a@example.org")) is None
    assert policy().permits(Client("203.0.113.9", peer_id="ab"), Recipient("a@example.org")) is None


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("ann@ours.test", True),
        ("ann@OURS.test", True),
        ("ann@mail.below.test", True),
        ("ann@deep.mail.below.test", True),
        ("ann@below.test", False),
        ("ann@theirs.test", False),
        ("ann@ours.test.evil.test", False),
        ("ann%theirs.test@ours.test", False),
        ("theirs.test!ann@ours.test", False),
        ('"ann@theirs.test"@ours.test', False),
        ('"ann"@ours.test', False),
        ("ann@[203.0.113.1]", False),
        ("postmaster", False),
    ],
)
def test_strangers_reach_the_relay_domains_and_nothing_behind_them(address: str, allowed: bool) -> None:
    chosen = policy(relay_domains=["ours.test", "*.below.test"])
    assert (chosen.permits(STRANGER, Recipient(address)) is None) is allowed


@pytest.mark.parametrize(
    ("hostname", "allowed"), [("ours.test", True), ("MX1.below.test", True), ("mx1.theirs.test", False), ("", False)]
)
def test_strangers_reach_the_postmaster_of_a_relay_that_is_at_home_in_its_relay_domains(
    hostname: str, allowed: bool
) -> None:
    settings = ListenerSettings.model_validate({"relay_domains": ["ours.test", "*.below.test"]})
    chosen = RelayPolicy(settings, hostname)
    assert (chosen.permits(STRANGER, Recipient("Postmaster")) is None) is allowed
    assert chosen.permits(STRANGER, Recipient("a@theirs.test")) == NO_RELAY


@pytest.mark.parametrize(
    "path",
    [
        "<victim@theirs.test>",
        "victim@theirs.test",
        "<@ours.test:victim@theirs.test>",
        "<@ours.test,@other.test:victim@theirs.test>",
        "<victim%theirs.test@ours.test>",
        "<theirs.test!victim@ours.test>",
        '<"victim@theirs.test"@ours.test>',
        "<victim@theirs.test@ours.test>",
        "<victim@[203.0.113.1]>",
        "<<victim@theirs.test>>",
        "<victim@ours.test>victim@theirs.test",
        "<victim@ours.test\x00@theirs.test>",
    ],
)
async def test_no_trick_gets_through_a_listener(tmp_path: Path, path: str) -> None:
    async with open_door(tmp_path, allow_networks=[], relay_domains=["ours.test"]) as door:
        client = await door.client()
        await client.say("MAIL FROM:<a@b.c>")
        assert (await client.say(f"RCPT TO:{path}"))[:1] == "5"
        assert (await client.say("RCPT TO:<ann@ours.test>")).startswith("250")
