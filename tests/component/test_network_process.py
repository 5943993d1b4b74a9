"""Tenant networks under the controllers as they run: woken by what changes, with their own credentials and no more.

Hosts are the test's: it renews their Leases, says what they have, and does what orders say.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio

from kumulus.api.base import Kind, Resource
from kumulus.api.claims import IPAddress, SegmentId
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import LEASE as AGENT_LEASE
from kumulus.api.host import HostReport, WorkOrder
from kumulus.api.network import Network, NetworkClass, NetworkInterface
from kumulus.api.routing import ExternalNetwork, FloatingIP, PhysicalNetwork, Router
from kumulus.api.security_groups import SecurityGroup
from kumulus.kube import errors
from kumulus.kube.builtin import LEASE, NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.service import PUBLISHED, VM_NETWORK, EndpointSlice, Service
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import ZONE, Hypervisor
from tests.component.cloud import Raw, condition, phase, reason, until
from tests.conftest import new_lab

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

HOSTS = ("one", "two")
CLASS = "restless"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A control plane with controllers; hosts are the tests' own."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


class Played:
    """A host that has what it is told to have."""

    def __init__(self, client: KubeClient, name: str, underlay: str) -> None:
        self.client, self.name, self.namespace, self.underlay = client, name, host_namespace(name), underlay
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.client.create(
            Host.KIND, {"metadata": {"name": self.name, "labels": {"role": self.name}}, "spec": {"zone": ZONE}}
        )
        await until(lambda: self.client.find(NAMESPACE, self.namespace), f"the namespace of host {self.name}")
        await self.client.create(HostReport.KIND, {"metadata": {"name": self.name}, "spec": {}}, self.namespace)
        status = {
            "capacity": {"cpus": 64, "memory": 2**38},
            "hypervisorReady": True,
            "network": {"drivers": ["linux"], "underlay": self.underlay},
        }
        await self.client.patch(HostReport.KIND, self.name, {"status": status}, self.namespace, subresource="status")
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": 3600, "renewTime": _now()}
        await self.client.create(LEASE, {"metadata": {"name": AGENT_LEASE}, "spec": spec}, self.namespace)
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with suppress(errors.Unreachable, errors.NotFound, errors.Conflict):
                async for page, _ in self.client.list_pages(WorkOrder.KIND, self.namespace):
                    for order in page:
                        await self._do(order)
            await asyncio.sleep(0.1)

    async def _do(self, order: Raw) -> None:
        meta, spec = order["metadata"], order["spec"]
        if "deletionTimestamp" in meta:
            body = {"metadata": {"finalizers": []}}
            await self.client.patch(WorkOrder.KIND, meta["name"], body, self.namespace)
            return
        if order.get("status", {}).get("observedGeneration") == meta["generation"]:
            return
        status: Raw = {"state": "Ready", "observedGeneration": meta["generation"]}
        if spec["type"] == "Instance":
            on = spec["instance"]["power"] == "Running"
            nics = [{"name": n["name"], "uid": n["uid"], "attached": on} for n in spec["instance"].get("nics", [])]
            status |= {
                "state": spec["instance"]["power"],
                "instance": {"epoch": spec["instance"]["epoch"], "nics": nics},
            }
        if spec["type"] == "Gateway":
            status["gateway"] = {"active": self.name == HOSTS[0]}
        await self.client.patch(WorkOrder.KIND, meta["name"], {"status": status}, self.namespace, subresource="status")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Tenant:
    """A namespace."""

    def __init__(self, lab: Lab, client: KubeClient) -> None:
        self.lab, self.client, self.namespace = lab, client, f"tenant-{secrets.token_hex(3)}"

    async def make(self, model: type[Resource], name: str, **spec: Any) -> Raw:
        return await self.client.create(model.KIND, {"metadata": {"name": name}, "spec": spec}, self.namespace)

    async def network(self, name: str = "net", **spec: Any) -> None:
        await self.make(Network, name, **{"class": CLASS, "cidrs": ["10.0.0.0/24"], **spec})

    async def machine(self, name: str, *interfaces: Raw, on: str | None = None) -> None:
        role = {"hostSelector": {"role": on}} if on is not None else {}
        wanted = list(interfaces) or [{"name": "eth0", "network": "net"}]
        size = {"cpus": 1, "memory": "64Mi"}
        await self.make(VirtualMachine, name, resources=size, placement=role, interfaces=wanted)

    async def change(self, model: type[Resource], name: str, **spec: Any) -> None:
        await self.client.patch(model.KIND, name, {"spec": spec}, self.namespace)

    async def delete(self, model: type[Resource], name: str) -> None:
        await self.client.delete(model.KIND, name, self.namespace)

    async def wait(self, model: type[Resource], name: str, holds: Callable[[Raw], bool], what: str) -> Raw:
        """The object, once that is so; what it is instead is in the error."""
        last: Raw | None = None

        async def probe() -> Raw | None:
            nonlocal last
            last = await self.client.find(model.KIND, name, self.namespace)
            return last if last is not None and holds(last) else None

        try:
            found: Raw = await until(probe, f"{model.KIND.kind} {name}: {what}", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}; its status: {json.dumps((last or {}).get('status'), indent=1)}") from error
        return found

    async def gone(self, model: type[Resource], name: str) -> None:
        async def probe() -> bool:
            return await self.client.find(model.KIND, name, self.namespace) is None

        await until(probe, f"{model.KIND.kind} {name} is gone")

    async def listed(self, kind: Kind, namespace: str | None = None) -> list[Raw]:
        return [item async for page, _ in self.client.list_pages(kind, namespace or self.namespace) for item in page]

    async def segments(self) -> dict[str, Raw]:
        """What hosts are told of this tenant's networks, by host."""
        found = {}
        for host in HOSTS:
            for order in await self.listed(WorkOrder.KIND, host_namespace(host)):
                if order["spec"]["type"] == "Segment" and order["spec"]["for"]["namespace"] == self.namespace:
                    found[host] = order["spec"]["segment"]
        return found

    async def told(self, holds: Callable[[dict[str, Raw]], bool], what: str) -> dict[str, Raw]:
        async def probe() -> dict[str, Raw] | None:
            found = await self.segments()
            return found if holds(found) else None

        answer: dict[str, Raw] = await until(probe, f"hosts are told: {what}", 30)
        return answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(lab: Lab) -> AsyncIterator[KubeClient]:
    made = await KubeClient.from_kubeconfig(lab.kubeconfig, user_agent="test-network")
    hosts = [Played(made, name, f"192.0.2.{number}") for number, name in enumerate(HOSTS, start=1)]
    try:
        await made.create(NetworkClass.KIND, {"metadata": {"name": CLASS}, "spec": {"restSeconds": 1}})
        for host in hosts:
            await host.start()
        await asyncio.to_thread(lab.services.wait_for_hosts, list(HOSTS))
        yield made
    finally:
        for host in hosts:
            await host.stop()
        await made.close()


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(lab: Lab, client: KubeClient) -> AsyncIterator[Tenant]:
    made = Tenant(lab, client)
    await client.create(NAMESPACE, {"metadata": {"name": made.namespace}})
    yield made
    await client.delete(NAMESPACE, made.namespace)


