"""Whose fault a reply is, and how long a session may take."""

from __future__ import annotations

import asyncio

import pytest

from router.decision import OutcomeKind
from smtp_edge.client import patience
from smtp_edge.client.blame import blame
from smtp_edge.client.delivery import DeliveryClient
from smtp_edge.client.patience import Patience
from smtp_edge.reply import Reply
from tests.unit.smtp_edge.client.servers import HANG, Script, smtp_server
from tests.unit.smtp_edge.client.test_delivery import job, target

HOP, MESSAGE = OutcomeKind.HOP_TEMPFAIL, OutcomeKind.MESSAGE_REFUSED
HERE = ("192.0.2.1", 25)


@pytest.mark.parametrize(
    ("stage", "code", "status", "kind"),
    [
        ("RCPT", 450, "4.2.0", MESSAGE),  # Postfix' greylisting
        ("RCPT", 450, "4.1.1", MESSAGE),  # unverified recipient
        ("RCPT", 451, "4.7.1", MESSAGE),
        ("RCPT", 451, "4.4.1", MESSAGE),  # the recipient's own host cannot be reached
        ("RCPT", 452, "4.5.3", MESSAGE),  # too many recipients
        ("RCPT", 452, "", MESSAGE),
        ("RCPT", 451, "4.3.0", HOP),  # lookup failure
        ("RCPT", 452, "4.3.1", HOP),  # disk full
        ("RCPT", 421, "4.7.0", HOP),
        ("MAIL", 450, "4.7.1", HOP),  # too much mail from us
        ("MAIL", 451, "", HOP),
        ("MAIL", 450, "4.1.8", MESSAGE),  # sender domain not found
        ("DATA", 451, "4.3.0", HOP),
        ("final dot", 451, "4.7.1", MESSAGE),  # a content filter defers
        ("final dot", 450, "4.2.2", MESSAGE),  # over quota
        ("final dot", 451, "4.3.0", HOP),
        ("final dot", 451, "4.4.2", HOP),
        ("final dot", 451, "", HOP),
        ("final dot", 554, "5.3.0", MESSAGE),
    ],
)
def test_a_reply_is_blamed_on_the_hop_only_if_it_is_about_the_hop(
    stage: str, code: int, status: str, kind: OutcomeKind
) -> None:
    assert blame(Reply(code, "text", status), stage) is kind


@pytest.mark.rfc("5321 4.5.3.2b")
def test_a_known_host_gets_a_few_usual_times_and_more_after_a_timeout() -> None:
    told = Patience(10)
    assert told.allow(HERE) == 10, "nothing is known of it"
    told.note_timeout(HERE)
    assert told.allow(HERE) == 10, "a timeout of a stranger says nothing of what is usual"
    told.note_session(HERE, 0.01)
    assert told.allow(HERE) == patience.ALLOWED_MIN_S
    told.note_timeout(HERE)
    assert told.allow(HERE) == 2
    for _ in range(5):
        told.note_timeout(HERE)
    assert told.allow(HERE) == 10, "never more than what is configured"
    told.note_session(HERE, 0.5)
    assert 2 < told.allow(HERE) < 10, "faster again, but slowly"
    told.note_session(HERE, 2.25)
    assert told.allow(HERE) == 9, "a slow session counts at once"


def test_the_memory_for_hosts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ENDPOINTS_MAX", 3)
    told = Patience(10)
    for port in range(10):
        told.note_session(("192.0.2.1", port), 0.01)
    assert sum(told.allow(("192.0.2.1", port)) < 10 for port in range(10)) <= 3


@pytest.mark.parametrize(
    ("script", "ended"),
    [(Script(mail=HANG), True), (Script(data=HANG), True), (Script(final=HANG), False)],
    ids=["MAIL", "DATA", "final dot"],
)
async def test_when_a_hop_is_down_what_hangs_there_ends_unless_it_is_in_doubt(script: Script, ended: bool) -> None:
    client = DeliveryClient(hostname="client.test", identity=None, connect_timeout_s=5, attempt_timeout_s=1.5)
    async with smtp_server(script) as server:
        hop = target(server).hop
        attempt = asyncio.create_task(client.attempt(target(server), job()))
        for _ in range(100):
            await asyncio.sleep(0.01)
            if server.seen.commands and not attempt.done():
                break
        await asyncio.sleep(0.1)
        client.forget(hop)
        done, _ = await asyncio.wait([attempt], timeout=0.5)
        assert bool(done) is ended
        result = await attempt
        assert result.kind is (OutcomeKind.DISCONNECTED if ended else OutcomeKind.IN_DOUBT)
        assert ("the next hop is down" in result.reason) is ended
    await client.close()
