"""Networks of VLANs by the driver `ovn`: Open vSwitch puts tags on, whatever the kernel can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kumulus.api.segments import SegmentOrder
from kumulus_agents.network.ovn import names
from tests.contract import network_ovn, vlans
from tests.contract.gateways import emptied
from tests.contract.network import Net
from tests.contract.network_ovn import OvnHost
from tests.contract.network_world import Host, World
from tests.contract.test_network_ovn import OvnContract
from tests.contract.test_network_ovn import nothing_left as no_network_left
from tests.contract.vlans import DEVICE, Trunk, VlanContract, trunk

__all__ = ["trunk"]

WHY_NOT = network_ovn.why_none()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, Trunk]]:
    yield from vlans.hosts_of(OvnHost)


def nothing_left(host: Host) -> None:
    """Nothing of any network, nor of any way to an uplink."""
    no_network_left(host)
    bridges = host.machine.run("ovs-vsctl", "list-br").split()
    assert [name for name in bridges if names.is_uplink_bridge(name)] == []
    assert host.machine.run("ovs-vsctl", "list-ports", "br-kumulus").split() == [names.TUNNEL]


@pytest.fixture
async def world(hosts: tuple[World, Trunk]) -> AsyncIterator[World]:
    async for world in emptied(hosts[0], nothing_left):
        yield world


class Networks(OvnContract):
    """The contract of networks, which are VLANs."""

    def order(self, **more: object) -> SegmentOrder:
        return vlans.by_vlan(super().order(**more))


class TestVlans(VlanContract):
    """The contract of VLANs."""

    networks = Networks()

    def breakages(self, net: Net) -> list[str]:
        bridge = names.uplink_bridge(DEVICE)
        here, beyond = names.crossing(bridge)
        return [
            f"ovs-vsctl del-port {here}",
            f"ovs-vsctl del-port {beyond}",
            f"ovs-vsctl del-port {DEVICE}",
            f"ovs-vsctl del-br {bridge}",
            f"ip link set dev {DEVICE} down",
            "ovs-ofctl del-flows br-kumulus",
        ]


class TestChosen(Networks):
    """What stands for the rest of the contract of networks, as VLANs."""

    @pytest.mark.wide
    async def test_no_pretence_arrives(self, net: Net) -> None:
        await super().test_no_pretence_arrives(net)


CHOSEN = {
    "test_guests_get_their_addresses_by_dhcp",
    "test_guests_are_told_of_themselves",
    "test_a_change_keeps_what_is_still_allowed_and_cuts_what_is_not",
    "test_no_pretence_arrives",
}
for left in {name for name in dir(Networks) if name.startswith("test_")} - CHOSEN:
    setattr(TestChosen, left, None)  # pytest collects no such test
