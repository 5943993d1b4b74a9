"""Heartbeat, report, outages of the API server, and many hosts in one process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest

from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.host import HostReport
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.builtin import LEASE, NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus_agents.agent import drivers
from kumulus_agents.agent import settings as agent_settings
from kumulus_agents.agent.fleet import Fleet, FleetSettings
from kumulus_agents.agent.settings import Timings
from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignDomain, ForeignNic, ForeignShape
from kumulus_lab.cluster import NativeCluster
from tests import leftovers
from tests.unit.agent.host import TestHost, eventually, host_on

pytestmark = pytest.mark.cluster


@pytest.fixture
async def host(cluster: NativeCluster) -> AsyncIterator[TestHost]:
    async with host_on(cluster.kubeconfig) as made:
        yield made


MAC = "52:54:00:00:00:01"


async def lease_of(host: TestHost) -> dict[str, object]:
    raw = await host.client.find(LEASE, LEASE_NAME, host.namespace)
    return dict(raw["spec"]) if raw else {}


async def report_of(host: TestHost) -> dict[str, object]:
    raw = await host.client.find(HostReport.KIND, host.name, host.namespace)
    return dict(raw.get("status") or {}) if raw else {}


async def test_the_lease_is_kept_and_left(host: TestHost) -> None:
    quick = Timings(lease_seconds=4, renew_seconds=1, workers=2)
    async with host.running(timings=quick):
        first = await eventually(lambda: lease_of(host), "a lease")
        assert first["holderIdentity"] == host.name
        assert first["leaseDurationSeconds"] == 4
        await eventually(lambda: _renewed_since(host, first), "a renewal")
        await host.client.patch(LEASE, LEASE_NAME, {"metadata": {"labels": {"a": "b"}}}, host.namespace)
        seen = await lease_of(host)
        await eventually(lambda: _renewed_since(host, seen), "a renewal after somebody changed it")
        await host.client.delete(LEASE, LEASE_NAME, host.namespace)
        await eventually(lambda: lease_of(host), "a new lease")
    left = await lease_of(host)
    assert left["holderIdentity"] == host.name
    async with host.running(timings=quick):
        again = await eventually(lambda: _renewed_since(host, left), "a renewal by the next agent")
    assert again["acquireTime"] == left["acquireTime"]
    assert again.get("leaseTransitions", 0) == left.get("leaseTransitions", 0)


async def _renewed_since(host: TestHost, before: dict[str, object]) -> dict[str, object] | None:
    now = await lease_of(host)
    return now if now.get("renewTime") not in (None, before["renewTime"]) else None


async def test_the_report_says_what_there_is(host: TestHost) -> None:
    for number in range(70):
        host.machine.plant(
            ForeignDomain(f"{number:08}-0000-0000-0000-000000000000", "x\n" * 300, "running", 2, 1 << 30)
        )
    async with host.running(timings=Timings(report_seconds=0.5, workers=2)):
        status = await eventually(lambda: report_of(host), "a report")
        assert status["capacity"] == {"cpus": 64, "memory": 256 << 30}
        assert status["hypervisorReady"] is True
        assert status["unmanagedCount"] == 70
        assert status["addresses"] == ["192.0.2.7"]
        host.machine.disconnect()
        await eventually(lambda: _ready(host, False), "a report that the hypervisor is away")
        assert (await report_of(host))["capacity"] == status["capacity"]
        host.machine.reconnect()
        await eventually(lambda: _ready(host, True), "a report that it is back")
    assert host.count("patch", "HostReport") == 3


def foreign(number: int, state: str = "running") -> ForeignDomain:
    disk, nic = (
        ForeignDisk("vda", "disk", "virtio", "file", f"/srv/{number}.qcow2", "qcow2"),
        ForeignNic(MAC, "bridge", "br0"),
    )
    shape = ForeignShape("pc-q35-7.2", "bios", [disk], [nic])
    return ForeignDomain(f"{number:08}-0000-0000-0000-000000000000", f"vm-{number}", state, 2, 1 << 30, True, shape)


async def shown(host: TestHost) -> dict[str, dict[str, object]]:
    """What is said of domains that are not ours, by their names."""
    pages = host.client.list_pages(UnmanagedInstance.KIND, host.namespace)
    said = [raw.get("status", {}) async for page, _ in pages for raw in page]
    return {str(status.get("name")): status for status in said}


async def test_domains_of_others_are_shown_as_they_come_change_and_go(host: TestHost) -> None:
    """By what the hypervisor says, within seconds, and with few writes; also what changed while no agent ran."""

    async def states(**wanted: str) -> bool:
        return {name: status.get("state") for name, status in (await shown(host)).items()} == wanted

    kind = UnmanagedInstance.KIND.kind
    quick = Timings(report_seconds=0.5, workers=2)
    host.machine.plant(foreign(1))
    async with host.running(timings=quick):
        await eventually(lambda: states(**{"vm-1": "running"}), "the one that was there")
        (status,) = (await shown(host)).values()
        assert status["disks"] == [
            {
                "target": "vda",
                "device": "disk",
                "bus": "virtio",
                "kind": "file",
                "source": "/srv/1.qcow2",
                "format": "qcow2",
            }
        ]
        assert (status["cpus"], status["memory"], status["persistent"]) == (2, "1Gi", True)
        assert status["nics"] == [{"macAddress": MAC, "kind": "bridge", "source": "br0", "addresses": []}]
        host.machine.plant(foreign(2, "shut off"))
        host.machine.plant(foreign(2))
        await eventually(lambda: states(**{"vm-1": "running", "vm-2": "running"}), "one that came")
        assert host.count("create", kind) == host.count("patch", kind) == 2
        host.machine.uproot(foreign(2).uuid)
        await eventually(lambda: states(**{"vm-1": "running"}), "one that went")
        await eventually(lambda: _counted(host, 1), "the report counts them")
        host.machine.disconnect()
        await eventually(lambda: _ready(host, False), "a report that the hypervisor is away")
        assert await states(**{"vm-1": "running"}), "what was known is kept"
        host.machine.uproot(foreign(1).uuid)
        host.machine.plant(foreign(3))
        host.machine.reconnect()
        await eventually(lambda: states(**{"vm-3": "running"}), "what changed meanwhile")
    host.machine.uproot(foreign(3).uuid)
    async with host.running(timings=quick):
        await eventually(lambda: states(), "what changed while no agent ran")
    assert not host.machine.foreign


async def _counted(host: TestHost, wanted: int) -> bool:
    return (await report_of(host)).get("unmanagedCount") == wanted


async def _ready(host: TestHost, wanted: bool) -> bool:
    return (await report_of(host)).get("hypervisorReady") is wanted


async def test_machines_outlive_an_api_server_and_work_is_caught_up(host: TestHost, cluster: NativeCluster) -> None:
    async with host.running() as agent:
        uid = await host.order(restartPolicy="Never")
        other = await host.order()
        await host.until_instance(uid, state="Running")
        await host.until_instance(other, state="Running")
        await asyncio.to_thread(cluster.stop_apiserver)
        try:
            domain = host.machine.domains[other]
            host.machine.end(uid)
            await eventually(lambda: agent.queue.delayed, "a pass that could not report")
            assert host.machine.domains[other] == domain
        finally:
            await asyncio.to_thread(cluster.start_apiserver)
        status = await host.until_instance(uid, state="Stopped")
        assert status["reason"] == "GuestShutDown"
        await host.change(other, power="Stopped")
        await host.until_instance(other, state="Stopped")
    assert host.machine.starts[other] == 1


async def test_a_hundred_hosts_in_one_process(cluster: NativeCluster) -> None:
    count, prefix = 100, f"f{secrets.token_hex(2)}-"
    names = [f"{prefix}{number}" for number in range(1, count + 1)]
    client = await KubeClient.from_kubeconfig(cluster.kubeconfig, user_agent="tests-fleet", pool_size=count + 100)
    settings = agent_settings.load(None, {"hypervisor": "simulated"}, {})
    simulation = drivers.Simulation(cpus=64, memory=256 << 30, start_seconds=0)
    fleet = Fleet(
        client,
        FleetSettings(count, prefix, "z1", drivers.fleet_timings(settings)),
        lambda name: drivers.simulated(name, settings, simulation),
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fleet.run())
            await eventually(lambda: _made(client, names), "the hosts")
            for name in names:
                await client.create(NAMESPACE, {"metadata": {"name": host_namespace(name)}})
            await eventually(lambda: not fleet.waiting(), "a hundred agents")
            await eventually(lambda: all(a.heartbeat.age is not None for a in fleet.agents), "a hundred leases")
            one = TestHost(client, names[41])
            uid = await one.order()
            await one.until_instance(uid, state="Running")
            report = await client.get(HostReport.KIND, names[41], one.namespace)
            assert report["status"]["capacity"]["cpus"] == 64
            await client.delete(NAMESPACE, host_namespace(names[0]))
            fleet.stop()
    finally:
        for name in names:
            await client.delete(Host.KIND, name)
            leftovers.leave(host_namespace(name))
        await client.close()


async def _made(client: KubeClient, names: list[str]) -> bool:
    found = set()
    async for items, _ in client.list_pages(Host.KIND):
        found.update(item["metadata"]["name"] for item in items)
    return found.issuperset(names)
