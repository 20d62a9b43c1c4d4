"""The demo's replicated table, shorter: kills, a cut and repeats, and two tables that are equal in the end."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from smtp_edge.demo.cluster import Cluster
from smtp_edge.demo.replication import BETWEEN, Scene, mesh
from smtp_edge.demo.screen import PlainScreen
from tests.e2e.postgresql import postgresql
from tests.e2e.scene import FULL, admin_calls, wait_members, wait_until

CHANGES = 10_000 if FULL else 2000
TABLE = "CREATE TABLE parts (id bigint PRIMARY KEY, name text NOT NULL, price numeric, made timestamptz DEFAULT now())"
COLUMNS = '{ id = "integer", name = "text", price = "number", made = "text" }'
WITH = """\
database = "{url}", password_file = "{password}", secret_file = "{secret}", \
tables = {{ parts = {{ key = "id", columns = {columns} }} }}\
"""
SENDING = """
[[sink]]
use = "replicate"
with = {{ {common}, to = "apply@b.replication", sender = "owner@a.replication", batch_max = 7 }}
"""
APPLYING = """
[[sink]]
name = "apply"
use = "applier"
with = {{ {common} }}
[[smart_host]]
name = "apply"
sink = "apply"
"""
READ = "SELECT id, name, price, made FROM parts ORDER BY id"


def test_a_table_is_equal_on_the_other_side_of_the_mesh_whatever_breaks_in_between(folder: Path) -> None:
    told = io.StringIO()
    with mesh(folder) as (cluster, ways):
        account = Scene(cluster, ways, PlainScreen(told), CHANGES).tell()
    assert account.balanced, "\n".join([told.getvalue(), *account.lines()])
    assert account.changes_made == CHANGES
    assert account.rows > 500
    assert account.changes_applied + account.changes_stale == CHANGES + account.changes_sent_again
    assert account.changes_sent_again >= 500
    assert [kill.name for kill in cluster.kills] == ["relay A", "relay B"]
    assert account.lines()[-1].startswith("the tables are equal")


@pytest.mark.peer("initdb")
def test_a_table_of_postgresql_is_equal_in_another_after_the_database_was_killed(folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("0123456789abcdef")
    with postgresql() as database, Cluster(folder / "c", relays=("A", "B"), hosts=()) as cluster:
        for letter, role in (("a", SENDING + BETWEEN), ("b", APPLYING)):
            database.query(f"CREATE DATABASE {letter}")
            database.query(TABLE, letter)
            files = {"password": database.password_file, "secret": secret}
            common = WITH.format(url=database.url(letter), columns=COLUMNS, **files)
            config = cluster.relays[f"relay {letter.upper()}"].config
            text = config.read_text().replace("via = []", 'via = ["apply"]')
            config.write_text(text + role.format(common=common))
        cluster.start()
        wait_members(cluster, admin_calls(cluster))
        wait_until(
            lambda: database.query("SELECT 1 FROM pg_trigger WHERE tgname = 'smtpmesh_outbox'", "a"), 20, "triggers"
        )
        database.query(
            "INSERT INTO parts SELECT n, 'part ' || n, n * 0.123456789012345678 FROM generate_series(1, 500) n", "a"
        )
        database.query("DELETE FROM parts WHERE id % 5 = 0; UPDATE parts SET id = id + 1000 WHERE id % 7 = 0", "a")
        database.kill()
        database.start()
        database.query("UPDATE parts SET name = name || ' (new)' WHERE id % 3 = 0", "a")
        wait_until(
            lambda: not database.query("SELECT 1 FROM smtpmesh_outbox WHERE sent_at IS NULL LIMIT 1", "a"), 60, "sent"
        )
        wait_until(lambda: database.query(READ, "b") == database.query(READ, "a"), 60, "equal tables")
        assert len(database.query(READ, "b")) == 400
