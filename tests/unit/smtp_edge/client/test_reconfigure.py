"""Other settings while mail goes out: they count from the next connection on, and no old one carries further mail."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gossip.identity import Authority
from router.decision import Hop, OutcomeKind
from smtp_edge.client.attempt import Job, Target
from smtp_edge.client.mta_sts import CachedPolicy, Mode, Policy, pack
from smtp_edge.client.outbound import Outbound
from smtp_edge.client.sts_keeper import FILE
from smtp_edge.envelope import Envelope, MailData, Recipient
from smtp_edge.settings import Settings
from tests.unit.smtp_edge.client.servers import HANG, Script, SmtpServer, smtp_server
from tests.unit.smtp_edge.server.doors import build_identity

BODY = b"Subject: x\r\n\r\nhello\r\n"


def build_settings(folder: Path, **sections: object) -> Settings:
    host = {"name": "sink", "host": "127.0.0.1"}
    route = {"via": ["sink"]}
    return Settings.model_validate(
        {"node": {"name": "n", "data_dir": folder}, "smart_host": [host], "route": [route], **sections}
    )


def build_outbound(settings: Settings) -> Outbound:
    identity = build_identity(Authority.create("test", at=datetime.now(UTC)), "n")
    return Outbound(
        settings,
        hostname="before.test",
        identity=identity,
        clock=lambda: datetime.now(UTC),
        rng=random.Random(1),
    )


def target(server: SmtpServer, tls: str = "none", ca: Path | None = None) -> Target:
    return Target(Hop.parse("host:sink"), "localhost", server.port, tls=tls, tls_ca=ca)


def job() -> Job:
    return Job("Q1", Envelope("sue@example.net", (Recipient("ann@example.org"),)), MailData(len(BODY), inline=BODY))


@pytest.mark.rfc("5321 2.3.5")
async def test_idle_connections_are_closed_and_the_next_one_goes_by_the_new_settings(tmp_path: Path) -> None:
    outbound = build_outbound(build_settings(tmp_path))
    async with smtp_server() as server:
        assert (await outbound.client.attempt(target(server), job())).kind is OutcomeKind.ACCEPTED
        outbound.configure(build_settings(tmp_path), hostname="after.test", keeper=None)
        assert (await outbound.client.attempt(target(server), job())).kind is OutcomeKind.ACCEPTED
        assert server.seen.connections == 2
        assert server.seen.said("EHLO") == ["EHLO before.test", "EHLO after.test"]
    await outbound.close()


async def test_what_is_under_way_ends_as_it_began_and_its_connection_with_it(tmp_path: Path) -> None:
    outbound = build_outbound(build_settings(tmp_path))
    script = Script(final=HANG)
    async with smtp_server(script) as server:
        attempt = asyncio.create_task(outbound.client.attempt(target(server), job()))
        async with asyncio.timeout(5):
            while not server.seen.bodies:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        shorter = build_settings(tmp_path, queue={"attempt_timeout_s": 0.1})
        outbound.configure(shorter, hostname="after.test", keeper=None)
        assert (await outbound.client.attempt(target(server), job())).kind is OutcomeKind.IN_DOUBT
        assert not attempt.done()  # 300 s, as it began
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
    await outbound.close()


async def test_a_connection_that_was_busy_is_not_used_again(tmp_path: Path) -> None:
    outbound = build_outbound(build_settings(tmp_path))

    def configure_meanwhile(_line: str) -> str:
        outbound.configure(build_settings(tmp_path), hostname="after.test", keeper=None)
        return "250 2.1.5 Ok"

    async with smtp_server(Script(rcpt=configure_meanwhile)) as server:
        for _ in range(2):
            assert (await outbound.client.attempt(target(server), job())).kind is OutcomeKind.ACCEPTED
        assert server.seen.connections == 2
    await outbound.close()


async def test_the_file_of_an_authority_is_read_again(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    old, new = (Authority.create(name, at=datetime.now(UTC)) for name in ("old", "new"))
    certificate, key = new.issue("localhost", hosts=["localhost"], at=datetime.now(UTC))
    (tmp_path / "s.crt").write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "s.crt")
    outbound = build_outbound(build_settings(tmp_path))
    async with smtp_server(Script(context=context, keywords=("STARTTLS",))) as server:
        ca.write_bytes(old.certificate_pem)
        failed = await outbound.client.attempt(target(server, "starttls", ca), job())
        ca.write_bytes(new.certificate_pem)
        again = await outbound.client.attempt(target(server, "starttls", ca), job())
        outbound.configure(build_settings(tmp_path), hostname="before.test", keeper=None)
        result = await outbound.client.attempt(target(server, "starttls", ca), job())
        assert [failed.kind, again.kind, result.kind] == [
            OutcomeKind.TLS_FAILED,
            OutcomeKind.TLS_FAILED,
            OutcomeKind.ACCEPTED,
        ]
    await outbound.close()


async def test_policies_are_there_before_the_first_mail_that_goes_by_them(tmp_path: Path) -> None:
    at = datetime.now(UTC)
    cached = CachedPolicy(Policy(Mode.ENFORCE, ("mx.example.org",), 86400), "a1", at, at)
    (tmp_path / FILE).write_text(json.dumps({"example.org": pack(cached)}))
    outbound = build_outbound(build_settings(tmp_path))
    await outbound.start()
    direct = build_settings(tmp_path, route=[{"via": ["mx"]}])
    keeper = await outbound.prepare(direct)
    assert keeper is not None
    outbound.configure(direct, hostname="n.test", keeper=keeper)
    policy = await keeper.find("example.org")
    assert policy is not None
    assert policy.mx == ("mx.example.org",)
    assert await outbound.prepare(direct) is keeper  # what is known stays known
    outbound.configure(build_settings(tmp_path), hostname="n.test", keeper=keeper)
    assert await outbound.prepare(build_settings(tmp_path)) is None
    await outbound.close()
