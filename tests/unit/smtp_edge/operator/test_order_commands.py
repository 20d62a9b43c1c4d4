"""`node`, `host`, `pin`, `unpin` against a real admin server: what they say, how they end, and who may."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from gossip.identity import Authority
from router.decision import Hop, Outcome, OutcomeKind
from smtp_edge.admin.drain import read_progress
from smtp_edge.cli import cli
from smtp_edge.cli import orders as order_commands
from smtp_edge.queue.entry import DeliveryState
from smtp_edge.reload import Report
from smtpmesh.admin.v1 import admin_pb2 as pb
from smtpmesh.admin.v1 import admin_pb2_grpc as pb_grpc
from tests.e2e import reflection_client
from tests.unit.smtp_edge.operator.test_admin_server import call_over_tls, network_address
from tests.unit.smtp_edge.operator.test_commands import ask, cells, show
from tests.unit.smtp_edge.operator.views import PEER, FakeView, Served, make_identity
from tests.unit.smtp_edge.queue.builders import build_deferral, build_new, hold


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The node's log goes to the same standard output here as what the command says."""
    monkeypatch.setattr(order_commands, "POLL_S", 0.01)
    monkeypatch.setenv("LOGNAME", "sue")
    with capture_logs():
        yield


def orders(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(show(served, "status", "--json"))["orders"]
    return found


def smtp_health(served: Served) -> str:
    answer = reflection_client.call(served.address, reflection_client.HEALTH, "Check", {"service": "smtpmesh.smtp"})
    return str(answer["status"])


# -- nodes -------------------------------------------------------------------------------------------------------------


def test_a_node_is_drained_and_takes_mail_again(served: Served) -> None:
    hint = "`smtpmesh node drain --wait` shows how far it is\n"
    assert show(served, "node", "drain") == f"relay-a drains; {hint}"
    assert show(served, "node", "drain") == f"relay-a drains already; {hint}"
    assert cells(show(served, "status"), "draining")[1] == "since 2026-03-01T12:00:00.000Z, by sue"
    assert smtp_health(served) == "NOT_SERVING"
    assert show(served, "node", "undrain") == "relay-a takes mail again\n"
    assert show(served, "node", "undrain") == "relay-a takes mail already\n"
    assert smtp_health(served) == "SERVING"
    assert served.view.drains == [True, False]
    assert "drain" not in orders(served)


def test_orders_show_in_the_monitor_with_who_asked(served: Served) -> None:
    show(served, "node", "drain")
    subscription = served.view.events.subscribe(recent_count=5)
    named = [told.event.text for told in subscription._backlog]
    assert named == ["this node drains (by sue)"]


def test_waiting_ends_when_nothing_is_left(served: Served) -> None:
    text = show(served, "node", "drain", "--wait")
    assert text.splitlines()[-1][8:] == "  drained: nothing waits, nothing is in doubt"
    shown = json.loads(show(served, "node", "drain", "--wait", "--json"))
    assert (shown["done"], shown["waiting"]) == (True, "0")


def test_waiting_names_what_could_not_leave(served: Served) -> None:
    at = datetime.now(UTC)
    claims = [served.run(served.view.store.put(build_new(received_at=at), claim=True)).claims[0] for _ in range(3)]
    later = (at - datetime(2026, 3, 1, 12, 0, tzinfo=UTC)) / timedelta(minutes=1) + 60
    served.run(served.view.store.settle([build_deferral(claims[0], later)]))
    deferred = claims[0].delivery.queue_id
    held = claims[1].delivery.queue_id
    served.run(served.view.store.settle([build_deferral(claims[1], later)]))
    served.run(hold(served.view.store, held))
    served.view.open_clients = 1
    for hop in ("a", "b"):
        show(served, "host", "drain", hop)
    served.view.engine.peer_session(PEER, False, served.view.now())
    result = ask(served, "node", "drain", "--wait", "--timeout", "0.05s")
    assert result.exit_code == 1
    assert "2 waiting (1 deferred), 0 in flight, 0 in doubt, 1 held, 1 client still submitting" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0] == "smtpmesh: relay-a is not drained after 0 s; this is left:"
    assert lines[1] == "smtpmesh: class default: 2 waiting: hold: no path"
    assert "smtpmesh: 1 held by an operator" in lines
    assert "smtpmesh: 1 client still submitting" in lines
    (line,) = [line for line in lines if deferred in line]
    assert line.endswith(": hold: no path, and its next attempt is not due")
    assert any(held in line and line.endswith("held by an operator") for line in lines)


