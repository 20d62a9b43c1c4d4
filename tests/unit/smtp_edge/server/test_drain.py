"""A door of a relay that drains: nobody is greeted, nobody is cut off in a transaction."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.smtp_edge.server.doors import open_door

DRAINED = "421 4.3.2 this relay is being drained, try another"
CLOSING = "421 4.3.2 relay.test is closing"


@pytest.mark.rfc("5321 3.1")
async def test_a_new_client_is_sent_elsewhere(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        door.listener.drain(True)
        client = await door.dial()
        assert await client.reply() == DRAINED
        assert await client.reply() == ""
        door.listener.drain(False)
        assert (await (await door.dial()).reply()).startswith("220 ")


@pytest.mark.rfc("5321 3.8a")
async def test_a_session_that_waits_ends_at_once(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        assert door.listener.session_count == 1
        door.listener.drain(True)
        assert await client.reply() == CLOSING
        assert await client.reply() == ""
        assert door.listener.session_count == 0


async def test_a_transaction_that_is_open_comes_to_its_end(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        await client.say("MAIL FROM:<a@b.c>")
        door.listener.drain(True)
        assert await client.say("RCPT TO:<x@y.z>") == "250 2.1.5 Ok"
        assert await client.say("NOOP") == "250 2.0.0 Ok"
        client.write(b"DATA\r\n")
        assert (await client.reply()).startswith("354 ")
        client.write(b"Subject: x\r\n\r\nhello\r\n.\r\nMAIL FROM:<a@b.c>\r\n")
        assert await client.replies(2) == ["250 2.0.0 Ok: queued as Q1", CLOSING]
        assert await client.reply() == ""
        assert len(door.acceptor.messages) == 1


async def test_a_transaction_that_is_given_up_ends_the_session(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        await client.say("MAIL FROM:<a@b.c>")
        door.listener.drain(True)
        client.write(b"RSET\r\n")
        assert await client.replies(3) == ["250 2.0.0 Ok", CLOSING, ""]


async def test_after_the_drain_an_open_session_goes_on(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        await client.say("MAIL FROM:<a@b.c>")
        door.listener.drain(True)
        door.listener.drain(False)
        assert await client.say("RSET") == "250 2.0.0 Ok"
        assert await client.say("MAIL FROM:<a@b.c>") == "250 2.1.0 Ok"
