"""`smtpmesh what-if` against a real admin server."""

from __future__ import annotations

import json

import pytest

from tests.unit.smtp_edge.operator.test_commands import ask, cells, show
from tests.unit.smtp_edge.operator.views import PEER, Served


def test_now_and_then_stand_side_by_side(served: Served) -> None:
    text = show(served, "what-if", "--down", "a", "--load", "8/s", "--at", "relay-a", "--class", "default")
    assert "as relay-a sees the mesh, database 01234567; messages a second" in text
    assert cells(text, "offered") == ["offered", "8.0", "8.0"]
    assert cells(text, "delivered") == ["delivered", "8.0", "8.0"]
    assert cells(text, "host:a")[2] == "down"
    assert cells(text, "host:b")[1].startswith("4.0 (50%) of ")
    assert cells(text, "host:b")[2].startswith("8.0 (100%) of ")


def test_what_no_exit_is_left_for_piles_up_and_the_stranded_are_named(served: Served) -> None:
    words = ["--down", "a", "--down", "host:b", "--down", "relay-b", "--at", "relay-a", "--load", "8"]
    text = show(served, "what-if", *words, "--class", "default")
    assert cells(text, "delivered") == ["delivered", "8.0", "0.0"]
    assert cells(text, "piles up") == ["piles up", "nothing", "8.0"]
    assert "no way out then: mail of relay-a waits" in text


def test_json_has_every_class_and_figure(served: Served) -> None:
    answer = json.loads(show(served, "what-if", "--slow", "a=0.5", "--json"))
    assert [item["class_id"] for item in answer["classes"]] == ["default", "partners"]
    now, then = (
        {exit_["hop"]: exit_["capacity_mps"] for exit_ in answer["classes"][0][when]["exits"]}
        for when in ("now", "then")
    )
    assert then["host:a"] == pytest.approx(now["host:a"] / 2)
    assert then["host:b"] == pytest.approx(now["host:b"])


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--down", "nobody"], 1, "no node or smart host 'nobody'; there are the nodes relay-a, relay-b"),
        (["--at", "nobody"], 1, "no node 'nobody'; there are: relay-a, relay-b"),
        (["--slow", "nobody=1"], 1, "no smart host 'nobody'; there are: a, b"),
        (["--class", "nothing"], 1, "no class 'nothing' can be asked about; there are: default, partners"),
        (["--slow", "a"], 2, "'a' is no change; say HOST=FACTOR"),
        (["--slow", "a=-1"], 2, "'a=-1' is no change"),
        (["--load", "many"], 2, "'many' is no rate; say how many messages a second, like 400/s"),
        (["--load", "-3"], 2, "'-3' is no rate"),
    ],
)
def test_what_cannot_be_asked_says_why(served: Served, words: list[str], code: int, text: str) -> None:
    result = ask(served, "what-if", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in " ".join(result.stderr.split())


def test_a_node_may_be_named_by_its_id(served: Served) -> None:
    by_name = show(served, "what-if", "--down", "relay-b", "--load", "5")
    assert by_name == show(served, "what-if", "--down", PEER, "--load", "5")
