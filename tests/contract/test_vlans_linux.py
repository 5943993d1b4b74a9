"""Networks of VLANs by the driver `linux`: the kernel's (8021q), where it has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kumulus.api.segments import SegmentOrder, Uplink
from kumulus_agents.network.linux import names
from tests.contract import network, network_world, vlans
from tests.contract.gateways import emptied
from tests.contract.network import Net, four, reaches
from tests.contract.network_world import Host, World
from tests.contract.test_network_linux import TestContract as LinuxContract
from tests.contract.test_network_linux import nothing_left
from tests.contract.vlans import DEVICE, Trunk, VlanContract, trunk

__all__ = ["trunk"]

WHY_NOT = network_world.why_none()
WHY_NO_VLANS = WHY_NOT or network_world.why_no_vlans()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
elsewhere = pytest.mark.skipif(
    WHY_NO_VLANS is not None, reason=f"{WHY_NO_VLANS} test_networks_elsewhere.py runs it on a kernel that has."
)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, Trunk]]:
    yield from vlans.hosts_of(Host)


@pytest.fixture
async def world(hosts: tuple[World, Trunk]) -> AsyncIterator[World]:
    async for world in emptied(hosts[0], nothing_left):
        yield world


class Networks(LinuxContract):
    """The contract of networks, which are VLANs."""

    def order(self, **more: object) -> SegmentOrder:
        return vlans.by_vlan(super().order(**more))


@elsewhere
class TestVlans(VlanContract):
    """The contract of VLANs."""

    networks = Networks()

    def breakages(self, net: Net) -> list[str]:
        carrier = names.tunnel(net.order.uid)
        return [
            f"ip link delete dev {carrier}",
            f"ip link set dev {carrier} nomaster",
            f"ip link set dev {carrier} down",
            f"ip link set dev {DEVICE} down",
        ]

    async def test_a_vlan_that_somebody_else_has_made(self, world: World, trunk: Trunk) -> None:
        host = world.hosts[0]
        host.machine.run("ip", "link", "add", "link", DEVICE, "name", "theirs", "type", "vlan", "id", "101")
        order = self.networks.order()
        try:
            error = await network.refused(host.driver.ensure_segment(order))
            assert error.reason == "UplinkInUse"
            assert "theirs" in str(error)
            assert "theirs" in host.machine.links()
        finally:
            host.machine.run("ip", "link", "delete", "dev", "theirs")
            await host.driver.remove_segment(order.uid)


@elsewhere
@pytest.mark.wide
class TestContract(Networks):
    """That of networks, as VLANs."""


@pytest.mark.skipif(WHY_NO_VLANS is None, reason="This kernel has VLANs.")
async def test_a_kernel_without_vlans_is_said(world: World) -> None:
    """Before any machine comes there, and by the order of one that does. Other networks go on."""
    host, other = world.hosts
    known = await host.driver.uplinks()
    assert known.lack is not None
    assert "8021q" in known.lack
    order = Networks().order()
    error = await network.refused(host.driver.ensure_segment(order))
    assert (error.reason, "load the module" in str(error)) == ("VlanUnsupported", True)
    await host.driver.remove_segment(order.uid)
    net = await LinuxContract().network(world)
    one, far = await net.guest(host), await net.guest(other)
    await reaches(one, four(far))
    error = await network.refused(
        host.driver.ensure_segment(order.model_copy(update={"uplink": Uplink(device="none0", vlan=101)}))
    )
    assert error.reason == "UplinkMissing"
    await host.driver.remove_segment(order.uid)
