"""What a writer of sinks has: the page, the kit, and the two commands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

import smtp_edge.sinks
from smtp_edge.cli import cli
from smtp_edge.envelope import Client, Envelope, Recipient
from smtp_edge.reply import Reply
from smtp_edge.sinks.api import Delivery, Disconnect, Expansion, Message, Quarantine, Reject, Sink, TempFail, Verdict
from smtp_edge.sinks.testing import ask, deliver, expand

PAGE = Path(smtp_edge.sinks.__file__).with_name("WRITING.md").read_text("utf-8")
MAIL = b"Subject: x\r\n\r\nhello\r\n.\r\n"


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """The commands set up logs for their process."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def greeting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's own sink, in a file of its own."""
    source = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "class Greeting" in block)
    (tmp_path / "greeting.py").write_text(source)
    (tmp_path / "good.eml").write_bytes(b"Subject: x\n\nhello\n")
    (tmp_path / "bad.eml").write_bytes(b"From: x\n\nhello\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "greeting", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> str:
    result = CliRunner().invoke(cli, words)
    return f"{result.exit_code}\n{result.output}"


async def test_the_page_works_as_it_stands(greeting: Path) -> None:
    sink = __import__("greeting").Greeting("hi")
    outcome = await ask(sink, b"From: a@example.net\r\n\r\nhello\r\n")
    assert outcome.reply == "550 5.6.0 a subject is required here"
    good = await ask(sink, MAIL)
    assert (good.reply, good.content, good.recipients) == ("", b"X-Greeting: hi\r\n" + MAIL, ("recipient@example.org",))


def test_try_shows_what_becomes_of_a_message(greeting: Path) -> None:
    assert run("sinks", "try", "greeting:Greeting", "--eml", "bad.eml") == "0\n550 5.6.0 a subject is required here\n"
    said = run("sinks", "try", "greeting:Greeting", "--eml", "good.eml", "--with", "text=hey", "--to", "ann@b.test")
    assert said == "0\naccepted  ann@b.test\nchanged; its header is now:\nX-Greeting: hey\nSubject: x\n"
    assert "it takes: text" in run("sinks", "try", "greeting:Greeting", "--eml", "good.eml", "--with", "colour=1")
    assert "not of the form KEY=VALUE" in run("sinks", "try", "greeting:Greeting", "--eml", "good.eml", "--with", "x")
    assert "no such sink" in run("sinks", "try", "nobody", "--eml", "good.eml")


def test_explain_shows_who_is_asked_in_order(greeting: Path) -> None:
    binding = '[[sink]]\nuse = "greeting:Greeting"\nrule = "rcpt to=*@example.org"\npriority = {}\ntimeout = "20s"\n'
    node = '[node]\nname = "a"\ndata_dir = "data"\n[[route]]\ndomains = ["*"]\nvia = ["mx"]\n'
    (greeting / "node.toml").write_text(node + binding.format(20) + binding.format(10).replace("org", "com"))
    said = run("sinks", "explain", "mail from=x@y; rcpt to=ann@example.org,bob@example.com", "--config", "node.toml")
    rows = [line.split() for line in said.splitlines()[2:]]
    assert [row[:3] + row[-1:] for row in rows] == [
        ["data", "greeting:Greeting-2", "10", "bob@example.com"],
        ["data", "greeting:Greeting", "20", "ann@example.org"],
        ["route", "mesh", "last", "bob@example.com"],
    ]
    assert "route" in run("sinks", "explain", "--config", "node.toml")
    for text, words in (("rcpt", "of the form"), ("colour=red", "is no key"), ("size=big", "number of bytes")):
        assert words in run("sinks", "explain", text, "--config", "node.toml")


class Everywhere(Sink):
    """One verdict at one event."""

    def __init__(self, event: str, verdict: Verdict) -> None:
        self.event, self.verdict = event, verdict

    def at(self, event: str) -> Verdict | None:
        return self.verdict if event == self.event else None

    async def connect(self, client: Client) -> Verdict | None:
        return self.at("connect")

    async def mail(self, client: Client, envelope: Envelope) -> Verdict | None:
        return self.at("mail")

    async def rcpt(self, client: Client, envelope: Envelope, recipient: Recipient) -> Verdict | None:
        return self.at(f"rcpt {recipient.address[:3]}")

    async def data(self, message: Message) -> Verdict | None:
        return self.at("data")


@pytest.mark.parametrize(
    ("event", "verdict", "reply"),
    [
        ("connect", Disconnect("bye"), "421 4.7.0 bye"),
        ("mail", TempFail("later"), "451 4.3.0 later"),
        ("data", Reject("no"), "550 5.7.1 no"),
    ],
)
async def test_the_kit_tells_the_reply(event: str, verdict: Verdict, reply: str) -> None:
    assert (await ask(Everywhere(event, verdict), MAIL)).reply == reply


async def test_the_kit_tells_who_is_left_and_who_is_held() -> None:
    two = ("ann@b.test", "bob@b.test")
    assert (await ask(Everywhere("rcpt bob", Reject("no")), MAIL, recipients=two)).recipients == two[:1]
    assert (await ask(Everywhere("rcpt ann", Reject("no")), MAIL, recipients=two[:1])).reply == "550 5.7.1 no"
    outcome = await ask(Everywhere("data", Quarantine("odd")), MAIL, recipients=two)
    assert outcome.held == tuple((address, "odd") for address in two)
    assert outcome.content == MAIL


class Box(Sink):
    """A store of one mailbox, and a list."""

    async def deliver(self, delivery: Delivery) -> list[Reply | Quarantine]:
        assert (await delivery.read()).endswith(b"\r\n.dot\r\n")
        answers: dict[str, Reply | Quarantine] = {"ann": Reply(250, delivery.key_of(Recipient("ann")), "2.0.0")}
        names = [recipient.address.partition("@")[0] for recipient in delivery.envelope.recipients]
        return [answers.get(name, Quarantine("who is that")) for name in names]

    async def expand(self, message: Message) -> Expansion | None:
        if message.envelope.recipients[0].address != "all@b.test":
            return None
        message.add_header("List-Id", "<all.b.test>")
        return Expansion((Recipient("ann@b.test"),), sender="owner@b.test")


async def test_stores_and_lists_are_asked_as_the_queue_would_ask_them() -> None:
    mail = b"Subject: x\r\n\r\n.dot\r\n"
    assert await deliver(Box(), mail, recipients=("ann@b.test", "bob@b.test"), key="k") == (
        "250 2.0.0 k/ann",
        "held: who is that",
    )
    found = await expand(Box(), mail, "all@b.test")
    assert found is not None
    assert (found.recipients, found.sender) == (("ann@b.test",), "owner@b.test")
    assert found.content == b"List-Id: <all.b.test>\r\n" + mail
    assert await expand(Box(), mail, "ann@b.test") is None
