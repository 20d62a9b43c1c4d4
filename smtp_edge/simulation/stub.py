"""Identities of a simulation: as large as real ones, checked as strictly, and a thousand times cheaper.

A signature is a keyed hash that anybody in the simulation could compute; worlds that test forgery do not use these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gossip.identity import IdentityError
from gossip.linkstate import NodeId

CERTIFICATE_BYTES = 620
"""What a P-256 node certificate of `gossip.identity` takes."""
SIGNATURE_BYTES = 71
PREFIX = b"simulated "


def node_id_of(index: int) -> NodeId:
    """A node id that looks like one."""
    return NodeId(hashlib.blake2b(b"node %d" % index, digest_size=16).hexdigest())


def certificate_of(node: NodeId) -> bytes:
    """Its certificate."""
    return (PREFIX + node.encode()).ljust(CERTIFICATE_BYTES, b".")


def sign_as(node: NodeId, message: bytes) -> bytes:
    """Its signature."""
    return hashlib.blake2b(message, digest_size=16, key=node.encode()).digest().ljust(SIGNATURE_BYTES, b".")


@dataclass(frozen=True, slots=True)
class StubMember:
    """Satisfies `gossip.database.Verifier`."""

    node_id: NodeId
    certificate_der: bytes

    def verify(self, signature: bytes, message: bytes) -> bool:
        """True if `sign_as` made it."""
        return signature == sign_as(self.node_id, message)


def member_of(certificate: bytes) -> StubMember:
    """The member of a certificate. IdentityError if it is none of ours."""
    if not certificate.startswith(PREFIX):
        raise IdentityError("the certificate was not issued by this cluster's authority")
    return StubMember(NodeId(certificate[len(PREFIX) : len(PREFIX) + 32].decode("ascii", "replace")), certificate)