def test_waiting_ends_when_somebody_takes_the_order_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.run(served.view.store.put(build_new(received_at=datetime.now(UTC)), claim=False))
    first = iter([True])

    def interfere(_: float) -> None:
        if next(first, False):
            served.run(served.view.operations.undrain_node("tom"))

    monkeypatch.setattr(order_commands.time, "sleep", interfere)
    result = ask(served, "node", "drain", "--wait")
    assert result.exit_code == 1
    assert result.stderr == "smtpmesh: relay-a does not drain any more: somebody took the order back\n"


def test_what_is_deferred_and_can_leave_says_where_it_goes(served: Served) -> None:
    served.run(served.view.store.put(build_new(received_at=datetime.now(UTC)), claim=False))
    shown = served.run(_progress(served))
    assert [item.reason for item in shown.deliveries] == ["goes to host:a"]
    assert [item.state for item in shown.deliveries] == [DeliveryState.QUEUED.value]


async def _progress(served: Served) -> pb.GetDrainResponse:
    return await read_progress(served.view, datetime.now(UTC))


# -- hosts -------------------------------------------------------------------------------------------------------------


def test_a_host_is_drained_on_the_node_that_is_asked(served: Served) -> None:
    assert show(served, "host", "drain", "a") == "relay-a: a gets nothing new\n"
    assert show(served, "host", "drain", "host:a") == "relay-a: host:a gets nothing new, as before\n"
    row = cells(show(served, "routes", "default"), "a")
    assert row[2:4] == ["draining", "draining"]
    assert row[-1] == "it is being drained: by sue"
    assert cells(show(served, "status"), "drained")[1].startswith("host a since ")
    assert show(served, "host", "undrain", "a") == "relay-a: a may be used again\n"
    assert show(served, "host", "undrain", "a") == "relay-a: a may be used, as before\n"


def test_a_host_that_is_not_there_is_named_with_those_that_are(served: Served) -> None:
    result = ask(served, "host", "drain", "zz")
    assert result.exit_code == 1
    assert result.stderr == "smtpmesh: no smart host 'zz' here; there are: a, b\n"


def test_everywhere_names_the_nodes_that_were_not_told(served: Served) -> None:
    result = ask(served, "host", "drain", "a", "--everywhere")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "relay-a: a gets nothing new",
        "relay-b: not told: its admin service is for its own machine only (admin.listen)",
        "relay-c: not told: its admin service is for its own machine only (admin.listen)",
    ]
    assert result.stderr == "smtpmesh: not told: relay-b, relay-c; run the same command there\n"
    shown = json.loads(ask(served, "host", "undrain", "a", "--everywhere", "--json").stdout)
    assert [item["outcome"] for item in shown["nodes"]] == ["changed", "not told", "not told"]


def test_everywhere_asks_those_that_can_be_reached(
    served: Served, tmp_path: Path, authority: Authority, networked: Served
) -> None:
    identity_folder = tmp_path / "caller"
    make_identity(identity_folder, "ops", authority)
    (identity_folder / "node.toml").write_text('[node]\nname = "x"\n[[route]]\nvia = ["mx"]\n')
    address = f"{network_address()}:{networked.address.rpartition(':')[2]}"
    served.view.admin_addresses = {"relay-b": address, "relay-c": "127.0.0.1:1"}
    words = ["host", "drain", "b", "--everywhere", "--config", str(identity_folder / "node.toml")]
    result = ask(served, *words)
    lines = result.stdout.splitlines()
    assert lines[:2] == ["relay-a: b gets nothing new"] * 2  # both fakes have the same name
    assert lines[2].startswith("relay-c: not told: no answer from 127.0.0.1:1")
    assert list(networked.view.operations.orders.hosts) == ["b"]
    assert networked.view.operations.orders.hosts["b"].by == "sue at ops"


# -- pins --------------------------------------------------------------------------------------------------------------


def test_a_class_is_pinned_and_the_table_says_so(served: Served) -> None:
    until = "2026-03-01T14:00:00.000Z"
    assert show(served, "pin", "default", "b", "--for", "2h") == (
        f"relay-a: all mail of default goes by host:b until {until}\n"
    )
    text = show(served, "routes", "default")
    assert "class default: 0 waiting, pinned (pinned to host:b for 2.0 h more)" in text
    assert cells(text, "a")[2] == "pinned-elsewhere"
    assert cells(text, "b")[2] == "chosen"
    assert "rule: pinned (pinned to host:b for 2.0 h more)" in show(served, "explain", "x@y.test")
    assert cells(show(served, "status"), "pinned")[1] == f"default to host:b until {until}, by sue"
    assert show(served, "unpin", "default") == "relay-a: default is no longer pinned\n"
    assert show(served, "unpin", "default") == "relay-a: default was not pinned\n"


@pytest.mark.parametrize("name", ["relay-b", PEER, f"peer:{PEER}", "peer:relay-b"])
def test_a_class_may_be_pinned_to_a_node_by_its_name_or_id(served: Served, name: str) -> None:
    shown = json.loads(show(served, "pin", "default", name, "--json"))
    assert shown["pin"]["hop"] == f"peer:{PEER}"
    assert shown["pin"]["until"] == "2026-03-01T13:00:00.000Z"


