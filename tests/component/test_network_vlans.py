"""Networks that are VLANs against a real API server: each has one that no other has, whoever leads; and hosts that can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kumulus.api.claims import SegmentId
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import HostReport
from kumulus.api.network import Network, NetworkClass
from kumulus.api.routing import ExternalNetwork, PhysicalNetwork, Router
from kumulus.kube import errors
from kumulus.kube.store import Key
from tests.component.test_network import Brain, Raw, Stage, message, reason, settle, settle_networks, stage

__all__ = ["stage"]

pytestmark = pytest.mark.cluster

OUTSIDE = {"cidr": "203.0.113.0/24", "gateway": "203.0.113.1"}


class Building(Stage):
    """The same with a physical network, by the name of the namespace, whose VLANs come to the first host."""

    async def furnish(self) -> Building:
        uplinks = [{"name": "racks", "hostSelector": {"which": "a"}, "device": "bond0"}]
        vlans = [{"first": 100, "last": 101}]
        await self.put(PhysicalNetwork.KIND, self.namespace, {"vlans": vlans, "mtu": 9000, "uplinks": uplinks})
        spec = {"isolation": "VLAN", "physicalNetwork": self.namespace, "restSeconds": 0}
        await self.put(NetworkClass.KIND, self.vlans, spec)
        for host in self.hosts:
            facts = {"uplinks": [{"driver": "linux", "devices": ["bond0", "eth0"]}]}
            await self.client.patch(
                HostReport.KIND, host, {"status": {"network": facts}}, host_namespace(host), subresource="status"
            )
        return self

    @property
    def vlans(self) -> str:
        """Name of the class."""
        return f"{self.namespace}-v"

    async def by_vlan(self, name: str, **spec: Any) -> Raw:
        return await self.network(name, **{"class": self.vlans, **spec})

    async def given(self) -> dict[str, int | None]:
        """VLANs of networks, by name."""
        found = await self.listed(Network.KIND, self.namespace)
        return {item["metadata"]["name"]: item.get("status", {}).get("vlan") for item in found}

    async def claimed(self) -> dict[str, str]:
        """Whose VLANs are, by the names of the claims."""
        found = await self.listed(SegmentId.KIND)
        mine = [item for item in found if item["spec"].get("physicalNetwork") == self.namespace]
        return {item["metadata"]["name"].rpartition("-")[2]: item["spec"]["name"] for item in mine}

    async def empty(self) -> None:
        for model in (ExternalNetwork, PhysicalNetwork):
            for item in await self.listed(model.KIND):
                if item["metadata"]["name"].startswith(self.namespace):
                    await self.let_go(model, item["metadata"]["name"])
        for item in await self.listed(SegmentId.KIND):
            if item["spec"].get("physicalNetwork") == self.namespace:
                await self.client.delete(SegmentId.KIND, item["metadata"]["name"])
        await self.let_go(NetworkClass, self.vlans)


@pytest.fixture
async def building(stage: Stage) -> AsyncIterator[Building]:
    made = await Building(stage.client, stage.namespace).furnish()
    try:
        yield made
    finally:
        await made.empty()


async def test_a_network_is_a_vlan_and_its_machine_goes_where_that_comes(building: Building) -> None:
    await building.by_vlan("net")
    await building.vm("web")
    await building.vm("elsewhere", placement={"hostSelector": {"which": "b"}})
    brain = Brain(building.client)
    await settle(brain, building)
    net = await building.get(Network, "net")
    status = net["status"]
    assert status["vlan"] in (100, 101)
    assert (status["phase"], status["physicalNetwork"], status["mtu"]) == ("Ready", building.namespace, 9000)
    assert "vni" not in status
    assert await building.claimed() == {str(status["vlan"]): "net"}
    first, second = building.hosts
    told = await building.segments()
    assert list(told) == [first]
    assert told[first]["uplink"] == {"device": "bond0", "vlan": status["vlan"]}
    assert "vni" not in told[first]
    assert (told[first]["mtu"], told[first]["peers"]) == (9000, [])
    waits = await building.get(VirtualMachine, "elsewhere")
    assert f"without an uplink to physical network {building.namespace}" in message(waits, "Scheduled")

    # The host gets an uplink, and has no such device; then it has one.
    uplinks = [{"name": "rest", "device": "eth1"}]
    body = {"spec": {"uplinks": [{"name": "racks", "hostSelector": {"which": "a"}, "device": "bond0"}, *uplinks]}}
    await building.client.patch(PhysicalNetwork.KIND, building.namespace, body)
    await settle(brain, building)
    waits = await building.get(VirtualMachine, "elsewhere")
    assert f"without device eth1, which physical network {building.namespace} names" in message(waits, "Scheduled")
    facts = {"uplinks": [{"driver": "linux", "message": "This kernel has no VLANs (8021q): load the module."}]}
    report = (HostReport.KIND, second)
    where = host_namespace(second)
    await building.client.patch(*report, {"status": {"network": facts}}, where, subresource="status")
    await settle(brain, building)
    waits = await building.get(VirtualMachine, "elsewhere")
    assert "without VLANs (This kernel has no VLANs (8021q): load the module)" in message(waits, "Scheduled")
    facts = {"uplinks": [{"driver": "linux", "devices": ["eth1"]}]}
    await building.client.patch(*report, {"status": {"network": facts}}, where, subresource="status")
    await settle(brain, building)
    told = await building.segments()
    assert {host: order["uplink"]["device"] for host, order in told.items()} == {first: "bond0", second: "eth1"}

    # Another device becomes the way of a host that has it.
    body = {"spec": {"uplinks": [{"name": "racks", "device": "eth0"}]}}
    await building.client.patch(PhysicalNetwork.KIND, building.namespace, body)
    await settle(brain, building)
    assert (await building.segments())[first]["uplink"]["device"] == "eth0"


async def test_vlans_run_out_and_come_back(building: Building) -> None:
    for name in ("one", "two", "three"):
        await building.by_vlan(name)
    brain = Brain(building.client)
    await settle(brain, building)
    given = await building.given()
    assert sorted(number for number in given.values() if number is not None) == [100, 101]
    [without] = [name for name, number in given.items() if number is None]
    lack = await building.get(Network, without)
    assert reason(lack) == "NoVlanLeft"
    assert f"all 2 VLANs (100-101) that spec.vlans of PhysicalNetwork {building.namespace} gives" in message(lack)
    gone = next(name for name, number in given.items() if number is not None)
    await building.delete(Network, gone)
    await settle(brain, building)
    assert (await building.given())[without] == given[gone]
    assert sorted(await building.claimed()) == ["100", "101"]
    # More are named, and one that is in use is taken out: who has it keeps it.
    vlans = {"vlans": [{"first": 4000}]}
    await building.client.patch(PhysicalNetwork.KIND, building.namespace, {"spec": vlans})
    await building.by_vlan("four")
    await settle(brain, building)
    after = await building.given()
    assert after.pop("four") == 4000
    assert sorted(number or 0 for number in after.values()) == [100, 101]


async def test_two_leaders_never_give_one_vlan_twice(building: Building) -> None:
    names = [f"net-{number}" for number in range(8)]
    vlans = {"vlans": [{"first": 100, "last": 105}]}
    await building.client.patch(PhysicalNetwork.KIND, building.namespace, {"spec": vlans})
    for name in names:
        await building.by_vlan(name)
    one, two = Brain(building.client, 1), Brain(building.client, 2)
    for round_ in range(3):
        if round_ == 1:
            one = Brain(building.client, 3)
        await asyncio.gather(one.look(), two.look())
        passes = [brain.networks.reconcile(Key(building.namespace, n)) for n in names for brain in (one, two)]
        for outcome in await asyncio.gather(*passes, return_exceptions=True):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, errors.KubeError), outcome
    await settle(Brain(building.client, 4), building)
    given = await building.given()
    had = sorted(number for number in given.values() if number is not None)
    assert had == [100, 101, 102, 103, 104, 105]
    assert await building.claimed() == {str(number): name for name, number in given.items() if number is not None}


async def test_vlans_of_external_networks_and_of_tenants_are_apart(building: Building) -> None:
    where = {"physicalNetwork": building.namespace, **OUTSIDE}
    for number, vlan in enumerate((100, 100)):
        await building.put(ExternalNetwork.KIND, f"{building.namespace}-{number}", {**where, "vlan": vlan})
    brain = Brain(building.client)
    await outside(brain, building)
    assert list(await building.claimed()) == ["100"]
    for name in ("one", "two"):
        await building.by_vlan(name)
    await settle(brain, building)
    assert sorted((await building.given()).values(), key=str) == [101, None]
    # One that comes late is told so, and no router gets a leg in it.
    late = f"{building.namespace}-late"
    await building.put(ExternalNetwork.KIND, late, {**where, "vlan": 101})
    await building.make(Router, "router", externalNetwork=late)
    await outside(brain, building)
    await settle(brain, building)
    item = await building.client.get(ExternalNetwork.KIND, late)
    assert reason(item) == "VlanInUse"
    owner = next(name for name, vlan in (await building.given()).items() if vlan == 101)
    assert f"is that of Network {building.namespace}/{owner}" in message(item)
    assert reason(await building.get(Router, "router")) == "VlanInUse"
    # The VLAN is given back with the last external network that is it.
    for number, left in ((0, ["100", "101"]), (1, ["101"])):
        if number == 1:  # it goes without a word
            body = {"metadata": {"finalizers": []}}
            await building.client.patch(ExternalNetwork.KIND, f"{building.namespace}-{number}", body)
        await building.client.delete(ExternalNetwork.KIND, f"{building.namespace}-{number}")
        await outside(brain, building)
        assert sorted(await building.claimed()) == left
    await settle(brain, building)
    assert sorted((await building.given()).values(), key=str) == [100, 101]


async def outside(brain: Brain, building: Building) -> None:
    """Passes over external networks."""
    external = next(item for item in brain.reconcilers if item.name == "externalnetwork")
    for _ in range(2):
        await brain.look()
        for key in sorted(external.everything(), key=str):
            if key.name.startswith(building.namespace):
                await external.reconcile(key)


async def test_a_vlan_that_is_there_already_and_a_physical_network_that_goes(building: Building) -> None:
    spec = {"isolation": "VLAN", "physicalNetwork": building.namespace, "vlans": [{"first": 100}]}
    pinned = f"{building.namespace}-v100"
    await building.put(NetworkClass.KIND, pinned, spec)
    try:
        await building.by_vlan("other")
        await building.network("floor", **{"class": pinned, "type": "Shared", "gateway": "10.0.0.254"})
        await building.network("again", **{"class": pinned})
        await building.vm("web", {"name": "eth0", "network": "floor"})
        brain = Brain(building.client)
        await settle_networks(brain, building)
        given = await building.given()
        assert given["other"] == 101
        assert sorted((given["floor"] or 0, given["again"] or 0)) == [0, 100]
        lack = await building.get(Network, "floor" if given["floor"] is None else "again")
        assert f"the VLAN 100 that spec.vlans of NetworkClass {pinned} gives" in message(lack)
        await building.delete(Network, "again")
        await settle(brain, building)
        [told] = (await building.segments()).values()
        assert told["uplink"] == {"device": "bond0", "vlan": 100}
        assert told["subnets"][0]["gateway"] == "10.0.0.254"
        # It stays as long as it is in use, unless somebody insists; what hosts have goes on.
        await building.client.delete(PhysicalNetwork.KIND, building.namespace)
        await building.by_vlan("late")
        await settle(brain, building)
        physical = await building.client.get(PhysicalNetwork.KIND, building.namespace)
        users = [f"Network {building.namespace}/{name}" for name in ("floor", "other")]
        for user in (*users, f"NetworkClass {pinned}", f"NetworkClass {building.vlans}"):
            assert user in message(physical)
        assert reason(physical) == "InUse"
        assert reason(await building.get(Network, "floor")) == "Ready"
        assert reason(await building.get(Network, "late")) == "PhysicalNetworkNotFound"
        assert list((await building.segments()).values()) == [told]
        await building.client.patch(PhysicalNetwork.KIND, building.namespace, {"metadata": {"finalizers": []}})
        await settle(brain, building)
        floor = await building.get(Network, "floor")
        assert reason(floor) == "PhysicalNetworkNotFound"
        assert "What hosts have of it goes on" in message(floor)
        assert list((await building.segments()).values()) == [told]
    finally:
        await building.let_go(NetworkClass, pinned)
