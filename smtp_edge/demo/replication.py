"""The demo's other scene: a table of relay A is replicated by mail to relay B, whatever breaks in between.

    A  its table, whose changes the sink `replicate` sends to apply@b.replication
    B  its copy, to which the sink `applier` applies them, each once
    C  a relay between them

    10,000 changes by chance are made on A. In between relay A is killed (kill -9), all ways between the relays are cut
    for some seconds, relay B is killed, and 500 changes are marked as not sent, which a kill at the worst moment does.
    In the end the two tables are compared, row by row, and a trigger on the copy has written down each row that was
    written: none may be there twice.

Both databases are SQLite; with PostgreSQL only `database` is another.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from smtp_edge.demo.cluster import Cluster, ClusterError, Relay, find_port
from smtp_edge.demo.screen import Screen, choose_screen
from smtp_edge.demo.show import EXIT_BALANCED, EXIT_INTERRUPTED, EXIT_UNBALANCED, terminate_as_interrupt
from smtp_edge.demo.watch import AdminCalls, LogReader
from smtp_edge.demo.ways import Ways

CHANGES = 10_000
CHANGES_PER_S = 800
BATCH = 10
"""Changes in a message."""
KEYS = 1000
TRANSACTION = 20
"""Changes in a transaction of the table's owner."""
KILL_A_AT, CUT_AT, KILL_B_AT = 0.25, 0.5, 0.75
"""Share of the changes that are made by then."""
DOWN_S, CUT_S = 1.0, 4.0
AGAIN = 500
"""Changes that are sent again."""
MEMBERS_TIMEOUT_S, DRAIN_MAX_S = 15.0, 180.0
LOCK_S = 30.0
SEED = 7

COLUMNS = '{ id = "integer", name = "text", price = "number" }'
SHARED = """
[queue]
retry_first_s = 1
retry_factor = 1
retry_max_s = 1
"""
SENDING = """
[[sink]]
use = "replicate"
with = {{ database = "sqlite:{path}", to = "apply@b.replication", sender = "owner@a.replication", batch_max = {batch},\
 poll_s = 0.05, tables = {{ parts = {{ key = "id", columns = {columns} }} }} }}
[[smart_host]]
name = "apply"
elsewhere = true
"""
APPLYING = """
[[sink]]
name = "apply"
use = "applier"
with = {{ database = "sqlite:{path}", tables = {{ parts = {{ key = "id", columns = {columns} }} }} }}
[[smart_host]]
name = "apply"
sink = "apply"
connections_max = 4
"""
BETWEEN = """
[[smart_host]]
name = "apply"
elsewhere = true
"""
TABLE = "CREATE TABLE parts (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL)"
EFFECTS = """
CREATE TABLE effects (name TEXT);
CREATE TRIGGER note_insert AFTER INSERT ON parts BEGIN INSERT INTO effects VALUES (NEW.name); END;
CREATE TRIGGER note_update AFTER UPDATE ON parts BEGIN INSERT INTO effects VALUES (NEW.name); END;
"""
UPSERT = """
INSERT INTO parts VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET name = excluded.name, price = excluded.price
"""
SEND_AGAIN = """
UPDATE smtpmesh_outbox SET sent_at = NULL
WHERE id IN (SELECT id FROM smtpmesh_outbox WHERE sent_at IS NOT NULL ORDER BY id DESC LIMIT ?)
"""


@dataclass(frozen=True, slots=True)
class Account:
    """What both databases say in the end."""

    changes_made: int
    changes_unsent: int
    messages_sent: int
    """By A's log, in which a kill may leave out one."""
    messages_applied: int
    """By their keys, each once."""
    messages_repeated: int
    """That came again, and were dropped."""
    changes_applied: int
    changes_stale: int
    """Dropped by their version: sent twice, or overtaken by a newer one of the same row."""
    effects: int
    """Inserts and updates in the copy."""
    effects_doubled: int
    rows: int
    rows_different: int
    waiting: int
    """Messages left in the queues."""
    seconds: float

    @property
    def changes_sent_again(self) -> int:
        """By ourselves, and by a kill between a message and its mark in the outbox."""
        return self.changes_applied + self.changes_stale - self.changes_made

    @property
    def balanced(self) -> bool:
        """Nothing is missing, nothing happened twice."""
        left = self.changes_unsent, self.waiting, self.rows_different, self.effects_doubled
        return not any(left) and self.changes_sent_again >= 0

    def lines(self) -> list[str]:
        """For people."""
        overtaken = self.changes_stale - self.changes_sent_again
        equal = "equal" if not self.rows_different else "NOT EQUAL"
        return [
            f"changes made on A       {self.changes_made:7,}   not sent {self.changes_unsent}",
            f"messages sent by A      {self.messages_sent:7,}   left in queues {self.waiting}",
            f"messages applied on B   {self.messages_applied:7,}   came again, dropped {self.messages_repeated}",
            f"changes applied on B    {self.changes_applied:7,}   sent again, dropped {self.changes_sent_again:,}",
            f"changes overtaken       {overtaken:7,}   a newer one of the same row was there before",
            f"rows written on B       {self.effects:7,}   by the same change twice {self.effects_doubled}",
            f"rows in the tables      {self.rows:7,}   different {self.rows_different}",
            f"the tables are {equal}, after {self.seconds:.0f} s",
        ]


