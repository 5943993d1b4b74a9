"""Snapshots, clones and restores as their owner sees them: agents with real pools and layers; simulated hypervisors."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kumulus.api.base import FORCE_DETACH
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.image import Image
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.builtin import NAMESPACE, SECRET
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


def locked_io(path: str | Path, text: str, *commands: str) -> None:
    """The same with an encrypted disk, whose header says what it stands on."""
    secret = ("--object", f"secret,id=key,data={text}")
    options, below, at = f"driver=qcow2,file.filename={path}", "", str(path)
    while at:
        options += f",{below}encrypt.key-secret=key"
        told = subprocess.run(["qemu-img", "info", "-U", "--output=json", at], capture_output=True, check=True).stdout
        at, below = json.loads(told).get("full-backing-filename", ""), f"{below}backing."
    given = [argument for command in commands for argument in ("-c", command)]
    done = subprocess.run(["qemu-io", *secret, "--image-opts", options, *given], capture_output=True, text=True)
    assert done.returncode == 0 and "verification failed" not in done.stdout, (commands, done.stdout, done.stderr)


@pytest_asyncio.fixture(loop_scope="module")
async def classes(owner: Owner) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Makes classes; the name of each."""
    made: list[str] = []

    async def make(name: str, **spec: Any) -> str:
        made.append(f"{name}-{owner.tag}")
        await owner.client.create(VolumeClass.KIND, {"metadata": {"name": made[-1]}, "spec": spec})
        return made[-1]

    yield make
    for name in made:
        await owner.client.delete(VolumeClass.KIND, name)


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


