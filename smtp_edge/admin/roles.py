"""Who may order changes. Looking is for everybody whom the door lets in; changes need the role `operate`.

Unix socket            may operate: the file is its owner's and root's
loopback:port          may not: any local user could
over the network       certificates that admin.operators names, by their name or node id
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import grpc

from gossip.identity import Identity, IdentityError
from smtp_edge.admin.address import UNIX, needs_certificates
from smtp_edge.admin.client import USER_HEADER

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

USER_MAX = 64


class NotAllowedError(Exception):
    """The caller may not do that; `str()` says who may."""


class Roles:
    """See the module."""

    def __init__(self, listen: str, identity: Identity, operators: Callable[[], Collection[str]]) -> None:
        self._listen, self._identity, self._operators = listen, identity, operators

    def demand_operator(self, context: Context) -> str:
        """Who orders, for the log. NotAllowedError."""
        user = _find_user(dict(context.invocation_metadata() or ()))
        if self._listen.startswith(UNIX):
            return user or "someone at the socket"
        if not needs_certificates(self._listen):
            raise NotAllowedError(
                "over loopback anybody on this machine could order that; set admin.listen to a Unix socket, or to an"
                " address of the network and name certificates in admin.operators"
            )
        return self._find_caller(context, user)

    def _find_caller(self, context: Context, user: str) -> str:
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        try:
            der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii")) if pem else b""
            member = self._identity.member(der, at=datetime.now(UTC))
        except (IdentityError, ValueError) as error:
            raise NotAllowedError(f"not a member of this cluster: {error}") from error
        operators = set(self._operators())
        if not operators & {member.name, member.node_id}:
            named = ", ".join(sorted(operators)) or "nobody"
            raise NotAllowedError(
                f"{member.name} may look, not order: admin.operators of this node names {named}; on its own machine"
                " the Unix socket may order, too"
            )
        return f"{user} at {member.name}" if user else member.name


def _find_user(metadata: Mapping[str, str | bytes]) -> str:
    """What the caller says of itself: for the log, nothing is decided by it."""
    found = metadata.get(USER_HEADER, "")
    return found[:USER_MAX] if isinstance(found, str) and found.isprintable() else ""
