"""What a worker is, from the settings of its node; and what would keep workers from running side by side."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from smtp_edge.configuration import ConfigurationError, load_configuration
from smtp_edge.preflight import find_mistakes, find_warnings
from smtp_edge.queue.leftover import count_mail
from smtp_edge.queue.rows import SCHEMA, SCHEMA_VERSION
from smtp_edge.settings import Settings
from smtp_edge.shards import find_stranded
from smtp_edge.workers import SHARED, Worker, find_folders, list_workers, move_port, share
from tests.unit.smtp_edge.operator.views import make_identity

WHOLE: dict[str, Any] = {
    "node": {"name": "mx1", "hostname": "mx.example.org", "data_dir": "/var/spool/mesh", "workers": 3},
    "gossip": {"listen": "192.0.2.1:7946", "advertise": "mx.example.org:7946", "join": ["192.0.2.9:7946"]},
    "mesh": {"listen": "192.0.2.1:7925", "advertise": "mx.example.org:7925"},
    "admin": {"listen": "192.0.2.1:7900", "advertise": "mx.example.org:7900"},
    "metrics": {"listen": "127.0.0.1:9427"},
    "listener": [{"listen": "192.0.2.1:25"}],
    "smart_host": [{"name": "up", "host": "smtp.example.net"}],
    "route": [{"via": ["up"]}],
}


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(WHOLE | sections)


def test_one_process_is_the_node_itself() -> None:
    node = settings(node={"name": "mx1"})
    assert Worker(1, 1).derive(node) is node


def test_a_worker_has_a_name_a_place_an_identity_and_ports_of_its_own() -> None:
    second = Worker(2, 3).derive(settings())
    assert second.node.name == "mx1-2"
    assert second.node.hostname == "mx.example.org"
    assert second.node.data_dir == Path("/var/spool/mesh/worker-2")
    assert (second.cluster.certificate, second.cluster.key) == (Path("node-2.crt"), Path("node-2.key"))
    assert second.cluster.ca == Path("ca.crt")
    assert (second.gossip.listen, second.gossip.advertise) == ("192.0.2.1:7947", "mx.example.org:7947")
    assert second.gossip.join == ("192.0.2.9:7946", "192.0.2.1:7946", "192.0.2.1:7948")
    assert (second.mesh.listen, second.mesh.advertise) == ("192.0.2.1:7926", "mx.example.org:7926")
    assert (second.admin.listen, second.admin.advertise) == ("192.0.2.1:7901", "mx.example.org:7901")
    assert second.metrics.listen == "127.0.0.1:9428"
    assert second.listener[0].listen == "192.0.2.1:25"


def test_the_first_worker_has_what_the_one_process_had() -> None:
    """So that going from one process to several, or back, moves no mail and changes no identity."""
    node, first = settings(), Worker(1, 3).derive(settings())
    assert first.node.name == "mx1-1"
    assert (first.node.data_dir, first.cluster) == (node.node.data_dir, node.cluster)
    assert (first.gossip.listen, first.mesh, first.admin, first.metrics) == (
        node.gossip.listen,
        node.mesh,
        node.admin,
        node.metrics,
    )
    assert first.gossip.join == ("192.0.2.9:7946", "192.0.2.1:7947", "192.0.2.1:7948")


def test_a_worker_that_is_no_more_takes_no_clients() -> None:
    third = Worker(3, 2)
    assert third.retiring
    assert third.derive(settings()).listener == ()
    assert third.derive(settings()).gossip.join[1:] == ("192.0.2.1:7946", "192.0.2.1:7947")
    assert [worker.retiring for worker in list_workers(2)] == [False, False]


def test_siblings_of_a_wildcard_are_dialled_at_loopback() -> None:
    for listen, sibling in (("0.0.0.0:7946", "127.0.0.1:7947"), ("[::]:7946", "[::1]:7947")):
        node = settings(gossip={"listen": listen, "advertise": "mx.example.org:7946"})
        assert Worker(1, 2).derive(node).gossip.join == (sibling,)


@pytest.mark.parametrize(
    ("listen", "first", "second"),
    [
        ("unix:admin.sock", "unix:admin.sock", "unix:admin.sock"),  # in data_dir, which is another one
        ("unix:/run/mesh/admin.sock", "unix:/run/mesh/admin.sock", "unix:/run/mesh/admin-2.sock"),
        ("unix:../admin.sock", "unix:../admin.sock", "unix:/var/spool/mesh/../admin-2.sock"),
    ],
)
def test_each_worker_has_an_admin_socket_of_its_own(listen: str, first: str, second: str) -> None:
    node = settings(admin={"listen": listen})
    assert Worker(1, 2).derive(node).admin.listen == first
    assert Worker(2, 2).derive(node).admin.listen == second


def test_ports_move_and_any_port_stays() -> None:
    assert [move_port(address, 3) for address in ("[::1]:25", "a:0", "", "unix:x")] == ["[::1]:28", "a:0", "", "unix:x"]


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_of_the_machine_and_of_next_hops_are_shared_rounded_up() -> None:
    node = settings(
        listener=[{"connections_max": 1000, "connections_per_client_max": 10, "recipients_max": 1000}],
        limits={"messages_per_minute": 100, "bad_commands_max": 20},
        smart_host=[{"name": "up", "host": "smtp.example.net", "connections_max": 20}],
        queue={"entries_max": 1_000_000, "lifetime_s": 86400},
    )
    part = share(node, 3)
    assert part.listener[0].connections_max == 334
    assert part.listener[0].connections_per_client_max == 4
    assert part.limits.messages_per_minute == 34
    assert part.limits.recipients_per_minute == 0  # none stays none
    assert part.smart_host[0].connections_max == 7
    assert part.mx.connections_max == 7
    assert part.queue.entries_max == 333_334
    assert part.queue.active_max == 667
    # of a session, a message, an answer: as they stand
    assert part.listener[0].recipients_max == 1000
    assert part.limits.bad_commands_max == 20
    assert part.queue.lifetime_s == 86400
    assert part.smart_host[0].messages_per_connection_max == 1000


def test_shares_are_of_at_least_one() -> None:
    part = share(settings(smart_host=[{"name": "up", "host": "h", "connections_max": 1}]), 64)
    assert part.smart_host[0].connections_max == 1
    assert part.limits.buffer_bytes_max == 4 * 1024 * 1024
    assert share(settings(limits={"buffer_bytes_max": 1024 * 1024}), 2).limits.buffer_bytes_max == 1024 * 1024


def test_a_listener_says_for_itself_only_what_it_said_before() -> None:
    node = settings(listener=[{"limits": {"messages_per_minute": 10}}], limits={"recipients_per_minute": 100})
    part = share(node, 2)
    own = part.limits.overridden_by(part.listener[0].limits)
    assert (own.messages_per_minute, own.recipients_per_minute) == (5, 50)


def test_what_is_shared_exists() -> None:
    for section, keys in SHARED.items():
        found = getattr(settings(), section)
        value = found[0] if isinstance(found, tuple) else found
        assert set(keys) <= set(type(value).model_fields)


# -- what keeps them from running --------------------------------------------------------------------------------------


GOOD = """
[node]
name = "a"
workers = 2
[gossip]
listen = "127.0.0.1:7946"
[mesh]
listen = "127.0.0.1:7925"
[[listener]]
listen = "127.0.0.1:2525"
allow_networks = ["127.0.0.0/8"]
[[smart_host]]
name = "up"
host = "smtp.example.net"
[[route]]
via = ["up"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_identity(tmp_path)
    for kind in ("crt", "key"):
        (tmp_path / f"node-2.{kind}").write_text(f"another {kind}")
    return tmp_path


def mistakes(folder: Path, text: str) -> list[str]:
    path = folder / "node.toml"
    path.write_text(text)
    try:
        load_configuration(path)
    except ConfigurationError as error:
        return [line.removeprefix(f"{path}: ").replace(str(folder), "FOLDER") for line in str(error).splitlines()]
    return []


def test_two_workers_may_run(folder: Path) -> None:
    assert mistakes(folder, GOOD) == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("workers = 2", "workers = 0", "node.workers: must be at least 1 and at most 64, not 0"),
        (
            "127.0.0.1:7925",
            "127.0.0.1:7945",
            "mesh.listen: worker 2 would listen on 127.0.0.1:7946, which is taken by gossip.listen: "
            "with workers = 2 it needs 2 free ports from 127.0.0.1:7945 on",
        ),
        (
            "127.0.0.1:2525",
            "0.0.0.0:7947",
            "gossip.listen: worker 2 would listen on 127.0.0.1:7947, which is taken by listener[0].listen: "
            "with workers = 2 it needs 2 free ports from 127.0.0.1:7946 on",
        ),
        (
            "[mesh]",
            '[metrics]\nlisten = "127.0.0.1:7924"\n[mesh]',
            "metrics.listen: worker 2 would listen on 127.0.0.1:7925, which is taken by mesh.listen: "
            "with workers = 2 it needs 2 free ports from 127.0.0.1:7924 on",
        ),
        (
            "127.0.0.1:7946",
            "127.0.0.1:65535",
            "gossip.listen: 127.0.0.1:65535 leaves no port for worker 2 of 2: choose a lower one",
        ),
        (
            "127.0.0.1:7946",
            "127.0.0.1:0",
            "gossip.listen: 127.0.0.1:0 is any port, but with workers = 2 siblings dial it: name one",
        ),
        (
            "127.0.0.1:2525",
            "127.0.0.1:0",
            "listener[0].listen: 127.0.0.1:0 is any port, but with workers = 2 all workers listen on the same one: "
            "name one",
        ),
        (
            'name = "a"',
            f'name = "{"a" * 62}"',
            f"node.name: is too long for 2 workers: {'a' * 62}-2 has more than 63 characters",
        ),
        (
            "[mesh]",
            "[queue]\nmemory_bytes_max = 200000000\n[mesh]",
            "queue.memory_bytes_max: 200000000 is too little for 2 workers; 268435456 or more, or 0",
        ),
        (
            "workers = 2",
            "workers = 3",
            "node.workers: node-3.crt, node-3.key in FOLDER: not there, and each worker needs its own; "
            "`smtpmesh workers 3 --config node.toml --from FOLDER` issues them (FOLDER holds ca.key)",
        ),
    ],
)
def test_what_is_in_their_way_is_one_sentence(folder: Path, before: str, after: str, expected: str) -> None:
    assert before in GOOD
    assert mistakes(folder, GOOD.replace(before, after)) == [expected]


