"""AUTH (RFC 4954): the exchange for PLAIN and LOGIN, and the check of what it gave.

A wrong password always gets its answer, and so does one that nobody can check now. Passwords are asked for under TLS
only, are never logged, and wait for nothing but the authenticator and its time limit.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from smtp_edge.address import SyntaxFault
from smtp_edge.auth.api import Authenticator, AuthUnavailable
from smtp_edge.auth.guard import Guard
from smtp_edge.auth.users import USER_CHARACTERS_MAX
from smtp_edge.envelope import Client
from smtp_edge.networks import ClientKeys
from smtp_edge.reply import Reply

log = structlog.get_logger()

RESPONSE_BYTES_MAX = 12288
"""Of a line with a response (RFC 4954 section 4)."""
USERNAME_ASKED, PASSWORD_ASKED = "VXNlcm5hbWU6", "UGFzc3dvcmQ6"
RIGHT = Reply(235, "authentication successful", "2.7.0")
WRONG = Reply(535, "authentication credentials invalid", "5.7.8")
TOO_OFTEN = Reply(454, "too many failures, come later", "4.7.0")
UNAVAILABLE = Reply(454, "authentication is not possible now", "4.7.0")
UNKNOWN_MECHANISM = Reply(504, "mechanism not recognised", "5.5.4")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client says who it is."""

    user: str
    password: str


class Passwords:
    """Checks passwords for one listener: implements `options.Login`."""

    def __init__(self, authenticator: Authenticator, guard: Guard, keys: ClientKeys, *, timeout_s: float) -> None:
        self._authenticator, self._guard, self._keys, self._timeout_s = authenticator, guard, keys, timeout_s

    async def check(self, user: str, password: str, client: Client) -> tuple[Reply, str]:
        """The reply (235, 535, 454), and the user's name if it is 235."""
        key = self._keys.key(client.address)
        if not 0 < len(user) <= USER_CHARACTERS_MAX or not user.isprintable():
            self._guard.note_failure("", key, time.monotonic())
            return self._refuse(WRONG, "no user's name", "", client)
        if not self._guard.may_try(user, key, time.monotonic()):
            return self._refuse(TOO_OFTEN, "too many failures", user, client)
        try:
            async with asyncio.timeout(self._timeout_s):
                known_as = await self._authenticator.verify(user, password, client)
        except (AuthUnavailable, TimeoutError) as error:
            return self._refuse(UNAVAILABLE, str(error) or "timeout", user, client)
        except Exception:
            log.exception("auth.bug", client=client.address, user=user)
            return UNAVAILABLE, ""
        if known_as is None:
            self._guard.note_failure(user, key, time.monotonic())
            return self._refuse(WRONG, "wrong user or password", user, client)
        self._guard.note_success(user, key, time.monotonic())
        return RIGHT, known_as

    def _refuse(self, reply: Reply, reason: str, user: str, client: Client) -> tuple[Reply, str]:
        log.warning(
            "auth.failed", client=client.address, user=user, listener=client.listener, reason=reason, reply=str(reply)
        )
        return reply, ""


async def exchange(argument: str, ask: Callable[[str], Awaitable[bytes]]) -> Credentials | Reply:
    """The exchange that AUTH begins: credentials, or the reply. SyntaxFault for what is no answer, or `*`.

    `ask` sends a challenge (base64) and gives the client's line.
    """
    mechanism, _, initial = argument.partition(" ")
    match mechanism.upper():
        case "PLAIN":
            return _parse_plain(_decode(initial.encode()) if initial else _decode(await ask("")))
        case "LOGIN":
            user = _decode(initial.encode()) if initial else _decode(await ask(USERNAME_ASKED))
            return Credentials(_text(user), _text(_decode(await ask(PASSWORD_ASKED))))
        case _:
            return UNKNOWN_MECHANISM


def _decode(line: bytes) -> bytes:
    if line == b"*":
        raise SyntaxFault("authentication cancelled", "5.7.0")
    try:
        return b"" if line == b"=" else base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise SyntaxFault("not base64", "5.5.2") from None


def _parse_plain(answer: bytes) -> Credentials | Reply:
    """`authorization NUL user NUL password` (RFC 4616). To act for somebody else is not possible here."""
    parts = answer.split(b"\0")
    if len(parts) != 3:
        raise SyntaxFault("bad PLAIN response", "5.5.2")
    if parts[0] not in (b"", parts[1]):
        return WRONG
    return Credentials(_text(parts[1]), _text(parts[2]))


def _text(raw: bytes) -> str:
    """UTF-8; what is none becomes text that no user and no password is."""
    return raw.decode("utf-8", "replace")
