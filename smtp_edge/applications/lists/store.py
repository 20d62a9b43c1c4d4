"""What lists remember: members, what waits for a confirmation, held posts, bounces. SQLite, one file, one transaction.

Whoever asks the sink may crash and ask again. So each message that changes something is written down with what came of
it, in the same transaction: asked again, the answer is the same, and nothing changes a second time.

Blocking: callers use a thread. Any thread, one at a time.
"""

from __future__ import annotations

import base64
import json
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from smtp_edge.applications.lists.names import fold

Effect = tuple[str, ...]
"""What comes of a message: a word, and what belongs to it (`letters.py` lists them)."""

DAY_S = 86_400
TOKEN_LIFE_S = 7 * DAY_S
HELD_LIFE_S = 30 * DAY_S
JOURNAL_LIFE_S = 45 * DAY_S
"""Longer than any queue keeps a message that it may ask about again."""
BOUNCE_DAYS = 14
VERSION = 2
BUSY_S = 20.0
SCHEMA = """
CREATE TABLE members (list TEXT, key TEXT, address TEXT NOT NULL, joined_at REAL NOT NULL, disabled_at REAL,
    PRIMARY KEY (list, key)) WITHOUT ROWID;
CREATE TABLE tokens (token TEXT PRIMARY KEY, list TEXT NOT NULL, action TEXT NOT NULL, argument TEXT NOT NULL,
    expires_at REAL NOT NULL, UNIQUE (list, action, argument)) WITHOUT ROWID;
CREATE TABLE held (id TEXT PRIMARY KEY, list TEXT NOT NULL, author TEXT NOT NULL, subject TEXT NOT NULL,
    message_id TEXT NOT NULL, at REAL NOT NULL, decided_at REAL) WITHOUT ROWID;
CREATE TABLE bounces (list TEXT, key TEXT, day INTEGER, PRIMARY KEY (list, key, day)) WITHOUT ROWID;
CREATE TABLE answers (list TEXT, key TEXT, day INTEGER, count INTEGER NOT NULL, PRIMARY KEY (list, key, day))
    WITHOUT ROWID;
CREATE TABLE journal (identity TEXT PRIMARY KEY, effects TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
"""
SCHEMA_2 = "CREATE TABLE secrets (list TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID"


