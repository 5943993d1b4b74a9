"""Snapshots, clones and restores as their owner sees them: agents with real pools and layers; simulated hypervisors."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kumulus.api.base import FORCE_DETACH
from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.storage import Image, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.errors import Refused
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import Cloud, Raw, cloud, phase, until
from tests.component.test_volume import DATA, HOSTS, MIB, Tenant, virtual_size
from tests.conftest import new_lab
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module"), needs_root]

KINDS = (VirtualMachineRestore, VirtualMachineSnapshot, VolumeSnapshot, VirtualMachine, Volume, Image)
OWN = {"name": "own", "volumeTemplate": {"size": "64Mi"}}
PART_SIZE = 64 * 1024


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A control plane with controllers; hosts are the tests' own."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with cloud(lab, tmp_path_factory.mktemp("hosts")) as made:
        for name in HOSTS:
            await made.add_host(name)
        await asyncio.to_thread(lab.services.wait_for_hosts, list(HOSTS))
        yield made


class Owner(Tenant):
    """A tenant who takes snapshots."""

    async def snapshot(self, name: str, volume: str, **spec: Any) -> None:
        await self._make(VolumeSnapshot.KIND, name, {"volume": volume, **spec})

    async def whole(self, name: str, vm: str, **spec: Any) -> None:
        await self._make(VirtualMachineSnapshot.KIND, name, {"vm": vm, **spec})

    async def restore(self, name: str, snapshot: str, **target: str) -> None:
        await self._make(VirtualMachineRestore.KIND, name, {"snapshot": snapshot, "target": target})

    async def taken(self, name: str) -> Raw:
        return await self.wait(VolumeSnapshot.KIND, name, phase("Ready"), "is taken")

    async def off(self, name: str) -> None:
        await self.patch(VirtualMachine.KIND, name, powerState="Stopped")
        await self.wait(VirtualMachine.KIND, name, phase("Stopped"), "is off")

    async def written(self, vm: str, **what: int) -> None:
        """Write the beginning of disks, as the guest that runs would."""
        machine = await self.client.get(VirtualMachine.KIND, vm, self.namespace)
        for disk, pattern in what.items():
            qemu_io(self.disks_of(machine)[disk], f"write -P {pattern} 0 {PART_SIZE}")

    async def reads(self, vm: str, **what: int) -> None:
        """The beginning of disks is this."""
        machine = await self.client.get(VirtualMachine.KIND, vm, self.namespace)
        for disk, pattern in what.items():
            qemu_io(self.disks_of(machine)[disk], f"read -P {pattern} 0 {PART_SIZE}")


def qemu_io(path: str | Path, command: str) -> None:
    """One command of qemu-io on a disk; a pattern that does not match fails."""
    done = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", command, str(path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0 and "verification failed" not in done.stdout, (command, done.stdout, done.stderr)


@pytest_asyncio.fixture(loop_scope="module")
async def owner(made: Cloud) -> AsyncIterator[Owner]:
    owner = Owner(made, secrets.token_hex(3))
    await made.client.create(NAMESPACE, {"metadata": {"name": owner.namespace}})
    try:
        yield owner
    finally:
        for item in await made.listed(VirtualMachineSnapshot.KIND, owner.namespace):
            await owner.patch(VirtualMachineSnapshot.KIND, item["metadata"]["name"], deletionProtection=False)
        for model in KINDS:
            for item in await made.listed(model.KIND, owner.namespace):
                await made.client.delete(model.KIND, item["metadata"]["name"], owner.namespace)
        for model in KINDS:

            async def none(model: Any = model) -> bool:
                return not await made.listed(model.KIND, owner.namespace)

            await until(none, f"no {model.KIND.plural} are left")
        await made.client.delete(NAMESPACE, owner.namespace)


def names(text: str) -> Callable[[Raw], bool]:
    """The object's conditions speak of that."""
    return lambda item: any(text in c.get("message", "") for c in item.get("status", {}).get("conditions", []))