def run(*, json_output: bool, keep: bool, directory: Path | None, changes: int = CHANGES) -> int:
    """Tell the story; the exit code of the command."""
    folder = directory or Path(tempfile.mkdtemp(prefix="smtpmesh-demo-"))
    screen = choose_screen(json_output)
    balanced = False
    try:
        with terminate_as_interrupt(), mesh(folder) as (cluster, ways):
            account = Scene(cluster, ways, screen, changes).tell()
            balanced = account.balanced
            if json_output:
                sys.stdout.write(json.dumps(asdict(account) | {"balanced": balanced}, indent=2) + "\n")
            else:
                screen.say("\n" + "\n".join(account.lines()) + "\n")
            if keep:
                screen.say(
                    f"the cluster stays up until Ctrl-C; change the table: sqlite3 {folder}/a.db; see {folder}/b.db"
                )
                signal.pause()
    except (ClusterError, sqlite3.Error) as error:
        screen.say(f"the demo could not run: {error}")
    except KeyboardInterrupt:
        screen.say("stopped")
        return EXIT_BALANCED if balanced else EXIT_INTERRUPTED
    finally:
        if directory is None and balanced:
            shutil.rmtree(folder, ignore_errors=True)
    if not balanced:
        screen.say(f"logs and databases are kept in {folder}")
    return EXIT_BALANCED if balanced else EXIT_UNBALANCED


@contextmanager
def mesh(folder: Path) -> Iterator[tuple[Cluster, Ways]]:
    """Three relays that reach each other by ways which can be cut, and the two databases."""
    ways = Ways()
    try:
        with Cluster(folder, hosts=(), settings=SHARED) as cluster:
            for name, more in (("a", ""), ("b", EFFECTS)):
                with _connect(folder / f"{name}.db") as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
                    connection.executescript(f"{TABLE};{more}")
            roles = {
                "relay A": SENDING.format(path=folder / "a.db", batch=BATCH, columns=COLUMNS),
                "relay B": APPLYING.format(path=folder / "b.db", columns=COLUMNS),
                "relay C": BETWEEN,
            }
            taken = {port for relay in cluster.relays.values() for port in relay.ports.values()}
            gossip = {name: _lead(ways, relay, "gossip", taken) for name, relay in cluster.relays.items()}
            for name, relay in cluster.relays.items():
                mesh = _lead(ways, relay, "mesh", taken)
                _configure(relay, gossip, gossip[name], mesh, roles[name])
            yield cluster, ways
    finally:
        ways.close()


def _lead(ways: Ways, relay: Relay, use: str, taken: set[int]) -> int:
    """A way to a port of a relay; its port."""
    port = find_port(taken)
    taken.add(port)
    ways.add(port, relay.ports[use])
    return port


def _configure(relay: Relay, joins: dict[str, int], gossip: int, mesh: int, role: str) -> None:
    """The relay is known to the others by its ways, and has one route."""
    text = relay.config.read_text(encoding="utf-8")
    before, _, rest = text.partition("join = ")
    join = json.dumps([f"127.0.0.1:{port}" for port in joins.values()])
    text = f'{before}advertise = "127.0.0.1:{gossip}"\njoin = {join}\n' + rest.partition("\n")[2]
    listens = f'[mesh]\nlisten = "127.0.0.1:{relay.ports["mesh"]}"\n'
    text = text.replace(listens, f'{listens}advertise = "127.0.0.1:{mesh}"\n')
    text = text.replace('domains = ["*"]\nvia = []', 'domains = ["b.replication"]\nvia = ["apply"]')
    relay.config.write_text(text + role, encoding="utf-8")


@contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, LOCK_S, isolation_level=None)) as connection:
        yield connection


