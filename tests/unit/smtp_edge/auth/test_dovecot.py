"""Passwords checked by a real Dovecot, and by liars on its socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from smtp_edge.auth.api import AuthUnavailable
from smtp_edge.auth.dovecot import Dovecot
from smtp_edge.envelope import Client
from tests.conftest import find_command

CLIENT = Client("192.0.2.7", tls="TLSv1.3")
CONFIGURATION = """\
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
protocols =
ssl = no
auth_failure_delay = 0
default_internal_user = {user}
default_internal_group = {group}
default_login_user = {user}
passdb {{
  {passdb}
}}
userdb {{
  driver = static
  args = uid=1000 gid=1000 home=/nonexistent
}}
service auth {{
  unix_listener auth-client {{
    mode = 0600
  }}
}}
service anvil {{
  chroot =
}}
"""


USERS_FILE = "driver = passwd-file\n  args = scheme=PLAIN username_format=%u {folder}/users"
BROKEN = "driver = checkpassword\n  args = /nonexistent"


@pytest.fixture
def socket(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The auth socket of a Dovecot of our own."""
    if os.geteuid() != 0:
        pytest.skip("a private Dovecot needs root")
    folder = Path(tempfile.mkdtemp(prefix="sm-dovecot-"))
    folder.chmod(0o755)
    user = pwd.getpwnam("dovecot")
    passdb = getattr(request, "param", USERS_FILE).format(folder=folder)
    values = {"folder": folder, "passdb": passdb, "user": user.pw_name, "group": "dovecot"}
    (folder / "dovecot.conf").write_text(CONFIGURATION.format(**values))
    (folder / "users").write_text("sue:secret\n")
    process = subprocess.Popen([find_command("dovecot") or "dovecot", "-F", "-c", str(folder / "dovecot.conf")])
    try:
        deadline = time.monotonic() + 10
        while not (folder / "run" / "auth-client").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield folder / "run" / "auth-client"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.peer("dovecot")
async def test_a_real_dovecot_says_who_may(socket: Path) -> None:
    dovecot = Dovecot(socket)
    try:
        asked = [("sue", "secret"), ("sue", "wrong")]  # each failure makes Dovecot slower with the next
        answers = await asyncio.gather(*(dovecot.verify(user, password, CLIENT) for user, password in asked))
        assert answers == ["sue", None]
    finally:
        await dovecot.stop()


@pytest.mark.peer("dovecot")
@pytest.mark.parametrize("socket", [BROKEN], indirect=True)
async def test_a_dovecot_that_cannot_say_is_no_wrong_password(socket: Path) -> None:
    dovecot = Dovecot(socket)
    try:
        with pytest.raises(AuthUnavailable):
            await dovecot.verify("sue", "secret", CLIENT)
    finally:
        await dovecot.stop()


HELLO = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t1\nDONE\n"


@asynccontextmanager
async def liar(folder: Path, hello: bytes, answer: Callable[[bytes], bytes | None]) -> AsyncIterator[Dovecot]:
    """A server that answers each question as told; None hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hello)
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                if line.startswith(b"AUTH"):
                    said = answer(line.split(b"\t")[1])
                    if said is None:
                        break
                    writer.write(said)
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "auth")
    dovecot = Dovecot(folder / "auth")
    try:
        yield dovecot
    finally:
        await dovecot.stop()
        server.close()


@pytest.mark.parametrize(
    ("hello", "answer"),
    [
        (HELLO, None),
        (HELLO, b"CONT\t%s\t\n"),
        (HELLO, b"FAIL\t%s\ttemp\treason=later\n"),
        (HELLO, b"FAIL\t%s\tcode=temp_fail\n"),
        (HELLO, b"x" * 100_000),
        (b"VERSION\t2\t0\nDONE\n", b""),
        (b"VERSION\t1\t2\nMECH\tDIGEST-MD5\nDONE\n", b""),
        (b"220 mail ESMTP\r\n" * 200, b""),
        (b"x" * 100_000, b""),
    ],
)
async def test_what_is_no_answer_is_no_wrong_password(tmp_path: Path, hello: bytes, answer: bytes | None) -> None:
    def reply(number: bytes) -> bytes | None:
        return answer % number if answer and b"%s" in answer else answer

    async with liar(tmp_path, hello, reply) as dovecot:
        with pytest.raises(AuthUnavailable):
            await dovecot.verify("sue", "secret", CLIENT)


async def test_a_lost_connection_is_made_anew(tmp_path: Path) -> None:
    answers: list[bytes | None] = [None, b"OK\t%s\tuser=susanne\n"]

    def reply(number: bytes) -> bytes | None:
        said = answers.pop(0)
        return said % number if said else None

    async with liar(tmp_path, HELLO, reply) as dovecot:
        with pytest.raises(AuthUnavailable):
            await dovecot.verify("sue", "secret", CLIENT)
        assert await dovecot.verify("sue", "secret", CLIENT) == "susanne"


async def test_answers_may_come_in_any_order_and_none_is_taken_for_another(tmp_path: Path) -> None:
    asked: list[bytes] = []

    def reply(number: bytes) -> bytes | None:
        asked.append(number)
        if len(asked) < 2:
            return b"FAIL\t999\t\nOK\n\t\t\n"
        return b"FAIL\t%s\tuser=b\nOK\t%s\tuser=a\n" % (asked[1], asked[0])

    async with liar(tmp_path, HELLO, reply) as dovecot:
        async with asyncio.timeout(5):
            both = await asyncio.gather(dovecot.verify("a", "x", CLIENT), dovecot.verify("b", "x", CLIENT))
        assert both == ["a", None]


async def test_no_socket_is_no_wrong_password(tmp_path: Path) -> None:
    with pytest.raises(AuthUnavailable, match="nothing-here"):
        await Dovecot(tmp_path / "nothing-here").verify("sue", "secret", CLIENT)
