"""Every question of the command line against a real admin server, through click's runner."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gossip.linkstate import ClassLoad, Load
from router.policy import DestinationClass, RouteTable
from smtp_edge import __version__
from smtp_edge.cli import cli
from smtp_edge.queue.entry import DeliveryState
from tests.e2e import reflection_client
from tests.unit.smtp_edge.operator.views import PEER, Served
from tests.unit.smtp_edge.queue.builders import build_deferral, build_new


def ask(served: Served, *words: str) -> Result:
    return CliRunner().invoke(cli, [*words, "--admin", served.address])


def show(served: Served, *words: str) -> str:
    result = ask(served, *words)
    assert result.exit_code == 0, result.output
    return result.stdout


def cells(text: str, first: str) -> list[str]:
    """The row of a table that begins with a word, its cells parted by two spaces or more."""
    (row,) = [line for line in text.splitlines() if line.split("  ")[0] == first]
    return [cell.strip() for cell in row.split("  ") if cell.strip()]


def test_status_says_who_the_node_is_and_what_it_did(served: Served) -> None:
    text = show(served, "status")
    assert f"node      relay-a  {served.view.identity.node_id}" in text
    assert "cluster   test" in text
    assert f"version   {__version__}" in text
    assert "up for    2 min" in text
    assert "accepted  7 messages" in text
    assert "relayed   1 delivery" in text
    assert "repeats   0 transfers recognised" in text
    assert "listens   smtp 127.0.0.1:2525" in text


def test_routes_shows_every_term_of_every_next_hop(served: Served) -> None:
    text = show(served, "routes", "default")
    head = next(line for line in text.splitlines() if line.startswith("next hop"))
    for column in ("share", "state", "available", "reliable", "capacity", "latency", "backlog", "because"):
        assert column in head
    assert "routing table of relay-a, database 0123456789abcdef" in text
    assert "class default: 0 waiting, planned share" in text
    assert cells(text, "a")[:3] == ["a", "host", "chosen"]
    assert cells(text, "b")[:3] == ["b", "host", "outranked"]
    assert cells(text, "relay-b")[1] == "peer"
    assert "? = assumed, not measured yet" in text


def test_routes_shows_the_joint_plan_and_its_shares(served: Served) -> None:
    view = served.view
    snapshot = view.snapshot()
    load = Load(classes=(ClassLoad("default", 0, 0, 30_000),))
    loaded = replace(snapshot, nodes=tuple(replace(node, load=load) for node in snapshot.nodes))
    while view.engine.planning.begin(
        loaded, {"default": DestinationClass("default", ("host:a", "host:b"))}, view.now()
    ):
        view.engine.plan_step(view.now())
    plan = view.engine.planning.plan
    assert plan is not None
    text = show(served, "routes", "default")
    assert f"database 0123456789abcdef, plan {plan.problem.digest} of 0 s ago" in text
    shares = sum(
        float(cells(text, name)[4].rstrip("%")) for name in ("a", "b", "relay-b") if cells(text, name)[4] != "-"
    )
    assert 98 <= shares <= 102


def test_routes_without_a_class_shows_all_of_them(served: Served) -> None:
    assert {"class default:", "class partners:"} <= {
        line[: line.find(":") + 1] for line in show(served, "routes").splitlines()
    }


def test_routes_of_an_unknown_class_names_the_known_ones(served: Served) -> None:
    result = ask(served, "routes", "nope")
    assert result.exit_code == 1
    assert result.stderr == "smtpmesh: no class 'nope' here; there are: default, partners\n"


def test_explain_names_every_candidate_and_why_it_lost(served: Served) -> None:
    text = show(served, "explain", "Reader@Sub.Partner.example")
    assert "Reader@Sub.Partner.example is of the class partners (route partners)" in text
    assert "next hop now: a (host:a); rule: planned share" in text
    assert cells(text, "a")[2] == "chosen"
    for loser in ("relay-b", "relay-c"):
        row = cells(text, loser)
        assert row[2] not in ("chosen", ""), row
        assert row[-1] not in ("", "-"), row
    assert "msg/s from here to the exits; narrow: " in text
    assert "path  relay-a -> host:a" in text


def test_explain_names_the_rule_of_direct_delivery(served: Served) -> None:
    text = show(served, "explain", "x@direct.example")
    assert "x@direct.example is of the class mx:direct.example (route direct)" in text
    assert "mx:direct.example" in text


def test_explain_names_the_sink_that_says_who_gets_mail_to_a_list(served: Served) -> None:
    first = "mail to talk@lists.test is for sink lists first, which says who gets it (a list, an alias)"
    text = show(served, "explain", "talk@lists.test")
    assert text.splitlines()[:2] == [first, "what it leaves as it is:"]
    assert "is of the class" in text.splitlines()[2]
    served.view.table = RouteTable(())
    assert show(served, "explain", "talk@lists.test").splitlines() == [first, "no route takes what it leaves as it is"]


def test_explain_takes_the_names_of_nodes_as_trace(served: Served) -> None:
    answer = json.loads(show(served, "explain", "x@y.test", "--trace", "relay-b", "--json"))
    verdicts = {hop["label"]: hop["verdict"] for hop in answer["route"]["next_hops"]}
    assert verdicts["relay-b"] == "in-trace"


def test_explain_with_an_unknown_trace_names_the_nodes(served: Served) -> None:
    result = ask(served, "explain", "x@y.test", "--trace", "relay-z")
    assert result.exit_code == 1
    assert result.stderr == "smtpmesh: no node 'relay-z'; there are: relay-a, relay-b, relay-c\n"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("x@else.example", "x@else.example is unroutable: no [[route]] takes mail for else.example; "
                           "clients are answered 550"),
        ("postmaster", "postmaster is unroutable: no [[route]] takes addresses without a domain; "
                       "clients are answered 550"),
        ("nonsense@", "'nonsense@' is no address: bad domain syntax"),
    ],
)  # fmt: skip
def test_explain_of_what_cannot_be_routed_says_so(served: Served, address: str, text: str) -> None:
    result = ask(served, "explain", address)
    assert result.exit_code == 1
    assert result.stderr == f"smtpmesh: {text}\n"


def test_nodes_shows_each_members_state_and_who_says_so(served: Served) -> None:
    text = show(served, "nodes")
    assert cells(text, "relay-a") == ["relay-a", "this node", "2 min", "9.1", "01234567", *"----", "0", "-"]
    assert cells(text, "relay-b") == [
        "relay-b", "up", "60 s", "9.1", "01234567", "yes", "3 ms", "0.4 ms", "0 s", "4", "relay-a",
    ]  # fmt: skip
    assert cells(text, "relay-c") == [
        "relay-c", "unreachable", "40 s", "9.1", *"----", "40 s", "0", "relay-a, relay-b",
    ]  # fmt: skip
    assert "\nrelay-c: draining, routes differ, its session ended: connection refused\n" in text
    assert text.endswith("database 0123456789abcdef\n")


def test_nodes_fits_a_terminal_of_120_columns(served: Served) -> None:
    assert max(len(line) for line in show(served, "nodes").splitlines()) <= 120


def test_nodes_shows_ids_and_addresses_when_asked(served: Served) -> None:
    text = show(served, "nodes", "--wide")
    assert cells(text, "relay-b")[3:8] == [PEER, "default", "eu", "192.0.2.2:7946", "192.0.2.2:7925"]
    assert cells(text, "relay-c")[-1] == "relay-a, relay-b"


def test_nodes_as_json_leaves_out_what_no_session_tells(served: Served) -> None:
    nodes = {node["name"]: node for node in json.loads(show(served, "nodes", "--json"))["nodes"]}
    assert nodes["relay-b"]["in_sync"] is True
    assert (nodes["relay-b"]["lag_s"], nodes["relay-b"]["round_trip_s"]) == (0.003, 0.0004)
    assert not {"in_sync", "lag_s", "round_trip_s"} & set(nodes["relay-c"])
    assert nodes["relay-c"]["sources"] == [
        {"node_id": served.view.identity.node_id, "name": "relay-a"},
        {"node_id": PEER, "name": "relay-b"},
    ]


def test_gossip_stats_are_grouped_for_reading(served: Served) -> None:
    assert (
        show(served, "gossip", "stats")
        == """\
