"""Machines on a real API server: what an order becomes on the host, and what its status says."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from kumulus.api.host import instance_order_name
from kumulus_lab.cluster import NativeCluster
from tests.unit.agent.host import TestHost, eventually, host_on

pytestmark = pytest.mark.cluster


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig) as made:
        yield made


async def test_a_machine_comes_to_run(host: TestHost) -> None:
    async with host.running():
        uid = await host.order()
        status = await host.until_instance(uid, state="Running")
    assert status["observedGeneration"] == 1
    assert status["instance"]["epoch"] == 1
    assert status["instance"]["startedAt"]
    assert host.world.count("start", uid) == 1
