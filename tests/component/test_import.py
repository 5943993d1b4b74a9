"""Domains of others that become machines, machines that are let go of, and those whose objects were lost: real controllers and
agents, simulated hypervisors, in memory and in virtual time (`tests/fault/imports.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.image import Image
from kumulus.api.machine_import import VirtualMachineImport
from kumulus.api.network import Network
from kumulus.api.order_names import instance_order_name, volume_order_name
from kumulus.api.storage import Volume
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.builtin import NAMESPACE
from kumulus_agents.hypervisor.domain import DomainState
from tests.fault.backends import Memory, run
from tests.fault.imports import (
    HERE,
    HOME,
    PARTIES,
    STORIES,
    TENANT,
    AdoptingStorage,
    Story,
    begin_and_take_back,
    deaths,
    import_and_let_go,
    told,
)
from tests.fault.parties import How
from tests.fault.world import world


@pytest.fixture(autouse=True)
def adopting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fault.world.SimulatedStorage", AdoptingStorage)


def test_a_domain_becomes_a_machine_and_is_let_go_of() -> None:
    deeds = told(import_and_let_go)
    assert any("adopt" in deed for deed in deeds[HERE])


def test_an_import_is_taken_back_at_any_time() -> None:
    told(begin_and_take_back)


@pytest.mark.parametrize("name", STORIES)
def test_whoever_dies_meanwhile_nobody_touches_the_guest(name: str) -> None:
    assert not deaths(STORIES[name], 2, 15, (How.AFTER,))


async def _lost(story: Story, *things: tuple[Any, str, str]) -> None:
    """Everything that is known of a machine is gone, while nobody looks."""
    for model, name, namespace in things:
        await story.made.user.patch(model.KIND, name, {"metadata": {"finalizers": []}}, namespace)
        await story.made.user.delete(model.KIND, name, namespace)


SIZE = {"cpus": 1, "memory": "256Mi"}
SYSTEM = {
    "source": {"http": {"url": "http://images.example/system.qcow2"}},
    "checksum": {"sha256": "a" * 64},
    "format": "qcow2",
}
ETH0 = {"name": "eth0", "network": "front"}
MANIFESTS: tuple[tuple[Any, str, dict[str, Any]], ...] = (
    (Image, "system", SYSTEM),
    (Network, "front", {"cidrs": ["10.0.0.0/24"]}),
    (Volume, "data", {"size": "1Gi"}),
    (
        VirtualMachine,
        "web",
        {
            "resources": SIZE,
            "disks": [
                {"name": "root", "volumeTemplate": {"source": {"image": "system"}}},
                {"name": "data", "volume": "data"},
                {"name": "scratch", "ephemeral": {"image": "system"}},
            ],
            "interfaces": [ETH0],
        },
    ),
    (
        VirtualMachine,
        "off",
        {
            "resources": SIZE,
            "powerState": "Stopped",
            "disks": [{"name": "root", "volumeTemplate": {"size": "16Mi"}}],
            "interfaces": [ETH0],
        },
    ),
)


def test_a_control_plane_is_rebuilt_from_its_hosts() -> None:
    """All objects are lost. Hosts join an empty API server, the same manifests are applied, and one more machine, which takes
    neither place nor address of another one."""

    async def main() -> None:
        async with world(Memory(seed=1, latency=0.005)) as made:
            story = Story(made)

            async def apply() -> None:
                await made.ensure(NAMESPACE, TENANT, {})
                for model, name, spec in MANIFESTS:
                    await made.make(model.KIND, name, spec, TENANT)

            async def settled(name: str, phase: str) -> Any:
                return await story.wait(
                    VirtualMachine, name, TENANT, lambda item: item.get("status", {}).get("phase") == phase
                )

            def domains() -> dict[str, tuple[str, Any]]:
                """Where it is and what, by its UUID."""
                return {
                    uid: (name, domain)
                    for name, site in made.sites.items()
                    for uid, domain in site.machine.domains.items()
                }

            def starts() -> dict[str, int]:
                return {uid: n for site in made.sites.values() for uid, n in site.machine.starts.items()}

            await apply()
            await settled("web", "Running")
            on = {"spec": {"powerState": "Running"}}
            await made.user.patch(VirtualMachine.KIND, "off", on, TENANT)
            await settled("off", "Running")
            await made.user.patch(VirtualMachine.KIND, "off", {"spec": {"powerState": "Stopped"}}, TENANT)
            await settled("off", "Stopped")
            had = {name: await made.user.get(VirtualMachine.KIND, name, TENANT) for name in ("web", "off")}
            vni = (await made.user.get(Network.KIND, "front", TENANT))["status"]["vni"]
            before, began = domains(), starts()
            assert all(domain.marks.nics[0].vni == vni for _, domain in before.values())
            AdoptingStorage.taken.clear()

            late = before[had["web"]["metadata"]["uid"]][0]
            await made.rebuild(Memory(seed=2, latency=0.005), late=late)
            await made.ensure(NAMESPACE, TENANT, {})
            await made.make(Image.KIND, "system", SYSTEM, TENANT)
            await made.make(Network.KIND, "front", {"cidrs": ["10.0.0.0/24"]}, TENANT)
            new = {
                "resources": SIZE,
                "disks": [{"name": "root", "volumeTemplate": {"size": "16Mi"}}],
                "interfaces": [ETH0],
            }
            await made.make(VirtualMachine.KIND, "new", new, TENANT)
            for model, name, spec in MANIFESTS[2:]:
                await made.make(model.KIND, name, spec, TENANT)

            def unheard(item: Mapping[str, Any]) -> bool:
                return any(one["reason"] == "HostsNotHeard" for one in item.get("status", {}).get("conditions", []))

            for model, name in ((VirtualMachine, "web"), (VirtualMachine, "new"), (Network, "front")):
                await story.wait(model, name, TENANT, unheard)
            assert domains() == before, "nobody is started before all hosts have told"
            made.start(late)
            for name, phase in (("web", "Running"), ("off", "Stopped"), ("new", "Running")):
                vm = await settled(name, phase)
                if name == "new":
                    assert not set(vm["status"]["addresses"]) & {
                        a for one in had.values() for a in one["status"]["addresses"]
                    }
                    continue
                uid = had[name]["metadata"]["uid"]
                assert vm["metadata"]["uid"] != uid and vm["status"]["epoch"] == had[name]["status"]["epoch"] + 1
                assert vm["status"]["addresses"] == had[name]["status"]["addresses"]
                (host, was), (now_host, domain) = before[uid], domains()[uid]
                assert vm["status"]["host"] == host == now_host
                assert (domain.state, domain.started_at) == (was.state, was.started_at)
                assert [nic.mac for nic in domain.nics] == [nic.mac for nic in was.nics]
                volumes = [disk for disk in domain.disks if disk.volume is not None]
                files = {disk.name: AdoptingStorage.id_of(disk.path) for disk in was.disks if disk.volume is not None}
                assert {disk.name: AdoptingStorage.taken[disk.volume] for disk in volumes} == files
                own = [[(disk.name, disk.path) for disk in d.disks if disk.volume is None] for d in (was, domain)]
                assert own[0] == own[1]
            new_uid = vm["metadata"]["uid"]
            assert starts() == began | {new_uid: 1}, "nothing was started a second time"
            assert set(domains()) == {*before, new_uid}
            assert not made.problems and not made.books.overlaps, made.problems

    run(main())


def test_a_machine_whose_objects_were_lost_is_not_started_twice_and_is_taken_over() -> None:
    async def main() -> None:
        async with world(Memory(seed=1, latency=0.005)) as made:
            story = Story(made)
            await made.ensure(NAMESPACE, TENANT, {})
            spec = {
                "resources": {"cpus": 1, "memory": "256Mi"},
                "placement": {"hostSelector": {"role": HERE}},
                "disks": [{"name": "root", "volumeTemplate": {"size": "16Mi"}}],
            }
            vm = await made.make(VirtualMachine.KIND, "vm", spec, TENANT)
            uid, runs = vm["metadata"]["uid"], lambda item: item.get("status", {}).get("phase") == "Running"
            await story.wait(VirtualMachine, "vm", TENANT, runs)
            began, volume = story.machine.domains[uid].started_at, await made.user.get(Volume.KIND, "vm-root", TENANT)
            for name in PARTIES:
                await made.stop(name)
            orders = (instance_order_name(uid), volume_order_name(volume["metadata"]["uid"]))
            await _lost(story, (VirtualMachine, "vm", TENANT), (Volume, "vm-root", TENANT))
            await _lost(story, *((WorkOrder, name, HOME) for name in orders))
            for name in PARTIES:
                made.start(name)
            told = await story.wait(UnmanagedInstance, uid, HOME, story._located)
            assert told["status"]["machine"] == {"namespace": TENANT, "name": "vm", "epoch": 1}
            await made.make(VirtualMachine.KIND, "vm", spec | {"placement": {}}, TENANT)

            def found(item: Mapping[str, Any]) -> bool:
                says = item.get("status", {}).get("conditions", [])
                return any(one["reason"] == "FoundOnHost" and uid in one["message"] for one in says)

            await story.wait(VirtualMachine, "vm", TENANT, found)
            await made.user.delete(VirtualMachine.KIND, "vm", TENANT)
            await story.gone(VirtualMachine, "vm", TENANT)
            await story.gone(Volume, "vm-root", TENANT)
            template = {"namespace": TENANT, "name": "vm", "disks": [{"target": "vda", "name": "root"}]}
            again = {"unmanagedInstance": {"host": HERE, "name": uid}, "template": template}
            await made.make(VirtualMachineImport.KIND, "get", again, HOME)
            await story.wait(
                VirtualMachineImport, "get", HOME, lambda item: item.get("status", {}).get("phase") == "Succeeded"
            )
            here = await story.wait(VirtualMachine, "vm", TENANT, runs)
            assert here["status"]["epoch"] == 2 and here["metadata"]["uid"] != uid
            domain = story.machine.domains[uid]
            assert (domain.state, domain.started_at, domain.marks.epoch) == (DomainState.RUNNING, began, 2)
            assert story.machine.starts == {uid: 1} and not made.sites["two"].machine.domains
            assert not made.problems, made.problems

    run(main())
