"""`queue ...` and `why` against a real admin server: what they say, how they end, and who may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from router.decision import Hop, Outcome, OutcomeKind
from smtp_edge.cli import cli
from smtp_edge.cli import queue as queue_commands
from smtp_edge.queue.entry import DeliveryState, NewEntry
from smtp_edge.queue.errors import StoreError
from tests.unit.smtp_edge.operator.test_commands import ask, cells, show
from tests.unit.smtp_edge.operator.views import OTHER, PEER, FakeView, Served, make_identity
from tests.unit.smtp_edge.queue.builders import AT, build_deferral, build_end, build_new, build_note


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOGNAME", "sue")
    with capture_logs():
        yield


def put(served: Served, *class_ids: str, age: timedelta = timedelta(), **fields: Any) -> NewEntry:
    """Mail on disk."""
    new = build_new(*class_ids, received_at=datetime.now(UTC) - age, **fields)
    served.run(served.view.store.put(new, claim=False))
    return new


def defer(served: Served, minutes: float = 60, **fields: Any) -> str:
    """Mail that waits for its next attempt; its id."""
    claim = served.run(served.view.store.put(build_new(received_at=datetime.now(UTC)))).claims[0]
    later = (datetime.now(UTC) - AT).total_seconds() / 60 + minutes
    served.run(served.view.store.settle([build_deferral(claim, later, **fields)]))
    return claim.delivery.queue_id


def take_in(served: Served, new: NewEntry) -> None:
    """Into memory, where it waits: the dispatcher of these tests begins nothing."""

    async def submit() -> None:
        (claim,) = await served.view.store.claim_these([(new.entry.queue_id, 0)], datetime.now(UTC))
        served.view.dispatcher.submit([claim])
        await asyncio.sleep(0.05)

    served.view.dispatcher._tasks.stopping = False
    served.run(submit())


def state(served: Served, queue_id: str) -> str:
    history = served.run(served.view.store.history(queue_id))
    assert history is not None
    return history.deliveries[0].state.value


def notes(served: Served, queue_id: str) -> list[tuple[str, str]]:
    history = served.run(served.view.store.history(queue_id))
    assert history is not None
    return [(note.event, note.detail) for note in history.notes[1:]]


# -- lists -------------------------------------------------------------------------------------------------------------


def test_a_list_is_narrowed_down_by_what_operators_know(served: Served) -> None:
    old = put(served, age=timedelta(hours=3), addresses=("ann@old.example",)).entry.queue_id
    new = put(served, "partners", addresses=("bob@new.example",)).entry.queue_id
    assert [line.split()[0] for line in show(served, "queue").splitlines()[-2:]] == [old, new]
    for words, wanted in [
        (("--domain", "OLD.example"), [old]),
        (("--class", "partners"), [new]),
        (("--older", "2h"), [old]),
        (("--newer", "2h"), [new]),
        (("--sender", "@sender.example"), [old, new]),
        (("--sender", "<>"), []),
        (("--state", "held"), []),
        (("--domain", "old.example", "--class", "partners"), []),
        (("--limit", "1"), [old]),
    ]:
        shown = json.loads(show(served, "queue", "list", *words, "--json"))
        assert [item["queue_id"] for item in shown["deliveries"]] == wanted, words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--state", "lost"), "no state 'lost'; there are: queued, claimed, deferred, held, relayed, failed, expired"),
        (("--sender", "sue"), "'sue' is no sender: say an address, @domain for all of a domain, or <>"),
    ],
)
def test_a_list_of_what_cannot_be_says_what_there_is(served: Served, words: tuple[str, ...], sentence: str) -> None:
    result = ask(served, "queue", *words)
    assert (result.exit_code, result.stderr) == (1, f"smtpmesh: {sentence}\n")


def test_waiting_mail_shows_its_reason_in_the_list(served: Served) -> None:
    for name in ("a", "b"):
        show(served, "host", "drain", name)
    served.view.engine.peer_session(PEER, False, served.view.now())
    new = put(served)
    take_in(served, new)
    row = cells(show(served, "queue"), new.entry.queue_id)
    assert row[1] == "waiting"
    assert row[-1] == "hold: no path"
    deferred = defer(served)
    assert cells(show(served, "queue"), deferred)[-1] == "451 later"


def test_damaged_mail_is_in_the_list_with_what_is_wrong(served: Served) -> None:
    new = put(served)

    async def damage() -> None:
        store = served.view.store
        await store._open_writer().submit(
            lambda connection, _: (
                connection.execute("DELETE FROM body WHERE queue_id = ?", (new.entry.queue_id,)).rowcount
            )
        )
        assert await store.claim(10, datetime.now(UTC)) == []

    served.run(damage())
    text = show(served, "queue")
    assert f"damaged {new.entry.queue_id} of class default: entry {new.entry.queue_id} has lost its mail data" in text
    result = ask(served, "why", new.entry.queue_id)
    assert result.exit_code == 0
    assert "damaged" in result.stdout
    assert "1 delivery due now" in show(served, "queue", "retry", new.entry.queue_id)
    served.run(served.view.store.claim(10, datetime.now(UTC)))
    assert "1 damaged one among them" in show(served, "queue", "remove", new.entry.queue_id)
    assert served.run(served.view.store.summary()).corrupt == 0


def test_the_shape_shows_domains_by_age(served: Served) -> None:
    put(served, addresses=("a@big.example",))
    put(served, addresses=("b@big.example",), age=timedelta(minutes=30))
    put(served, addresses=("c@small.example",), age=timedelta(days=2))
    lines = show(served, "queue", "shape").splitlines()
    assert lines[0].split() == ["total", "5", "10", "20", "40", "80", "160", "320", "640", "1280", "1280+"]
    assert lines[1].split() == ["TOTAL", "3", "1", "0", "0", "1", "0", "0", "0", "0", "0", "1"]
    assert lines[2].split() == ["big.example", "2", "1", "0", "0", "1", "0", "0", "0", "0", "0", "0"]
    assert lines[3].split()[:2] == ["small.example", "1"]
    assert lines[-1] == "ages in minutes"
    assert "1 more; ages in minutes" in show(served, "queue", "shape", "--limit", "1")
    shown = json.loads(show(served, "queue", "shape", "--by", "sender", "--json"))
    assert [(row["name"], row["total"]) for row in shown["rows"]] == [("sender.example", "3")]


def test_an_empty_queue_has_no_shape(served: Served) -> None:
    assert show(served, "queue", "shape") == "nothing waits\n"


# -- why ---------------------------------------------------------------------------------------------------------------


def test_why_tells_of_deferred_mail_the_reason_the_time_and_what_each_hop_needs(served: Served) -> None:
    engine, now = served.view.engine, served.view.now()
    for number in range(6):
        engine.record(
            Outcome(Hop.parse("host:a"), OutcomeKind.CONNECT_FAILED, now, message=f"m{number}"), "default", now
        )
    show(served, "host", "drain", "b")
    queue_id = defer(served, minutes=10)
    text = show(served, "why", queue_id)
    assert text.startswith(f"{queue_id} of a@sender.example at relay-a, received ")
    assert cells(text, "because")[1] == "attempt 1 at host:a ended with: 451 later"
    assert cells(text, "next")[1].startswith(
        "attempt 2 in 10 min, or as soon as a hop of its class comes back; after 5 d"
    )
    assert cells(text, "a")[:2] == ["a", "host:a"]
    assert cells(text, "a")[2].startswith("to answer its next trial: down for 0.0 s")
    assert cells(text, "b")[2].startswith("to be taken back into use (`smtpmesh host undrain`)")
    shown = json.loads(show(served, "why", queue_id, "--json"))
    assert shown["deliveries"][0]["route"]["next_hops"]


def test_why_tells_of_held_mail_who_holds_it(served: Served) -> None:
    queue_id = put(served).entry.queue_id
    show(served, "queue", "hold", queue_id, "--reason", "looks odd")
    text = show(served, "why", queue_id)
    assert cells(text, "because")[1].endswith("by sue: looks odd")
    assert cells(text, "next")[1] == f"nothing, until `smtpmesh queue release {queue_id}`"


def test_why_tells_of_mail_on_disk_that_memory_is_full(served: Served) -> None:
    text = show(served, "why", put(served).entry.queue_id)
    assert cells(text, "because")[1] == "it waits on disk for a place in memory, where 0 of its class are"


def test_why_tells_of_mail_in_memory_what_it_waits_for(served: Served) -> None:
    for name in ("a", "b"):
        show(served, "host", "drain", name)
    served.view.engine.peer_session(PEER, False, served.view.now())
    new = put(served)
    take_in(served, new)
    text = show(served, "why", new.entry.queue_id)
    assert cells(text, "state")[1] == "waiting"
    assert cells(text, "because")[1] == "hold: no path"


@pytest.mark.parametrize(
    ("end", "answer"),
    [(DeliveryState.RELAYED, "relayed to host:a at 20"), (DeliveryState.FAILED, "failed at 20")],
)
def test_why_tells_of_finished_mail_how_it_ended(served: Served, end: DeliveryState, answer: str) -> None:
    claim = served.run(served.view.store.put(build_new(received_at=datetime.now(UTC)))).claims[0]
    ended = build_end(claim, end, hop="host:a", reply="250 ok", notes=(build_note(end.value),))
    served.run(served.view.store.settle([ended]))
    text = show(served, "why", claim.delivery.queue_id)
    assert cells(text, "because")[1].startswith(answer)
    assert cells(text, "because")[1].endswith(": 250 ok")


def test_why_tells_of_mail_to_a_list_which_sink_is_to_say_who_gets_it(served: Served) -> None:
    asked = "sink lists is to say who gets it (a list, an alias)"
    new, store = put(served, "expand:", addresses=("talk@lists.test",)), served.view.store
    queue_id = new.entry.queue_id
    assert because(served, queue_id) == f"{asked}; it waits on disk for a place in memory"
    (claim,) = served.run(store.claim_these([(queue_id, 0)], datetime.now(UTC)))
    soon = (datetime.now(UTC) - AT).total_seconds() / 60 + 10
    served.run(store.settle([replace(build_deferral(claim, soon), reply="sink lists failed: OSError")]))
    assert because(served, queue_id) == f"{asked}; it was asked once: sink lists failed: OSError"
    text = show(served, "why", queue_id)
    assert cells(text, "next")[1] == (
        "it is asked again in 10 min; once it has failed 10 times the message is held until somebody has looked at it"
    )
    assert "next hop" not in text
    show(served, "queue", "hold", queue_id)
    assert because(served, queue_id).startswith(f"{asked}; it is held since ")
    assert cells(show(served, "why", queue_id), "next")[1] == (
        f"nothing by itself: when the sink is well, `smtpmesh queue release {queue_id}`"
    )


def test_why_tells_of_mail_to_a_list_that_its_sink_is_being_asked_or_is_gone(served: Served) -> None:
    new = put(served, "expand:", addresses=("talk@lists.test",))
    take_in(served, new)
    assert because(served, new.entry.queue_id).startswith(
        "sink lists is to say who gets it (a list, an alias), and is being asked, for "
    )
    served.view.expanders = ()
    assert because(served, new.entry.queue_id).startswith("a sink that is no longer bound is to say who gets it")


def because(served: Served, queue_id: str) -> str:
    return cells(show(served, "why", queue_id), "because")[1]


def test_why_of_an_unknown_message_says_what_that_may_mean(served: Served) -> None:
    result = ask(served, "why", "nothing")
    assert result.exit_code == 1
    assert "no message 'nothing' here: unknown, or finished longer ago than queue.history_s" in result.stderr


# -- orders ------------------------------------------------------------------------------------------------------------


def test_mail_is_held_released_and_its_history_says_who(served: Served) -> None:
    queue_id = put(served).entry.queue_id
    assert show(served, "queue", "hold", queue_id) == "relay-a: 1 delivery held\n"
    assert state(served, queue_id) == "held"
    again = ask(served, "queue", "hold", queue_id)
    assert (again.exit_code, again.stdout) == (1, "relay-a: 0 deliveries held\n1 not in a state for that\n")
    assert show(served, "queue", "release", "--state", "held") == "relay-a: 1 delivery released\n"
    assert state(served, queue_id) == "queued"
    assert notes(served, queue_id) == [("held", "by sue"), ("released", "by sue")]


def test_an_order_means_what_its_selection_says(served: Served) -> None:
    old = put(served, age=timedelta(hours=3)).entry.queue_id
    new = put(served).entry.queue_id
    assert show(served, "queue", "hold", "--older", "1h") == "relay-a: 1 delivery held\n"
    assert (state(served, old), state(served, new)) == ("held", "queued")
    assert show(served, "queue", "hold", "--all") == "relay-a: 1 delivery held\n1 not in a state for that\n"


def test_an_order_for_nothing_in_particular_is_refused(served: Served) -> None:
    put(served)
    result = ask(served, "queue", "remove")
    assert result.exit_code == 1
    assert "say which deliveries are meant: ids, a class, a domain, a sender, a state, an age, or all" in result.stderr


def test_deferred_mail_is_due_after_a_retry(served: Served) -> None:
    queue_id = defer(served)
    assert show(served, "queue", "retry", queue_id) == "relay-a: 1 delivery due now\n"
    assert [claim.delivery.queue_id for claim in served.run(served.view.store.claim(5, datetime.now(UTC)))] == [
        queue_id
    ]


def test_a_bounce_leaves_a_report_and_a_removal_nothing(served: Served) -> None:
    bounced, removed = put(served).entry.queue_id, put(served).entry.queue_id
    assert show(served, "queue", "bounce", bounced, "--yes") == "relay-a: 1 delivery returned to their senders\n"
    assert show(served, "queue", "remove", removed, "--yes") == "relay-a: 1 delivery removed\n"
    waiting = [claim.entry.client for claim in served.run(served.view.store.list())]
    assert waiting == [f"report on {bounced}"]
    assert notes(served, removed) == [("removed", "by sue")]


def test_many_are_bounced_only_after_a_question_at_a_terminal(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        put(served)
    monkeypatch.setattr(queue_commands, "_is_asked", lambda: True)
    words = ["queue", "bounce", "--class", "default", "--admin", served.address]
    no = CliRunner().invoke(cli, words, input="n\n")
    assert no.exit_code == 1
    assert "bounce 3 deliveries? [y/N]" in no.stderr
    assert len(served.run(served.view.store.list())) == 3
    yes = CliRunner().invoke(cli, words, input="y\n")
    assert yes.stdout == "relay-a: 3 deliveries returned to their senders\n"


def test_mail_moves_to_another_class(served: Served) -> None:
    queue_id = put(served).entry.queue_id
    assert show(served, "queue", "move", queue_id, "--to-class", "partners") == "relay-a: 1 delivery moved\n"
    (found,) = served.run(served.view.store.list())
    assert found.delivery.class_id == "partners"
    assert notes(served, queue_id) == [("moved", "to partners by sue")]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--to-class", "nowhere"), 1, "no class 'nowhere' here; there are: default, partners, and mx:DOMAIN"),
        (("--to-node", "nobody"), 1, "no node 'nobody'; there are: relay-a, relay-b, relay-c"),
        (("--to-node", "relay-c"), 1, "relay-c takes no mail from here now: it takes no mail from other relays"),
        (("--to-node", "relay-a"), 1, "relay-a takes no mail from here now: it is this node"),
        ((), 2, "say where to: --to-class or --to-node"),
        (("--to-class", "default", "--to-node", "relay-b"), 2, "say where to: --to-class or --to-node"),
    ],
)
def test_mail_moves_only_where_it_can_go(served: Served, words: tuple[str, ...], code: int, sentence: str) -> None:
    queue_id = put(served).entry.queue_id
    result = ask(served, "queue", "move", queue_id, *words)
    assert result.exit_code == code
    assert sentence in result.stderr
    assert state(served, queue_id) == "queued"


def test_mail_is_handed_to_another_relay(served: Served) -> None:
    served.view.engine.peer_session(PEER, True, served.view.now())
    queue_id = put(served).entry.queue_id
    assert show(served, "queue", "move", queue_id, "--to-node", "relay-b") == "relay-a: 1 delivery moved\n"
    standing = served.view.dispatcher.standing(queue_id, 0)
    assert standing is not None
    assert OTHER not in standing.reason


def test_a_dry_run_says_what_would_be(served: Served) -> None:
    queue_id = put(served).entry.queue_id
    assert show(served, "queue", "remove", "--all", "--dry-run") == "relay-a: 1 delivery would be removed\n"
    assert state(served, queue_id) == "queued"


def test_what_is_under_way_can_be_asked_for_again(served: Served) -> None:
    served.run(served.view.store.put(build_new(received_at=datetime.now(UTC))))  # claimed, by nobody's line
    result = ask(served, "queue", "hold", "--all")
    assert result.exit_code == 75
    assert "1 under way at this moment, not changed: ask again" in result.stdout


def test_an_id_that_does_not_wait_is_not_found(served: Served) -> None:
    result = ask(served, "queue", "hold", "nothing")
    assert (result.exit_code, result.stderr) == (1, "smtpmesh: no undelivered message here is 'nothing'\n")


def test_an_order_in_json_names_what_it_changed(served: Served) -> None:
    queue_id = put(served).entry.queue_id
    shown = json.loads(show(served, "queue", "hold", queue_id, "--json"))
    assert shown == {
        "action": "hold",
        "dry_run": False,
        "changed": 1,
        "under_way": 0,
        "unfit": 0,
        "damaged": 0,
        "queue_ids": [queue_id],
        "node_name": "relay-a",
    }


def test_more_than_a_page_is_changed_by_one_command(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smtp_edge.postmaster.PAGE", 3)
    for _ in range(8):
        put(served)
    assert show(served, "queue", "hold", "--all") == "relay-a: 8 deliveries held\n"


def test_a_disk_that_refuses_is_worth_another_try(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(decided: object) -> list[bool]:
        raise StoreError("no space left for the queue's database")

    put(served)
    monkeypatch.setattr(served.view.store, "change", refuse)
    result = ask(served, "queue", "hold", "--all")
    assert (result.exit_code, result.stdout) == (75, "")
    assert "no space left for the queue's database; nothing was changed, ask again" in result.stderr


def test_over_loopback_everybody_may_look_and_nobody_may_change_the_queue(folder: Path) -> None:
    served = Served(FakeView(folder, make_identity(folder)), "127.0.0.1:0")
    try:
        queue_id = put(served).entry.queue_id
        assert ask(served, "why", queue_id).exit_code == 0
        result = ask(served, "queue", "hold", queue_id)
        assert result.exit_code == 1
        assert result.stderr.startswith("smtpmesh: over loopback anybody on this machine could order that; set admin.")
        assert state(served, queue_id) == "queued"
    finally:
        served.close()
