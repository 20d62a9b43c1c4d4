"""Users who may submit: a file of `user:hash` lines, scrypt hashes (RFC 7914), verified off the event loop.

The file is read when the node starts and when it reloads its configuration.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
from pathlib import Path

from smtp_edge.auth.api import Authenticator, AuthError
from smtp_edge.envelope import Client

COST_LOG2, BLOCK, PARALLEL = 14, 8, 1
"""scrypt's N = 2^14, r, p: 16 MiB and some 50 ms for each guess."""
COST_LOG2_MAX = 18
SALT_BYTES, KEY_BYTES = 16, 32
SCHEME = "scrypt"
VERIFICATIONS_MAX = 4
"""Verifications at once: guessing strangers must not eat the CPU that delivers mail."""


USERS_MAX = 100_000
USER_CHARACTERS_MAX = 255


def hash_password(password: str) -> str:
    """`scrypt$N$r$p$salt$key`, for a line of the users file."""
    salt = os.urandom(SALT_BYTES)
    key = _derive(password.encode(), salt, COST_LOG2, BLOCK, PARALLEL)
    words = (SCHEME, COST_LOG2, BLOCK, PARALLEL, _encode(salt), _encode(key))
    return "$".join(str(word) for word in words)


def verify_password(password: str, hashed: str) -> bool:
    """True if the password made the hash; blocks for some 50 ms. ValueError for a malformed hash."""
    cost, block, parallel, salt, key = _parse_hash(hashed)
    return hmac.compare_digest(_derive(password.encode(), salt, cost, block, parallel), key)


class UsersFile(Authenticator):
    """The users of a file."""

    def __init__(self, path: Path) -> None:
        """Read the file. AuthError for a line that is not `user:hash`."""
        self._hashes = read_users(path)
        self._decoy = hash_password("")
        self._slots = asyncio.Semaphore(VERIFICATIONS_MAX)

    async def verify(self, user: str, password: str, client: Client) -> str | None:
        """See Authenticator. Takes as long for an unknown user."""
        hashed = self._hashes.get(user)
        async with self._slots:
            right = await asyncio.to_thread(verify_password, password, hashed or self._decoy)
        return user if right and hashed is not None else None


def read_users(path: Path) -> dict[str, str]:
    """User -> hash. AuthError names file, line and the way out."""
    hashes: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, hashed = line.strip().partition(":")
        if not user.isprintable() or not 0 < len(user) <= USER_CHARACTERS_MAX or len(hashes) >= USERS_MAX:
            raise AuthError(f"{path}, line {number}: no user's name, or one of more than {USERS_MAX} users")
        try:
            _parse_hash(hashed)
        except ValueError as error:
            raise AuthError(f"{path}, line {number}: expected user:hash; make one: smtpmesh hash-password") from error
        hashes[user] = hashed
    return hashes


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. AuthError."""
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(f"{path} cannot be read: {error}") from error


def _derive(password: bytes, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    return hashlib.scrypt(
        password, salt=salt, n=1 << cost, r=block, p=parallel, dklen=KEY_BYTES, maxmem=256 * (1 << cost) * block
    )


def _parse_hash(hashed: str) -> tuple[int, int, int, bytes, bytes]:
    scheme, cost, block, parallel, salt, key = hashed.split("$")
    if scheme != SCHEME or not 1 <= int(cost) <= COST_LOG2_MAX:
        raise ValueError("unknown scheme or cost")
    return int(cost), int(block), int(parallel), base64.b64decode(salt), base64.b64decode(key)


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
