"""Users who may submit: a file of `user:hash` lines, scrypt hashes (RFC 7914), verified off the event loop."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
from pathlib import Path

COST_LOG2, BLOCK, PARALLEL = 14, 8, 1
"""scrypt's N = 2^14, r, p: 16 MiB and some 50 ms for each guess."""
COST_LOG2_MAX = 18
SALT_BYTES, KEY_BYTES = 16, 32
SCHEME = "scrypt"
VERIFICATIONS_MAX = 4
"""Verifications at once: guessing strangers must not eat the CPU that delivers mail."""


class UsersError(Exception):
    """The users file cannot be used; `str()` names file, line and the way out."""


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


class UsersFile:
    """The users of a listener."""

    def __init__(self, hashes: dict[str, str]) -> None:
        self._hashes = hashes
        self._decoy = hash_password("")
        self._slots = asyncio.Semaphore(VERIFICATIONS_MAX)

    @classmethod
    def load(cls, path: Path) -> UsersFile:
        """Read a file. UsersError for a line that is not `user:hash`."""
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsersError(f"{path} cannot be read: {error}") from error
        hashes: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            user, _, hashed = line.strip().partition(":")
            try:
                _parse_hash(hashed)
            except ValueError as error:
                raise UsersError(
                    f"{path}, line {number}: expected user:hash; make one: smtpmesh hash-password"
                ) from error
            hashes[user] = hashed
        return cls(hashes)

    async def verify(self, user: str, password: str) -> bool:
        """True for a known user with this password. Takes as long for an unknown user."""
        hashed = self._hashes.get(user)
        async with self._slots:
            right = await asyncio.to_thread(verify_password, password, hashed or self._decoy)
        return right and hashed is not None


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
