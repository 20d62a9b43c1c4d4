"""Fetching an MTA-STS policy over HTTPS (RFC 8461 section 3.3): verified by an authority, bounded, never redirected."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from smtp_edge.client.mta_sts import POLICY_BYTES_MAX
from smtp_edge.client.replies import clean_text
from smtp_edge.client.resolver import LookupFailed, Resolver

PATH = "/.well-known/mta-sts.txt"
HEADERS = {"User-Agent": "smtpmesh", "Accept": "text/plain", "Accept-Encoding": "identity"}


class FetchFailed(Exception):
    """No policy came; `str()` says why."""


class Fetcher(Protocol):
    """How a policy is fetched."""

    async def fetch(self, domain: str) -> bytes:
        """The policy file of a domain. FetchFailed."""
        ...


class HttpsFetcher:
    """See the module. Each policy has a session of its own: they are fetched once in days."""

    def __init__(self, resolver: Resolver, *, timeout_s: float, ca: Path | None = None, port: int = 443) -> None:
        self._resolver, self._timeout_s = _Addresses(resolver), timeout_s
        self._ca, self._port = ca, port

    async def fetch(self, domain: str) -> bytes:
        """See Fetcher."""
        url = f"https://mta-sts.{domain}{f':{self._port}' if self._port != 443 else ''}{PATH}"
        try:
            context = ssl.create_default_context(cafile=str(self._ca) if self._ca else None)
            connector = aiohttp.TCPConnector(resolver=self._resolver, ssl=context, use_dns_cache=False)
            limit = aiohttp.ClientTimeout(total=self._timeout_s)
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=limit, headers=HEADERS, auto_decompress=False, trust_env=False
                ) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                return await _read(response)
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError, LookupFailed) as error:
            raise FetchFailed(clean_text(str(error)) or type(error).__name__) from error


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if response.status != 200:
        raise FetchFailed(f"the policy host answered {response.status}")
    if response.content_type != "text/plain":
        raise FetchFailed("the policy is not text/plain")
    body = bytearray()
    async for chunk in response.content.iter_chunked(8192):
        body += chunk
        if len(body) > POLICY_BYTES_MAX:
            raise FetchFailed("the policy is too large")
    return bytes(body)


class _Addresses(AbstractResolver):
    """The node's own resolver, as aiohttp wants it."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of a host. OSError if there are none."""
        try:
            found = await self._resolver.addresses(host)
        except LookupFailed as error:
            raise OSError(str(error)) from error
        results = [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found.addresses
        ]
        if not results:
            raise OSError(f"{host} has no address")
        return results

    async def close(self) -> None:
        """Nothing to close."""
        await asyncio.sleep(0)
