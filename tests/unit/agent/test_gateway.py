"""What an agent says of a gateway that is not as it was ordered."""

from __future__ import annotations

import uuid
from typing import Any, cast

import pytest

from kumulus.api.base import FINALIZER
from kumulus.api.segments import NetworkDriverName
from kumulus.kube.client import KubeClient
from kumulus_agents.agent import gateway
from kumulus_agents.agent.gateway import Gateways
from kumulus_agents.agent.networks import Networks
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.secrets import Secrets
from kumulus_agents.hypervisor.simulated import SimulatedHypervisor
from kumulus_agents.hypervisor.simulated_host import SimulatedHost
from kumulus_agents.network.simulated import SimulatedFabric, SimulatedNetworks
from tests.unit.agent.host import eventually
from tests.unit.agent.test_networks import going_on

NAMESPACE = "kumulus-host-a"
UID = str(uuid.uuid4())


class Written:
    """Takes what is written of statuses, as an API server would."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {}
        self._version = 1

    async def patch(self, _kind: object, _name: str, body: dict[str, Any], *_where: object, **_how: object) -> Any:
        for key, value in body["status"].items():
            self.status[key] = value
        self._version += 1
        return order(self.status, version=self._version)


def order(status: dict[str, Any], *, version: int = 1) -> dict[str, Any]:
    """A router's, active when that was seen last."""
    leg = {"network": str(uuid.uuid4()), "mac": "0a:00:00:00:00:01", "mtu": 1450, "addresses": ["10.0.0.1/24"]}
    redundancy = {"group": 1, "priority": 100, "mac": "0a:00:00:00:00:02"}
    return {
        "metadata": {
            "name": f"gateway-{UID}",
            "namespace": NAMESPACE,
            "uid": UID,
            "resourceVersion": str(version),
            "generation": 2,
            "finalizers": [FINALIZER],
        },
        "spec": {
            "type": "Gateway",
            "for": {"kind": "Router", "namespace": "t", "name": "front", "uid": UID},
            "gateway": {"uid": UID, "driver": "linux", "legs": [leg], "redundancy": redundancy, "router": {}},
        },
        "status": status,
    }


async def test_what_has_failed_says_who_is_active_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was active, and cannot be made as it is ordered now. Somebody else takes over: it says so, with the failure and
    after it."""
    monkeypatch.setattr(gateway, "LOOK_EVERY", 0.01)
    fabric, client, woken = SimulatedFabric(), Written(), list[str]()
    client.status = {"state": "Ready", "gateway": {"active": True}}
    known = Orders(cast("KubeClient", client), NAMESPACE)
    known.store.apply(order(client.status))
    networks = Networks(
        {NetworkDriverName.LINUX: SimulatedNetworks(fabric)}, known, SimulatedHypervisor(SimulatedHost())
    )
    await networks.prepare()
    gateways = Gateways(known, networks, cast("Secrets", None), wake=woken.append)

    def now() -> Any:
        found = known.get(f"gateway-{UID}")
        assert found is not None and found.spec.gateway is not None
        return found

    await gateways.perform(now())  # its network is not here, and so nothing of it
    assert (now().status.state.value, now().status.reason) == ("Waiting", "SegmentNotReady")
    assert not now().status.gateway.active

    fabric.gateways[UID] = now().spec.gateway
    async with going_on(gateways.watch()):
        await eventually(lambda: woken, "news")
    await gateways.perform(now())
    assert (now().status.state.value, now().status.gateway.active) == ("Waiting", True)
