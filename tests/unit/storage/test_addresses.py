"""Which addresses images may come from."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus_agents.storage.addresses import Policy, refusal

OPEN = Policy()


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "169.254.169.254", "169.254.0.1", "192.0.0.192",
        "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1",
        "240.0.0.1", "255.255.255.255", "100.100.100.200", "168.63.129.16",
        "::", "::1", "fe80::1", "febf::1", "fec0::1", "ff02::1", "100::1", "2001:db8::1", "3fff::1",
        "fd00:ec2::254", "5f00::1", "4000::1", "e000::1", "2001:2::1", "2001:10::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "64:ff9b:1:ffff::8.8.8.8",
        "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "2001:0:808:808::80ff:fffe",
        "2a00::5efe:127.0.0.1", "2a00::200:5efe:169.254.169.254", "fd00::5efe:10.0.0.1%eth0",
    ],
)  # fmt: skip
def test_refused(address: str) -> None:
    assert refusal(ipaddress.ip_address(address), OPEN)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "1.1.1.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "2a00:1450::1", "2606:4700::1111",
        "fd12:3456::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
    ],
)  # fmt: skip
def test_let_in(address: str) -> None:
    assert refusal(ipaddress.ip_address(address), OPEN) is None


CLOSED = Policy(forbidden=(ipaddress.ip_network("10.96.0.0/12"), ipaddress.ip_network("fd00:10::/64")))


@pytest.mark.parametrize(
    "address",
    ["10.96.0.1", "::ffff:10.96.0.1", "64:ff9b::10.100.0.1", "2002:a60:1::", "::10.96.0.1", "fd00:10::1"],
)
def test_the_clusters_own_ranges_are_refused_in_every_spelling(address: str) -> None:
    assert refusal(ipaddress.ip_address(address), CLOSED)
    assert refusal(ipaddress.ip_address("10.0.0.1"), CLOSED) is None


def test_what_an_administrator_allows_wins() -> None:
    allowed = (ipaddress.ip_network("127.0.0.1/32"), ipaddress.ip_network("10.96.0.0/16"))
    policy = Policy(forbidden=CLOSED.forbidden, allowed=allowed)
    assert refusal(IPv4Address("127.0.0.1"), policy) is None
    assert refusal(IPv6Address("::ffff:127.0.0.1"), policy) is None
    assert refusal(IPv4Address("10.96.0.1"), policy) is None
    assert refusal(IPv4Address("127.0.0.2"), policy)
    assert refusal(IPv4Address("10.97.0.1"), policy)
    assert refusal(IPv6Address("2002:7f00:1::"), policy)


def embeddings(inner: int) -> list[IPv6Address]:
    return [
        IPv6Address(0xFFFF << 32 | inner),
        IPv6Address(inner),
        IPv6Address(0xFFFF << 48 | inner),
        IPv6Address(0x0064FF9B << 96 | inner),
        IPv6Address(0x2002 << 112 | inner << 80 | 1),
        IPv6Address(0x20010000 << 96 | inner << 64 | 0xF7F7F7F7),
        IPv6Address(0x20010000 << 96 | 0x08080808 << 64 | inner ^ 0xFFFFFFFF),
        IPv6Address(0x2A00 << 112 | 0x5EFE << 32 | inner),
    ]


@given(st.integers(0, 2**32 - 1))
def test_no_refused_address_hides_in_another(inner: int) -> None:
    if refusal(IPv4Address(inner), CLOSED):
        for address in embeddings(inner):
            assert refusal(address, CLOSED), address


@given(st.ip_addresses(v=6))
def test_only_global_and_unique_local_addresses_and_carriers_are_let_in(address: IPv6Address) -> None:
    if refusal(address, OPEN) is None:
        first = int(address) >> 112
        assert 0x2000 <= first < 0x4000 or 0xFC00 <= first < 0xFE00 or first in (0, 0x64)


def test_everything_python_calls_loopback_link_local_or_multicast_is_refused() -> None:
    for text in ("127.9.9.9", "169.254.1.1", "230.0.0.1", "::1", "fe80::9", "ff05::2"):
        address = ipaddress.ip_address(text)
        assert address.is_loopback or address.is_link_local or address.is_multicast
        assert refusal(address, OPEN)