class State:
    """What a list knows, inside of a transaction."""

    def __init__(self, connection: sqlite3.Connection, list_id: str, now: float) -> None:
        self._connection, self._list, self.now = connection, list_id, now

    def _run(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    # -- members -------------------------------------------------------------------------------------------------------

    def members(self) -> list[str]:
        """All, also those that get no mail."""
        return [address for (address,) in self._run("SELECT address FROM members WHERE list = ?", self._list)]

    def is_member(self, address: str) -> bool:
        """Also one that gets no mail."""
        asked = self._run("SELECT 1 FROM members WHERE list = ? AND key = ?", self._list, fold(address))
        return asked.fetchone() is not None

    def gets_mail(self, address: str) -> bool:
        """A member whose mail does not come back."""
        statement = "SELECT 1 FROM members WHERE list = ? AND key = ? AND disabled_at IS NULL"
        return self._run(statement, self._list, fold(address)).fetchone() is not None

    def add(self, address: str) -> None:
        """A member, from now on with mail. Once is enough."""
        key = fold(address)
        statement = "INSERT INTO members VALUES (?, ?, ?, ?, NULL) ON CONFLICT DO UPDATE SET disabled_at = NULL"
        self._run(statement, self._list, key, address, self.now)
        self._run("DELETE FROM bounces WHERE list = ? AND key = ?", self._list, key)

    def remove(self, address: str) -> bool:
        """False: it was none."""
        key = fold(address)
        self._run("DELETE FROM bounces WHERE list = ? AND key = ?", self._list, key)
        return self._run("DELETE FROM members WHERE list = ? AND key = ?", self._list, key).rowcount > 0

    def count_bounce(self, address: str) -> int:
        """On how many days mail has come back, today included."""
        key, day = fold(address), int(self.now // DAY_S)
        self._run("INSERT OR IGNORE INTO bounces VALUES (?, ?, ?)", self._list, key, day)
        statement = "SELECT count(*) FROM bounces WHERE list = ? AND key = ? AND day > ?"
        (count,) = self._run(statement, self._list, key, day - BOUNCE_DAYS).fetchone()
        return int(count)

    def disable(self, address: str) -> None:
        """No more mail, but a member."""
        statement = "UPDATE members SET disabled_at = ? WHERE list = ? AND key = ?"
        self._run(statement, self.now, self._list, fold(address))

    # -- what waits ----------------------------------------------------------------------------------------------------

    def make_token(self, action: str, argument: str, life_s: float = TOKEN_LIFE_S) -> str:
        """Who asks twice for the same gets the same."""
        statement = (
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (list, action, argument) DO UPDATE SET expires_at = excluded.expires_at RETURNING token"
        )
        fresh = base64.b32encode(secrets.token_bytes(10)).decode().lower()
        (token,) = self._run(statement, fresh, self._list, action, argument, self.now + life_s).fetchone()
        return str(token)

    def take_token(self, token: str) -> tuple[str, str] | None:
        """(action, argument), once; None: there is none, or it is too old."""
        statement = "DELETE FROM tokens WHERE token = ? AND list = ? AND expires_at > ? RETURNING action, argument"
        found = self._run(statement, token.lower(), self._list, self.now).fetchone()
        return None if found is None else (str(found[0]), str(found[1]))

    def waiting_count(self) -> int:
        """Tokens that nobody has used yet."""
        (count,) = self._run("SELECT count(*) FROM tokens WHERE list = ?", self._list).fetchone()
        return int(count)

    def hold(self, identity: str, author: str, subject: str, message_id: str) -> None:
        """A post waits for an owner. `author`: who hears of a refusal; empty = nobody."""
        statement = "INSERT OR IGNORE INTO held VALUES (?, ?, ?, ?, ?, ?, NULL)"
        self._run(statement, identity, self._list, author, subject, message_id, self.now)

    def decide(self, identity: str) -> Effect | None:
        """(author, subject, Message-ID) of a held post that nobody has decided about yet."""
        statement = (
            "UPDATE held SET decided_at = ? WHERE id = ? AND list = ? AND decided_at IS NULL "
            "RETURNING author, subject, message_id"
        )
        found = self._run(statement, self.now, identity, self._list).fetchone()
        self._run("DELETE FROM tokens WHERE list = ? AND argument = ?", self._list, identity)
        return None if found is None else tuple(map(str, found))

    def held_count(self) -> int:
        """Posts that wait."""
        statement = "SELECT count(*) FROM held WHERE list = ? AND decided_at IS NULL"
        (count,) = self._run(statement, self._list).fetchone()
        return int(count)

    def may_answer(self, address: str, answers_max: int) -> bool:
        """Counts an answer; False: this address got as many as it may in a day."""
        statement = (
            "INSERT INTO answers VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count"
        )
        (count,) = self._run(statement, self._list, fold(address), int(self.now // DAY_S)).fetchone()
        return int(count) <= answers_max


class Store:
    """See the module. sqlite3.Error."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._held = folder / "held"
        self._held.mkdir(exist_ok=True)
        self._connection = sqlite3.connect(
            folder / "lists.sqlite", timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._lock:
            self._migrate()

    def _migrate(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise sqlite3.DatabaseError(f"lists.sqlite was written by a later release (version {version})")
            if version == 0:
                for statement in SCHEMA.split(";"):
                    self._connection.execute(statement)
            if version < VERSION:
                self._connection.execute(SCHEMA_2)
                self._connection.execute(f"PRAGMA user_version = {VERSION}")
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Not usable afterwards."""
        with self._lock:
            self._connection.close()

    def change(
        self, list_id: str, identity: str, now: float, decide: Callable[[State], Sequence[Effect]]
    ) -> list[Effect]:
        """Run a decision about one message, once; what came of it, also when asked again."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                effects = self._decide_once(State(self._connection, list_id, now), identity, decide)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
        return effects

    def _decide_once(self, state: State, identity: str, decide: Callable[[State], Sequence[Effect]]) -> list[Effect]:
        known = self._connection.execute("SELECT effects FROM journal WHERE identity = ?", (identity,)).fetchone()
        if known is not None:
            return [tuple(effect) for effect in json.loads(known[0])]
        effects = list(decide(state))
        row = (identity, json.dumps(effects), state.now)
        self._connection.execute("INSERT INTO journal VALUES (?, ?, ?)", row)
        return effects

    def add_members(self, list_id: str, addresses: Iterable[str], now: float) -> None:
        """Many at once."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            rows = ((list_id, fold(address), address, now) for address in addresses)
            statement = "INSERT OR IGNORE INTO members VALUES (?, ?, ?, ?, NULL)"
            try:
                self._connection.executemany(statement, rows)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    def recipients(self, list_id: str) -> list[str]:
        """Members that get mail, in the order of their addresses."""
        statement = "SELECT address FROM members WHERE list = ? AND disabled_at IS NULL ORDER BY key"
        with self._lock:
            return [str(address) for (address,) in self._connection.execute(statement, (list_id,))]

    def verp_key(self, list_id: str) -> str:
        """Of the tags in the reverse-paths of a list; made when it is wanted first, kept for ever."""
        with self._lock:
            fresh = secrets.token_hex(16)
            self._connection.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (list_id, fresh))
            (key,) = self._connection.execute("SELECT key FROM secrets WHERE list = ?", (list_id,)).fetchone()
        return str(key)

    def ask(self, list_id: str) -> Reading:
        """Questions outside of a transaction."""
        return Reading(self._lock, State(self._connection, list_id, 0))

    def held_path(self, identity: str) -> Path:
        """Where a held post's bytes are."""
        return self._held / identity

    def forget(self, now: float) -> None:
        """What is too old to be asked about."""
        with self._lock:
            self._connection.execute("DELETE FROM tokens WHERE expires_at < ?", (now,))
            self._connection.execute("DELETE FROM journal WHERE at < ?", (now - JOURNAL_LIFE_S,))
            day = int(now // DAY_S)
            self._connection.execute("DELETE FROM bounces WHERE day < ?", (day - BOUNCE_DAYS,))
            self._connection.execute("DELETE FROM answers WHERE day < ?", (day,))
            gone = self._connection.execute(
                "DELETE FROM held WHERE coalesce(decided_at, at) < ? RETURNING id", (now - JOURNAL_LIFE_S,)
            ).fetchall()
        for (identity,) in gone:
            self.held_path(identity).unlink(missing_ok=True)


class Reading:
    """Two questions that RCPT asks."""

    def __init__(self, lock: threading.Lock, state: State) -> None:
        self._lock, self._state = lock, state

    def is_member(self, *addresses: str) -> bool:
        """One of these."""
        with self._lock:
            return any(self._state.is_member(address) for address in addresses)

    def held_count(self) -> int:
        """Posts that wait for an owner."""
        with self._lock:
            return self._state.held_count()
