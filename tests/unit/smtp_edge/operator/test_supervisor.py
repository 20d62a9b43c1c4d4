"""When a worker that died is started again, and when all end with one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from smtp_edge.supervisor import Charge, Restarts, Signals, Supervisor, build_command
from smtp_edge.workers import Worker, list_workers


def test_the_first_time_at_once_then_later_and_later() -> None:
    restarts = Restarts()
    assert [restarts.note_death(1.0) for _ in range(8)] == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_who_lived_long_is_started_at_once_again() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.note_death(1.0)
    assert restarts.note_death(60.0) == 0.0
    assert restarts.note_death(59.9) == 1.0


def test_a_worker_is_due_after_its_pause() -> None:
    charge = Charge(Worker(1, 2), started_at=100.0, due_at=None, starts=1)
    assert charge.note_end(1, now=101.0)
    assert charge.due_at == 101.0
    charge.started_at, charge.due_at = 101.0, None
    assert charge.note_end(-9, now=103.0)
    assert charge.due_at == 104.0


def test_only_a_first_start_that_is_refused_means_that_the_configuration_is_wrong() -> None:
    """A file that is broken while all serve must not end those that still do."""
    assert Charge(Worker(1, 2), starts=1).is_refused(78)
    assert not Charge(Worker(1, 2), starts=2).is_refused(78)
    assert not Charge(Worker(1, 2), starts=1).is_refused(1)


def test_a_worker_that_is_no_more_ends_when_it_is_empty_or_cannot_begin() -> None:
    assert not Charge(Worker(3, 2), due_at=None, starts=1).note_end(0, now=1.0)
    assert not Charge(Worker(3, 2), due_at=None, starts=1).note_end(78, now=1.0)
    assert Charge(Worker(3, 2), due_at=None, starts=1).note_end(-9, now=1.0)


def test_a_worker_is_this_interpreter_and_told_who_it_is() -> None:
    words = build_command(Path("mx1/node.toml"), Worker(2, 4))
    assert words[0] == sys.executable
    assert words[words.index("smtp_edge.cli") :] == [
        "smtp_edge.cli", "run", "--config", "mx1/node.toml",
        "--worker", "2", "--of", "4", "--supervisor", str(os.getpid()),
    ]  # fmt: skip


# -- with processes ----------------------------------------------------------------------------------------------------


def script(code: str) -> Sequence[str]:
    return [sys.executable, "-c", code]


def test_a_refused_first_start_ends_all_with_the_same_code() -> None:
    """One refuses, the other would run for ever."""
    sleeps = "import time; time.sleep(600)"
    with Signals() as signals:
        supervisor = Supervisor(
            list_workers(2), lambda worker: script("raise SystemExit(78)" if worker.number == 2 else sleeps)
        )
        assert supervisor.run(signals) == 78


def test_what_dies_is_started_again_until_all_is_told_to_stop(tmp_path: Path) -> None:
    """The third life of the worker tells the supervisor to stop, and is told to stop itself."""
    lives = tmp_path / "lives"
    code = (
        f"import os, pathlib, signal, time; lives = pathlib.Path({str(lives)!r})\n"
        "lives.open('a').write('x')\n"
        "if len(lives.read_text()) < 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (lives.open('a').write('!'), os._exit(0)))\n"
        f"os.kill({os.getpid()}, signal.SIGTERM)\n"
        "time.sleep(600)"
    )
    with Signals() as signals:
        assert Supervisor([Worker()], lambda worker: script(code)).run(signals) == 0
    assert lives.read_text() == "xxx!"


def test_a_hang_up_reaches_every_worker(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys, time\n"
        f"def heard(*_): (pathlib.Path({str(tmp_path)!r}) / str(os.getpid())).touch()\n"
        "signal.signal(signal.SIGHUP, heard)\n"
        f"(pathlib.Path({str(tmp_path)!r}) / f'ready-{{os.getpid()}}').touch()\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        f"while len(list(folder.glob('ready-*'))) < 2: time.sleep(0.01)\n"
        "if len(sys.argv) > 1:\n"
        f"    os.kill({os.getpid()}, signal.SIGHUP)\n"
        "    for _ in range(3000):\n"
        "        if len(list(folder.glob('[0-9]*'))) == 2: break\n"
        "        time.sleep(0.01)\n"
        f"    os.kill({os.getpid()}, signal.SIGTERM)\n"
        "time.sleep(600)"
    )
    with Signals() as signals:
        workers = list_workers(2)
        supervisor = Supervisor(workers, lambda worker: [*script(code), *(["leads"] if worker.number == 2 else [])])
        assert supervisor.run(signals) == 0
    assert len(list(tmp_path.glob("[0-9]*"))) == 2


def test_signals_are_put_back_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.wait(5.0) == [signal.SIGHUP]
        assert signals.wait(0.0) == []
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_came_early_is_not_lost(number: signal.Signals) -> None:
    with Signals() as signals:
        os.kill(os.getpid(), number)
        assert Supervisor([Worker()], lambda worker: script("import time; time.sleep(600)")).run(signals) == 0