@pytest.mark.wide  # tests/system/test_volumes.py has the same with a real guest
async def test_encrypted_disks_are_kept_copied_and_restored_and_stay_so(
    owner: Owner, classes: Callable[..., Awaitable[str]]
) -> None:
    first, second, third = "first passphrase of all", "second passphrase of it", "third one of the copy"
    safe, plain = await classes("safe", encryption={"secret": "disk-key"}), await classes("plain")
    thick = await classes("thick", encryption={"secret": "other-key"}, provisioning="Thick")
    for name, text in (("disk-key", first), ("other-key", third)):
        body = {"metadata": {"name": name}, "stringData": {"passphrase": text}}
        await owner.client.create(SECRET, body, owner.namespace)
    await owner.volume("data", **{"size": "16Mi", "class": safe})
    own = {"name": "own", "volumeTemplate": {"size": "16Mi", "class": safe}}
    await owner.machine("vm", own, DATA)
    vm = await owner.runs("vm")
    for number, path in enumerate(owner.disks_of(vm).values(), 1):
        locked_io(path, first, f"write -P {number} 0 {PART_SIZE}")
    await owner.whole("all", "vm")
    await owner.wait(VirtualMachineSnapshot.KIND, "all", phase("Ready"), "is taken")
    for path in owner.disks_of(vm).values():
        locked_io(path, first, f"write -P 7 0 {PART_SIZE}")

    # What exists keeps its passphrase, what is copied gets the one that the Secret has by then.
    await owner.client.patch(SECRET, "disk-key", {"stringData": {"passphrase": second}}, owner.namespace)
    await owner.restore("again", "all", newVM="vm2")
    vm2 = await owner.runs("vm2")
    for number, path in enumerate(owner.disks_of(vm2).values(), 1):
        locked_io(path, second, f"read -P {number} 0 {PART_SIZE}")
    await owner.volume("link", **{"class": safe, "source": {"snapshot": "all-data", "cloneMode": "Linked"}})
    link = await owner.is_("link", "Available")
    locked_io(owner.file(link), first, f"read -P 2 0 {PART_SIZE}")
    await owner.volume("full", **{"class": thick, "source": {"snapshot": "all-data"}})
    full = await owner.is_("full", "Available")
    locked_io(owner.file(full), third, f"read -P 2 0 {PART_SIZE}", f"read -P 0 1M {PART_SIZE}")
    assert full["status"]["encryption"]["secret"] == "other-key"

    # Nothing gets out of it.
    await owner.volume("clear", **{"class": plain, "source": {"snapshot": "all-data"}})
    assert f"as {safe} does" in await owner.says(Volume.KIND, "clear", "EncryptedCopy")
    await owner.volume("other", **{"class": thick, "source": {"snapshot": "all-data", "cloneMode": "Linked"}})
    assert "disk-key" in await owner.says(Volume.KIND, "other", "LinkedPassphrase")
    for name, source in (("of-volume", {"volume": "full"}), ("of-snapshot", {"snapshot": "all-data"})):
        await owner._make(Image.KIND, name, {"source": source, "format": "qcow2"})
        assert "everybody who may use it" in await owner.says(Image.KIND, name, "EncryptedCopy")

    # What was not encrypted is in a copy.
    await owner.volume("open", **{"class": plain, "size": "16Mi"})
    await owner.machine("vm3", {"name": "data", "volume": "open"})
    await owner.runs("vm3")
    await owner.written("vm3", data=5)
    await owner.delete(VirtualMachine.KIND, "vm3")
    await owner.is_("open", "Available")
    await owner.volume("shut", **{"class": safe, "source": {"volume": "open"}})
    shut = await owner.is_("shut", "Available")
    locked_io(owner.file(shut), second, f"read -P 5 0 {PART_SIZE}", f"read -P 0 1M {PART_SIZE}")

    await owner.off("vm")
    await owner.restore("back", "all", vm="vm")
    await owner.wait(VirtualMachineRestore.KIND, "back", phase("Succeeded"), "is done")
    await owner.patch(VirtualMachine.KIND, "vm", powerState="Running")
    vm = await owner.runs("vm")
    for number, path in enumerate(owner.disks_of(vm).values(), 1):
        locked_io(path, first, f"read -P {number} 0 {PART_SIZE}")
    told = json.dumps([await owner.cloud.listed(kind) for kind in (WorkOrder.KIND, *(model.KIND for model in KINDS))])
    assert not [text for text in (first, second, third) if text in told]

    host = host_namespace(vm["status"]["host"])
    for name in ("link", "clear", "other"):
        await owner.delete(Volume.KIND, name)
        await owner.gone(Volume.KIND, name)
    assert await owner.client.find(SECRET, f"luks-{link['metadata']['uid']}", host) is None
    await owner.delete(VirtualMachineRestore.KIND, "back")
    await owner.delete(VirtualMachineRestore.KIND, "again")
    await owner.delete(VirtualMachineSnapshot.KIND, "all")
    await owner.gone(VirtualMachineSnapshot.KIND, "all")
    for number, path in enumerate(owner.disks_of(vm).values(), 1):
        locked_io(path, first, f"read -P {number} 0 {PART_SIZE}")


@pytest_asyncio.fixture(loop_scope="module")
async def shared(made: Cloud, owner: Owner) -> AsyncIterator[str]:
    """Name of a pool that the hosts share, while the test runs."""
    name = f"shared-{owner.tag}"
    spec = {"driver": "dir", "parameters": {"path": "/var/lib/kumulus/pools/x", "shared": True}}
    await made.client.create(StoragePool.KIND, {"metadata": {"name": name}, "spec": spec})
    try:
        await owner.ready_pool(name)
        yield name
    finally:
        for model in KINDS:
            for item in await made.listed(model.KIND, owner.namespace):
                await made.client.delete(model.KIND, item["metadata"]["name"], owner.namespace)
        await made.client.delete(StoragePool.KIND, name)

        async def none() -> bool:
            return await made.client.find(StoragePool.KIND, name) is None

        await until(none, f"pool {name} is gone")