members      9, 10 of them unreachable
sessions     6 of 8 wanted; 7 carry bodies
database     13 records, 14 stones, root 0123456789abcdef
outbox       15 records waiting to be sent
epoch        1800000000

own timer    250 ms late; patience with others x 1.5
damped       16 links held back because they flap
quarantined  17 peers not listened to

frames  sent  received
hello   12    11
push    5     0
fetch   0     1
all     17    12
bytes   2048  1024

records offered by others
  stored  30
  known   3

own versions issued
  links  4
  node   1

events
  session-up  2
"""
    )


def test_links_shows_every_link_of_every_node(served: Served) -> None:
    text = show(served, "links")
    rows = [line.split() for line in text.splitlines() if line.startswith("relay-")]
    assert [row[:4] for row in rows] == [
        ["relay-a", "a", "host", "up"],
        ["relay-a", "b", "host", "up"],
        ["relay-b", "a", "host", "up"],
        ["relay-b", "b", "host", "up"],
    ]
    assert rows[0][4:9] == ["100%", "99.0%", "20.0/s", "5", "ms"]


def test_queue_shows_totals_and_what_waits(served: Served) -> None:
    fill(served)
    text = show(served, "queue")
    assert cells(text, "default")[:3] == ["default", "2", "1"]
    assert "451 later" in text
    assert "rcpt@example.org and 1 more" in text
    assert show(served, "queue", "list") == text


def test_queue_is_narrowed_by_state_and_class(served: Served) -> None:
    deferred, _ = fill(served)
    answer = json.loads(show(served, "queue", "--state", "deferred", "--class", "default", "--json"))
    assert [item["queue_id"] for item in answer["deliveries"]] == [deferred]
    assert answer["deliveries"][0]["last_reply"] == "451 later"
    assert json.loads(show(served, "queue", "--class", "other", "--json"))["deliveries"] == []


def test_options_of_queue_may_stand_before_or_after_the_second_word(served: Served) -> None:
    fill(served)
    before = CliRunner().invoke(cli, ["queue", "--admin", served.address, "--json", "--limit", "1", "list"])
    after = CliRunner().invoke(cli, ["queue", "list", "--limit", "1", "--json", "--admin", served.address])
    assert before.exit_code == after.exit_code == 0
    shown = [json.loads(result.stdout)["deliveries"] for result in (before, after)]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 1


def test_an_unknown_state_names_the_known_ones(served: Served) -> None:
    result = ask(served, "queue", "--state", "lost")
    assert result.exit_code == 1
    known = ", ".join(state.value for state in DeliveryState)
    assert result.stderr == f"smtpmesh: no state 'lost'; there are: {known}\n"


def test_queue_show_tells_one_messages_story(served: Served) -> None:
    deferred, _ = fill(served)
    text = show(served, "queue", "show", deferred)
    assert f"message {deferred} of a@sender.example" in text
    assert "deferred  rcpt@example.org and 1 more  (1 attempt, next attempt 2026-03-01T12:05:00.000Z)" in text


def test_queue_show_of_an_unknown_message_says_what_that_may_mean(served: Served) -> None:
    result = ask(served, "queue", "show", "nope")
    assert result.exit_code == 1
    assert result.stderr == ("smtpmesh: no message 'nope' here: unknown, or finished longer ago than queue.history_s\n")


@pytest.mark.parametrize(
    ("words", "method", "fields"),
    [
        (["routes"], "GetRoutes", {}),
        (["routes", "partners"], "GetRoutes", {"class_id": "partners"}),
        (["explain", "x@y.test"], "Explain", {"address": "x@y.test"}),
        (["status"], "GetStatus", {}),
        (["nodes"], "ListNodes", {}),
        (["links"], "ListLinks", {}),
        (["gossip", "stats"], "GetGossipStats", {}),
        (["queue"], "GetQueue", {}),
    ],
)
def test_json_is_what_a_generic_client_sees(
    served: Served, words: list[str], method: str, fields: dict[str, str]
) -> None:
    shown = json.loads(show(served, *words, "--json"))
    generic = reflection_client.call(served.address, reflection_client.ADMIN, method, fields)
    assert shown == generic
    assert shown


def test_tables_have_no_colour(served: Served) -> None:
    assert "\x1b" not in show(served, "routes")


def test_the_address_may_come_from_the_environment(served: Served) -> None:
    result = CliRunner().invoke(cli, ["status"], env={"SMTPMESH_ADMIN": served.address})
    assert result.exit_code == 0
    assert "relay-a" in result.stdout


def test_the_address_may_come_from_the_configuration(served: Served, folder: Path) -> None:
    config = folder / "node.toml"
    config.write_text(f'[node]\nname = "relay-a"\ndata_dir = "{folder}"\n[[route]]\nvia = ["mx"]\n')
    result = CliRunner().invoke(cli, ["status", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert "relay-a" in result.stdout


def fill(served: Served) -> tuple[str, str]:
    """A deferred delivery and one in work, both of the class default; their queue ids."""
    first, second = (build_new("default", addresses=("rcpt@example.org", "b@example.org")) for _ in range(2))
    (claim,) = served.run(served.view.store.put(first)).claims
    served.run(served.view.store.settle([build_deferral(claim, 5)]))
    served.run(served.view.store.put(second))
    return first.entry.queue_id, second.entry.queue_id