async def test_a_machine_comes_up_with_its_network_and_leaves_nothing(tenant: Tenant) -> None:
    await tenant.machine("web")
    await tenant.wait(VirtualMachine, "web", reason("NetworkNotFound", "NetworkReady"), "waits for its network")
    await tenant.network()
    vm = await tenant.wait(VirtualMachine, "web", phase("Running"), "runs")
    vm = await tenant.wait(VirtualMachine, "web", reason("InterfacesReady", "NetworkReady"), "is on its network")
    assert vm["status"]["addresses"] == ["10.0.0.3"]
    nic = await tenant.wait(NetworkInterface, "web-eth0", phase("Attached"), "attached")
    assert (nic["status"]["vm"], nic["status"]["host"]) == ("web", vm["status"]["host"])
    net = await tenant.wait(Network, "net", lambda n: n["status"].get("hosts") == 1, "is on a host")
    assert net["status"]["allocated"] == 1

    await tenant.delete(Network, "net")
    await tenant.wait(Network, "net", reason("InUse"), "waits")
    await tenant.delete(VirtualMachine, "web")
    for model, name in ((VirtualMachine, "web"), (NetworkInterface, "web-eth0"), (Network, "net")):
        await tenant.gone(model, name)
    assert await tenant.listed(IPAddress.KIND) == [] and await tenant.segments() == {}
    numbers = [item async for page, _ in tenant.client.list_pages(SegmentId.KIND) for item in page]
    assert [n for n in numbers if n["spec"]["namespace"] == tenant.namespace] == []


async def test_hosts_are_told_of_what_changes_elsewhere(tenant: Tenant) -> None:
    await tenant.network()
    for name in HOSTS:
        await tenant.machine(f"vm-{name}", on=name)
    both = await tenant.told(lambda s: all(len(s.get(h, {}).get("peers", [])) == 1 for h in HOSTS), "of each other")
    assert both["one"]["peers"] == ["192.0.2.2"] and both["two"]["peers"] == ["192.0.2.1"]
    rule = {"protocol": "TCP", "ports": ["22"], "from": {"cidrs": ["198.51.100.0/24"]}}
    await tenant.change(SecurityGroup, "default", ingress=[rule])
    await tenant.told(
        lambda s: all([r["cidrs"] for r in s[h]["groups"][0]["ingress"]] == [["198.51.100.0/24"]] for h in HOSTS),
        "of the changed rule",
    )
    await tenant.delete(VirtualMachine, "vm-two")
    await tenant.told(lambda s: list(s) == ["one"] and s["one"]["peers"] == [], "that the other one is gone")
    await tenant.told(lambda s: [r["name"] for r in s["one"]["dns"]["records"]] == ["vm-one"], "and its name too")


