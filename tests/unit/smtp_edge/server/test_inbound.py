"""All of SMTP in: what it changes to is whole, and what sessions still need stays until they have ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority
from smtp_edge.auth.api import Authenticator, AuthError
from smtp_edge.envelope import Client
from smtp_edge.routes import build_table
from smtp_edge.server.inbound import Inbound
from smtp_edge.server.listening import ListenerError
from smtp_edge.settings import Settings
from tests.unit.smtp_edge.server.doors import HOSTNAME, RawClient, Remembering, build_identity, write_certificate
from tests.unit.smtp_edge.server.test_listeners import dial

running: list[str] = []
"""Passwords that authenticators of the moment take."""


class OnePassword(Authenticator):
    """Everybody has the same."""

    def __init__(self, password: str) -> None:
        self.password = password

    async def start(self) -> None:
        running.append(self.password)

    async def stop(self) -> None:
        running.remove(self.password)

    async def verify(self, user: str, password: str, client: Client) -> str | None:
        assert self.password in running
        return user if password == self.password else None


class Scene:
    """Settings of a node that differ in one password."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.context = write_certificate(folder)
        identity = build_identity(Authority.create("test", at=datetime.now(UTC)), "a")
        acceptor = Remembering(folder)
        self.inbound = Inbound(self.settings(""), acceptor, acceptor, hostname=HOSTNAME, identity=identity)

    def settings(self, password: str, listen: str = "127.0.0.1:0") -> Settings:
        listener = {
            "listen": listen, "tls": "starttls", "certificate": self.certificate, "key": self.key, "auth": "one",
        }  # fmt: skip
        auth = {"name": "one", "use": f"{__name__}:OnePassword", "with": {"password": password}}
        return Settings.model_validate({"node": {"name": "a"}, "listener": [listener], "auth": [auth]})

    async def go_by(self, settings: Settings) -> None:
        change = await self.inbound.prepare(settings, build_table(settings), hostname=HOSTNAME)
        self.inbound.switch(change)
        await self.inbound.finish(change)

    async def client(self) -> RawClient:
        client = await (await dial(self.inbound.bound["smtp"])).hello()
        await client.secure(self.context)
        await client.say("EHLO client.test")
        return client


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Scene]:
    running.clear()
    scene = Scene(folder)
    settings = scene.settings("first")
    await scene.inbound.start(settings, build_table(settings), hostname=HOSTNAME)
    try:
        yield scene
    finally:
        await scene.inbound.stop(0)
        assert running == []


async def test_a_session_asks_the_authenticator_that_it_began_with_until_it_ends(tmp_path: Path) -> None:
    async with opened(tmp_path) as scene:
        before = await scene.client()
        await scene.go_by(scene.settings("second"))
        assert running == ["first", "second"]
        after = await scene.client()
        first, second = "AHN1ZQBmaXJzdA==", "AHN1ZQBzZWNvbmQ="
        assert (await after.say(f"AUTH PLAIN {first}")).startswith("535 ")
        assert (await after.say(f"AUTH PLAIN {second}")).startswith("235 ")
        assert (await before.say(f"AUTH PLAIN {first}")).startswith("235 ")
        await before.say("QUIT")
        assert await before.reply() == ""
        await scene.inbound.tidy()
        assert running == ["second"]
        after.close()


async def test_what_cannot_be_prepared_leaves_nothing_running(tmp_path: Path) -> None:
    async with opened(tmp_path) as scene:
        settings = scene.settings("second", "127.0.0.2:0")
        change = await scene.inbound.prepare(settings, build_table(settings), hostname=HOSTNAME)
        assert running == ["first", "second"]
        await scene.inbound.discard(change)
        assert running == ["first"]
        with pytest.raises(ListenerError, match=r"^listener smtp: cannot listen on 192\.0\.2\.1:1: "):
            await scene.go_by(scene.settings("second", "192.0.2.1:1"))
        wrong = settings.auth[0].model_copy(update={"with_": {}})
        with pytest.raises(AuthError, match="auth one: the settings do not fit"):
            await scene.go_by(settings.model_copy(update={"auth": (wrong,)}))
        assert running == ["first"]
        client = await scene.client()
        assert (await client.say("AUTH PLAIN AHN1ZQBmaXJzdA==")).startswith("235 ")
        client.close()
