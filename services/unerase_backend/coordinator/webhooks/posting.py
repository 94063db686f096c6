"""One POST to an address that was looked at: bounded in time, without redirects, and nothing of the answer is read."""

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from ipaddress import IPv6Address, ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from unerase_backend.coordinator.webhooks.addresses import Resolve, allowed_addresses, resolve
from unerase_backend.coordinator.webhooks.hosts import Target

SECONDS = 15.0
"""For everything: to resolve the name, connect, agree on TLS, send, and get the answer's headers."""


class _Pinned(AbstractResolver):
    """Gives the addresses that were looked at, so that no other answer of a resolver is ever used."""

    def __init__(self, host: str, addresses: Sequence[str]) -> None:
        self._host = host
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of the one host."""
        if host != self._host:
            raise OSError(None, f"{host} was not resolved")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if isinstance(ip_address(address), IPv6Address) else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


async def post(
    target: Target,
    body: bytes,
    headers: Mapping[str, str],
    context: ssl.SSLContext,
    *,
    resolver: Resolve = resolve,
    seconds: float = SECONDS,
) -> int:
    """Send a body and return the answer's status.

    Raises:
        RefusedAddressError: the host has an address that a webhook may not go to.
        TimeoutError: it took too long.
        OSError, aiohttp.ClientError: the host cannot be reached, or its answer is not HTTP.
    """
    async with asyncio.timeout(seconds):
        addresses = await allowed_addresses(target.host, target.port, internal=target.internal, resolver=resolver)
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(target.host, addresses), use_dns_cache=False, force_close=True, ssl=context
        )
        # Neither cookies nor proxies of the environment.
        async with (
            aiohttp.ClientSession(
                connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            ) as session,
            session.post(
                URL(target.url, encoded=True),
                data=body,
                headers={
                    **headers,
                    "content-type": "application/json",
                    "user-agent": f"unerase/{version('unerase')}",
                },
                allow_redirects=False,
            ) as response,
        ):
            status = response.status
            # Closes the connection, so that a body is not read, however long it is.
            response.close()
            return status