async def test_a_volume_made_from_a_snapshot_has_what_was_there_then(owner: Owner) -> None:
    await owner.snapshot("early", "data")
    await owner.says(VolumeSnapshot.KIND, "early", "VolumeNotFound")
    await owner.volume("data")
    await owner.says(VolumeSnapshot.KIND, "early", "VolumeNotReady")
    await owner.machine("vm", DATA, on=1)
    await owner.runs("vm")
    early = await owner.taken("early")
    assert early["status"]["indications"] == ["Online", "NoGuestAgent"] and early["status"]["size"] == "64Mi"

    await owner.written("vm", data=1)
    await owner.snapshot("then", "data")
    assert (await owner.taken("then"))["status"]["host"] == owner.hosts[1]
    await owner.written("vm", data=2)
    await owner.volume("clone", source={"snapshot": "then"}, size="96Mi")
    clone = await owner.is_("clone", "Available")
    assert clone["status"]["host"] == owner.hosts[1] and clone["status"]["size"] == "96Mi"
    qemu_io(owner.file(clone), f"read -P 1 0 {PART_SIZE}")
    await owner.reads("vm", data=2)

    await owner.volume("small", source={"snapshot": "then"}, size="1Mi")
    await owner.says(Volume.KIND, "small", "DiskTooSmall")
    await owner.volume("none", source={"snapshot": "nothing"})
    await owner.says(Volume.KIND, "none", "SnapshotNotFound")
    await owner.snapshot("clean", "data", quiesce={"mode": "Required"})
    await owner.says(VolumeSnapshot.KIND, "clean", "QuiesceFailed", "Stalled")

    await owner.delete(VirtualMachine.KIND, "vm")
    await owner.delete(Volume.KIND, "data")
    said = await owner.says(Volume.KIND, "data", "HasSnapshots")
    assert all(f"volsnap/{name}" in said for name in ("early", "then", "clean"))
    for name in ("early", "then", "clean"):
        await owner.delete(VolumeSnapshot.KIND, name)
    await owner.gone(Volume.KIND, "data")
    qemu_io(owner.file(clone), f"read -P 1 0 {PART_SIZE}")


async def test_a_snapshot_with_linked_clones_stays_until_they_go(owner: Owner) -> None:
    await owner.volume("data")
    await owner.machine("vm", DATA)
    await owner.runs("vm")
    await owner.written("vm", data=3)
    await owner.off("vm")
    await owner.snapshot("then", "data")
    assert (await owner.taken("then"))["status"].get("indications", []) == []
    await owner.volume("linked", source={"snapshot": "then", "cloneMode": "Linked"})
    await owner.is_("linked", "Available")
    await owner.delete(VolumeSnapshot.KIND, "then")
    assert "linked" in await owner.says(VolumeSnapshot.KIND, "then", "SnapshotInUse")
    await owner.volume("late", source={"snapshot": "then"})
    await owner.says(Volume.KIND, "late", "SnapshotNotFound")
    await owner.delete(Volume.KIND, "linked")
    await owner.gone(VolumeSnapshot.KIND, "then")
    await owner.patch(VirtualMachine.KIND, "vm", powerState="Running")
    await owner.runs("vm")
    await owner.reads("vm", data=3)


async def test_a_machine_that_is_gone_comes_back_from_its_snapshot(owner: Owner) -> None:
    await owner.volume("data")
    await owner.machine("vm", OWN, DATA)
    await owner.runs("vm")
    await owner.written("vm", own=1, data=2)
    await owner.whole("all", "vm", deletionProtection=True)
    whole = await owner.wait(VirtualMachineSnapshot.KIND, "all", phase("Ready"), "is taken")
    assert [disk["snapshot"] for disk in whole["status"]["volumes"]] == ["all-own", "all-data"]
    moments = {(await owner.taken(name))["status"]["takenAt"] for name in ("all-own", "all-data")}
    assert moments == {whole["status"]["takenAt"]} and whole["status"]["size"] == "128Mi"
    with pytest.raises(Refused, match="deletionProtection of all is true"):
        await owner.delete(VirtualMachineSnapshot.KIND, "all")
    await owner.delete(VolumeSnapshot.KIND, "all-data")
    assert "VirtualMachineSnapshot all" in await owner.says(VolumeSnapshot.KIND, "all-data", "PartOfMachineSnapshot")

    await owner.written("vm", own=7, data=8)
    await owner.delete(VirtualMachine.KIND, "vm")
    await owner.gone(VirtualMachine.KIND, "vm")
    assert "vmsnap/all" in await owner.says(Volume.KIND, "vm-own", "HasSnapshots")
    await owner.restore("again", "all", newVM="vm2")
    await owner.runs("vm2")
    await owner.wait(VirtualMachineRestore.KIND, "again", phase("Succeeded"), "is done")
    await owner.reads("vm2", own=1, data=2)
    await owner.restore("twice", "all", newVM="vm2")
    await owner.says(VirtualMachineRestore.KIND, "twice", "VirtualMachineExists")

    await owner.patch(VirtualMachineSnapshot.KIND, "all", deletionProtection=False)
    await owner.delete(VirtualMachineSnapshot.KIND, "all")
    await owner.gone(VirtualMachineSnapshot.KIND, "all")
    await owner.gone(Volume.KIND, "vm-own")
    await owner.reads("vm2", own=1, data=2)


