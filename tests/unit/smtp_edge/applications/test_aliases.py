"""Aliases: which entry counts, what a file may not say, and that reports stay about what the sender wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtp_edge.applications import aliases
from smtp_edge.applications.aliases import AliasError, Aliases, Table
from smtp_edge.envelope import Notify, Recipient
from tests.unit.smtp_edge.applications.expanding import World

MAIL = b"Subject: x\r\n\r\nhello\r\n"
WORKING = """\
# people
sales:          ann, bob@b.test,
                carol
"quoted":       ann
Ann@a.test:     Ann@a.test, archive@b.test
@c.test:        all@b.test
exact@c.test:   exact
boss@a.test:    sales
"""


def write(folder: Path, text: str) -> str:
    path = folder / "aliases"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("address", "targets"),
    [
        ("sales@a.test", ("ann@a.test", "bob@b.test", "carol@a.test")),
        ("SALES@A.test", ("ann@A.test", "bob@b.test", "carol@A.test")),
        ("sales@b.test", None),
        ("quoted@a.test", ("ann@a.test",)),
        ("sales+today@a.test", ("ann@a.test", "bob@b.test", "carol@a.test")),
        ("anybody@c.test", ("all@b.test",)),
        ("exact@c.test", ("exact@c.test",)),
        ("exact+detail@c.test", ("exact@c.test",)),
        ("nobody@a.test", None),
        ("postmaster", None),
    ],
)
def test_the_most_exact_entry_counts(address: str, targets: tuple[str, ...] | None) -> None:
    assert Table(WORKING, ["a.test"], "+").lookup(address) == targets


def test_without_plus_a_detail_is_part_of_the_name() -> None:
    assert Table(WORKING, ["a.test"]).lookup("sales+today@a.test") is None


def test_aliases_of_aliases_are_followed_and_nobody_is_named_twice() -> None:
    table = Table("a: b, c\nb: d, e\nc: d, e, f@f.test\n", ["a.test"])
    assert table.resolve("a@a.test") == ("d@a.test", "e@a.test", "f@f.test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b\nsales: |/bin/true\n", "line 2: .* is a program"),
        ('sales: "|/bin/true -x"\n', "line 1: .* is a program"),
        ("\n\nsales: ann, /var/mail/x\n", "line 3: .* is a file"),
        ("sales: :include:/etc/x\n", "line 1: .* is a list in a file"),
        ("sales ann\n", "line 1: it is not"),
        ("sales:\n", "line 1: sales has no targets"),
        ("sales: ann bob\n", "line 1: 'ann bob' is no address"),
        ("sales: ann@@b\n", "line 1: 'ann@@b' is no address"),
        ("@: ann\n", "line 1: '@' is neither"),
        ("  ann\n", "line 1: it continues nothing"),
        ("sales: ann,\n  # so\n  bob # no\n", "line 1: 'bob # no' is no address"),
        ("a: b\nA: c\n", "line 2: a is also in line 1"),
        ("a: b\nb: c\nc: a\n", "line [123]: .* leads back to itself"),
        ("@a.test: x@b.test\nx@b.test: y@a.test\n", "leads back to itself"),
        ("a: b@a.test\nb+x@a.test: a+y\n", None),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path: Path, text: str, words: str | None) -> None:
    path = write(tmp_path, text)
    if words is None:
        Aliases(path, ["a.test"])
        return
    with pytest.raises(ValueError, match=words):
        Aliases(path, ["a.test"], "+")


def test_settings_that_mean_nothing_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a@a.test: b@b.test\n")
    for settings, words in (({"domains": "a.test"}, "domains is a list"), ({"plus": "ab"}, "plus is one character")):
        with pytest.raises(ValueError, match=words):
            Aliases(path, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a has no domain"):
        Aliases(write(tmp_path, "a: b\n"))
    with pytest.raises(OSError, match="No such file"):
        Aliases(str(tmp_path / "none"))


names = st.sampled_from([f"{name}@{domain}" for name in "abcd" for domain in ("x.test", "y.test")] + ["@x.test"])
targets = st.lists(names.filter(lambda name: not name.startswith("@")), min_size=1, max_size=3)


@given(st.dictionaries(names, targets, max_size=8))
@example({"@x.test": ["a@x.test", "b@x.test"]})
def test_a_file_is_refused_or_every_address_comes_to_an_end(entries: dict[str, list[str]]) -> None:
    text = "".join(f"{name}: {', '.join(found)}\n" for name, found in entries.items())
    try:
        table = Table(text)
    except AliasError:
        assert len(entries) > 1 or "@x.test" in entries
        return
    for name in entries:
        ends = table.resolve(name if name[0] != "@" else f"z{name}") or ()
        assert ends
        for end in ends:
            onward = table.lookup(end)
            assert onward is None or end in onward


async def test_dsn_parameters_go_on_and_reports_are_about_what_the_sender_wrote(tmp_path: Path) -> None:
    world = World([Aliases(write(tmp_path, WORKING), ["a.test"])])
    asked = Notify.SUCCESS | Notify.FAILURE
    await world.send(MAIL, "sue@x.test", Recipient("any=one@c.test", notify=asked))
    await world.send(MAIL, "sue@x.test", Recipient("other@c.test", "rfc822;first@x.test", Notify.NEVER))
    assert [(arrival.sender, arrival.recipient) for arrival in world.arrivals] == [
        ("sue@x.test", Recipient("all@b.test", "rfc822;any+3Done@c.test", asked)),
        ("sue@x.test", Recipient("all@b.test", "rfc822;first@x.test", Notify.NEVER)),
    ]
    assert [arrival.content for arrival in world.arrivals] == [MAIL, MAIL]


async def test_an_address_that_keeps_its_own_mail_gets_it_once(tmp_path: Path) -> None:
    world = World([Aliases(write(tmp_path, WORKING), ["a.test"])])
    await world.send(MAIL, "sue@x.test", "boss@a.test")
    found = sorted(arrival.recipient.address for arrival in world.take())
    assert found == ["ann@a.test", "archive@b.test", "bob@b.test", "carol@a.test"]
    await world.send(MAIL, "sue@x.test", "exact@c.test")
    (arrival,) = world.take()
    assert (arrival.recipient.address, arrival.content) == ("exact@c.test", MAIL)


async def test_a_file_that_changed_counts_and_one_that_is_wrong_does_not(tmp_path: Path) -> None:
    path = write(tmp_path, "a@a.test: b@b.test\n")
    world = World([Aliases(path)])
    seen = []
    for number, text in enumerate(("a@a.test: c@c.test\n", "a@a.test: |rm\n", "a@a.test: d@d.test\n")):
        write(tmp_path, text)
        os.utime(path, ns=(number + 1, number + 1))
        await world.send(MAIL, "", "a@a.test")
        seen.append(world.take()[0].recipient.address)
    os.unlink(path)
    await world.send(MAIL, "", "a@a.test")
    assert [*seen, world.take()[0].recipient.address] == ["c@c.test", "c@c.test", "d@d.test", "d@d.test"]


async def test_too_many_targets_are_an_error_and_nobody_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "TARGETS_MAX", 3)
    world = World([Aliases(write(tmp_path, "a@a.test: b@a.test, x@x.test\nb@a.test: y@x.test, z@x.test, w@x.test\n"))])
    with pytest.raises(AliasError, match="more than 3"):
        await world.send(MAIL, "", "a@a.test")