class Scene:
    """One run."""

    def __init__(self, cluster: Cluster, ways: Ways, screen: Screen, changes: int) -> None:
        self._cluster, self._ways, self._screen, self._changes = cluster, ways, screen, changes
        self._paths = cluster.directory / "a.db", cluster.directory / "b.db"
        self._made = 0
        self._began = time.monotonic()
        self._error: sqlite3.Error | None = None

    def tell(self) -> Account:
        """All of it. ClusterError, sqlite3.Error."""
        self._screen.say(f"3 relays on 127.0.0.1; databases, queues and logs in {self._cluster.directory}")
        self._cluster.start()
        calls = AdminCalls({name: relay.admin for name, relay in self._cluster.relays.items()})
        try:
            relays = self._cluster.relays
            self._wait(lambda: all(calls.members(name) == len(relays) for name in relays), MEMBERS_TIMEOUT_S, "meet")
            self._wait(self._has_outbox, MEMBERS_TIMEOUT_S, "install the triggers")
            self._began = time.monotonic()
            self._say(f"{self._changes:,} changes begin on A, {CHANGES_PER_S} a second, over {KEYS} rows")
            writer = threading.Thread(target=self._write, daemon=True)
            writer.start()
            self._break()
            writer.join()
            if self._error is not None:
                raise self._error
            self._say("the last change is made; waiting until all is sent and applied")
            return self._drain(calls)
        finally:
            calls.close()

    def _break(self) -> None:
        self._kill("relay A", KILL_A_AT)
        self._wait_made(CUT_AT)
        self._say(f"all ways between the relays are cut for {CUT_S:.0f} s")
        self._ways.cut()
        time.sleep(CUT_S)
        self._ways.heal()
        self._say("the ways are there again")
        self._kill("relay B", KILL_B_AT)
        with _connect(self._paths[0]) as connection:
            count = connection.execute(SEND_AGAIN, (AGAIN,)).rowcount
        self._say(f"{count} changes that were sent are to be sent again")

    def _kill(self, name: str, share: float) -> None:
        self._wait_made(share)
        self._cluster.kill(name)
        self._say(f"kill -9 {name}")
        time.sleep(DOWN_S)
        self._cluster.restart(name)
        self._say(f"{name} is back")

    def _write(self) -> None:
        """The owner of the table: inserts, updates and deletes by chance."""
        rng = random.Random(SEED)
        try:
            with _connect(self._paths[0]) as connection:
                while self._made < self._changes:
                    connection.execute("BEGIN IMMEDIATE")
                    for _ in range(min(TRANSACTION, self._changes - self._made)):
                        self._change(connection, rng)
                    connection.execute("COMMIT")
                    ahead_s = self._made / CHANGES_PER_S - (time.monotonic() - self._began)
                    time.sleep(max(0.0, ahead_s))
        except sqlite3.Error as error:
            self._error, self._made = error, self._changes

    def _change(self, connection: sqlite3.Connection, rng: random.Random) -> None:
        key = rng.randrange(KEYS)
        self._made += 1
        deleted = rng.random() < 0.2 and connection.execute("DELETE FROM parts WHERE id = ?", (key,)).rowcount
        if not deleted:
            connection.execute(UPSERT, (key, f"change {self._made}", rng.random()))

    def _has_outbox(self) -> bool:
        with _connect(self._paths[0]) as connection:
            return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'trigger'").fetchone())

    def _unsent(self) -> int:
        with _connect(self._paths[0]) as connection:
            return int(connection.execute("SELECT count(*) FROM smtpmesh_outbox WHERE sent_at IS NULL").fetchone()[0])

    def _drain(self, calls: AdminCalls) -> Account:
        """A message on its way from one queue to the other may be missed by one look, not by two."""
        deadline = time.monotonic() + DRAIN_MAX_S
        quiet = 0
        while quiet < 2 and time.monotonic() < deadline:
            unsent = self._unsent()
            quiet = 0 if unsent or self._waiting(calls) else quiet + 1
            time.sleep(0.2)
        return self._account(self._waiting(calls))

    def _waiting(self, calls: AdminCalls) -> int:
        """Messages in all queues; a relay that does not answer may have one."""
        counts = [calls.waiting(name) for name in self._cluster.relays]
        return sum(1 if count is None else count for count in counts)

    def _account(self, waiting: int) -> Account:
        with _connect(self._paths[0]) as source, _connect(self._paths[1]) as copy:
            made, sent = source.execute("SELECT count(*), count(sent_at) FROM smtpmesh_outbox").fetchone()
            applied, repeats, changes, stale = copy.execute(
                "SELECT count(*), sum(repeats), sum(changes), sum(stale) FROM smtpmesh_applied"
            ).fetchone()
            effects, distinct = copy.execute("SELECT count(*), count(DISTINCT name) FROM effects").fetchone()
            rows, copied = (set(place.execute("SELECT * FROM parts")) for place in (source, copy))
        log = LogReader("relay A", self._cluster.relays["relay A"].server.log).read()
        return Account(
            changes_made=made,
            changes_unsent=made - sent,
            messages_sent=sum(line.get("event") == "replicate.sent" for line in log),
            messages_applied=applied,
            messages_repeated=repeats or 0,
            changes_applied=changes or 0,
            changes_stale=stale or 0,
            effects=effects,
            effects_doubled=effects - distinct,
            rows=len(rows),
            rows_different=len(rows ^ copied),
            waiting=waiting,
            seconds=time.monotonic() - self._began,
        )

    def _wait_made(self, share: float) -> None:
        while self._made < share * self._changes:
            time.sleep(0.02)

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise ClusterError(f"the relays did not {what} within {timeout_s:.0f} s")
            time.sleep(0.1)

    def _say(self, text: str) -> None:
        self._screen.say(f"{time.monotonic() - self._began:5.1f} s  {text}")
