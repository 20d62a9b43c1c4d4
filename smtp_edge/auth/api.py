"""The API of what checks passwords. To add your own, write a class, and name it in the configuration.

    class Ldap(Authenticator):
        '''Binds as the user.'''

        def __init__(self, url: str) -> None:
            self.url = url

        async def verify(self, user: str, password: str, client: Client) -> str | None:
            return user if await bind(self.url, user, password) else None

    [[auth]]
    name = "staff"
    use = "my_package.ldap:Ldap"        # or the name of an entry point of the group smtpmesh.auth
    with = { url = "ldaps://ldap.example.org" }

    [[listener]]
    auth = "staff"

One instance serves all listeners that name it, on the event loop: what blocks belongs into a thread. A right password,
a wrong one and "I cannot say now" are three answers, and each of them reaches the client: 235, 535, 454.

Every reload makes new instances, so that files are read again. The one of before is stopped when the last session that
may ask it has ended.
"""

from __future__ import annotations

from smtp_edge.envelope import Client

ENTRY_POINTS = "smtpmesh.auth"


class AuthUnavailable(Exception):
    """Nobody can say now whether the password is right; `str()` is for the log."""


class AuthError(Exception):
    """The authenticator cannot be set up; `str()` is a sentence for the operator."""


class Authenticator:
    """Base of all authenticators. The constructor's arguments are the settings; it may raise AuthError."""

    async def start(self) -> None:
        """Called once before the first question, on the node's loop. AuthError if it can never work."""

    async def stop(self) -> None:
        """Called once after the last."""

    async def verify(self, user: str, password: str, client: Client) -> str | None:
        """The user's name, as it is to be known from here on, if the password is right; None if user or password is
        wrong. AuthUnavailable if that cannot be said now. `client` is who asks, always under TLS.
        """
        raise NotImplementedError
