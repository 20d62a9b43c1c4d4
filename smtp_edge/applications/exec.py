"""A program of any language as a `data` sink: the message on its standard input, its verdict as exit code.

    [[sink]]
    use = "exec"
    with = { command = ["/usr/local/bin/judge", "--strict"] }

    exit code               means
    0                       go on; its output is header fields, which are added above all others
    65, 69, 77              refused for good (EX_DATAERR, EX_UNAVAILABLE, EX_NOPERM of sysexits.h); the first line of
                            its output is the text
    75                      refused for now (EX_TEMPFAIL), the same
    anything else           a failure: the binding's `on_failure`

It sees the recipients that the binding's rule matched. Its environment is SMTPMESH_SENDER, _RECIPIENTS (one a line),
_CLIENT, _HELO, _USER, _LISTENER and _SIZE, and PATH; nothing else of ours. Output beyond `OUTPUT_BYTES_MAX`, a program
that closes its input early without exiting, or that outlives its time is a failure, and the whole process group is
killed. At most `processes_max` run at once; others wait within their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence

from smtp_edge.sinks.api import Message, Reject, Sink, TempFail, Verdict
from smtp_edge.sinks.fields import split_header

OUTPUT_BYTES_MAX = 64 * 1024
TEXT_MAX = 200
REFUSES = {65, 69, 77}
TEMPFAIL = 75
PATH = "/usr/local/bin:/usr/bin:/bin"


class ExecError(Exception):
    """The program gave no verdict."""


class Exec(Sink):
    """See the module. ValueError for settings that mean nothing."""

    def __init__(self, command: Sequence[str], processes_max: int = 10) -> None:
        if isinstance(command, str) or not command or not all(isinstance(word, str) for word in command):
            raise ValueError('command is a list of words, as ["/usr/local/bin/judge", "--strict"]')
        if not os.path.isabs(command[0]):
            raise ValueError(f"command begins with an absolute path, not {command[0]!r}")
        if processes_max < 1:
            raise ValueError("processes_max is at least 1")
        self._command = tuple(command)
        self._turns = asyncio.Semaphore(processes_max)

    async def start(self) -> None:
        """ExecError if there is no such program."""
        if not os.access(self._command[0], os.X_OK):
            raise ExecError(f"{self._command[0]} is no program that may be run")

    async def data(self, message: Message) -> Verdict | None:
        """Run it. ExecError, OSError."""
        async with self._turns:
            code, output = await self._run(message)
        text = output.decode("utf-8", "replace").partition("\n")[0].strip()[:TEXT_MAX]
        text = "".join(character for character in text if character.isprintable())
        if code == TEMPFAIL:
            return TempFail(text or "try again later")
        if code in REFUSES:
            return Reject(text or "the message was refused")
        if code:
            raise ExecError(f"{self._command[0]} ended with {code}: {text}")
        self._add_fields(message, output)
        return None

    def _add_fields(self, message: Message, output: bytes) -> None:
        text = output.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        header = split_header(text)
        if text[header.length :].strip():
            raise ExecError(f"{self._command[0]} wrote what is no header field: {text[header.length :][:80]!r}")
        for field in reversed(header.fields):
            message.add_header(field.name, field.value)

    async def _run(self, message: Message) -> tuple[int, bytes]:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(message),
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            feeding = asyncio.create_task(_feed(process.stdin, message))
            try:
                output = await _read(process.stdout)
                code = await process.wait()
            finally:
                feeding.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await feeding
            return code, output
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it left behind
            if process.returncode is None:
                await process.wait()


async def _feed(stdin: asyncio.StreamWriter, message: Message) -> None:
    with contextlib.suppress(ConnectionError):  # it has read enough
        async for chunk in message.content():
            stdin.write(chunk)
            await stdin.drain()
    stdin.close()


async def _read(stdout: asyncio.StreamReader) -> bytes:
    output = b""
    while piece := await stdout.read(OUTPUT_BYTES_MAX):
        output += piece
        if len(output) > OUTPUT_BYTES_MAX:
            raise ExecError(f"it wrote more than {OUTPUT_BYTES_MAX} bytes")
    return output


def _environment(message: Message) -> dict[str, str]:
    client, envelope = message.client, message.envelope
    return {
        "PATH": PATH,
        "SMTPMESH_SENDER": envelope.sender,
        "SMTPMESH_RECIPIENTS": "\n".join(recipient.address for recipient in envelope.recipients),
        "SMTPMESH_CLIENT": client.address,
        "SMTPMESH_HELO": client.helo,
        "SMTPMESH_USER": client.user,
        "SMTPMESH_LISTENER": client.listener,
        "SMTPMESH_SIZE": str(message.size_bytes),
    }