async def test_a_full_network_goes_on_when_an_interface_goes(tenant: Tenant) -> None:
    await tenant.network(cidrs=["10.0.0.0/29"])
    for number in range(4):
        await tenant.make(NetworkInterface, f"nic-{number}", network="net")
    for number in range(4):
        await tenant.wait(NetworkInterface, f"nic-{number}", phase("Allocated"), "has an address")
    await tenant.machine("late")
    vm = await tenant.wait(VirtualMachine, "late", reason("NetworkFull", "NetworkReady"), "waits for an address")
    assert "4 are in use" in condition(vm, "NetworkReady")["message"] and "host" not in vm["status"]
    await tenant.delete(NetworkInterface, "nic-2")
    await tenant.wait(VirtualMachine, "late", phase("Running"), "runs when one is free")


async def test_interfaces_come_and_go_while_it_runs(tenant: Tenant) -> None:
    await tenant.network()
    await tenant.network("back", cidrs=["10.9.0.0/24"])
    first, second = {"name": "eth0", "network": "net"}, {"name": "eth1", "network": "back"}
    await tenant.machine("web", first)
    await tenant.wait(VirtualMachine, "web", phase("Running"), "runs")
    await tenant.change(VirtualMachine, "web", interfaces=[first, second])
    await tenant.wait(NetworkInterface, "web-eth1", phase("Attached"), "attached")
    await tenant.change(VirtualMachine, "web", interfaces=[second])
    await tenant.gone(NetworkInterface, "web-eth0")
    vm = await tenant.wait(
        VirtualMachine, "web", lambda v: v["status"].get("addresses") == ["10.9.0.3"], "is on one network"
    )
    assert vm["status"]["phase"] == "Running"


async def test_controllers_that_die_in_the_middle_give_no_address_twice(tenant: Tenant) -> None:
    await tenant.network()
    names = [f"nic-{number:02}" for number in range(40)]
    makers = [asyncio.create_task(tenant.make(NetworkInterface, name, network="net")) for name in names]
    await until(lambda: tenant.listed(IPAddress.KIND), "the first claim")
    await asyncio.to_thread(tenant.lab.services.controllers.kill)
    await asyncio.gather(*makers)
    await asyncio.to_thread(tenant.lab.services.start_controllers)
    found = [await tenant.wait(NetworkInterface, name, phase("Allocated"), "has an address") for name in names]
    given = [address for nic in found for address in nic["status"]["addresses"]]
    assert len(given) == len(set(given)) == len(names)
    owners = {claim["spec"]["address"]: claim["spec"]["interface"] for claim in await tenant.listed(IPAddress.KIND)}
    assert owners == {nic["status"]["addresses"][0]: nic["metadata"]["name"] for nic in found}


async def test_machines_are_endpoints_of_a_service(tenant: Tenant) -> None:
    """With the controllers' own rights, woken by what changes, and by a label that comes and goes."""
    client, world = tenant.client, tenant.namespace

    async def label(value: str | None) -> None:
        await client.patch(Service.KIND, "site", {"metadata": {"labels": {VM_NETWORK: value}}}, tenant.namespace)

    async def published(wanted: dict[str, bool]) -> None:
        async def probe() -> bool:
            found = [one for item in await tenant.listed(EndpointSlice.KIND) for one in item["endpoints"] or ()]
            return {one["addresses"][0]: one["conditions"]["ready"] for one in found} == wanted

        await until(probe, f"endpoints: {wanted}", 30)

    await tenant.network()
    await tenant.machine("web")
    await client.patch(VirtualMachine.KIND, "web", {"metadata": {"labels": {"app": "web"}}}, tenant.namespace)
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    body = {"metadata": {"name": "site", "labels": {VM_NETWORK: "net"}}, "spec": spec}
    await client.create(Service.KIND, body, tenant.namespace)
    await tenant.wait(VirtualMachine, "web", phase("Running"), "runs")
    await tenant.wait(Service, "site", reason("NotReachable", PUBLISHED), "says that nobody reaches it")

    uplinks = [{"name": "all", "device": "out0"}]
    await client.create(PhysicalNetwork.KIND, {"metadata": {"name": world}, "spec": {"uplinks": uplinks}})
    outside = {"physicalNetwork": world, "cidr": "203.0.113.0/24", "gateway": "203.0.113.1"}
    await client.create(ExternalNetwork.KIND, {"metadata": {"name": world}, "spec": outside})
    try:
        await tenant.make(Router, "main", networks=["net"], externalNetwork=world)
        await tenant.make(FloatingIP, "web", externalNetwork=world, target={"interface": "web-eth0"})
        await tenant.wait(Service, "site", reason("Published", PUBLISHED), "is published")
        address = (await client.get(FloatingIP.KIND, "web", tenant.namespace))["status"]["address"]
        await published({address: True})
        await label(None)
        await published({})
        await tenant.wait(Service, "site", lambda s: "conditions" not in s["status"], "has nothing of ours")
        await label("net")
        await published({address: True})
        await tenant.change(VirtualMachine, "web", powerState="Stopped")
        await published({address: False})
        await tenant.delete(FloatingIP, "web")
        await published({})
        await tenant.delete(Service, "site")
        await tenant.delete(Router, "main")
        await tenant.gone(FloatingIP, "web")
        await tenant.gone(Router, "main")
    finally:
        await client.delete(ExternalNetwork.KIND, world)
        await client.delete(PhysicalNetwork.KIND, world)
