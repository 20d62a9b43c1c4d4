"""Shared secrets from files."""

from __future__ import annotations

import base64
from pathlib import Path

BYTES_MIN = 16
_BASE64 = b"whsec_"
"""Before a secret that is written in base64, as Standard Webhooks has it."""


def load_secret(path: str) -> bytes:
    """What a file holds, without blanks around it; base64 behind `whsec_`. ValueError, OSError."""
    secret = Path(path).read_bytes().strip()
    if secret.startswith(_BASE64):
        try:
            secret = base64.b64decode(secret.removeprefix(_BASE64), validate=True)
        except ValueError:
            raise ValueError(f"what stands behind whsec_ in {path} is not base64") from None
    if len(secret) < BYTES_MIN:
        raise ValueError(f"the secret in {path} has {len(secret)} bytes; it takes {BYTES_MIN} at least")
    return secret
