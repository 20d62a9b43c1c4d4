"""A private PostgreSQL for tests: own folder, own port on loopback, a user of its own, killed or stopped at will."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smtp_edge.demo.cluster import find_port
from tests.conftest import find_command
from tests.e2e.scene import wait_until

USERS = ("postgres", "nobody")
"""Whoever is there runs the server when we are root, which it refuses."""
SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
port = {port}
"""


class PostgreSQL:
    """The server. Its superuser is `mesh`, with a password that is in `password_file`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, find_port(set())
        self.password, self.password_file = secrets.token_hex(8), folder / "password"
        self._user = None if os.geteuid() else next(name for name in USERS if _is_user(name))
        self.password_file.write_text(self.password)
        if self._user is not None:
            user = pwd.getpwnam(self._user)
            for path in (folder, self.password_file):
                os.chown(path, user.pw_uid, user.pw_gid)
        self._call("initdb", "-U", "mesh", "-A", "scram-sha-256", "--pwfile", str(self.password_file), "-N")
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(SETTINGS.format(port=self.port))
        self.start()

    def start(self) -> None:
        """Wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            words = [self._command("postgres"), "-D", str(self.folder / "data")]
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.folder, **self._demoted())
        wait_until(lambda: self._ask("SELECT 1").returncode == 0, 30, f"PostgreSQL; see {self.folder}/log")

    def url(self, database: str = "postgres") -> str:
        """Where it is, without the password."""
        return f"postgresql://mesh@127.0.0.1:{self.port}/{database}"

    def query(self, statement: str, database: str = "postgres") -> list[tuple[str, ...]]:
        """Rows, as psql prints them."""
        done = self._ask(statement, database)
        assert done.returncode == 0, done.stderr
        return [tuple(line.split("|")) for line in done.stdout.splitlines()]

    def pause(self) -> None:
        """SIGSTOP to the server and each of its processes."""
        self.process.send_signal(signal.SIGSTOP)
        self._tell_children(signal.SIGSTOP)

    def resume(self) -> None:
        """The reverse."""
        self._tell_children(signal.SIGCONT)
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """As a crash: no check point, no farewell."""
        self.resume()
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(20)

    def _tell_children(self, number: signal.Signals) -> None:
        """Each is a session of its own: no signal to a group reaches them. One that ends just now is no failure."""
        for file in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for child in file.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), number)

    def _demoted(self) -> dict[str, Any]:
        """How a child of ours becomes the other user's."""
        if self._user is None:
            return {}
        return {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}

    def _command(self, name: str) -> str:
        command = find_command(name)
        assert command is not None
        return command

    def _call(self, name: str, *words: str) -> None:
        command = [self._command(name), "-D", str(self.folder / "data"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self._demoted())

    def _ask(self, statement: str, database: str = "postgres") -> subprocess.CompletedProcess[str]:
        words = ["psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement]
        environment = dict(os.environ, PGPASSWORD=self.password, PGCONNECT_TIMEOUT="5")
        return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)


def _is_user(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """One in a folder of its own, which its user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="sm-pg-"))
    running = None
    try:
        running = PostgreSQL(folder)
        yield running
    finally:
        if running is not None and running.process.poll() is None:
            running.kill()
        shutil.rmtree(folder, ignore_errors=True)
