"""Routing on the sender's host between networks that are VLANs, by the driver `ovn`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.contract import network_ovn, vlans
from tests.contract.gateways import emptied
from tests.contract.network_ovn import OvnHost
from tests.contract.network_world import World
from tests.contract.routing import Joined
from tests.contract.test_routing_ovn import RoutingContract, joined_by
from tests.contract.test_vlans_ovn import Networks, nothing_left
from tests.contract.vlans import Trunk

WHY_NOT = network_ovn.why_none()
pytestmark = [pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)), pytest.mark.wide]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[World, Trunk]]:
    yield from vlans.hosts_of(OvnHost)


@pytest.fixture
async def world(hosts: tuple[World, Trunk]) -> AsyncIterator[World]:
    async for world in emptied(hosts[0], nothing_left):
        yield world


@pytest.fixture
async def joined(world: World) -> Joined:
    return await joined_by(Networks(), world)


class TestVlans(RoutingContract):
    """All of it; packets of one network never have the other's tag, which `test_vlans_ovn.py` sees."""