async def test_snapshots_follow_their_volumes_to_another_host_of_the_pool(owner: Owner, shared: str) -> None:
    """And what is linked to them stays where it is, whoever merges."""
    other = {"name": "other", "volume": "other"}
    for name in ("data", "other"):
        await owner.volume(name, size="64Mi", pool=shared)
    await owner.machine("one", DATA, other, on=0)
    await owner.runs("one")
    await owner.written("one", data=1, other=2)
    await owner.snapshot("before", "data")
    await owner.taken("before")
    await owner.written("one", data=3)
    await owner.whole("all", "one")
    await owner.wait(VirtualMachineSnapshot.KIND, "all", phase("Ready"), "is taken")
    await owner.written("one", data=4)
    await owner.volume("linked", source={"snapshot": "all-data", "cloneMode": "Linked"})
    await owner.is_("linked", "Available")
    await owner.machine("reader", {"name": "data", "volume": "linked"}, on=0)
    await owner.runs("reader")

    await owner.patch(VirtualMachine.KIND, "one", disks=[other])
    await owner.machine("two", DATA, on=1)
    await owner.runs("two")
    await owner.reads("two", data=4)

    async def at(host: int, *names: str) -> None:
        for name in names:
            await owner.wait(
                VolumeSnapshot.KIND,
                name,
                lambda item: phase("Ready")(item) and item["status"].get("host") == owner.hosts[host],
                f"is kept by host {host}",
            )

    await at(1, "before", "all-data")
    await at(0, "all-other")
    whole = await owner.wait(VirtualMachineSnapshot.KIND, "all", phase("Ready"), "is whole")
    assert {disk["disk"]: disk["host"] for disk in whole["status"]["volumes"]} == {
        "data": owner.hosts[1],
        "other": owner.hosts[0],
    }
    assert "host" not in whole["status"]

    await owner.snapshot("after", "data")
    await owner.taken("after")
    await owner.volume("copy", source={"snapshot": "before"})
    copy = await owner.is_("copy", "Available")
    assert copy["status"]["host"] == owner.hosts[1]
    qemu_io(owner.shared_files(copy["metadata"]["uid"])[0], f"read -P 1 0 {PART_SIZE}")

    # Layers below and above what is linked go; neither is merged into what the reader on the other host has open.
    await owner.off("two")  # simulated hypervisors merge nothing
    for name in ("before", "after"):
        await owner.delete(VolumeSnapshot.KIND, name)
        await owner.gone(VolumeSnapshot.KIND, name)
    await owner.reads("reader", data=3)
    await owner.patch(VirtualMachine.KIND, "two", powerState="Running")
    await owner.runs("two")
    await owner.reads("two", data=4)
    await owner.delete(VirtualMachineSnapshot.KIND, "all")
    assert "linked" in await owner.says(VirtualMachineSnapshot.KIND, "all", "SnapshotInUse")

    # Back to the first host, while the snapshot goes.
    for name in ("one", "two", "reader"):
        await owner.delete(VirtualMachine.KIND, name)
        await owner.gone(VirtualMachine.KIND, name)
    await owner.delete(Volume.KIND, "linked")
    await owner.machine("three", DATA, other, on=0, powerState="Stopped")
    await owner.gone(VirtualMachineSnapshot.KIND, "all")
    await owner.patch(VirtualMachine.KIND, "three", powerState="Running")
    await owner.runs("three")
    await owner.reads("three", data=4, other=2)
    data = await owner.is_("data", "InUse", "three")
    assert len(owner.shared_files(data["metadata"]["uid"])) == 1, "no layer is left"


async def test_a_machine_that_went_to_another_host_is_restored_there(owner: Owner, shared: str) -> None:
    await owner.volume("data", size="64Mi", pool=shared)
    await owner.machine("vm", DATA, on=0)
    await owner.runs("vm")
    await owner.written("vm", data=1)
    await owner.whole("all", "vm")
    await owner.wait(VirtualMachineSnapshot.KIND, "all", phase("Ready"), "is taken")
    await owner.written("vm", data=2)
    await owner.delete(VirtualMachine.KIND, "vm")
    await owner.gone(VirtualMachine.KIND, "vm")
    await owner.machine("vm", DATA, on=1, powerState="Stopped")
    await owner.wait(VirtualMachine.KIND, "vm", phase("Stopped"), "is off")
    await owner.is_("data", "InUse", "vm")
    await owner.restore("back", "all", vm="vm")
    await owner.wait(VirtualMachineRestore.KIND, "back", phase("Succeeded"), "is done")
    await owner.patch(VirtualMachine.KIND, "vm", powerState="Running")
    assert (await owner.runs("vm"))["status"]["host"] == owner.hosts[1]
    await owner.reads("vm", data=1)


