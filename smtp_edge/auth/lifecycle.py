"""The authenticators of a node, by name: started before the first question, stopped after the last."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from smtp_edge.auth.api import Authenticator, AuthError
from smtp_edge.auth.backends import load_authenticator
from smtp_edge.settings_inbound import AuthSettings

log = structlog.get_logger()

STOP_S = 5.0
"""An authenticator that takes longer to stop is left alone."""


async def start_authenticators(sections: Sequence[AuthSettings]) -> dict[str, Authenticator]:
    """Build and start them all. AuthError names the section; then none of them runs."""
    started: dict[str, Authenticator] = {}
    try:
        for section in sections:
            started[section.name] = await _start(section)
    except BaseException:
        await stop_authenticators(started)
        raise
    return started


async def _start(section: AuthSettings) -> Authenticator:
    try:
        authenticator = await asyncio.to_thread(load_authenticator, section)
        async with asyncio.timeout(section.timeout_s):
            await authenticator.start()
    except AuthError as error:
        raise AuthError(f"auth {section.name}: {error}") from error
    except Exception as error:  # of a class that is not ours
        reason = str(error) or type(error).__name__
        raise AuthError(f"auth {section.name}: {section.use} does not start: {reason}") from error
    return authenticator


async def stop_authenticators(authenticators: Mapping[str, Authenticator]) -> None:
    """Nobody asks them any more. What goes wrong is logged."""
    for name, authenticator in authenticators.items():
        try:
            async with asyncio.timeout(STOP_S):
                await authenticator.stop()
        except Exception:
            log.exception("auth.stop_failed", auth=name)
