"""`smtpmesh simulate --from-live`: a running cluster as a mesh."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from smtp_edge.cli import cli
from smtp_edge.simulation.live import LiveError, read_live, write_toml
from smtp_edge.simulation.scenario import MeshFile, ScenarioFile, build
from smtpmesh.admin.v1 import admin_pb2 as pb


def node(number: int, *, state: str = "up", name: str = "", **ingress_mps: float) -> pb.Node:
    backlogs = [pb.ClassBacklog(class_id=name, ingress_mps=mps) for name, mps in ingress_mps.items()]
    return pb.Node(node_id=f"{number:032x}", name=name or f"mx{number}", state=state, backlogs=backlogs)


def link(
    origin: int,
    hop: str,
    mps: float = 0.0,
    *,
    state: str = "up",
    reliability: float = 1.0,
    latency_s: float = 0.02,
    samples: int = 100,
) -> pb.Link:
    classes = ["default"] if hop.startswith("host:") else []
    return pb.Link(
        origin=f"{origin:032x}", hop=hop, state=state, capacity_mps=mps, reliability=reliability, latency_s=latency_s,
        classes=classes, samples=samples,
    )  # fmt: skip


def peer(number: int) -> str:
    return f"peer:{number:032x}"


NODES = pb.ListNodesResponse(nodes=[node(1, state="this node", default=30.0), node(2, default=10.0), node(3)])
LINKS = pb.ListLinksResponse(
    links=[
        link(1, "host:a", 20.0),
        link(2, "host:a", 20.0, reliability=0.9),
        link(2, "host:b", 60.0, state="down"),
        link(1, peer(2), 10.0),
        link(3, peer(1), 10.0, reliability=0.9, samples=3, latency_s=0.4),
        link(2, "mx:example.org", 5.0),
        link(9, "host:a", 500.0),
    ]
)


def test_members_hosts_and_classes_are_taken_with_what_all_relays_measured() -> None:
    mesh = read_live(NODES, LINKS).mesh
    assert {host.name: host.capacity_mps for host in mesh.host} == {"a": 40.0, "b": 60.0}
    assert {relay.name: relay.exits for relay in mesh.relay} == {"mx1": ("a",), "mx2": ("a", "b"), "mx3": ()}
    assert [(route.name, route.domains, route.via) for route in mesh.route] == [
        ("default", ("default.test",), ("a", "b"))
    ]


def test_ways_have_latency_and_losses_as_measured() -> None:
    ways = {(way.from_, way.to): way for way in read_live(NODES, LINKS).mesh.way}
    assert set(ways) == {("mx1", "a"), ("mx2", "a"), ("mx1", "mx2"), ("mx3", "mx1")}
    assert ways["mx1", "a"].latency_s == pytest.approx(0.005)
    assert ways["mx1", "a"].loss == 0
    assert ways["mx2", "a"].loss == pytest.approx(0.1)
    assert ways["mx3", "mx1"].loss == 0, "it was hardly used"
    assert ways["mx3", "mx1"].latency_s == 0.02, "the rest of it was a queue"


def test_what_is_down_is_blocked_from_the_beginning() -> None:
    live = read_live(NODES, LINKS)
    assert [(event.at, event.do, event.what, event.to) for event in live.events] == [(0, "block", "mx2", "b")]
    assert "1 link down" in live.summary()


def test_mail_is_what_arrives_now_or_as_much_as_is_asked_for_in_the_same_proportions() -> None:
    assert {load.relay: load.rate_mps for load in read_live(NODES, LINKS).mesh.load} == {"mx1": 30, "mx2": 10}
    assert {load.relay: load.rate_mps for load in read_live(NODES, LINKS, 80).mesh.load} == {"mx1": 60, "mx2": 20}


def test_without_mail_the_load_has_to_be_said_and_is_spread_evenly() -> None:
    idle = pb.ListNodesResponse(nodes=[node(1), node(2)])
    with pytest.raises(LiveError, match=r"--load 400/s"):
        read_live(idle, LINKS)
    assert {load.relay: load.rate_mps for load in read_live(idle, LINKS, 50).mesh.load} == {"mx1": 25, "mx2": 25}


def test_members_that_are_lost_are_left_out_and_equal_names_told_apart() -> None:
    nodes = pb.ListNodesResponse(nodes=[node(1, name="mx"), node(2, name="mx"), node(3, state="unreachable")])
    names = [relay.name for relay in read_live(nodes, LINKS, 10).mesh.relay]
    assert names == ["mx", f"mx-{2:032x}"[:11]]


def test_a_cluster_without_smart_hosts_cannot_be_simulated() -> None:
    with pytest.raises(LiveError, match="no relay of the cluster has a link to a smart host"):
        read_live(NODES, pb.ListLinksResponse(links=[link(1, peer(2))]))


def test_the_file_that_is_written_is_the_same_mesh() -> None:
    live = read_live(NODES, LINKS)
    text = write_toml(live)
    assert MeshFile.model_validate(tomllib.loads(text)) == live.mesh
    assert "mx2 -> b" in text


def test_it_runs_and_loses_nothing() -> None:
    live = read_live(NODES, LINKS)
    with build(live.mesh, ScenarioFile(event=live.events)) as mesh:
        mesh.run(10)
        assert mesh.lost == 0
        assert mesh.delivered > 250
        assert mesh.shares() == {"a": 1.0, "b": 0.0}


# -- the command -------------------------------------------------------------------------------------------------------


class Fake:
    def call(self, method: str, _: dict[str, Any]) -> Any:
        return {"ListNodes": NODES, "ListLinks": LINKS}[method]


@contextmanager
def fake_client(*_: object, **__: object) -> Iterator[Fake]:
    yield Fake()


def test_the_command_says_what_it_took_runs_it_and_writes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("smtp_edge.cli.common.open_client", fake_client)
    words = ["simulate", "--from-live", "unix:x", "--duration", "5", "--write", str(tmp_path / "mesh.toml")]
    found = CliRunner().invoke(cli, words)
    assert found.exit_code == 0, found.output
    assert "taken from unix:x: 3 relays, 2 hosts, 1 class, 1 link down, 40.0 messages/s" in found.stderr
    assert "lost      0" in found.stdout
    again = CliRunner().invoke(cli, ["simulate", str(tmp_path / "mesh.toml"), "--duration", "2"])
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "say what to simulate"),
        (["mesh.toml", "--from-live", "unix:x"], "say what to simulate"),
        (["mesh.toml", "--load", "4/s"], "go with --from-live"),
        (["--from-live", "nowhere"], "--from-live"),
    ],
)
def test_words_that_do_not_fit_are_explained(words: list[str], text: str) -> None:
    found = CliRunner().invoke(cli, ["simulate", *words])
    assert found.exit_code == 2
    assert text in found.output


def test_a_node_that_does_not_answer_is_named() -> None:
    found = CliRunner().invoke(cli, ["simulate", "--from-live", "unix:/nonexistent/admin.sock"])
    assert found.exit_code == 3
    assert "no answer from unix:/nonexistent/admin.sock" in found.output
