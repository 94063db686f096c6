"""Addresses that webhooks may go to: none that leads inside, however it is written."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unerase_backend.coordinator.webhooks.addresses import RefusedAddressError, allowed_addresses, problem_of, resolve


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address: str) -> None:
    assert problem_of(address) == ""


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::127.0.0.1", "fe80::1",
        "fe80::1%lo", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::1",
        "100::1", "no address", "",
    ],
)  # fmt: skip
def test_addresses_that_lead_inside(address: str) -> None:
    assert problem_of(address)


@given(st.ip_addresses(v=4))
def test_an_address_within_another_counts_as_itself(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    inside = bool(problem_of(str(address)))
    for prefix, shift in ((0xFFFF << 32, 0), (0x64FF9B << 96, 0), (0x2002 << 112, 80)):
        written = ipaddress.IPv6Address(prefix | (number << shift))
        if inside:
            assert problem_of(str(written)), written


@given(st.ip_addresses())
def test_what_passes_is_public_by_the_standard_library(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if not problem_of(str(address)):
        assert address.is_global
        assert not address.is_multicast


async def test_one_address_that_leads_inside_is_too_many() -> None:
    async def answers(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.1"]

    with pytest.raises(RefusedAddressError, match="not a public address"):
        await allowed_addresses("x", 443, internal=False, resolver=answers)
    assert await allowed_addresses("x", 443, internal=True, resolver=answers) == ["93.184.216.34", "10.0.0.1"]


async def test_a_host_without_an_address_is_refused() -> None:
    async def nothing(host: str, port: int) -> list[str]:
        return []

    with pytest.raises(RefusedAddressError, match="no address"):
        await allowed_addresses("x", 443, internal=True, resolver=nothing)


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f.1", "2130706433", "127.0.0.1"])
async def test_the_systems_resolver_is_looked_at(host: str) -> None:
    """Whatever forms of numbers it knows, what it answers is looked at."""
    try:
        addresses = await resolve(host, 443)
    except OSError:
        return
    assert addresses
    with pytest.raises(RefusedAddressError, match="loopback"):
        await allowed_addresses(host, 443, internal=False)
