"""Gateways and load balancers of the driver `ovn`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kumulus.api.segments import Uplink
from kumulus_agents.network.linux import names
from kumulus_agents.network.protocol import NetworkError
from tests.contract import network_ovn
from tests.contract.balancers import BalancerContract
from tests.contract.gateways import OWN, GatewayContract, Outside, Router, emptied, hosts_of
from tests.contract.network import Net
from tests.contract.network_ovn import OvnHost
from tests.contract.network_world import Host, World, eventually
from tests.contract.test_network_ovn import OvnContract, nothing_left

WHY_NOT = network_ovn.why_none()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, Outside]]:
    yield from hosts_of(OvnHost)


@pytest.fixture
async def world(hosts: tuple[World, Outside]) -> AsyncIterator[World]:
    async for world in emptied(hosts[0], nothing_left):
        yield world


@pytest.fixture
def outside(hosts: tuple[World, Outside]) -> Outside:
    return hosts[1]


class TestGateways(GatewayContract):
    """The contract."""

    networks = OvnContract()

    def nothing_left(self, host: Host) -> None:
        nothing_left(host)

    def breakages(self, router: Router, net: Net) -> list[str]:
        leg = names.leg(router.uid, net.order.uid)
        return [
            f"ovs-vsctl del-port {leg}",
            f"ovn-nbctl lsp-del {leg}",
            f"ovn-nbctl lsp-set-addresses {leg} router",
            f"ovs-vsctl del-port {names.link(router.uid)}",
        ]

    @pytest.mark.wide
    async def test_a_router_is_mended(self, world: World) -> None:
        await super().test_a_router_is_mended(world)

    @pytest.mark.wide
    async def test_open_connections_go_on_where_another_host_takes_over(self, world: World, outside: Outside) -> None:
        await super().test_open_connections_go_on_where_another_host_takes_over(world, outside)

    async def test_a_way_out_by_a_bridge_of_open_vswitch(self, world: World, outside: Outside) -> None:
        """Also by a VLAN of it: the bridge puts packets in, not the kernel."""
        host = world.hosts[0]
        port = ["--", "set", "bridge", "br-out", "datapath_type=netdev", "--", "add-port", "br-out", "out0", "tag=7"]
        host.machine.run("ovs-vsctl", "add-br", "br-out", *port)
        router = Router(world, [], [host], outer=(f"{OWN}/24",))
        try:
            for vlan, reached in ((7, True), (8, False), (7, True)):
                router.uplink = Uplink(device="br-out", vlan=vlan)
                await router.ensure()
                assert await router.active() is host
                if reached:
                    await eventually(lambda: outside.reaches(OWN), "it is not reached by the VLAN")
                else:
                    assert not outside.reaches(OWN)
                assert await host.driver.mend() == []
            for device, said in (("out0", "br-out"), ("br-int", "networks of tenants")):
                router.uplink = Uplink(device=device)
                with pytest.raises(NetworkError, match=said) as caught:
                    await router.ensure()
                assert caught.value.reason == "UplinkInUse"
        finally:
            await host.driver.remove_gateway(router.uid)
            assert "out0" in host.machine.run("ovs-vsctl", "list-ports", "br-out").split()
            host.machine.run("ovs-vsctl", "del-br", "br-out")


class TestBalancer(BalancerContract):
    """The contract."""

    networks = OvnContract()