def test_a_domain_of_direct_delivery_may_be_pinned(served: Served) -> None:
    name = "mx:direct.example"
    assert f"{name} goes by {name}" in show(served, "pin", name, name)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["pin", "nope", "a"], 1, "there is no class 'nope' here; there are: default, partners"),
        (["pin", "partners", "b"], 1, "host:b is no exit of the class partners here; there are: host:a"),
        (["pin", "default", "zz"], 1, "no node or smart host 'zz'; there are the nodes relay-a, relay-b, relay-c"),
        (["pin", "default", "peer:zz"], 1, "no node 'zz'; there are: relay-a, relay-b, relay-c"),
        (["pin", "default", "relay-a"], 1, "there is no peer:"),
        (["pin", "default", "a", "--for", "8d"], 1, "a pin is for more than 0 s and at most 7 days, not 691200 s"),
        (["pin", "default", "a", "--for", "soon"], 2, "'soon' is no duration; say 90s, 30m, 2h or 1d"),
        (["pin", "default", "a", "--for", "0"], 2, "'0' is no duration"),
        (["node", "drain", "--timeout", "x"], 2, "'x' is no duration"),
    ],
)
def test_what_cannot_be_ordered_says_why(served: Served, words: list[str], code: int, text: str) -> None:
    result = ask(served, *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in " ".join(result.stderr.split())
    assert served.view.operations.orders.pins == {}


# -- who may -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def authority() -> Authority:
    return Authority.create("test", at=datetime.now(UTC))


@pytest.fixture
def networked(tmp_path: Path, authority: Authority) -> Iterator[Served]:
    """A server on every address whose configuration names one operator."""
    folder = tmp_path / "n"
    view = FakeView(folder, make_identity(folder, authority=authority))
    admin = view.settings.admin.model_copy(update={"operators": ("ops",)})
    view.settings = view.settings.model_copy(update={"admin": admin})
    served = Served(view, "0.0.0.0:0")
    yield served
    served.close()


def stub(served: Served, folder: Path, name: str, authority: Authority) -> tuple[grpc.Channel, pb_grpc.AdminStub]:
    caller, own = make_identity(folder / name, name, authority), served.view.identity
    credentials = grpc.ssl_channel_credentials(own.ca_pem, caller.key_pem, caller.certificate_pem)
    options = [("grpc.ssl_target_name_override", f"{own.node_id}.smtpmesh"), ("grpc.enable_http_proxy", 0)]
    port = served.address.rpartition(":")[2]
    channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options)
    return channel, pb_grpc.AdminStub(channel)


CHANGES = [
    ("ChangeQueue", pb.ChangeQueueRequest(action="hold", all=True)),
    ("DrainNode", pb.DrainNodeRequest()),
    ("UndrainNode", pb.UndrainNodeRequest()),
    ("DrainHost", pb.DrainHostRequest(host="a")),
    ("UndrainHost", pb.UndrainHostRequest(host="a")),
    ("Pin", pb.PinRequest(class_id="default", hop="a")),
    ("Reload", pb.ReloadRequest()),
    ("Unpin", pb.UnpinRequest(class_id="default")),
]


def test_over_the_network_a_member_may_look_and_not_order(
    networked: Served, authority: Authority, tmp_path: Path
) -> None:
    channel, asked = stub(networked, tmp_path, "relay-b", authority)
    with channel:
        assert asked.GetOrders(pb.GetOrdersRequest(), timeout=5).node_name == "relay-a"
        asked.GetDrain(pb.GetDrainRequest(), timeout=5)
        for method, request in CHANGES:
            with pytest.raises(grpc.RpcError) as caught:
                getattr(asked, method)(request, timeout=5)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, method
            assert caught.value.details() == (
                "relay-b may look, not order: admin.operators of this node names ops;"
                " on its own machine the Unix socket may order, too"
            )
    assert networked.view.drains == []


def test_over_the_network_an_operator_may_order_and_is_named(
    networked: Served, authority: Authority, tmp_path: Path
) -> None:
    channel, asked = stub(networked, tmp_path, "ops", authority)
    with channel:
        for method, request in CHANGES:
            getattr(asked, method)(request, timeout=5)
        asked.DrainNode(pb.DrainNodeRequest(), timeout=5)
    drain = networked.view.operations.orders.drain
    assert drain is not None
    assert drain.by == "ops"


