"""Gateways of the driver `linux`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from kumulus_agents.network.linux import names
from tests.contract import network_world
from tests.contract.gateways import GatewayContract, Outside, Router, emptied, hosts_of
from tests.contract.network import Net
from tests.contract.network_world import Host, World
from tests.contract.test_network_linux import TestContract as Networks
from tests.contract.test_network_linux import nothing_left

WHY_NOT = network_world.why_none()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, Outside]]:
    yield from hosts_of(Host)


@pytest.fixture
async def world(hosts: tuple[World, Outside]) -> AsyncIterator[World]:
    async for world in emptied(hosts[0], nothing_left):
        yield world


@pytest.fixture
def outside(hosts: tuple[World, Outside]) -> Outside:
    return hosts[1]


class TestGateways(GatewayContract):
    """The contract."""

    networks = Networks()

    def nothing_left(self, host: Host) -> None:
        nothing_left(host)

    def breakages(self, router: Router, net: Net) -> list[str]:
        return [f"ip link delete dev {names.bridge(net.order.uid)}"]
