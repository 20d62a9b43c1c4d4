"""All client listeners together: they change while sessions go on, whole or not at all."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import find_port
from smtp_edge.server.listener import Listener, Surroundings
from smtp_edge.server.listeners import Listeners
from smtp_edge.server.listening import ListenerError
from smtp_edge.settings_inbound import LimitsSettings, ListenerSettings
from tests.unit.smtp_edge.dispatch.fakes import until
from tests.unit.smtp_edge.server.doors import (
    HOSTNAME,
    INLINE_BYTES_MAX,
    RawClient,
    Remembering,
    open_door,
    write_certificate,
)

AROUND = Surroundings(HOSTNAME, INLINE_BYTES_MAX)


def section(name: str = "smtp", listen: str = "127.0.0.1:0", **settings: object) -> ListenerSettings:
    return ListenerSettings.model_validate(
        {"name": name, "listen": listen, "allow_networks": ["127.0.0.0/8"], **settings}
    )


@asynccontextmanager
async def opened(folder: Path, *sections: ListenerSettings) -> AsyncIterator[Listeners]:
    listeners = Listeners(Remembering(folder))
    await listeners.start(sections, AROUND)
    try:
        yield listeners
    finally:
        await listeners.stop(0)


async def change(listeners: Listeners, *sections: ListenerSettings, around: Surroundings = AROUND) -> None:
    plan = await listeners.prepare(sections, around)
    listeners.switch(plan)
    await listeners.finish(plan)


async def dial(address: str) -> RawClient:
    host, _, port = address.rpartition(":")
    return RawClient(*await asyncio.open_connection(host, int(port)))


async def greeting(address: str) -> str:
    client = await dial(address)
    found = await client.reply()
    client.close()
    return found


async def test_a_session_keeps_the_options_that_it_began_with(tmp_path: Path) -> None:
    async with opened(tmp_path, section()) as listeners:
        before = await (await dial(listeners.bound["smtp"])).hello()
        await change(listeners, section(allow_networks=[]))
        after = await (await dial(listeners.bound["smtp"])).hello()
        assert (listeners.session_count, listeners.stale_count) == (2, 1)
        for client in (before, after):
            await client.say("MAIL FROM:<a@b.c>")
        assert await before.say("RCPT TO:<x@y.z>") == "250 2.1.5 Ok"
        assert (await after.say("RCPT TO:<x@y.z>")).startswith("550 5.7.1 ")
        before.close()
        after.close()


async def test_the_address_of_a_listener_that_stays_is_never_given_up(tmp_path: Path) -> None:
    async with opened(tmp_path, section()) as listeners:
        address = listeners.bound["smtp"]
        await change(listeners, section(size_bytes_max=1024), section("other"))
        assert listeners.bound["smtp"] == address
        assert sorted(listeners.bound) == ["other", "smtp"]
        assert (await greeting(listeners.bound["other"])).startswith("220 ")


async def test_a_listener_that_is_renamed_keeps_its_address_and_sessions(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{find_port(set())}"
    async with opened(tmp_path, section("old", listen)) as listeners:
        client = await (await dial(listen)).hello()
        await change(listeners, section("new", listen))
        assert listeners.bound == {"new": listen}
        assert await client.say("NOOP") == "250 2.0.0 Ok"
        client.close()


async def test_two_listeners_can_exchange_their_addresses(tmp_path: Path) -> None:
    one, two = f"127.0.0.1:{find_port(set())}", f"127.0.0.1:{find_port(set())}"
    async with opened(tmp_path, section("a", one, recipients_max=1), section("b", two, recipients_max=2)) as listeners:
        await change(listeners, section("a", two, recipients_max=1), section("b", one, recipients_max=2))
        assert listeners.bound == {"a": two, "b": one}
        client = await dial(two)
        await client.reply()
        assert "LIMITS RCPTMAX=1" in await client.say("EHLO x")
        client.close()


async def test_sessions_of_a_listener_that_is_removed_go_on_and_nobody_else_comes(tmp_path: Path) -> None:
    async with opened(tmp_path, section(), section("gone")) as listeners:
        address = listeners.bound["gone"]
        client = await (await dial(address)).hello()
        await change(listeners, section())
        assert listeners.stale_count == 1
        assert (await client.say("MAIL FROM:<a@b.c>")).startswith("250 ")
        assert (await client.say("RCPT TO:<x@y.z>")).startswith("250 ")
        assert (await client.send(b"Subject: x\r\n\r\nx\r\n")).startswith("250 ")
        with pytest.raises(ConnectionRefusedError):
            await dial(address)
        assert (await client.say("QUIT")).startswith("221 ")
        assert await client.reply() == ""
        await listeners.tidy()
        assert listeners.session_count == 0


async def test_nobody_is_lost_while_a_listener_changes_the_way_it_accepts(tmp_path: Path) -> None:
    """By the loop's own server, or by hand (as with load balancers): 20 callers at a time, 80 changes."""
    async with opened(tmp_path, section()) as listeners:
        address, over, greetings = listeners.bound["smtp"], asyncio.Event(), []

        async def call() -> None:
            while not over.is_set():
                greetings.append((await greeting(address))[:4])

        def has_grown(before: int) -> bool:
            return len(greetings) > before + 10

        callers = [asyncio.create_task(call()) for _ in range(20)]
        for number in range(80):
            await change(listeners, section(proxy_networks=["192.0.2.1"] if number % 2 == 0 else []))
            await until(functools.partial(has_grown, len(greetings)))
        over.set()
        await asyncio.gather(*callers)
        assert set(greetings) == {"220 "}


