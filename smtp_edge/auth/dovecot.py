"""Passwords checked by Dovecot, over its auth client socket (`auth-client`), one connection for all questions.

    VERSION 1 2, CPID PID                                     each side says hello; theirs ends with DONE
    AUTH 7 PLAIN service=smtp secured rip=ADDRESS resp=...    a question with a number; words are separated by tabs
    OK 7 user=...   or   FAIL 7 code=temp_fail                its answer, in any order (`temp` before Dovecot 2.3)

A connection that is lost leaves the questions of the moment unanswered (454, the client asks again) and is made anew
for the next one. Protocol: https://doc.dovecot.org/2.3/developer_manual/design/auth_protocol/
"""

from __future__ import annotations

import asyncio
import base64
import os
from pathlib import Path

import structlog

from smtp_edge.auth.api import Authenticator, AuthError, AuthUnavailable
from smtp_edge.envelope import Client

log = structlog.get_logger()

SERVICE = "smtp"
LINE_BYTES_MAX = 8192
QUESTIONS_MAX = 1000
"""Under way at once."""
MAJOR = "1"


class Dovecot(Authenticator):
    """`path` is the socket."""

    def __init__(self, path: Path, service: str = SERVICE) -> None:
        if not service.isalnum():
            raise AuthError(f"service {service!r} is no name of a Dovecot service")
        self._path, self._service = path, service
        self._connecting = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._answers: dict[str, asyncio.Future[list[str]]] = {}
        self._asked = 0

    async def stop(self) -> None:
        """Close the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def verify(self, user: str, password: str, client: Client) -> str | None:
        """See Authenticator."""
        answer = await self._ask(user, password, client)
        fields = dict(word.partition("=")[::2] for word in answer[2:])
        if answer[0] == "OK":
            return fields.get("user") or user
        if answer[0] == "FAIL" and "temp" not in fields and fields.get("code") != "temp_fail":
            return None
        raise AuthUnavailable(f"Dovecot answers {answer[0]} {fields.get('reason', 'for now')}")

    async def _ask(self, user: str, password: str, client: Client) -> list[str]:
        if len(self._answers) >= QUESTIONS_MAX:
            raise AuthUnavailable("too many questions are open")
        writer = await self._connect()
        self._asked += 1
        number = str(self._asked % 2**31)
        response = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
        words = ["AUTH", number, "PLAIN", f"service={self._service}", "secured", f"rip={client.address}"]
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            writer.write(("\t".join([*words, f"resp={response}"]) + "\n").encode())
            answer: list[str] = await future
        finally:
            self._answers.pop(number, None)
        return answer

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is not None and not self._writer.is_closing():
                return self._writer
            reader, writer = await self._open()
            self._writer = writer
            self._reading = asyncio.create_task(self._read(reader, writer))
            return writer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        writer = None
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path), limit=LINE_BYTES_MAX)
            writer.write(f"VERSION\t{MAJOR}\t2\nCPID\t{os.getpid()}\n".encode())
            await _read_hello(reader)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            if writer is not None:
                writer.close()
            raise AuthUnavailable(f"{self._path}: {error}") from error
        return reader, writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                words = line.decode("utf-8", "replace").rstrip("\n").split("\t")
                future = self._answers.get(words[1]) if len(words) > 1 else None
                if words[0] in ("OK", "FAIL", "CONT") and future is not None and not future.done():
                    future.set_result(words)
        except (OSError, ValueError) as error:
            log.warning("auth.dovecot_lost", path=str(self._path), reason=str(error))
        finally:
            writer.close()
            for future in self._answers.values():
                if not future.done():
                    future.set_exception(AuthUnavailable("the connection to Dovecot was lost"))


async def _read_hello(reader: asyncio.StreamReader) -> None:
    """Until DONE. ValueError if it is not this protocol, or knows no PLAIN."""
    mechanisms: set[str] = set()
    for _ in range(100):
        words = (await reader.readuntil(b"\n")).decode("utf-8", "replace").rstrip("\n").split("\t")
        if words[0] == "VERSION" and words[1:2] != [MAJOR]:
            raise ValueError(f"it speaks version {words[1:2]}, not {MAJOR}")
        if words[0] == "MECH" and len(words) > 1:
            mechanisms.add(words[1])
        if words[0] == "DONE":
            if "PLAIN" not in mechanisms:
                raise ValueError("it offers no PLAIN")
            return
    raise ValueError("no end of its hello")
