"""kill -9 at each step by which `sql` stores a message: a program that forks one child for each.

    python -m tests.unit.smtp_edge.applications.sql_killed URL PASSWORD_FILE MAIL_FILE

Each run is for a recipient of its own (`kill-N@box.test`). Prints a line of JSON for each: at which step it was killed
and what the sink said when it was asked again. Who called it looks into the database.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from smtp_edge.applications import sql
from smtp_edge.applications.sql import Sql
from tests.unit.smtp_edge.applications.store_contract import TRACE, Shelf, codes, spooled_delivery

SIZE_BYTES = 3 * sql.CHUNK_BYTES
STEPS_MAX = 40
KILL_STEPS = ["begin", "begun"] + ["append", "appended"] * 3 + ["commit", "answer"]


class Countdown:
    """Kills the process at step `left`."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, step: str) -> None:
        self.left -= 1
        if self.left == 0:
            print(json.dumps(step), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, before: str, after: str) -> None:
        """Count what `_Tables` does."""
        real = getattr(sql._Tables, name)

        async def counted(*arguments: Any) -> Any:
            self(before)
            result = await real(*arguments)
            self(after)
            return result

        setattr(sql._Tables, name, counted)


async def store(words: list[str], address: str, step: Countdown) -> list[int]:
    """Ask once."""
    from sqlalchemy import event

    url, password_file, mail = words
    sink = Sql(url, password_file, mailboxes="any", timeout_s=30)
    await sink.start()
    step.around("begin", "begin", "begun")
    step.around("append", "append", "appended")
    event.listen(sink._engine.sync_engine, "commit", lambda _connection: step("commit"))
    answer = await codes(sink, await spooled_delivery(Path(mail), SIZE_BYTES, address))
    step("answer")
    return answer


def ask(words: list[str], address: str, left: int) -> tuple[int, Any]:
    """In a child: its exit status and what it printed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 1)
        print(json.dumps(asyncio.run(store(words, address, Countdown(left)))), flush=True)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    return os.waitpid(child, 0)[1], json.loads(text.splitlines()[-1])


def main(words: list[str]) -> None:
    """All steps."""
    for left in range(1, STEPS_MAX):
        address = f"kill-{left}@box.test"
        status, step = ask(words, address, left)
        if status == 0:
            return
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"address": address, "step": step, "killed": killed, "codes": ask(words, address, 0)[1]}))


def check_kills(shelf: Shelf, url: str, password_file: str, folder: Path) -> list[str]:
    """Run it, and look: whole and once for each recipient. The steps."""
    mail = folder / "mail"
    words = [sys.executable, "-m", "tests.unit.smtp_edge.applications.sql_killed", url, password_file, str(mail)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    whole = TRACE + mail.read_bytes()
    for run in runs:
        assert (run["killed"], run["codes"]) == (True, [250]), run
        assert asyncio.run(shelf.mails(run["address"])) == [whole], run
    return [run["step"] for run in runs]


if __name__ == "__main__":
    main(sys.argv[1:])
