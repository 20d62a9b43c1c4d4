"""From the configuration to authenticators: `file` and `dovecot` are built in, others come by entry point or class."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from smtp_edge.auth.api import ENTRY_POINTS, Authenticator, AuthError
from smtp_edge.auth.dovecot import Dovecot
from smtp_edge.auth.users import UsersFile
from smtp_edge.settings_inbound import AuthSettings, ListenerSettings

BUILT_IN: Mapping[str, type[Authenticator]] = {"file": UsersFile, "dovecot": Dovecot}


def load_authenticator(section: AuthSettings) -> Authenticator:
    """Build what an [[auth]] names. AuthError says what is wrong with it."""
    factory = _find(section.use)
    arguments: dict[str, Any] = dict(section.with_)
    if section.path is not None:
        arguments["path"] = section.path
    return _build(factory, arguments)


def load_users(path: Path) -> Authenticator:
    """What a listener's `auth_users` names. AuthError."""
    return UsersFile(path)


def load_for(listener: ListenerSettings, named: Mapping[str, Authenticator]) -> Authenticator | None:
    """Who checks the passwords of a listener; None if it offers no AUTH. AuthError."""
    if listener.auth:
        return named[listener.auth]
    return load_users(listener.auth_users) if listener.auth_users is not None else None


def _build(factory: Callable[..., Authenticator], arguments: dict[str, Any]) -> Authenticator:
    try:
        return factory(**arguments)
    except TypeError as error:
        accepted = ", ".join(inspect.signature(factory).parameters) or "nothing"
        raise AuthError(f"the settings do not fit: {error}; it takes: {accepted}") from None


def _find(use: str) -> type[Authenticator]:
    if use in BUILT_IN:
        return BUILT_IN[use]
    module_name, separator, class_name = use.partition(":")
    try:
        if separator:
            found = getattr(importlib.import_module(module_name), class_name)
        else:
            (entry,) = metadata.entry_points(group=ENTRY_POINTS, name=use)
            found = entry.load()
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(BUILT_IN)
        text = f"{use!r} is neither {known}, nor an entry point of {ENTRY_POINTS}, nor module:Class ({error})"
        raise AuthError(text) from None
    if not (isinstance(found, type) and issubclass(found, Authenticator)):
        raise AuthError(f"{use!r} is not a class derived from smtp_edge.auth.api.Authenticator")
    return found
