"""Which addresses a webhook may go to: public ones, unless the operator named the host as an internal one."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host."""

# The well-known prefix of RFC 6052, whose last 32 bits are an address of IPv4.
_NAT64 = IPv6Network("64:ff9b::/96")
# Addresses of this form (RFC 4291, deprecated) hold one of IPv4 too.
_COMPATIBLE = IPv6Network("::/96")


class RefusedAddressError(Exception):
    """A host's address is not public, or the host has none."""


def problem_of(address: str) -> str:
    """Return what keeps a webhook from an address; empty if nothing does."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return "is no address"
    return next(filter(None, map(_problem, _led_to(found))), "")


def _problem(address: Address) -> str:
    kinds = (
        (address.is_loopback, "is a loopback address"),
        (address.is_link_local, "is a link-local address"),
        (address.is_multicast, "is a multicast address"),
        (address.is_unspecified, "is the unspecified address"),
        (address.is_private or address.is_reserved or not address.is_global, "is not a public address"),
        (isinstance(address, IPv6Address) and address.is_site_local, "is not a public address"),
    )
    return next((problem for holds, problem in kinds if holds), "")


def _led_to(address: Address) -> list[Address]:
    """Return the addresses that an address leads to: itself, and those of IPv4 that it holds."""
    if isinstance(address, IPv4Address):
        return [address]
    embedded = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        # Another way to write the address within.
        return [embedded]
    held: list[Address | None] = [address.sixtofour, *(address.teredo or ())]
    if address in _COMPATIBLE and int(address) > 1:
        held.append(embedded)
    return [address, *(each for each in held if each is not None)]


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host, in the system's order.

    Raises:
        OSError: it has none, or the system's resolver does not answer.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


async def allowed_addresses(host: str, port: int, *, internal: bool, resolver: Resolve = resolve) -> Sequence[str]:
    """Return the addresses that a webhook may connect to; the name is resolved this once.

    Raises:
        RefusedAddressError: the host has no address, or one that a webhook may not go to.
        OSError: the resolver does not answer.
    """
    addresses = await resolver(host, port)
    if not addresses:
        raise RefusedAddressError("the host has no address")
    if not internal:
        # All of them: a name that also leads inside is not to be trusted with any.
        for address in addresses:
            if problem := problem_of(address):
                raise RefusedAddressError(f"the host's address {problem}")
    return addresses