async def test_a_listener_that_is_removed_greets_those_who_wait_already(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        await door.listener._door.pause()  # as if the loop had not come to it yet
        clients = [await door.dial() for _ in range(3)]
        assert isinstance(door.listener, Listener)
        await door.listener.close()
        assert [(await client.reply())[:4] for client in clients] == ["220 "] * 3
        with pytest.raises(ConnectionRefusedError):
            await door.dial()


async def test_a_handshake_under_way_at_a_listener_that_is_removed_comes_to_its_end(tmp_path: Path) -> None:
    certificate, key, context = write_certificate(tmp_path)
    async with opened(tmp_path, section(tls="implicit", certificate=certificate, key=key)) as listeners:
        host, _, port = listeners.bound["smtp"].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        await change(listeners, section("other"))
        assert listeners.stale_count == 1
        await writer.start_tls(context, server_hostname="relay.test")
        client = RawClient(reader, writer)
        assert (await client.reply()).startswith("220 ")
        client.close()


async def test_a_listener_begins_and_ends_to_demand_tls_at_once(tmp_path: Path) -> None:
    certificate, key, context = write_certificate(tmp_path)
    async with opened(tmp_path, section()) as listeners:
        host, _, port = listeners.bound["smtp"].rpartition(":")
        await change(listeners, section(tls="implicit", certificate=certificate, key=key))
        streams = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="relay.test")
        client = RawClient(*streams)
        assert (await client.reply()).startswith("220 ")
        await change(listeners, section())
        assert await client.say("NOOP") == "250 2.0.0 Ok"
        assert (await greeting(f"{host}:{port}")).startswith("220 ")
        client.close()


async def test_a_port_in_use_names_the_listener_and_changes_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        async with opened(tmp_path, section()) as listeners:
            with pytest.raises(ListenerError, match=rf"^listener b: cannot listen on {listen}: the port is in use"):
                await change(listeners, section(allow_networks=[]), section("a"), section("b", listen))
            assert list(listeners.bound) == ["smtp"]
            client = await (await dial(listeners.bound["smtp"])).hello()
            await client.say("MAIL FROM:<a@b.c>")
            assert await client.say("RCPT TO:<x@y.z>") == "250 2.1.5 Ok"
            client.close()


async def test_an_address_that_was_given_up_for_nothing_is_taken_back(tmp_path: Path) -> None:
    port = find_port(set())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with opened(tmp_path, section("old", f"127.0.0.1:{port}")) as listeners:
            wide = section("wide", f"0.0.0.0:{port}")
            with pytest.raises(ListenerError, match="listener other"):
                await change(listeners, wide, section("other", f"127.0.0.1:{taken.getsockname()[1]}"))
            assert (await greeting(f"127.0.0.1:{port}")).startswith("220 ")
            await change(listeners, wide)
            assert listeners.bound == {"wide": f"0.0.0.0:{port}"}
            assert (await greeting(f"127.0.0.1:{port}")).startswith("220 ")


async def test_a_listener_that_comes_while_the_node_drains_greets_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path, section()) as listeners:
        listeners.drain(True)
        await change(listeners, section(), section("new"))
        assert (await greeting(listeners.bound["new"])).startswith("421 4.3.2 ")
        listeners.drain(False)
        assert (await greeting(listeners.bound["new"])).startswith("220 ")


async def test_rates_are_remembered_over_a_change_of_other_limits(tmp_path: Path) -> None:
    def around(**limits: int) -> Surroundings:
        return Surroundings(HOSTNAME, INLINE_BYTES_MAX, limits=LimitsSettings(connections_per_minute=1, **limits))

    async with opened(tmp_path) as listeners:
        await change(listeners, section(), around=around())
        assert (await greeting(listeners.bound["smtp"])).startswith("220 ")
        await change(listeners, section(), around=around(bad_commands_max=1))
        assert (await greeting(listeners.bound["smtp"])).startswith("421 4.7.0 ")
