"""Removal of a node for ever: the authority's signed word that a key is no longer of the cluster.

A certificate cannot be taken back, so its end before its time needs a statement that every node can check by itself.
It names the node id, which is the hash of the key: a renewed certificate of the same key stays revoked, and the way
back is a new key. There is no taking back.

What is signed is text of one form only (same values, same bytes), told apart from anything else that an authority
signs by its first line:

    smtpmesh revocation v1
    cluster: east
    node: 0123456789abcdef0123456789abcdef
    revoked_at: 1767225600
    reason: stolen disk
    authority: fedcba9876543210fedcba9876543210

ECDSA signatures are not unique: compare revocations by body or by node id, never by signature. Who may sign is the
trust bundle's matter (`Identity.check_revocation`); here are the value, its bytes and the files that carry it.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gossip.linkstate import NodeId

if TYPE_CHECKING:
    from gossip.identity import Identity

CLUSTER_CHARACTERS_MAX = 64
"""What a common name of X.509 may hold."""
REASON_CHARACTERS_MAX = 200
REVOKED_AT_MAX = 2**53
"""Whole seconds that every JSON reader keeps; far beyond any calendar."""
BODY_BYTES_MAX = 2048
SIGNATURE_BYTES_MAX = 256
FILE_BYTES_MAX = 8192
FILES_MAX = 10_000
SUFFIX = ".revoked"
_ID = re.compile(r"[0-9a-f]{32}")
_BODY = re.compile(
    r"smtpmesh revocation v1\n"
    r"cluster: ([^\n]*)\n"
    r"node: ([^\n]*)\n"
    r"revoked_at: (0|[1-9][0-9]{0,15})\n"
    r"reason: ([^\n]*)\n"
    r"authority: ([^\n]*)\n"
)
_TEXT = re.compile(
    rb"-----BEGIN SMTPMESH REVOCATION-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END SMTPMESH REVOCATION-----\r?\n"
    rb"-----BEGIN SMTPMESH SIGNATURE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END SMTPMESH SIGNATURE-----"
)


class RevocationError(ValueError):
    """Bytes, values or a file that are no revocation; `str()` says what is wrong."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """One node's key is no longer of one cluster. RevocationError for values outside their bounds."""

    cluster: str
    node_id: NodeId
    revoked_at: int
    """Unix seconds; for people: a revocation holds from the moment it is known, whatever this says."""
    reason: str
    """Printable, at most REASON_CHARACTERS_MAX; may be empty."""
    authority: str
    """Digest of the key that signs, made like a node id: which certificate of the bundle to check with."""

    def __post_init__(self) -> None:
        if not 0 < len(self.cluster) <= CLUSTER_CHARACTERS_MAX or not self.cluster.isprintable():
            raise RevocationError("the revocation's cluster is no name of a cluster")
        if not _ID.fullmatch(self.node_id):
            raise RevocationError("the revocation's node id is not 32 hexadecimal digits")
        if not 0 <= self.revoked_at < REVOKED_AT_MAX:
            raise RevocationError("the revocation's time is out of bounds")
        if len(self.reason) > REASON_CHARACTERS_MAX or not self.reason.isprintable():
            text = f"the reason of a revocation is one line of at most {REASON_CHARACTERS_MAX} printable characters"
            raise RevocationError(text)
        if not _ID.fullmatch(self.authority):
            raise RevocationError("the revocation's authority is not 32 hexadecimal digits")

    def encode(self) -> bytes:
        """The bytes that are signed."""
        return (
            "smtpmesh revocation v1\n"
            f"cluster: {self.cluster}\n"
            f"node: {self.node_id}\n"
            f"revoked_at: {self.revoked_at}\n"
            f"reason: {self.reason}\n"
            f"authority: {self.authority}\n"
        ).encode()

    @classmethod
    def decode(cls, body: bytes) -> Revocation:
        """The value of signed bytes, the only one that encodes to them. RevocationError for anything else."""
        if len(body) > BODY_BYTES_MAX:
            raise RevocationError(f"a revocation has at most {BODY_BYTES_MAX} bytes")
        try:
            found = _BODY.fullmatch(body.decode("utf-8"))
        except UnicodeDecodeError:
            found = None
        if found is None:
            raise RevocationError("these bytes are no revocation of version 1")
        cluster, node_id, revoked_at, reason, authority = found.groups()
        return cls(cluster, NodeId(node_id), int(revoked_at), reason, authority)


# -- files -------------------------------------------------------------------------------------------------------------


def build_text(body: bytes, signature: bytes) -> str:
    """A revocation and its signature as one text file."""
    return _armour("REVOCATION", body) + _armour("SIGNATURE", signature)


def parse_text(text: bytes) -> tuple[bytes, bytes]:
    """Body and signature of such a file, neither of them checked yet. RevocationError."""
    found = _TEXT.fullmatch(text.strip()) if len(text) <= FILE_BYTES_MAX else None
    if found is None:
        raise RevocationError("this is no file of `smtpmesh revoke`")
    try:
        body, signature = (base64.b64decode(b"".join(part.split()), validate=True) for part in found.groups())
    except ValueError as error:
        raise RevocationError("this is no file of `smtpmesh revoke`: its base64 is damaged") from error
    return body, signature


def load_revocations(folder: Path, identity: Identity) -> list[tuple[bytes, bytes]]:
    """Body and signature of every `*.revoked` file of a folder, by file name, all checked against the trust bundle.

    No folder is no revocation. RevocationError names the first file at fault: a half-read list would let somebody in.
    """
    from gossip.identity import IdentityError  # identity.py makes revocations, so it imports this module

    try:
        files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIX))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RevocationError(f"{folder}: {error.strerror}") from error
    if len(files) > FILES_MAX:
        raise RevocationError(
            f"{folder} holds more than {FILES_MAX} revocations; start a new cluster with a new authority"
        )
    found = []
    for file in files:
        try:
            body, signature = parse_text(_read(file))
            identity.check_revocation(body, signature)
        except OSError as error:
            raise RevocationError(f"{file}: {error.strerror}") from error
        except (RevocationError, IdentityError) as error:
            raise RevocationError(f"{file}: {error}") from error
        found.append((body, signature))
    return found


def _read(path: Path) -> bytes:
    """No more than can be of use: a folder may hold anything."""
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX + 1)


def _armour(what: str, content: bytes) -> str:
    digits = base64.b64encode(content).decode("ascii")
    lines = "".join(f"{digits[start : start + 64]}\n" for start in range(0, len(digits), 64))
    return f"-----BEGIN SMTPMESH {what}-----\n{lines}-----END SMTPMESH {what}-----\n"
