"""`smtpmesh run` with several workers: the thin process above them. No mail, no event loop, no gRPC in it.

    starts      one `smtpmesh run --worker K` for each (a new interpreter, never a fork), and one for each worker that
                is no more but holds mail, which drains and ends
    restarts    a worker that died, whatever killed it: at once the first time, then after 1, 2, 4 ... 30 s
    passes on   SIGHUP (reload) to all; SIGTERM and SIGINT as an orderly stop of all, which it waits for
    ends        when told, or with a worker whose very first start is refused (exit code 78): the configuration is wrong

A worker that is started anew while others serve is tried again whatever it ends with: a file that was broken meanwhile
must not take away what still works. Workers are told by the kernel (PR_SET_PDEATHSIG) when the supervisor is killed,
and stop in good order; the next supervisor waits for their queues before it starts its own.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import structlog

from smtp_edge.logs import configure_logs
from smtp_edge.queue.errors import StoreError
from smtp_edge.queue.lock import DirectoryLock
from smtp_edge.server.listening import ListenerError, demand_free
from smtp_edge.settings import Settings
from smtp_edge.shards import QUEUE, find_stranded
from smtp_edge.workers import Worker, list_workers

log = structlog.get_logger()

EXIT_DONE, EXIT_BAD_CONFIGURATION = 0, 78
PAUSE_FIRST_S, PAUSE_FACTOR, PAUSE_MAX_S = 1.0, 2.0, 30.0
"""Between the deaths of a worker and its starts, from the second death on."""
WELL_S = 60.0
"""A worker that ran so long may be started at once again."""
STOP_MAX_S = 60.0
"""For an orderly stop of all; then they are killed. A node gives its sessions and attempts some 20 s."""
LOCKS_MAX_S = 40.0
"""For the workers of a supervisor that was killed to end."""
LOCKS_LOOK_S = 0.1
PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGTERM, signal.SIGINT)
HEARD = (*STOPS, signal.SIGHUP, signal.SIGCHLD)


class SupervisorError(Exception):
    """No worker can be started; `str()` says what is in the way."""


# -- when to start again: pure -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Restarts:
    """Of one worker: how long to wait after each death."""

    _pause_s: float = 0.0

    def note_death(self, ran_s: float) -> float:
        """Seconds until the next start, after a life of `ran_s` seconds."""
        pause_s = 0.0 if ran_s >= WELL_S else self._pause_s
        self._pause_s = min(max(PAUSE_FIRST_S, pause_s * PAUSE_FACTOR), PAUSE_MAX_S)
        return pause_s


@dataclass(slots=True)
class Charge:
    """A worker and its process."""

    worker: Worker
    restarts: Restarts = field(default_factory=Restarts)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    """Monotonic seconds."""
    due_at: float | None = 0.0
    """When to start it; None: it runs, or it is over."""
    starts: int = 0

    def is_refused(self, code: int) -> bool:
        """It cannot begin: the configuration is at fault, and was so from the beginning."""
        return code == EXIT_BAD_CONFIGURATION and self.starts == 1

    def note_end(self, code: int, now: float) -> bool:
        """It has ended by itself. True if it is to be started again, at `due_at`."""
        self.process = None
        if self.worker.retiring and (code == EXIT_DONE or self.is_refused(code)):
            return False
        self.due_at = now + self.restarts.note_death(now - self.started_at)
        return True


# -- the process -------------------------------------------------------------------------------------------------------


class Supervisor:
    """See the module. `command`: how a worker is started."""

    def __init__(
        self,
        workers: Sequence[Worker],
        command: Callable[[Worker], Sequence[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._charges = [Charge(worker) for worker in workers]
        self._command, self._clock = command, clock

    def run(self, signals: Signals) -> int:
        """Until all have stopped; the exit code."""
        while True:
            self._start_due()
            for number in signals.wait(self._sleep_s()):
                if number in STOPS:
                    log.info("supervisor.stopping", signal=signal.Signals(number).name)
                    return self._stop(EXIT_DONE)
                if number == signal.SIGHUP:
                    self._tell(signal.SIGHUP)
            if self._bury():
                return self._stop(EXIT_BAD_CONFIGURATION)

    def _sleep_s(self) -> float | None:
        due = [charge.due_at for charge in self._charges if charge.due_at is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    def _start_due(self) -> None:
        for charge in self._charges:
            now = self._clock()
            if charge.due_at is None or charge.due_at > now:
                continue
            charge.due_at, charge.started_at = None, now
            try:
                charge.process = subprocess.Popen(self._command(charge.worker), stdin=subprocess.DEVNULL)
            except OSError as error:  # no more processes, or no memory: later there may be
                charge.due_at = now + charge.restarts.note_death(0.0)
                log.error("worker.not_started", worker=charge.worker.number, reason=str(error))
                continue
            charge.starts += 1
            log.info("worker.started", worker=charge.worker.number, pid=charge.process.pid)

    def _bury(self) -> bool:
        """Note who has died. True if all have to end with it."""
        refused = False
        for charge in self._charges:
            process = charge.process
            if process is None or (code := process.poll()) is None:
                continue
            words = {"worker": charge.worker.number, "pid": process.pid, **_describe(code)}
            refused |= charge.is_refused(code) and not charge.worker.retiring
            again = charge.note_end(code, self._clock())
            if charge.worker.retiring and code == EXIT_DONE:
                log.info("worker.retired", **words)
            elif again and not refused:
                log.error("worker.died", starts_in_s=round((charge.due_at or 0.0) - self._clock(), 1), **words)
            else:
                log.error("worker.refused", **words)
        return refused

    def _tell(self, number: signal.Signals) -> None:
        """A signal for all that run."""
        for charge in self._charges:
            if charge.process is not None and charge.process.poll() is None:
                charge.process.send_signal(number)

    def _stop(self, code: int) -> int:
        """Every worker, in good order; `code` back."""
        self._tell(signal.SIGTERM)
        deadline = self._clock() + STOP_MAX_S
        for process in [charge.process for charge in self._charges if charge.process is not None]:
            try:
                process.wait(max(0.0, deadline - self._clock()))
            except subprocess.TimeoutExpired:
                log.error("worker.killed", pid=process.pid, reason=f"it did not stop within {STOP_MAX_S:.0f} s")
                process.kill()
                process.wait()
        log.info("supervisor.stopped")
        return code


def _describe(code: int) -> dict[str, object]:
    """`exit_code=1`, or `signal=SIGKILL`."""
    if code >= 0:
        return {"exit_code": code}
    try:
        return {"signal": signal.Signals(-code).name}
    except ValueError:
        return {"signal": -code}


class Signals:
    """What the process is sent, one after another. To be used in the main thread; handlers are put back at the end."""

    def __enter__(self) -> Signals:
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        self._before = {number: signal.signal(number, _hear) for number in HEARD}
        self._wakeup_before = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reading.close()
        self._writing.close()

    def wait(self, timeout_s: float | None) -> list[int]:
        """Numbers of signals that came; empty after the timeout. `None`: however long it takes."""
        ready, _, _ = select.select([self._reading], [], [], timeout_s)
        return list(self._reading.recv(4096)) if ready else []


def _hear(_number: int, _frame: FrameType | None) -> None:
    """The number is in the socket already."""


# -- beginning ---------------------------------------------------------------------------------------------------------


def needs_supervisor(settings: Settings) -> bool:
    """Several workers, or one and the mail of others that are no more."""
    return settings.node.workers > 1 or bool(find_stranded(settings))


def supervise(settings: Settings, config_path: Path) -> int:
    """Run all workers of a node until SIGTERM or SIGINT; the exit code of the process."""
    configure_logs(settings.log.format, settings.log.level, settings.node.name)
    count = settings.node.workers
    lock = DirectoryLock(settings.node.data_dir)
    try:
        with Signals() as signals:
            if not _take_place(settings, lock, signals):
                return EXIT_DONE
            stranded = find_stranded(settings)
            for item in stranded:
                log.warning(
                    "worker.retiring", worker=item.worker.number, messages=item.count, data_dir=str(item.folder)
                )
            log.info("supervisor.started", workers=count, pid=os.getpid())
            workers = [*list_workers(count), *(item.worker for item in stranded)]
            return Supervisor(workers, lambda worker: build_command(config_path, worker)).run(signals)
    except SupervisorError as error:
        print(f"smtpmesh: {config_path}: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_BAD_CONFIGURATION
    finally:
        lock.release()


def _take_place(settings: Settings, lock: DirectoryLock, signals: Signals) -> bool:
    """The only supervisor here, no worker of another one left, and nobody else on the addresses. SupervisorError.

    False: it was told to stop meanwhile.
    """
    try:
        settings.node.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire(f"supervisor-{os.getpid()}")
        if not _wait_for_queues(settings, signals):
            return False
    except (StoreError, OSError) as error:
        raise SupervisorError(f"node.data_dir: {error}") from error
    for listener in settings.listener:
        try:
            demand_free(listener.listen)
        except ListenerError as error:
            raise SupervisorError(f"listener {listener.name}: {error}") from error
    return True


def _wait_for_queues(settings: Settings, signals: Signals) -> bool:
    """Workers of a supervisor that was killed are about to end. StoreError: one does not, or somebody else is there.

    False: this one was told to stop meanwhile.
    """
    deadline = time.monotonic() + LOCKS_MAX_S
    for worker in [*list_workers(settings.node.workers), *(item.worker for item in find_stranded(settings))]:
        directory, told = worker.data_dir(settings) / QUEUE, False
        while reason := _find_holder(directory):
            if time.monotonic() >= deadline:
                raise StoreError(reason)
            if not told:
                log.warning("supervisor.waits", worker=worker.number, reason=reason.partition(":")[0])
            told = True
            if set(STOPS).intersection(signals.wait(LOCKS_LOOK_S)):
                return False
    return True


def _find_holder(directory: Path) -> str:
    """Who has a queue open, in a sentence; empty: nobody."""
    lock = DirectoryLock(directory)
    if not directory.is_dir():
        return ""
    try:
        lock.acquire(f"supervisor-{os.getpid()}")
    except StoreError as error:
        return str(error)
    finally:
        lock.release()
    return ""


def build_command(config_path: Path, worker: Worker) -> list[str]:
    """A worker's command line: this interpreter, and modules from where this process has them."""
    here = os.getcwd() in sys.path or "" in sys.path
    words = [sys.executable, *([] if here else ["-P"]), "-m", "smtp_edge.cli", "run", "--config", str(config_path)]
    return [*words, "--worker", str(worker.number), "--of", str(worker.count), "--supervisor", str(os.getpid())]


def end_with(supervisor: int) -> bool:
    """In a worker: be sent SIGTERM when the supervisor is gone. False: it is gone already.

    Linux only: elsewhere a worker whose supervisor was killed goes on. A reload that is passed on before the worker can
    do it waits (`node.run` lets it through); it must not end it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (OSError, AttributeError):
        return True
    return os.getppid() == supervisor
