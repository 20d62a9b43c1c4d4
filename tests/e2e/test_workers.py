"""A node of several processes: all of them work, each may die, none is left behind, and no mail is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster, HostPlan, Relay, find_port, is_serving
from smtp_edge.demo.ledger import Kill, Ledger, to_text
from smtp_edge.demo.submit import Connections, Submitter
from smtp_edge.demo.watch import AdminCalls
from tests.bench.lab.account import is_alive
from tests.e2e.scene import account, cut_off, events, wait_until
from tests.e2e.test_drain import smtpmesh

WORKERS = 2
HOST = HostPlan("A")


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    """One relay of two workers, not started."""
    with Cluster(folder, relays=("A",), hosts=(HOST,), workers=WORKERS) as cluster:
        yield cluster


@pytest.fixture
def relay(cluster: Cluster) -> Relay:
    return cluster.relays["relay A"]


def calls_of(relay: Relay) -> AdminCalls:
    """Admin clients by the number of the worker."""
    return AdminCalls({str(number): admin for number, admin in enumerate(relay.admins, 1)})


def pid_of(relay: Relay, worker: int) -> int:
    """Of its latest process."""
    started = [line for line in events(relay.server.log, "worker.started") if line["worker"] == worker]
    return int(started[-1]["pid"])


class Anew(Submitter):
    """Clients that come anew for each message: the kernel chooses a worker each time."""

    def _offer(self, connections: Connections, relay: str, message: bytes) -> str:
        outcome = super()._offer(connections, relay, message)
        connections.drop(relay)
        return outcome


def hurry(relay: Relay) -> Submitter:
    return Anew({"relay A": relay.smtp}, rate_mps=60, thread_count=12)


def submit(relay: Relay, count: int) -> Submitter:
    """So many messages, until all are answered."""
    load = Anew({"relay A": relay.smtp}, rate_mps=200, count_max=count, thread_count=12)
    load.start()
    assert load.join(30)
    return load


def accepted(calls: AdminCalls, worker: int) -> int:
    answer = calls.call(str(worker), "GetStatus")
    return int(answer.accepted) if answer is not None else 0


def relayed(calls: AdminCalls, worker: int) -> int:
    answer = calls.call(str(worker), "GetStatus")
    return int(answer.relayed) if answer is not None else 0


def finish(cluster: Cluster, calls: AdminCalls, *loads: Submitter) -> Ledger:
    """Everything is delivered; the account."""
    for load in loads:
        load.stop()
    relay = cluster.relays["relay A"]
    wait_until(lambda: all(calls.waiting(str(n)) == 0 for n in range(1, relay.workers + 1)), 60, "empty queues")
    return account(cluster, *loads)


def test_both_workers_take_and_deliver_what_comes_to_one_port(cluster: Cluster, relay: Relay) -> None:
    cluster.start()
    calls, load = calls_of(relay), hurry(relay)
    load.start()
    wait_until(lambda: min(accepted(calls, 1), accepted(calls, 2)) >= 20, 40, "both take mail")
    wait_until(lambda: min(relayed(calls, 1), relayed(calls, 2)) >= 20, 40, "both deliver mail")
    ledger = finish(cluster, calls, load)
    assert ledger.balanced, to_text(ledger)
    assert ledger.doubled == ()
    assert accepted(calls, 1) + accepted(calls, 2) >= ledger.accepted
    done = smtpmesh(relay, "status", "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["workers"]) == ["relay-a-1", "relay-a-2"]
    names = [line["name"] for line in json.loads(smtpmesh(relay, "nodes", "--json").stdout)["nodes"]]
    assert sorted(names) == ["relay-a-1", "relay-a-2"]


def test_a_worker_that_is_killed_comes_back_with_its_mail_and_the_other_goes_on(cluster: Cluster, relay: Relay) -> None:
    cluster.start()
    calls, load = calls_of(relay), hurry(relay)
    load.start()
    for number in (2, 1, 2):
        goal = load.counts().accepted + 40
        wait_until(lambda goal=goal: load.counts().accepted >= goal, 30, "mail flows")  # type: ignore[misc]
        kill_worker(cluster, relay, number)
        other = accepted(calls, 3 - number)
        wait_until(lambda n=number, was=other: accepted(calls, 3 - n) > was, 20, "the other goes on")  # type: ignore[misc]
        wait_until(lambda n=number: is_serving(relay.admins[n - 1]), 30, "the dead one is back")  # type: ignore[misc]
    ledger = finish(cluster, calls, load)
    assert ledger.balanced, to_text(ledger)
    assert [line["signal"] for line in events(relay.server.log, "worker.died")] == ["SIGKILL"] * 3
    assert relay.server.alive


def kill_worker(cluster: Cluster, relay: Relay, number: int) -> None:
    """kill -9; a reason for doubles, as every kill of a relay."""
    os.kill(pid_of(relay, number), signal.SIGKILL)
    cluster.kills.append(Kill(relay.name, time.time()))


def test_mail_that_a_dead_worker_held_is_delivered_when_it_is_back(cluster: Cluster, relay: Relay) -> None:
    whole = relay.config.read_text()
    cut_off(cluster, relay.name)
    cluster.start()
    calls = calls_of(relay)
    load = submit(relay, 60)
    held = {number: calls.waiting(str(number)) or 0 for number in (1, 2)}
    assert sum(held.values()) == 60
    victim = max(held, key=lambda number: held[number])
    kill_worker(cluster, relay, victim)
    relay.config.write_text(whole)
    wait_until(lambda: is_serving(relay.admins[victim - 1]), 30, "the dead one is back")
    done = smtpmesh(relay, "reload")
    assert done.returncode == 0, done.stderr
    ledger = finish(cluster, calls, load)
    assert ledger.balanced, to_text(ledger)
    assert ledger.accepted == ledger.delivered == 60


def test_a_supervisor_that_is_killed_leaves_nobody_behind_and_the_next_goes_on(cluster: Cluster, relay: Relay) -> None:
    cluster.start()
    calls, load = calls_of(relay), hurry(relay)
    load.start()
    wait_until(lambda: load.counts().accepted >= 60, 30, "mail flows")
    before = [pid_of(relay, number) for number in (1, 2)]
    cluster.kill(relay.name)
    relay.server.spawn()  # at once: the old workers are still about to end
    wait_until(lambda: not any(is_alive(pid) for pid in before), 30, "the old workers end")
    wait_until(lambda: len(events(relay.server.log, "node.ready")) == 4, 40, "the new ones are ready")
    assert [is_alive(pid_of(relay, number)) for number in (1, 2)] == [True, True]
    wait_until(lambda: min(accepted(calls, 1), accepted(calls, 2)) >= 10, 30, "both take mail again")
    ledger = finish(cluster, calls, load)
    assert ledger.balanced, to_text(ledger)


def test_told_to_stop_it_stops_all_in_good_order(cluster: Cluster, relay: Relay) -> None:
    cluster.start()
    load = hurry(relay)
    load.start()
    wait_until(lambda: load.counts().accepted >= 40, 30, "mail flows")
    load.stop()
    workers = [pid_of(relay, number) for number in (1, 2)]
    assert relay.server.process is not None
    relay.server.process.send_signal(signal.SIGTERM)
    assert relay.server.process.wait(60) == 0
    assert [is_alive(pid) for pid in workers] == [False, False]
    assert sorted(line["node"] for line in events(relay.server.log, "node.stopped")) == ["relay-a-1", "relay-a-2"]
    assert events(relay.server.log, "worker.died", "worker.killed") == []


def test_drain_and_reload_reach_both(cluster: Cluster, relay: Relay) -> None:
    cluster.start()
    done = smtpmesh(relay, "node", "drain", "--wait", "--timeout", "30s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [is_serving(admin) for admin in relay.admins] == [False, False]
    health = smtpmesh(relay, "health")
    assert health.returncode == 1
    assert "relay-a-1: draining" in health.stdout
    assert "relay-a-2: draining" in health.stdout
    assert smtpmesh(relay, "node", "undrain").stdout.splitlines() == [
        "relay-a-1 takes mail again",
        "relay-a-2 takes mail again",
    ]
    assert [is_serving(admin) for admin in relay.admins] == [True, True]

    text = relay.config.read_text()
    relay.config.write_text(text.replace("allow_networks =", "recipients_max = 7\nallow_networks ="))
    assert "relay-a-2: applied 1\n  listener[smtp].recipients_max" in smtpmesh(relay, "reload").stdout
    relay.config.write_text(text)
    assert relay.server.process is not None
    relay.server.process.send_signal(signal.SIGHUP)  # the supervisor passes it on
    wait_until(lambda: len(events(relay.server.log, "node.reloaded")) == 4, 20, "both read it again")
    by = [line["by"] for line in events(relay.server.log, "node.reloaded")]
    assert by[2:] == ["signal", "signal"]
    relay.config.write_text(text.replace("workers = 2", "workers = 1"))
    assert smtpmesh(relay, "reload").stdout.splitlines() == ["relay-a-1: applied nothing, needs restart: node.workers"]
    assert json.loads(smtpmesh(relay, "status", "--json").stdout)["configuration"]["needs_restart"] == ["node.workers"]


def test_both_go_by_a_new_listener_and_by_renewed_certificates_or_neither_does(cluster: Cluster, relay: Relay) -> None:
    cluster.start()
    text, port = relay.config.read_text(), find_port(set(relay.ports.values()))
    second = f'[[listener]]\nname = "second"\nlisten = "127.0.0.1:{port}"\n\n[admin]'
    relay.config.write_text(text.replace("[admin]", second))
    with socket.create_server(("127.0.0.1", port)):
        refused = smtpmesh(relay, "reload")
        assert refused.returncode == 78
        assert refused.stderr.splitlines()[0] == "smtpmesh: relay-a-1, relay-a-2 go on by their old configuration"
        assert "listener second: cannot listen on" in refused.stderr
    assert smtpmesh(relay, "renew", str(relay.folder), "--from", str(cluster.directory), config=False).returncode == 0
    applied = json.loads(smtpmesh(relay, "reload", "--json").stdout)["workers"]
    for answer in applied.values():
        assert sorted(answer["applied"]) == ["cluster.certificate (content)", "listener[second] (new)"]
    assert [dial(port, patience_s=20) for _ in range(40)] == ["220"] * 40
    os.kill(pid_of(relay, 1), signal.SIGSTOP)  # each has its own socket: who dials the stopped one gets no greeting
    try:
        answers = {dial(port) for _ in range(40)}
    finally:
        os.kill(pid_of(relay, 1), signal.SIGCONT)
    assert answers == {"220", ""}


def dial(port: int, patience_s: float = 0.3) -> str:
    """The code of the greeting, or nothing."""
    with socket.create_connection(("127.0.0.1", port), patience_s) as client:
        try:
            return client.recv(100)[:3].decode()
        except TimeoutError:
            return ""


def test_a_message_is_found_in_the_worker_that_has_it(cluster: Cluster, relay: Relay) -> None:
    cut_off(cluster, relay.name)
    cluster.start()
    submit(relay, 40)
    shown = json.loads(smtpmesh(relay, "queue", "--json").stdout)["workers"]
    ids = {name: [item["queue_id"] for item in answer["deliveries"]] for name, answer in shown.items()}
    assert sum(len(found) for found in ids.values()) == 40
    second = ids["relay-a-2"][0]
    assert "relay-a-2" in smtpmesh(relay, "why", second).stdout
    assert json.loads(smtpmesh(relay, "queue", "show", second, "--json").stdout)["queue_id"] == second
    held = smtpmesh(relay, "queue", "hold", second)
    assert (held.returncode, held.stdout) == (0, "relay-a-2: 1 delivery held\n")
    unknown = smtpmesh(relay, "queue", "hold", "nonesuch")
    assert (unknown.returncode, unknown.stderr) == (1, "smtpmesh: no undelivered message here is 'nonesuch'\n")
    assert second in smtpmesh(relay, "queue", "--worker", "2", "--state", "held").stdout
    removed = smtpmesh(relay, "queue", "remove", "--all")
    assert removed.returncode == 0, removed.stderr
    assert [line.partition(":")[0] for line in removed.stdout.splitlines()] == ["relay-a-1", "relay-a-2"]


def test_mail_of_a_worker_that_is_no_more_is_brought_out(cluster: Cluster, relay: Relay) -> None:
    whole = relay.config.read_text()
    cut_off(cluster, relay.name)
    cluster.start()
    calls = calls_of(relay)
    load = submit(relay, 60)
    count = calls.waiting("2") or 0
    assert count
    relay.server.stop()
    relay.config.write_text(whole.replace("workers = 2", "workers = 1"))
    done = smtpmesh(relay, "check-config")
    messages = f"{count} message{'s' * (count > 1)} of worker 2, and workers = 1"
    assert f"worker-2 holds {messages}; `smtpmesh run` drains it until it is empty" in done.stderr
    relay.workers = 1
    relay.server.spawn()
    cluster.wait_relay(relay)
    wait_until(lambda: events(relay.server.log, "worker.retired"), 40, "the second worker is empty, and ends")
    ledger = finish(cluster, calls, load)
    assert ledger.balanced, to_text(ledger)
    assert ledger.delivered == 60
    assert smtpmesh(relay, "check-config").stderr == ""
    relay.server.stop()
    relay.config.write_text(whole)  # and it takes mail again when there are two
    relay.workers = 2
    relay.server.spawn()
    cluster.wait_relay(relay)


def test_what_keeps_workers_from_running_is_said_before_they_do(cluster: Cluster, relay: Relay) -> None:
    (relay.folder / "node-2.crt").unlink()
    done = smtpmesh(relay, "check-config")
    assert done.returncode == 78
    assert done.stderr == (
        f"smtpmesh: {relay.config}: node.workers: node-2.crt in {relay.folder}: not there, and each worker needs its "
        "own; `smtpmesh workers 2 --config node.toml --from FOLDER` issues them (FOLDER holds ca.key)\n"
    )
    (relay.folder / "node-2.key").unlink()
    made = smtpmesh(relay, "workers", "2", "--from", str(cluster.directory))
    assert made.returncode == 0, made.stderr
    assert smtpmesh(relay, "check-config").returncode == 0
    port = relay.ports["smtp"]
    with socket.create_server(relay.smtp, reuse_port=True):  # somebody else, who would even share it
        assert end_of(relay) == 78
        assert f"listener smtp: cannot listen on 127.0.0.1:{port}: the port is in use" in relay.server.tail()
        assert events(relay.server.log, "worker.started") == []
    port = relay.ports["mesh"] + 1
    with socket.create_server(("127.0.0.1", port)):  # of the second worker alone: the first does not go on without it
        assert end_of(relay) == 78
        assert f"mesh.listen: cannot listen on 127.0.0.1:{port}: the port is in use" in relay.server.tail(40)
        assert [line["worker"] for line in events(relay.server.log, "worker.refused")] == [2]
    relay.server.spawn()
    cluster.wait_relay(relay)
    second = smtpmesh(relay, "run")
    assert second.returncode == 78
    assert "data is in use by process" in second.stderr


def end_of(relay: Relay) -> int:
    """The exit code of a start that comes to nothing."""
    relay.server.spawn()
    assert relay.server.process is not None
    return relay.server.process.wait(40)
