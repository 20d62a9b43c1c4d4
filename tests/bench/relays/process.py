"""A relay as a process that can be started, killed, started again, looked at, and is gone at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.lab.account import descendants, open_account
from tests.bench.relays.contender import Contender, Place, RelayError
from tests.bench.relays.own import environment
from tests.unit.smtp_edge.client.certificates import issue

PORT, SINK_PORT = 2525, 2600
"""Of a loopback that nobody else is on (ground.py)."""
START_S = 40.0
STOP_S = 5.0
POLL_S = 0.01
LOG_LINE_MAX = 200
MIB = 1024 * 1024
LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Relay:
    """A contender in a folder of its own, which is made anew. Ends with the block; RelayError if it does not greet."""

    def __init__(
        self,
        contender: Contender,
        folder: Path,
        *,
        port: int = PORT,
        sink: int = SINK_PORT,
        tracer: Sequence[str] = (),
        near: bool = True,
        tls: bool = False,
    ) -> None:
        """`tracer`: words before the command. `near` = it can be connected to from here. `tls` = it offers STARTTLS."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.port = folder, port
        self._near, self._listeners = near, contender.listeners
        pem = write_pem(folder / "tls.pem") if tls else None
        self._command = [*tracer, *contender.prepare(Place(folder, port, sink, pem))]
        self._account = open_account()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of its first process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> Path:
        """What it writes to its outputs, of all starts."""
        return self.folder / "out.log"

    def start(self) -> float:
        """Start it and wait until it greets, if it is near; seconds until then."""
        began = time.monotonic()
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self._account.wrap(self._command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                env=environment(),
                start_new_session=True,
            )
        if self._near:
            self.wait_greeting()
        return time.monotonic() - began

    def wait_greeting(self) -> None:
        """Until a connection is greeted and all listeners are there. RelayError with the last line of the log."""
        deadline = time.monotonic() + START_S
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline:
            if count_listening(self.port) >= self._listeners and self._greets():
                return
            time.sleep(POLL_S)
        lines = self.log.read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it says nothing")
        raise RelayError(f"does not serve: {last[:LOG_LINE_MAX]}")

    def _greets(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as probe:
            if probe.recv(100).startswith(b"220"):
                probe.sendall(b"QUIT\r\n")
                probe.recv(100)
                return True
        return False

    def kill(self, *pids: int) -> float:
        """SIGKILL to some of its processes, or to all; the instant."""
        victims = pids or self.processes()
        at = time.monotonic()
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None and self._process.pid in victims:
            self._process.wait()
        return at

    def stop(self) -> None:
        """SIGTERM, and after a while the end of all that is left."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self._account.close(self._process.pid)
        self._process.kill()
        self._process.wait()
        self._process = None

    # -- looking -------------------------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """The first, then its descendants."""
        return descendants(self.pid)

    def spent_s(self) -> float:
        """Processor seconds so far."""
        return self._account.spent_s(self.pid)

    def memory_mb(self) -> float:
        """Resident, of all processes; shared pages count for each."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return total * PAGE_BYTES / MIB

    def begin_peak(self) -> None:
        """Most memory is counted from now on."""
        for pid in self.processes():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """The most that was resident since then, each process at its own peak."""
        return sum(_peak_kib(pid) for pid in self.processes()) / 1024

    def files_count(self) -> int:
        """Open file descriptors of all processes."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                total += len(os.listdir(f"/proc/{pid}/fd"))
        return total


def count_listening(port: int) -> int:
    """Sockets of this network namespace that listen on a port, IPv4 and IPv6."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return sum(row[3] == LISTENING and row[1].endswith(f":{port:04X}") for row in rows)


def write_pem(path: Path) -> Path:
    """A certificate for localhost that nobody has to trust, and its key, both of P-256; readable for its owner only."""
    path.touch(mode=0o600)
    return issue("localhost", names=("localhost",)).write(path)


def _peak_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0
