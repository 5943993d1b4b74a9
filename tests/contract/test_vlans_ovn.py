"""Networks of VLANs by the driver `ovn`: Open vSwitch puts tags on, whatever the kernel can."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kumulus.api.segments import SegmentOrder, Uplink
from kumulus_agents.network.ovn import names
from tests.contract import network_ovn, vlans
from tests.contract.gateways import FIRST, OWN, Router, emptied
from tests.contract.network import Net, reaches
from tests.contract.network_ovn import OvnHost
from tests.contract.network_programs import Tags, Wired
from tests.contract.network_world import Host, World, eventually
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

    async def test_an_external_network_is_a_vlan_of_the_same_device(self, world: World, trunk: Trunk) -> None:
        """The interface is on a bridge of ours for networks of tenants; a router's leg is a port of that, with its own tag."""
        host = world.hosts[0]
        net = await self.networks.network(world, subnets=FIRST)
        guest, far = await net.guest(host), await net.guest(world.hosts[1])
        router = Router(world, [net], [host], outer=(f"{OWN}/24",), uplink=Uplink(device=DEVICE, vlan=7))
        with Tags(Wired(trunk.machine)) as tags:
            await router.ensure()
            assert await router.active() is host
            mac = router.order(host).legs[-1].mac
            await eventually(lambda: tags.of(mac) == {7}, "what the router sends has not the tag of its VLAN")
            assert await host.driver.mend() == []
            await reaches(guest, "10.20.30.1")
            await reaches(far, "10.20.30.1")
            assert tags.of(router.order(host).legs[0].mac) == {101}
        # The network goes, and the router's way stays.
        for one in (guest, far):
            one.unplug()
            await one.host.driver.remove_port(one.nic.uid)
        router.nets = []
        await router.ensure()
        for one in world.hosts:
            await one.driver.remove_segment(net.order.uid)
        assert names.uplink_bridge(DEVICE) in host.machine.run("ovs-vsctl", "list-br").split()
        assert await host.driver.mend() == []
        await host.driver.remove_gateway(router.uid)
        nothing_left(host)


@pytest.mark.wide
class TestChosen(Networks):
    """What stands for the rest of the contract of networks, as VLANs."""


CHOSEN = {
    "test_guests_get_their_addresses_by_dhcp",
    "test_guests_get_their_addresses_by_dhcpv6",
    "test_guests_are_told_of_themselves",
    "test_names_of_the_network_and_of_the_world",
    "test_answers_of_a_cut_connection_do_not_pass_either",
    "test_a_change_keeps_what_is_still_allowed_and_cuts_what_is_not",
    "test_no_pretence_arrives",
}
for left in {name for name in dir(Networks) if name.startswith("test_")} - CHOSEN:
    setattr(TestChosen, left, None)  # pytest collects no such test
