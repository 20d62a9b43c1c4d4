"""Where lives come from: a process that has imported everything, and forks one for whoever calls its socket.

    python -m tests.faults.nursery SOCKET

A caller sends one line of JSON (see `Process.start`) and is told `pid N`. The life begins when the caller has sent
another line, so that a tracer can be attached before; from then on the connection is the life's, and when the life has
ended the caller is told `exit CODE`, negative for a signal. A fork costs milliseconds, a start half a second.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType

from tests.faults.life import live

ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """One such process. Its folder's name must be short: a socket's path ends at 107 bytes."""

    def __init__(self, folder: Path) -> None:
        self.address = folder / "nursery.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", str(self.address)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def serve(address: str) -> None:
    """Until it is killed."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(100)
        os.write(1, b"ready\n")
        while True:
            channel, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                keep(channel)
            channel.close()
            reap()


def keep(channel: socket.socket) -> None:
    """Have a life, and tell how it ended. Does not return."""
    words = json.loads(read_line(channel))
    pid = os.fork()
    if pid == 0:
        os.setsid()
        read_line(channel)
        with open(words["errors"], "ab") as errors:
            os.dup2(errors.fileno(), 2)
        try:
            code = live(
                Path(words["directory"]),
                words["host"],
                words["names"],
                channel,
                words["mesh"],
                cut_through=words["cut_through"],
            )
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    channel.sendall(f"pid {pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    channel.setblocking(True)  # the life's event loop wanted it otherwise, and it is the same socket
    try:
        channel.sendall(f"exit {os.waitstatus_to_exitcode(status)}\n".encode())
        channel.shutdown(socket.SHUT_WR)
        while channel.recv(4096):  # what is not read by the end would reset the connection, and what was said with it
            pass
    finally:
        os._exit(0)


def read_line(channel: socket.socket) -> str:
    """Byte by byte: what follows is for somebody else."""
    line = b""
    while not line.endswith(b"\n"):
        byte = channel.recv(1)
        if not byte:
            os._exit(0)
        line += byte
    return line.decode()


def reap() -> None:
    """Keepers that are done."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    serve(sys.argv[1])