LISTS = """
[[sink]]
use = "lists"
rule = "rcpt to=*@lists.test"
[sink.with.lists."talk@lists.test"]
owners = ["owner@people.test"]
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_sink_that_remembers_in_one_process_has_no_siblings(folder: Path, count: int) -> None:
    (folder / "node.toml").write_text(GOOD.replace("workers = 2", f"workers = {count}") + LISTS)
    settings, _ = load_configuration(folder / "node.toml")
    found = [str(item) for item in find_mistakes(settings) if item.key == "sink"]
    sentence = (
        "sink: sink lists remembers things in one process, and there are 2: set node.workers = 1, or bind it on a node "
        "of its own"
    )
    assert found == ([sentence] if count == 2 else [])


def test_one_process_needs_none_of_that(folder: Path) -> None:
    alone = GOOD.replace("workers = 2", "").replace("127.0.0.1:7925", "127.0.0.1:7945")
    (folder / "node-2.crt").unlink()
    assert mistakes(folder, alone) == []


def test_a_key_that_was_copied_is_no_identity(folder: Path) -> None:
    (folder / "node-2.key").write_bytes((folder / "node.key").read_bytes())
    assert mistakes(folder, GOOD) == [
        "node.workers: node-2.key is a copy of node.key, but each worker is a node of its own: remove it with its "
        "certificate, and `smtpmesh workers` issues new ones"
    ]


def test_a_limit_that_cannot_be_shared_is_warned_of(folder: Path) -> None:
    path = folder / "node.toml"
    path.write_text(GOOD.replace('name = "up"', 'name = "up"\nconnections_max = 1'))
    assert load_configuration(path)[1] == [
        "smart host up: connections_max 1 is one for each of 2 workers: 2 connections at once"
    ]


# -- mail of workers that are no more ----------------------------------------------------------------------------------


def fill(directory: Path, *, undelivered: int, finished: int = 0) -> None:
    directory.mkdir(parents=True)
    with sqlite3.connect(directory / "queue.db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        for number in range(undelivered + finished):
            ended = 1 if number >= undelivered else None
            row = (str(number), "o", 1, 1, 1, ended, 1, "{}")
            columns = "queue_id, origin, stored_at, received_at, expires_at, finished_at, size_bytes, document"
            connection.execute(f"INSERT INTO entry ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()


def test_mail_of_a_worker_that_is_no_more_is_found(tmp_path: Path) -> None:
    fill(tmp_path / "worker-2" / "queue", undelivered=1)
    fill(tmp_path / "worker-3" / "queue", undelivered=2, finished=5)
    fill(tmp_path / "worker-4" / "queue", undelivered=0, finished=5)
    (tmp_path / "worker-old").mkdir()
    assert list(find_folders(tmp_path)) == [2, 3, 4]
    (item,) = find_stranded(settings(node={"name": "a", "workers": 2, "data_dir": tmp_path}))
    assert (item.worker, item.count) == (Worker(3, 2), 2)
    assert str(item) == f"{tmp_path}/worker-3 holds 2 messages of worker 3, and workers = 2"


def test_check_config_says_what_becomes_of_it(tmp_path: Path) -> None:
    fill(tmp_path / "worker-3" / "queue", undelivered=1)
    node = settings(
        node={"name": "a", "data_dir": tmp_path}, cluster={"certificate": tmp_path / "node.crt"}, listener=[]
    )
    said = (
        f"{tmp_path}/worker-3 holds 1 message of worker 3, and workers = 1; `smtpmesh run` drains it until it is empty"
    )
    assert list(find_warnings(node, datetime.now(UTC))) == [
        f"{said}, but node-3.crt is missing: `smtpmesh workers 3` issues it"
    ]
    (tmp_path / "node-3.crt").touch()
    assert list(find_warnings(node, datetime.now(UTC))) == [said]


def test_what_cannot_be_read_counts_as_mail_and_what_is_not_there_as_none(tmp_path: Path) -> None:
    assert count_mail(tmp_path / "nowhere") == 0
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "queue.db").write_bytes(b"no database" * 1000)
    assert count_mail(tmp_path / "broken") == 1
    (tmp_path / "empty").mkdir()
    sqlite3.connect(tmp_path / "empty" / "queue.db").close()
    assert count_mail(tmp_path / "empty") == 0


def test_looking_at_a_queue_changes_nothing_in_it(tmp_path: Path) -> None:
    fill(tmp_path / "queue", undelivered=3)
    before = (tmp_path / "queue" / "queue.db").read_bytes()
    assert count_mail(tmp_path / "queue") == 3
    assert (tmp_path / "queue" / "queue.db").read_bytes() == before