async def test_a_machine_gets_back_what_its_snapshot_kept(owner: Owner) -> None:
    await owner.volume("data")
    await owner.machine("vm", OWN, DATA, on=0)
    await owner.runs("vm")
    await owner.written("vm", own=1, data=2)
    await owner.whole("all", "vm")
    await owner.wait(VirtualMachineSnapshot.KIND, "all", phase("Ready"), "is taken")
    await owner.written("vm", own=7, data=8)
    await owner.restore("back", "all", vm="vm")
    assert "vm stop vm" in await owner.says(VirtualMachineRestore.KIND, "back", "MachineNotStopped")
    await owner.reads("vm", own=7, data=8)
    await owner.patch(Volume.KIND, "data", size="128Mi")
    await owner.wait(Volume.KIND, "data", lambda v: v["status"].get("size") == "128Mi", "has grown")
    await owner.off("vm")
    done = await owner.wait(VirtualMachineRestore.KIND, "back", phase("Succeeded"), "is done")
    assert [disk["state"] for disk in done["status"]["volumes"]] == ["Restored", "Restored"]
    await owner.patch(VirtualMachine.KIND, "vm", powerState="Running")
    vm = await owner.runs("vm")
    await owner.reads("vm", own=1, data=2)
    assert virtual_size(Path(owner.disks_of(vm)["data"])) == 128 * MIB, "a restore does not shrink a disk"

    # Again, from the same snapshot, while the host is away: the machine is not started before it is done.
    await owner.written("vm", own=5, data=6)
    await owner.off("vm")
    host = owner.cloud.hosts[owner.hosts[0]]
    await host.kill()
    try:
        await owner.restore("again", "all", vm="vm")
        await owner.wait(VirtualMachineRestore.KIND, "again", phase("Restoring"), "has begun")
        await owner.restore("other", "all", vm="vm")
        await owner.says(VirtualMachineRestore.KIND, "other", "AnotherRestore")
        await owner.delete(VirtualMachineRestore.KIND, "other")
        await owner.gone(VirtualMachineRestore.KIND, "other")
        await owner.patch(VirtualMachine.KIND, "vm", powerState="Running")
        assert "again" in await owner.says(VirtualMachine.KIND, "vm", "RestoreInProgress")
        await owner.delete(VirtualMachineRestore.KIND, "again")
        await owner.says(VirtualMachineRestore.KIND, "again", "Restoring")
        await owner.delete(VirtualMachineSnapshot.KIND, "all")
        assert "again" in await owner.says(VirtualMachineSnapshot.KIND, "all", "RestoreInProgress")
    finally:
        host.start()
    await owner.gone(VirtualMachineRestore.KIND, "again")
    await owner.runs("vm")
    await owner.reads("vm", own=1, data=2)
    await owner.gone(VirtualMachineSnapshot.KIND, "all")
    await owner.reads("vm", own=1, data=2)


async def test_a_namespace_with_all_of_it_empties_itself(owner: Owner) -> None:
    await owner.volume("data")
    await owner.machine("vm", OWN, DATA)
    await owner.runs("vm")
    await owner.whole("all", "vm")
    await owner.snapshot("one", "data")
    await owner.taken("one")
    await owner.wait(VirtualMachineSnapshot.KIND, "all", phase("Ready"), "is taken")
    await owner.volume("linked", source={"snapshot": "one", "cloneMode": "Linked"})
    await owner.is_("linked", "Available")
    await owner.restore("back", "all", vm="vm")
    assert "vm stop vm" in await owner.says(VirtualMachineRestore.KIND, "back", "MachineNotStopped")
    uids = [item["metadata"]["uid"] for item in await owner.cloud.listed(Volume.KIND, owner.namespace)]
    await owner.client.delete(NAMESPACE, owner.namespace)

    async def gone() -> bool:
        return await owner.client.find(NAMESPACE, owner.namespace) is None

    await until(gone, "the namespace is gone", 60)
    left = [
        path for name in owner.hosts for uid in uids for path in owner.cloud.hosts[name].directory.rglob(f"*{uid}*")
    ]
    assert left == []


async def test_a_snapshot_on_a_host_that_is_gone_for_good_can_be_let_go(owner: Owner) -> None:
    await owner.volume("data")
    await owner.machine("vm", DATA, on=0)
    await owner.runs("vm")
    await owner.snapshot("one", "data")
    await owner.taken("one")
    await owner.whole("all", "vm")
    await owner.wait(VirtualMachineSnapshot.KIND, "all", phase("Ready"), "is taken")
    await owner.cloud.hosts[owner.hosts[0]].kill()  # the last test: it does not come back
    await owner.delete(VirtualMachine.KIND, "vm")
    await owner.delete(Volume.KIND, "data")
    for kind, name in (
        (VirtualMachine.KIND, "vm"),
        (VolumeSnapshot.KIND, "one"),
        (VirtualMachineSnapshot.KIND, "all"),
        (Volume.KIND, "data"),
    ):
        if kind in (VolumeSnapshot.KIND, VirtualMachineSnapshot.KIND):
            await owner.says(Volume.KIND, "data", "HasSnapshots")
            await owner.delete(kind, name)
            assert FORCE_DETACH in await owner.says(kind, name, "Deleting")
        annotation = {"metadata": {"annotations": {FORCE_DETACH: "true"}}}
        await owner.client.patch(kind, name, annotation, owner.namespace)
        await owner.gone(kind, name)
    await owner.gone(VolumeSnapshot.KIND, "all-data")
