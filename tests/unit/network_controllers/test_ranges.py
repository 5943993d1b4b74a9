"""Which addresses a network has to give."""

from __future__ import annotations

import ipaddress
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumulus.api.network import Network
from kumulus_controllers.network import ranges as under_test
from kumulus_controllers.network.ranges import FIRST_VNI, LAST_VNI, carried, claim_name, mac_of, ranges, vnis

UID = "6f3a0c7e-9d1b-4c55-8a2e-0123456789ab"


def network(**spec: Any) -> Network:
    return Network.parse({"metadata": {"name": "net", "namespace": "ns", "uid": UID}, "spec": spec})


def free(item: under_test.Range, taken: set[str] | None = None, most: int = 20) -> list[str]:
    numbers = {int(ipaddress.ip_address(address)) for address in taken or ()}
    return [str(address) for address in islice(item.free(numbers), most)]


def test_the_first_two_addresses_are_kept_and_the_ends_belong_to_the_range() -> None:
    [found] = ranges(network(cidrs=["10.0.0.0/29"]))
    assert (str(found.gateway), str(found.service)) == ("10.0.0.1", "10.0.0.2")
    assert free(found) == ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"] and found.size == 4
    assert free(found, {"10.0.0.3", "10.0.0.5"}) == ["10.0.0.4", "10.0.0.6"]
    assert free(found, {f"10.0.0.{n}" for n in range(8)}) == []


def test_a_range_of_ipv6_has_no_broadcast_address() -> None:
    [found] = ranges(network(cidrs=["fd00::/120"]))
    assert (str(found.gateway), str(found.service)) == ("fd00::1", "fd00::2")
    assert free(found, most=300)[-1] == "fd00::ff" and found.size == 253 == len(free(found, most=300))


@pytest.mark.parametrize(
    ("gateway", "service", "first"), [("10.0.0.6", "10.0.0.2", "10.0.0.1"), ("10.0.0.2", "10.0.0.1", "10.0.0.3")]
)
def test_a_gateway_of_one_s_own(gateway: str, service: str, first: str) -> None:
    v4, v6 = ranges(network(cidrs=["10.0.0.0/29", "fd00::/64"], gateway=gateway))
    assert (str(v4.gateway), str(v4.service)) == (gateway, service) and free(v4)[0] == first
    assert str(v6.gateway) == "fd00::1", "the other family has its own"


def test_addresses_are_given_from_the_ranges_of_dhcp_alone() -> None:
    parts = [
        {"start": "10.0.0.20", "end": "10.0.0.22"},
        {"start": "10.0.0.0", "end": "10.0.0.3"},
        {"start": "10.0.0.21", "end": "10.0.0.23"},
        {"start": "10.9.0.0", "end": "10.9.0.9"},
        {"start": "10.0.0.254", "end": "10.0.1.9"},
    ]
    v4, v6 = ranges(network(cidrs=["10.0.0.0/24", "fd00::/64"], dhcp={"ranges": parts}))
    assert free(v4) == [f"10.0.0.{n}" for n in (3, 20, 21, 22, 23, 254)] and v4.size == 6
    assert free(v6)[:1] == ["fd00::3"], "none is of IPv6"


@given(st.integers(8, 29), st.data())
def test_what_is_given_is_of_the_range_and_nobody_s(prefix: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 2**prefix - 1)) << (32 - prefix)
    [found] = ranges(network(cidrs=[f"{ipaddress.IPv4Address(start)}/{prefix}"]))
    taken = set(data.draw(st.lists(st.integers(start, start + 16))))
    for address in islice(found.free(taken), 8):
        assert address in found.cidr and int(address) not in taken
        assert found.lack(address) is None and address not in (found.gateway, found.service)


@given(st.ip_addresses(v=6))
def test_each_address_has_one_claim_whose_name_can_be_one(address: ipaddress.IPv6Address) -> None:
    name = claim_name(UID, str(address))
    assert name == claim_name(UID, address.exploded) and len(name) <= 90 and name[-1].isalnum()
    assert ipaddress.ip_address(name.removeprefix(f"{UID}-").replace("-", ":")) == address


def test_a_mac_is_one_device_s_and_for_life() -> None:
    assert mac_of(UID) == mac_of(UID) != mac_of(UID[::-1])
    assert mac_of(UID).startswith("02:") and len(mac_of(UID)) == 17


def test_numbers_are_tried_each_once_from_one_that_follows_from_the_uid() -> None:
    first = list(islice(vnis(UID), 5))
    assert first == list(islice(vnis(UID), 5)) and len(set(first)) == 5
    assert all(FIRST_VNI <= vni <= LAST_VNI for vni in first)


def test_a_tunnel_takes_its_share_of_a_packet() -> None:
    assert carried(1500, over_v6=False) == 1450 and carried(1500, over_v6=True) == 1430