@pytest.mark.wide
async def test_an_encrypted_volume_keeps_its_passphrase_on_its_way_to_another_host(
    owner: Owner, classes: Callable[..., Awaitable[str]], shared: str
) -> None:
    """Whatever becomes of its owner's Secret. Snapshots go along, and are merged where the volume is."""
    text = "the passphrase that it began with"
    body = {"metadata": {"name": "disk-key"}, "stringData": {"passphrase": text}}
    await owner.client.create(SECRET, body, owner.namespace)
    safe = await classes("safe", encryption={"secret": "disk-key"})
    await owner.volume("data", **{"size": "16Mi", "class": safe, "pool": shared})
    await owner.machine("one", DATA, on=0)
    (path,) = owner.disks_of(await owner.runs("one")).values()
    locked_io(path, text, f"write -P 1 0 {PART_SIZE}")
    await owner.snapshot("before", "data")
    await owner.taken("before")
    (path,) = owner.disks_of(await owner.runs("one")).values()
    locked_io(path, text, f"write -P 2 0 {PART_SIZE}")
    data = await owner.is_("data", "InUse", "one")

    await owner.client.delete(SECRET, "disk-key", owner.namespace)
    await owner.delete(VirtualMachine.KIND, "one")
    await owner.gone(VirtualMachine.KIND, "one")
    await owner.machine("two", DATA, on=1)
    (path,) = owner.disks_of(await owner.runs("two")).values()
    locked_io(path, text, f"read -P 2 0 {PART_SIZE}")
    await owner.wait(
        VolumeSnapshot.KIND,
        "before",
        lambda item: phase("Ready")(item) and item["status"].get("host") == owner.hosts[1],
        "is kept by the other host",
    )
    name = f"luks-{data['metadata']['uid']}"
    assert await owner.client.find(SECRET, name, host_namespace(owner.hosts[0])) is None
    secret = await owner.client.get(SECRET, name, host_namespace(owner.hosts[1]))
    assert [one["name"] for one in secret["metadata"]["ownerReferences"]] == [f"volume-{data['metadata']['uid']}"]

    await owner.off("two")
    await owner.delete(VolumeSnapshot.KIND, "before")
    await owner.gone(VolumeSnapshot.KIND, "before")
    (path,) = owner.shared_files(data["metadata"]["uid"])
    locked_io(path, text, f"read -P 2 0 {PART_SIZE}")


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


async def test_what_a_silent_host_kept_of_a_snapshot_goes_when_it_is_back(owner: Owner) -> None:
    await owner.volume("data")
    await owner.machine("vm", DATA, on=0)
    await owner.runs("vm")
    volume = await owner.is_("data", "InUse", "vm")
    await owner.written("vm", data=1)
    await owner.snapshot("one", "data")
    await owner.taken("one")
    await owner.written("vm", data=2)
    await owner.off("vm")  # simulated hypervisors merge nothing

    def layers() -> int:
        return sum(path.suffix == ".qcow2" for path in owner.files(volume))

    host = owner.cloud.hosts[owner.hosts[0]]
    await host.kill()
    try:
        await owner.delete(VolumeSnapshot.KIND, "one")
        await owner.says(VolumeSnapshot.KIND, "one", "Deleting")
        annotation = {"metadata": {"annotations": {FORCE_DETACH: "true"}}}
        await owner.client.patch(VolumeSnapshot.KIND, "one", annotation, owner.namespace)
        await owner.gone(VolumeSnapshot.KIND, "one")
        assert layers() == 2
    finally:
        host.start()

    async def tidy() -> bool:
        return layers() == 1

    await until(tidy, "nothing is left of the snapshot")
    await owner.patch(VirtualMachine.KIND, "vm", powerState="Running")
    await owner.runs("vm")
    await owner.reads("vm", data=2)


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