def test_an_operator_may_be_named_by_the_id_of_its_key(authority: Authority, tmp_path: Path) -> None:
    caller = make_identity(tmp_path / "x", "whoever", authority)
    folder = tmp_path / "n"
    view = FakeView(folder, make_identity(folder, authority=authority))
    admin = view.settings.admin.model_copy(update={"operators": (str(caller.node_id),)})
    view.settings = view.settings.model_copy(update={"admin": admin})
    served = Served(view, "0.0.0.0:0")
    try:
        assert call_over_tls(served, caller).name == "relay-a"
        own = view.identity
        credentials = grpc.ssl_channel_credentials(own.ca_pem, caller.key_pem, caller.certificate_pem)
        options = [("grpc.ssl_target_name_override", f"{own.node_id}.smtpmesh"), ("grpc.enable_http_proxy", 0)]
        with grpc.secure_channel(f"127.0.0.1:{served.address.rpartition(':')[2]}", credentials, options) as channel:
            assert pb_grpc.AdminStub(channel).DrainNode(pb.DrainNodeRequest(), timeout=5).changed
    finally:
        served.close()


def test_over_loopback_everybody_may_look_and_nobody_may_order(folder: Path) -> None:
    served = Served(FakeView(folder, make_identity(folder)), "127.0.0.1:0")
    try:
        assert ask(served, "status").exit_code == 0
        result = ask(served, "node", "drain")
        assert result.exit_code == 1
        assert result.stderr.startswith("smtpmesh: over loopback anybody on this machine could order that; set admin.")
        assert served.view.drains == []
    finally:
        served.close()


def test_an_order_that_cannot_be_kept_says_so(served: Served, folder: Path) -> None:
    (folder / "orders.partial").mkdir()
    result = ask(served, "node", "drain")
    assert result.exit_code == 1
    assert "orders.json cannot be written: Is a directory; nothing was changed" in result.stderr
    assert served.view.drains == []


def test_without_a_node_there_the_commands_end_with_3() -> None:
    for words in (["node", "drain"], ["node", "drain", "--wait"], ["host", "drain", "a"], ["unpin", "x"]):
        result: Result = CliRunner().invoke(cli, [*words, "--admin", "unix:/nowhere/admin.sock"])
        assert result.exit_code == 3, words


def test_transactions_in_flight_are_counted(served: Served) -> None:
    hop = Hop.parse("host:a")
    served.view.engine.begin(hop, "default", served.view.now())
    assert served.run(_progress(served)).in_flight == 1
    served.view.engine.record(Outcome(hop, OutcomeKind.ACCEPTED, 0, 0.1), "default", served.view.now())
    assert served.run(_progress(served)).in_flight == 0


# -- reload ------------------------------------------------------------------------------------------------------------


def test_reload_says_what_was_applied_and_what_waits(served: Served) -> None:
    served.view.report = Report(("limits.hops_max", "route (order)"), ("metrics.listen",), sessions=2)
    assert show(served, "reload").splitlines() == [
        "relay-a: applied 2, needs restart: metrics.listen",
        "  limits.hops_max",
        "  route (order)",
        "2 sessions of clients end by what they began with",
    ]
    assert served.view.reloads == [("sue", False)]
    answer = json.loads(show(served, "reload", "--json"))
    assert (answer["applied"], answer["needs_restart"]) == (["limits.hops_max", "route (order)"], ["metrics.listen"])


def test_reload_that_changes_nothing_says_so_and_a_dry_run_says_would(served: Served) -> None:
    assert show(served, "reload") == "relay-a: applied nothing\n"
    served.view.report = Report(("log.level",))
    assert show(served, "reload", "--dry-run") == "relay-a: would apply 1\n  log.level\n"
    assert served.view.reloads == [("sue", False), ("sue", True)]


def test_a_wrong_configuration_is_told_with_every_mistake_and_ends_with_78(served: Served) -> None:
    served.view.report = Report(mistakes=("node.toml: a.b: is required", "node.toml: c.d: unknown key"))
    done = ask(served, "reload")
    assert done.exit_code == 78
    assert done.stderr.splitlines() == [
        "smtpmesh: relay-a goes on by its old configuration",
        "smtpmesh: node.toml: a.b: is required",
        "smtpmesh: node.toml: c.d: unknown key",
    ]
    assert json.loads(ask(served, "reload", "--json").stdout)["mistakes"] == list(served.view.report.mistakes)


def test_status_shows_what_the_node_goes_by_and_what_a_reload_left_open(served: Served) -> None:
    assert cells(show(served, "status"), "config")[1] == "of 2026-03-01T11:58:00.000Z"
    served.view.configured = replace(
        served.view.configured, restart=("metrics.listen", "node.name"), mistakes=("node.toml: a.b: is required",)
    )
    lines = [line.strip() for line in show(served, "status").splitlines()]
    first = lines.index("needs restart: metrics.listen, node.name")
    assert lines[first + 1 : first + 3] == ["the last reload was refused:", "node.toml: a.b: is required"]
