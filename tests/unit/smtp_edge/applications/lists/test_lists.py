"""Mailing lists without a node: who may do what, what waits, what comes back, and that nothing happens twice."""

from __future__ import annotations

import email
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from smtp_edge.applications.lists import sink as sink_module
from smtp_edge.applications.lists.bounces import find_member, is_hard
from smtp_edge.applications.lists.commands import ANSWERS_MAX
from smtp_edge.applications.lists.names import NAME_MAX, Book, Role
from smtp_edge.applications.lists.sink import Lists
from smtp_edge.applications.lists.store import DAY_S, HELD_LIFE_S, SCHEMA, TOKEN_LIFE_S, Store
from smtp_edge.envelope import own_sender
from smtp_edge.sinks.api import NodeServices, verp_tag
from tests.unit.smtp_edge.applications.expanding import Arrival, Services, World

TALK, OWNER, ANN, BOB, EVE = "talk@l.test", "owner@x.test", "ann@x.test", "bob@x.test", "eve@x.test"


class Village:
    """A list, its people, and a clock."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.lists = Lists({TALK: {"owners": [OWNER], **settings}})
        self.lists.node = cast("NodeServices", Services(folder))
        self.now = 1_800_000_000.0
        self.lists.clock = lambda: self.now
        self.world = World([self.lists])

    async def write(self, who: str, to: str, subject: str = "", text: str = "hello", **fields: str) -> str:
        """The refusal at RCPT, or nothing."""
        names = {"From": who, "To": to, "Subject": subject, "Message-ID": f"<{len(subject)}.{self.now}@x.test>"}
        header = names | {name.replace("_", "-"): value for name, value in fields.items()}
        mail = "".join(f"{name}: {value}\r\n" for name, value in header.items()) + f"\r\n{text}\r\n"
        self.now += 1
        return await self.world.send(mail.encode(), who, to)

    def take(self, who: str) -> list[Arrival]:
        found = self.world.arrived(who)
        self.world.arrivals = [one for one in self.world.arrivals if one.recipient.address != who]
        return found

    async def confirm(self, who: str) -> None:
        """As people do: they answer the mail that asks."""
        (asked,) = self.take(who)
        address = email.utils.parseaddr(asked.headers.get("from"))[1]
        await self.write(who, address, f"Re: {asked.headers.get('subject')}")

    async def join(self, *people: str) -> None:
        for who in people:
            await self.write(who, "talk-join@l.test")
            await self.confirm(who)
            self.take(who)

    def members(self) -> list[str]:
        return self.lists.store.recipients(TALK)

    async def bounce(self, member: str, *, status: str = "5.1.1", sender: str = "", to: str = "") -> None:
        report = (
            "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
            "--b\r\nContent-Type: text/plain\r\n\r\nsorry\r\n"
            "--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; x.test\r\n\r\n"
            f"Final-Recipient: rfc822; {member}\r\nAction: failed\r\nStatus: {status}\r\n\r\n--b--\r\n{self.now}\r\n"
        )
        self.now += 1
        await self.world.send(report.encode(), sender, to or self.reverse_path(member))

    def reverse_path(self, member: str) -> str:
        return own_sender("talk-bounces@l.test", member, self.lists.store.verp_key(TALK))


@pytest.fixture
async def open_village(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    opened: list[Village] = []

    async def make(**settings: object) -> Village:
        village = Village(tmp_path, **settings)
        await village.lists.start()
        opened.append(village)
        return village

    yield make
    for village in opened:
        await village.lists.stop()


Make = Callable[..., object]


async def make_of(make: Make, **settings: object) -> Village:
    return await make(**settings)  # type: ignore[no-any-return, misc]


async def test_only_who_reads_the_mail_of_an_address_joins_it(open_village: Make) -> None:
    village = await make_of(open_village)
    await village.write(ANN, "talk-join@l.test")
    assert village.members() == []
    await village.write(EVE, "talk-confirm+guess@l.test")
    assert village.members() == []
    await village.confirm(ANN)
    assert village.members() == [ANN]
    (welcome,) = village.take(ANN)
    assert (welcome.sender, welcome.headers.get("auto-submitted")) == ("", "auto-replied")


async def test_a_token_counts_once_and_not_for_ever(open_village: Make) -> None:
    village = await make_of(open_village)
    await village.write(ANN, "talk-join@l.test")
    (asked,) = village.take(ANN)
    address = email.utils.parseaddr(asked.headers.get("from"))[1]
    village.now += TOKEN_LIFE_S + DAY_S
    await village.write(ANN, address)
    assert village.members() == []
    assert "asked for too long ago" in village.take(ANN)[0].body.decode()
    await village.join(ANN)
    await village.write(ANN, address, "again")
    assert village.members() == [ANN]


async def test_a_closed_list_asks_its_owners(open_village: Make) -> None:
    village = await make_of(open_village, joins="closed")
    await village.write(ANN, "talk-join@l.test")
    (note,) = village.take(ANN)
    assert "owners of the list have been asked" in note.body.decode()
    assert village.members() == []
    await village.confirm(OWNER)
    assert village.members() == [ANN]


async def test_owners_add_and_remove_and_others_may_not(open_village: Make) -> None:
    village = await make_of(open_village)
    await village.write(EVE, "talk-request@l.test", text=f"add {EVE}")
    assert "Only owners" in village.take(EVE)[0].body.decode()
    await village.write(OWNER, "talk-request@l.test", text=f"add {ANN}\r\nadd {BOB}\r\nadd nonsense")
    mails = village.take(OWNER)
    (asked,) = [mail for mail in mails if "confirm" in mail.headers.get("from")]
    assert any("no address" in mail.body.decode() for mail in mails)
    village.world.arrivals = [asked]
    await village.confirm(OWNER)
    assert village.members() == [ANN, BOB]
    village.world.take()
    await village.write(OWNER, "talk-request@l.test", "members")
    assert [line for line in village.take(OWNER)[0].body.decode().splitlines() if "@x.test" in line] == [ANN, BOB]


@pytest.mark.parametrize(("others", "refusal"), [("refuse", "550 5.7.1"), ("hold", "")])
async def test_strangers_are_refused_at_once_or_held(open_village: Make, others: str, refusal: str) -> None:
    village = await make_of(open_village, others=others)
    await village.join(ANN)
    assert (await village.write(EVE, TALK, "buy")).startswith(refusal)
    assert not village.take(ANN)
    assert bool(village.take(OWNER)) is (others == "hold")


async def test_held_posts_have_a_bound(open_village: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "HELD_MAX", 2)
    village = await make_of(open_village)
    said = [await village.write(EVE, TALK, f"{number}") for number in range(3)]
    assert [words[:3] for words in said] == ["", "", "452"]


async def test_a_held_post_is_sent_as_it_came_in_whatever_octets(open_village: Make) -> None:
    village = await make_of(open_village)
    await village.join(ANN)
    mail = b"From: eve@x.test\r\nSubject: octets\r\n\r\n\xff\xfe.dot\r\n.\r\nlast\r\n"
    await village.world.send(mail, EVE, TALK)
    (notice,) = village.take(OWNER)
    approve, refuse = re.findall(r"talk-confirm\+[a-z0-9]+@l\.test", notice.body.decode())
    await village.write(OWNER, approve)
    (copy,) = village.take(ANN)
    assert copy.body == b"\xff\xfe.dot\r\n.\r\nlast\r\n"
    assert copy.sender == village.reverse_path(ANN)
    village.world.take()
    await village.write(OWNER, refuse, "too late")
    assert not [one for one in village.world.take() if one.recipient.address in (ANN, EVE)]


async def test_asked_again_after_a_crash_the_answer_is_the_same_and_nothing_happens_twice(open_village: Make) -> None:
    village = await make_of(open_village)
    await village.write(ANN, "talk-join@l.test")
    (asked,) = village.take(ANN)
    address = email.utils.parseaddr(asked.headers.get("from"))[1]
    mail = f"From: {ANN}\r\nSubject: Re: {asked.headers.get('subject')}\r\n\r\nyes\r\n".encode()
    answers = []
    for _ in range(2):
        await village.world.send(mail, ANN, address)
        answers.append([(one.recipient.address, one.headers.get("subject")) for one in village.world.take()])
    assert answers[0] == answers[1] != []
    assert village.members() == [ANN]


async def test_a_post_that_comes_again_is_posted_once(open_village: Make) -> None:
    village = await make_of(open_village)
    await village.join(ANN, BOB)
    post = b"From: ann@x.test\r\nMessage-ID: <1@x.test>\r\n\r\nhello\r\n"
    again = {
        "byte for byte": (post, 0),
        "by another way": (b"Received: from a by b; Thu, 1 Jan 1970 00:00:00 +0000\r\n" + post, 0),
        "another text": (post.replace(b"hello", b"hello again"), 1),
        "another name": (post.replace(b"<1@", b"<2@"), 1),
        "without a name": (post.replace(b"Message-ID: <1@x.test>\r\n", b""), 1),
    }
    await village.world.send(post, ANN, TALK)
    assert [one.body for one in village.take(BOB)] == [b"hello\r\n"]
    for how, (mail, copies) in again.items():
        village.now += DAY_S
        await village.world.send(mail, ANN, TALK)
        assert len(village.take(BOB)) == copies, how


async def test_a_post_that_is_asked_about_again_is_not_one_that_comes_again(open_village: Make) -> None:
    village = await make_of(open_village)
    await village.join(ANN, BOB)
    post = b"From: ann@x.test\r\nMessage-ID: <1@x.test>\r\n\r\nhello\r\n"
    for _ in range(2):  # the node has died before it took the first answer down
        village.world.sent = 0
        await village.world.send(post, ANN, TALK)
        assert len(village.take(BOB)) == 1


async def test_owners_hear_once_of_a_held_post_that_comes_again(open_village: Make) -> None:
    village = await make_of(open_village)
    for _ in range(3):
        await village.world.send(b"From: eve@x.test\r\nMessage-ID: <1@x.test>\r\n\r\nbuy\r\n", EVE, TALK)
    assert len(village.take(OWNER)) == 1


async def test_nobody_makes_up_a_bounce_for_another_member(open_village: Make) -> None:
    village = await make_of(open_village, bounces_max=1)
    await village.join(ANN, BOB)
    others = Lists({"walk@l.test": {"owners": [OWNER]}})
    others.node = village.lists.node
    await others.start()
    key = others.store.verp_key("walk@l.test")
    await others.stop()
    made_up = [
        "talk-bounces+ann=x.test@l.test",
        "talk-bounces+ann=x.test=aaaaaaaaaaaaaaaa@l.test",
        "talk-bounces+aaaaaaaaaaaaaaaa@l.test",
        "talk-bounces@l.test",
        own_sender("talk-bounces@l.test", ANN, key),  # from a copy of another list
    ]
    for address in made_up:
        await village.bounce(ANN, to=address)
    assert village.members() == [ANN, BOB]
    await village.bounce(ANN, to=village.reverse_path(BOB))  # whoever the report speaks of
    assert village.members() == [ANN]


@pytest.mark.parametrize(
    "member",
    [
        f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.test",
        '"ann bob"@x.test',
        "j\xf6rg@b\xfccher.test",
        "user+detail=more@x.test",
    ],
)
async def test_a_bounce_finds_its_member_whatever_the_address(open_village: Make, member: str) -> None:
    village = await make_of(open_village, bounces_max=1, posts="anyone")
    village.lists.store.add_members(TALK, [ANN, member], village.now)
    await village.write(EVE, TALK, "hello")
    (copy,) = village.take(member)
    assert re.fullmatch(r"talk-bounces\+[a-z2-7]{16}@l\.test", copy.sender)
    await village.bounce(ANN, to=copy.sender)
    assert village.members() == [ANN]


def test_what_an_earlier_release_remembers_is_kept(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "lists.sqlite") as old:
        old.executescript(SCHEMA + f"INSERT INTO members VALUES ('{TALK}', '{ANN}', '{ANN}', 0, NULL);")
        old.execute("PRAGMA user_version = 1")
    for _ in range(2):
        store = Store(tmp_path)
        assert store.recipients(TALK) == [ANN]
        assert store.verp_key(TALK) == store.verp_key(TALK) != store.verp_key("walk@l.test")
        store.close()


def test_the_longest_name_of_a_list_leaves_room_for_a_tag() -> None:
    assert own_sender(f"{'l' * NAME_MAX}-bounces@l.test", f"{'a' * 64}@x.test", "key").count("+") == 1


async def test_a_member_whose_mail_comes_back_on_many_days_gets_none(open_village: Make) -> None:
    village = await make_of(open_village, bounces_max=3)
    await village.join(ANN, BOB)
    for _ in range(5):
        await village.bounce(ANN)  # all of one day
    for number in range(8):
        village.now += DAY_S
        await village.bounce(BOB, status="4.2.2" if number % 2 else "5.7.1")
    assert village.members() == [ANN, BOB]
    for _ in range(2):
        village.now += DAY_S
        await village.bounce(ANN, sender=EVE)  # a report has no sender
    assert village.members() == [ANN, BOB]
    village.now -= 10 * DAY_S
    for _ in range(2):
        village.now += DAY_S
        await village.bounce(ANN)
    assert village.members() == [BOB]
    assert "cannot be reached" in village.take(OWNER)[0].headers.get("subject")
    await village.join(ANN)
    assert village.members() == [ANN, BOB]


async def test_robots_are_not_answered_and_people_only_so_often(open_village: Make) -> None:
    village = await make_of(open_village)
    for fields in ({"Auto_Submitted": "auto-replied"}, {"Precedence": "bulk"}, {"List_Id": "<other.test>"}):
        await village.write(EVE, "talk-request@l.test", "help", **fields)
    await village.world.send(b"Subject: help\r\n\r\n", "", "talk-request@l.test")
    assert village.world.take() == []
    for number in range(ANSWERS_MAX + 3):
        await village.write(EVE, "talk-request@l.test", "help", text=str(number))
    assert len(village.take(EVE)) == ANSWERS_MAX


async def test_what_is_old_is_forgotten(open_village: Make) -> None:
    village = await make_of(open_village)
    await village.write(EVE, TALK, "held")
    folder = village.lists.store.held_path("x").parent
    assert len(list(folder.iterdir())) == 1
    village.now += 2 * HELD_LIFE_S
    await village.write(EVE, "talk-request@l.test", "help")
    assert list(folder.iterdir()) == []


def test_the_addresses_of_a_list() -> None:
    book = Book({TALK: {"owners": [OWNER]}})
    roles = {
        "talk": Role.POST,
        "TALK": Role.POST,
        "talk-subscribe": Role.JOIN,
        "talk-unsubscribe": Role.LEAVE,
        "talk-owner": Role.OWNER,
        "talk-confirm+abc": Role.CONFIRM,
        "talk-bounces+a=b.test": Role.BOUNCES,
        "talk+x": None,
        "talk-other": None,
        "walk": None,
    }
    for local, role in roles.items():
        found = book.find(f"{local}@L.test")
        assert (found.role if found is not None else None) is role, local


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "owners names nobody"),
        ({"owners": ["nobody"]}, "'nobody' is no address"),
        ({"owners": "a@b.test"}, "owners is a list of addresses"),
        ({"owners": [OWNER], "posts": "robots"}, "posts = 'robots' is none of"),
        ({"owners": [OWNER], "unsubscribe_url": "http://x"}, "is an https URL"),
        ({"owners": [OWNER], "bounces_max": 0}, "bounces_max is at least 1"),
        ({"owners": [OWNER], "colour": "red"}, "colour is no setting of a list"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Lists({TALK: settings})
    with pytest.raises(ValueError, match="has that address"):
        Lists({TALK: {"owners": [OWNER]}, "talk-join@l.test": {"owners": [OWNER]}})


def test_reports() -> None:
    assert find_member(verp_tag("key", ANN.upper()), "key", [BOB, ANN]) == ANN
    assert find_member("nonsense", "key", [BOB, ANN]) == ""
    assert find_member("", "key", [BOB, ANN]) == ""
    assert find_member("ann=x.test", "key", [BOB, ANN]) == ""
    assert not is_hard(b"Subject: no report\r\n\r\nStatus: 5.1.1\r\n")
