"""Volumes as their owner sees them: the API server, the controllers, agents with real pools; simulated hypervisors."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kumulus.api.base import FORCE_DETACH, Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.image import Image
from kumulus.api.machine_import import UNMANAGE, VirtualMachineImport
from kumulus.api.machine_pool import DELETION_COST, VirtualMachinePool
from kumulus.api.order_names import instance_order_name, pool_order_name, volume_order_name
from kumulus.api.qos import UNLIMITED, Qos
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.kube.builtin import NAMESPACE, SECRET
from kumulus.kube.errors import Refused
from kumulus_agents.agent import instance_plan
from kumulus_agents.hypervisor.domain import DomainState
from kumulus_agents.hypervisor.foreign import ForeignDisk, ForeignDomain, ForeignNic, ForeignShape
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import Cloud, Raw, cloud, condition, phase, reason, until
from tests.conftest import new_lab
from tests.unit.storage.material import disk, iso, needs_root
from tests.unit.storage.server import Answer

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module"), needs_root]

DISK = disk()
MIB = 1 << 20
HOSTS = ("host-a", "host-b")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A control plane with controllers; hosts are the tests' own."""
    made = new_lab()
    try:
        made.up(Wanted(hosts=0, hypervisor=Hypervisor.SIMULATED, agents=False))
        yield made
    finally:
        made.down()


class Tenant:
    """A namespace, and two hosts."""

    def __init__(self, cloud: Cloud, tag: str) -> None:
        self.cloud, self.client, self.tag = cloud, cloud.client, tag
        self.namespace = f"tenant-{tag}"
        self.hosts = HOSTS

    async def volume(self, name: str, **spec: Any) -> None:
        await self._make(Volume.KIND, name, spec or {"size": "64Mi"})

    async def machine(self, name: str, *disks: Raw, on: int | None = None, **spec: Any) -> None:
        """A machine; `on` binds it to the first or second host."""
        role = {"hostSelector": {"role": self.hosts[on]}} if on is not None else {}
        body = {"resources": {"cpus": 1, "memory": "64Mi"}, "placement": role, "disks": list(disks), **spec}
        await self._make(VirtualMachine.KIND, name, body)

    async def image(self, name: str = "system", data: bytes = DISK, form: str = "raw") -> None:
        url = self.cloud.images.on(f"/{self.namespace}/{name}", Answer(data))
        checksum = {"sha256": hashlib.sha256(data).hexdigest()}
        await self._make(Image.KIND, name, {"source": {"http": {"url": url}}, "checksum": checksum, "format": form})
        await self.wait(Image.KIND, name, phase("Ready"), "imported")

    async def _make(self, kind: Kind, name: str, spec: Raw) -> None:
        await self.client.create(kind, {"metadata": {"name": name}, "spec": spec}, self.namespace)

    async def patch(self, kind: Kind, name: str, **spec: Any) -> None:
        await self.client.patch(kind, name, {"spec": spec}, self.namespace)

    async def delete(self, kind: Kind, name: str) -> None:
        await self.client.delete(kind, name, self.namespace)

    async def find(self, kind: Kind, name: str) -> Raw:
        found: Raw = await self.client.get(kind, name, self.namespace)
        return found

    async def gone(self, kind: Kind, name: str) -> None:
        async def probe() -> bool:
            return await self.client.find(kind, name, self.namespace) is None

        await until(probe, f"{kind.kind} {name} is gone")

    async def wait(self, kind: Kind, name: str, holds: Callable[[Raw], bool], what: str) -> Raw:
        """The object, once that is so; what it is instead is in the error."""
        last: Raw | None = None

        async def probe() -> Raw | None:
            nonlocal last
            last = await self.client.find(kind, name, self.namespace)
            return last if last is not None and holds(last) else None

        try:
            found: Raw = await until(probe, f"{kind.kind} {name}: {what}", 30)
        except AssertionError as error:
            raise AssertionError(f"{error}; its status: {json.dumps((last or {}).get('status'), indent=1)}") from error
        return found

    async def runs(self, name: str) -> Raw:
        return await self.wait(VirtualMachine.KIND, name, phase("Running"), "runs")

    async def says(self, kind: Kind, name: str, reason: str, type_: str = "Ready") -> str:
        """The message of that condition, once it has that reason."""
        item = await self.wait(kind, name, lambda i: condition(i, type_).get("reason") == reason, f"says {reason}")
        return str(condition(item, type_)["message"])

    async def is_(self, name: str, wanted: str, machine: str | None = None) -> Raw:
        """The volume, once it is in that phase, and attached to that machine or to none."""

        def holds(item: Raw) -> bool:
            attached = item.get("status", {}).get("attachedTo", {}).get("vm")
            return phase(wanted)(item) and attached == machine

        return await self.wait(Volume.KIND, name, holds, f"{wanted}, attached to {machine}")

    def file(self, volume: Raw) -> Path:
        """The one file of a volume on the host it is said to be on."""
        root = self.cloud.hosts[volume["status"]["host"]].directory / "pools"
        found = list(root.rglob(f"*{volume['metadata']['uid']}*.qcow2"))
        assert len(found) == 1, found
        return found[0]

    def files(self, volume: Raw) -> list[Path]:
        """All files of a volume, on whichever host."""
        uid = volume["metadata"]["uid"]
        return [path for name in self.hosts for path in self.cloud.hosts[name].directory.rglob(f"*{uid}*")]

    def shared_files(self, uid: str) -> list[Path]:
        """The files of a volume in the pools that the hosts share."""
        return sorted((self.cloud.directory / "shared").rglob(f"{uid}*.qcow2"))

    def fetched(self, path: str) -> int:
        """How often that image was asked for."""
        return len(self.cloud.images.asked(path))

    async def ready_pool(self, name: str, hosts: int = 2) -> None:
        """Wait until so many hosts can use the pool."""

        async def probe() -> bool:
            pool = await self.client.find(StoragePool.KIND, name)
            return pool is not None and pool.get("status", {}).get("readyHosts", 0) >= hosts

        await until(probe, f"pool {name} is ready on {hosts} hosts")

    def disks_of(self, vm: Raw) -> dict[str, str]:
        """Paths of the disks that the hypervisor's books give the machine, by name."""
        domain = self.cloud.hosts[vm["status"]["host"]].machine.domains[vm["metadata"]["uid"]]
        return {item.name: item.path for item in domain.disks}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    """Two hosts for all tests: taking hosts away takes a namespace controller its time."""
    async with cloud(lab, tmp_path_factory.mktemp("hosts")) as made:
        for name in HOSTS:
            await made.add_host(name)
        await asyncio.to_thread(lab.services.wait_for_hosts, list(HOSTS))
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(made: Cloud) -> AsyncIterator[Tenant]:
    tenant = Tenant(made, secrets.token_hex(3))
    await made.client.create(NAMESPACE, {"metadata": {"name": tenant.namespace}})
    try:
        yield tenant
    finally:
        for kind in (VirtualMachinePool.KIND, VirtualMachine.KIND, Volume.KIND, Image.KIND):
            for item in await made.listed(kind, tenant.namespace):
                await made.client.delete(kind, item["metadata"]["name"], tenant.namespace)
        for kind in (VirtualMachine.KIND, Volume.KIND, Image.KIND):
            await until(lambda kind=kind: _none(made, kind, tenant.namespace), f"no {kind.plural} are left")
        await made.client.delete(NAMESPACE, tenant.namespace)


async def _none(made: Cloud, kind: Kind, namespace: str) -> bool:
    return not await made.listed(kind, namespace)


def virtual_size(path: Path) -> int:
    """Bytes of the disk in a file, as qemu-img says."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(path)], check=True, capture_output=True, text=True
    )
    return int(json.loads(done.stdout)["virtual-size"])


def same_content(one: Path, other: Path) -> bool:
    """Whether two disks have the same content, in whatever format."""
    return subprocess.run(["qemu-img", "compare", "-U", str(one), str(other)], check=False).returncode == 0


DATA = {"name": "data", "volume": "data"}


async def test_a_volume_outlives_its_machine_and_pins_the_next_to_its_host(tenant: Tenant) -> None:
    await tenant.volume("data")
    assert "first machine" in await tenant.says(Volume.KIND, "data", "WaitForFirstConsumer")
    await tenant.machine("one", DATA, on=1)
    vm = await tenant.runs("one")
    volume = await tenant.is_("data", "InUse", "one")
    assert volume["status"]["host"] == tenant.hosts[1] and volume["status"]["size"] == "64Mi"
    file = tenant.file(volume)
    assert tenant.disks_of(vm) == {"data": str(file)} and virtual_size(file) == 64 * MIB
    await tenant.delete(VirtualMachine.KIND, "one")
    await tenant.gone(VirtualMachine.KIND, "one")
    await tenant.is_("data", "Available")
    assert file.exists()

    await tenant.machine("two", DATA)
    assert (await tenant.runs("two"))["status"]["host"] == tenant.hosts[1]
    await tenant.machine("three", {"name": "d", "volume": "data"}, on=0)
    assert "attached to machine two" in await tenant.says(VirtualMachine.KIND, "three", "VolumeInUse")
    await tenant.delete(VirtualMachine.KIND, "two")
    said = await tenant.says(VirtualMachine.KIND, "three", "NoHostFits", "Scheduled")
    assert f"without volume data, which is on host {tenant.hosts[1]}" in said
    await tenant.delete(VirtualMachine.KIND, "three")
    await tenant.delete(Volume.KIND, "data")
    await tenant.gone(Volume.KIND, "data")
    assert tenant.files(volume) == []


async def test_one_volume_has_one_machine_at_a_time(tenant: Tenant) -> None:
    await tenant.volume("data")
    names = [f"vm-{number}" for number in range(4)]
    for name in names:
        await tenant.machine(name, DATA)
    left = set(names)
    while left:

        async def running() -> list[str]:
            listed = await tenant.cloud.listed(VirtualMachine.KIND, tenant.namespace)
            return [item["metadata"]["name"] for item in listed if phase("Running")(item)]

        (winner,) = await until(running, f"one of {left} runs")
        uid = (await tenant.client.get(Volume.KIND, "data", tenant.namespace))["metadata"]["uid"]
        having = [
            domain
            for host in tenant.hosts
            for domain in tenant.cloud.hosts[host].machine.domains.values()
            if any(uid in item.path for item in domain.disks)
        ]
        assert len(having) == 1
        for name in left - {winner}:
            assert winner in await tenant.says(VirtualMachine.KIND, name, "VolumeInUse")
        await tenant.delete(VirtualMachine.KIND, winner)
        await tenant.gone(VirtualMachine.KIND, winner)
        left.discard(winner)
    await tenant.is_("data", "Available")


async def test_a_disk_comes_and_goes_while_the_machine_runs(tenant: Tenant) -> None:
    await tenant.volume("data")
    await tenant.machine("vm")
    vm = await tenant.runs("vm")
    await tenant.patch(VirtualMachine.KIND, "vm", disks=[DATA])
    volume = await tenant.is_("data", "InUse", "vm")

    async def has(names: set[str]) -> bool:
        return set(tenant.disks_of(vm)) == names

    await until(lambda: has({"data"}), "the machine has the disk")
    await tenant.patch(Volume.KIND, "data", size="128Mi")
    await tenant.wait(Volume.KIND, "data", lambda v: v["status"].get("size") == "128Mi", "has grown")
    assert virtual_size(tenant.file(volume)) == 128 * MIB
    await tenant.patch(VirtualMachine.KIND, "vm", disks=[])
    await tenant.is_("data", "Available")
    assert await has(set()), "it is free only when the hypervisor no longer has it"
    after = await tenant.runs("vm")
    assert after["status"]["startedAt"] == vm["status"]["startedAt"], "it ran all the time"
    await tenant.patch(Volume.KIND, "data", size="192Mi")
    await tenant.wait(Volume.KIND, "data", lambda v: v["status"].get("size") == "192Mi", "has grown, unattached")
    with pytest.raises(Refused, match="can grow, but not shrink"):
        await tenant.patch(Volume.KIND, "data", size="1Mi")


async def test_a_volume_elsewhere_does_not_stop_a_running_machine(tenant: Tenant) -> None:
    await tenant.volume("data")
    await tenant.machine("owner", DATA, on=0)
    await tenant.runs("owner")
    await tenant.machine("other", on=1)
    await tenant.runs("other")
    await tenant.patch(VirtualMachine.KIND, "other", disks=[DATA])
    await tenant.says(VirtualMachine.KIND, "other", "VolumeInUse", "VolumesReady")
    await tenant.delete(VirtualMachine.KIND, "owner")
    said = await tenant.says(VirtualMachine.KIND, "other", "VolumeElsewhere", "VolumesReady")
    assert tenant.hosts[0] in said and tenant.hosts[1] in said
    vm = await tenant.runs("other")
    assert condition(vm)["status"] == "True"


async def test_volumes_that_a_machine_brings_along_go_with_it_or_stay(tenant: Tenant) -> None:
    await tenant.image()
    own = {"name": "root", "volumeTemplate": {"source": {"image": "system"}, "size": "96Mi"}}
    kept = {"name": "kept", "volumeTemplate": {"size": "64Mi", "reclaimPolicy": "Retain"}}
    await tenant.machine("vm", own, kept)
    vm = await tenant.runs("vm")
    root, keeper = await tenant.is_("vm-root", "InUse", "vm"), await tenant.is_("vm-kept", "InUse", "vm")
    assert virtual_size(tenant.file(root)) == 96 * MIB
    assert tenant.disks_of(vm) == {"root": str(tenant.file(root)), "kept": str(tenant.file(keeper))}
    await tenant.delete(VirtualMachine.KIND, "vm")
    await tenant.gone(VirtualMachine.KIND, "vm")
    await tenant.gone(Volume.KIND, "vm-root")
    assert tenant.files(root) == []
    await tenant.is_("vm-kept", "Available")

    await tenant.machine("vm", kept)
    assert "was there before" in await tenant.says(VirtualMachine.KIND, "vm", "VolumeExists")
    await tenant.delete(VirtualMachine.KIND, "vm")
    await tenant.delete(Volume.KIND, "vm-kept")
    await tenant.gone(Volume.KIND, "vm-kept")
    assert tenant.files(keeper), "Retain keeps the data of a deleted volume"


async def test_a_copy_of_a_volume_waits_until_nobody_writes_to_it(tenant: Tenant) -> None:
    await tenant.image()
    await tenant.volume("data", source={"image": "system"})
    await tenant.machine("vm", DATA)
    await tenant.runs("vm")
    await tenant.volume("copy", source={"volume": "data"})
    assert "vm" in await tenant.says(Volume.KIND, "copy", "SourceInUse")
    await tenant.patch(VirtualMachine.KIND, "vm", powerState="Stopped")
    copy, data = await tenant.is_("copy", "Available"), await tenant.is_("data", "InUse", "vm")
    assert copy["status"]["host"] == data["status"]["host"]
    assert same_content(tenant.file(data), tenant.file(copy))
    await tenant.delete(VirtualMachine.KIND, "vm")
    await tenant.delete(Volume.KIND, "data")
    await tenant.gone(Volume.KIND, "data")
    assert tenant.file(copy).exists(), "a copy does not need what it was made from"


async def test_a_volume_that_may_not_be_made_is_explained(tenant: Tenant) -> None:
    quota = Kind(group="", version="v1", kind="ResourceQuota", plural="resourcequotas")
    hard = {"count/volumes.storage.kumulus.io": "0"}
    await tenant.client.create(quota, {"metadata": {"name": "none"}, "spec": {"hard": hard}}, tenant.namespace)
    await tenant.machine("vm", {"name": "own", "volumeTemplate": {"size": "64Mi"}})
    assert "quota" in await tenant.says(VirtualMachine.KIND, "vm", "VolumeRefused")
    await tenant.delete(VirtualMachine.KIND, "vm")
    await tenant.gone(VirtualMachine.KIND, "vm")


async def test_a_volume_in_use_is_deleted_when_its_machine_lets_go(tenant: Tenant) -> None:
    await tenant.volume("data")
    await tenant.machine("vm", DATA)
    await tenant.runs("vm")
    volume = await tenant.is_("data", "InUse", "vm")
    await tenant.delete(Volume.KIND, "data")
    assert "vm" in await tenant.says(Volume.KIND, "data", "VolumeInUse")
    assert tenant.file(volume).exists()
    await tenant.patch(VirtualMachine.KIND, "vm", disks=[])
    await tenant.gone(Volume.KIND, "data")
    assert tenant.files(volume) == []
    await tenant.runs("vm")


async def test_a_protected_volume_is_not_deleted(tenant: Tenant) -> None:
    await tenant.volume("data", size="64Mi", deletionProtection=True)
    with pytest.raises(Refused, match=r"deletionProtection of data is true.*patch volumes\.storage\.kumulus\.io data"):
        await tenant.delete(Volume.KIND, "data")
    await tenant.patch(Volume.KIND, "data", deletionProtection=False)
    await tenant.delete(Volume.KIND, "data")
    await tenant.gone(Volume.KIND, "data")


async def test_what_is_missing_is_said_and_heals_when_it_comes(tenant: Tenant) -> None:
    name = f"class-{tenant.tag}"
    await tenant.volume("data", **{"size": "64Mi", "class": name})
    assert name in await tenant.says(Volume.KIND, "data", "VolumeClassNotFound")
    await tenant.machine("vm", DATA, {"name": "none", "volume": "nothing"})
    await tenant.says(VirtualMachine.KIND, "vm", "VolumeClassNotFound")
    offered = {"poolSelector": {"tier": tenant.tag}}
    await tenant.client.create(VolumeClass.KIND, {"metadata": {"name": name}, "spec": offered})
    pool = (await tenant.cloud.listed(StoragePool.KIND))[0]["metadata"]["name"]
    try:
        assert "nothing" in await tenant.says(VirtualMachine.KIND, "vm", "VolumeNotFound")
        await tenant.volume("nothing")
        said = await tenant.says(VirtualMachine.KIND, "vm", "NoHostFits", "Scheduled")
        assert f"without a ready storage pool labelled tier={tenant.tag}" in said
        await tenant.client.patch(StoragePool.KIND, pool, {"metadata": {"labels": {"tier": tenant.tag}}})
        await tenant.runs("vm")
        await tenant.is_("data", "InUse", "vm")
    finally:
        await tenant.client.patch(StoragePool.KIND, pool, {"metadata": {"labels": {"tier": None}}})
        await tenant.client.delete(VolumeClass.KIND, name)


async def test_a_pool_that_is_full_or_for_others_says_so_and_heals(tenant: Tenant) -> None:
    pool = (await tenant.cloud.listed(StoragePool.KIND))[0]["metadata"]["name"]

    async def patch(**spec: Any) -> None:
        await tenant.client.patch(StoragePool.KIND, pool, {"spec": spec})

    async def pool_says(holds: Callable[[Raw], bool], what: str) -> None:
        async def probe() -> bool:
            return holds(await tenant.client.get(StoragePool.KIND, pool))

        await until(probe, f"the pool says {what}")

    try:
        await patch(thresholds={"stopNewVolumesAt": 1}, allowedNamespaces=["somebody-else"])
        await tenant.volume("asked", size="64Mi", pool=pool)
        assert pool in await tenant.says(Volume.KIND, "asked", "PoolNotAllowed")
        await tenant.volume("data")
        await tenant.machine("vm", DATA)
        said = await tenant.says(VirtualMachine.KIND, "vm", "NoHostFits", "Scheduled")
        assert f"with storage pool {pool} not allowed for namespace {tenant.namespace}" in said
        await patch(allowedNamespaces=[tenant.namespace])
        await tenant.wait(
            VirtualMachine.KIND,
            "vm",
            lambda vm: f"with storage pool {pool} filled to 1%" in str(condition(vm, "Scheduled").get("message")),
            "says that the pool is full",
        )
        await pool_says(
            lambda item: condition(item, "AcceptsVolumes").get("reason") == "OverThreshold", "OverThreshold"
        )
        await patch(thresholds=None, allowedNamespaces=None)
        await tenant.runs("vm")
        await pool_says(lambda item: item["status"].get("allocated") == "64Mi", "what is promised")
    finally:
        await patch(thresholds=None, allowedNamespaces=None)


@pytest.mark.parametrize("policy", ["Retain", "Delete"])
async def test_what_is_to_become_of_the_data_may_change_until_the_volume_is_deleted(
    tenant: Tenant, policy: str
) -> None:
    """Also a moment before: what is then said holds, and not what the host was told last."""
    await tenant.volume("data", size="64Mi", reclaimPolicy="Retain" if policy == "Delete" else "Delete")
    await tenant.machine("vm", DATA)
    await tenant.runs("vm")
    file = tenant.file(await tenant.is_("data", "InUse", "vm"))
    await tenant.delete(VirtualMachine.KIND, "vm")
    await tenant.is_("data", "Available")
    await tenant.patch(Volume.KIND, "data", reclaimPolicy=policy)
    await tenant.delete(Volume.KIND, "data")
    await tenant.gone(Volume.KIND, "data")
    assert file.exists() is (policy == "Retain")


async def test_retained_data_becomes_a_volume_again_for_its_namespace_alone(tenant: Tenant) -> None:
    pool = (await tenant.cloud.listed(StoragePool.KIND))[0]["metadata"]["name"]
    await tenant.volume("data", size="64Mi", reclaimPolicy="Retain")
    await tenant.machine("vm", DATA)
    await tenant.runs("vm")
    old = await tenant.is_("data", "InUse", "vm")
    file = tenant.file(old)
    await tenant.delete(VirtualMachine.KIND, "vm")
    await tenant.gone(VirtualMachine.KIND, "vm")
    await tenant.delete(Volume.KIND, "data")
    await tenant.gone(Volume.KIND, "data")
    assert file.exists()

    async def shown() -> bool:
        found = await tenant.client.get(StoragePool.KIND, pool)
        return any(host.get("unowned") for host in found["status"]["hosts"])

    await until(shown, "the pool shows that somebody left data")
    where = {"pool": pool, "host": old["status"]["host"], "id": old["metadata"]["uid"]}
    other = Tenant(tenant.cloud, f"{tenant.tag}-x")
    await tenant.client.create(NAMESPACE, {"metadata": {"name": other.namespace}})
    try:
        await other.volume("theirs", source={"existing": where})
        assert "no retained volume" in await other.says(Volume.KIND, "theirs", "DataNotFound")
        await other.delete(Volume.KIND, "theirs")
        await other.gone(Volume.KIND, "theirs")
    finally:
        await tenant.client.delete(NAMESPACE, other.namespace)
    await tenant.volume("again", source={"existing": where}, size="96Mi")
    found = await tenant.is_("again", "Available")
    assert not file.exists() and found["status"]["size"] == "96Mi"
    assert virtual_size(tenant.file(found)) == 96 * MIB
    await tenant.volume("twice", source={"existing": where})
    await tenant.says(Volume.KIND, "twice", "DataNotFound")


async def test_what_an_operator_put_into_a_pool_becomes_a_volume(tenant: Tenant) -> None:
    pool = (await tenant.cloud.listed(StoragePool.KIND))[0]["metadata"]
    directory = tenant.cloud.hosts[HOSTS[0]].directory / "pools" / pool["name"]
    file = directory / f"{tenant.tag}.qcow2"

    async def made() -> bool:
        return directory.is_dir()

    await until(made, "the host has made the pool's directory")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(file), "32M"], check=True)  # noqa: ASYNC221
    await tenant.volume("prompt", size="64Mi", reclaimPolicy="Delete")  # the pool is looked at when a volume goes
    await tenant.machine("vm", {"name": "d", "volume": "prompt"}, on=0)
    await tenant.runs("vm")
    for kind, name in ((VirtualMachine.KIND, "vm"), (Volume.KIND, "prompt")):
        await tenant.delete(kind, name)
        await tenant.gone(kind, name)

    async def listed() -> Raw | None:
        order = await tenant.client.get(
            WorkOrder.KIND, pool_order_name(pool["uid"]), host_namespace(tenant.cloud.hosts[HOSTS[0]].name)
        )
        files: list[Raw] = order["status"]["pool"].get("unowned", [])
        return next((each for each in files if each["name"] == file.name), None)

    entry = await until(listed, "the file is listed")
    assert (entry["kind"], entry["virtualSize"]) == ("File", 32 * MIB)
    existing = {"pool": pool["name"], "host": HOSTS[0], "id": entry["id"]}
    await tenant.volume("tame", source={"existing": existing})
    await tenant.says(Volume.KIND, "tame", "DataNotFound")
    await tenant.volume("wild", source={"existing": {**existing, "foreign": True}})
    volume = await tenant.is_("wild", "Available")
    assert volume["status"]["size"] == "32Mi" and not file.exists()
    assert virtual_size(tenant.file(volume)) == 32 * MIB


async def test_a_class_says_how_fast_its_volumes_are_while_they_are_in_use(tenant: Tenant) -> None:
    name = f"class-{tenant.tag}"
    qos = {"iops": 100, "bytesPerSecond": "10Mi", "burst": {"iops": 400, "seconds": 30}}
    offered = {"qos": qos, "cache": "writeback"}
    await tenant.client.create(VolumeClass.KIND, {"metadata": {"name": name}, "spec": offered})
    try:
        await tenant.volume("data", **{"size": "64Mi", "class": name})
        await tenant.machine("vm", DATA)
        vm = await tenant.runs("vm")
        host, uid = tenant.cloud.hosts[vm["status"]["host"]].machine, vm["metadata"]["uid"]

        async def has(wanted: Qos, cache: str) -> Raw:
            """The hypervisor's books and the volume's status say so."""

            async def probe() -> bool:
                (disk,) = host.domains[uid].disks
                return (disk.qos, disk.cache) == (wanted, cache)

            await until(probe, f"the disk has {wanted} and {cache}")
            said = {"qos": wanted.to_json(), "cache": cache}
            return await tenant.wait(
                Volume.KIND, "data", lambda v: {key: v["status"].get(key) for key in said} == said, f"says {said}"
            )

        volume = await has(Qos.model_validate(qos), "writeback")
        assert volume["status"]["class"] == name
        faster = Qos(write_iops=200)
        await tenant.client.patch(VolumeClass.KIND, name, {"spec": {"qos": None, "cache": "none"}})
        await tenant.client.patch(VolumeClass.KIND, name, {"spec": {"qos": faster.to_json()}})
        await has(faster, "writeback")
        (disk,) = host.domains[uid].disks
        host.put(replace(host.domains[uid], disks=(replace(disk, qos=UNLIMITED),)))
        await has(faster, "writeback")
        assert (await tenant.runs("vm"))["status"]["startedAt"] == vm["status"]["startedAt"], "it ran all the time"
        await tenant.patch(VirtualMachine.KIND, "vm", restartRequest="now")
        await has(faster, "none")
        await tenant.client.delete(VolumeClass.KIND, name)
        await tenant.patch(VirtualMachine.KIND, "vm", restartRequest="again")
        again = "again"
        await tenant.wait(
            VirtualMachine.KIND, "vm", lambda v: v["status"].get("lastRestartRequest") == again, "is restarted"
        )
        await has(faster, "none")
    finally:
        await tenant.client.delete(VolumeClass.KIND, name)


async def test_discs_are_inserted_and_ejected_while_a_machine_runs(
    tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("installer", "drivers"):
        await tenant.image(name, iso(label=name), "iso")
    await tenant.image()

    def cd(image: str | None) -> Raw:
        return {"name": "cd", "cdrom": {"image": image} if image else {}}

    other = {"name": "more", "cdrom": {}}
    await tenant.machine("vm", cd("installer"), other)
    vm = await tenant.runs("vm")
    host, uid = tenant.cloud.hosts[vm["status"]["host"]].machine, vm["metadata"]["uid"]
    images = {name: (await tenant.find(Image.KIND, name))["metadata"]["uid"] for name in ("installer", "drivers")}

    async def has(disc: str | None, more: str | None = None) -> None:
        async def probe() -> bool:
            paths = [drive.path for drive in host.domains[uid].drives]
            return [path and Path(path).name for path in paths] == [
                image and f"{images[image]}.raw" for image in (disc, more)
            ]

        await until(probe, f"the drives have {disc} and {more}")

    await has("installer")
    await tenant.patch(
        VirtualMachine.KIND, "vm", disks=[cd("drivers"), {"name": "more", "cdrom": {"image": "installer"}}]
    )
    await has("drivers", "installer")
    await tenant.delete(Image.KIND, "drivers")
    await tenant.patch(VirtualMachine.KIND, "vm", disks=[cd("drivers"), other])
    await has("drivers")
    await tenant.says(VirtualMachine.KIND, "vm", "ImageNotFound", "VolumesReady")
    assert await tenant.find(Image.KIND, "drivers"), "an image is kept while it is in a drive"

    await tenant.patch(VirtualMachine.KIND, "vm", disks=[cd("system"), other])
    assert "iso" in await tenant.says(VirtualMachine.KIND, "vm", "ImageNotADisc", "VolumesReady")
    await has("drivers")

    monkeypatch.setattr(instance_plan, "TRAY_EVERY", 0.2)
    monkeypatch.setattr(instance_plan, "TRAY_PATIENCE", 2.0)
    host.clinging.add(uid)
    await tenant.patch(VirtualMachine.KIND, "vm", disks=[cd(None), other])
    assert "by force" in await tenant.says(VirtualMachine.KIND, "vm", "TrayLocked", "VolumesReady")
    await has(None)
    await tenant.gone(Image.KIND, "drivers")
    after = await tenant.wait(VirtualMachine.KIND, "vm", reason("DisksReady", "VolumesReady"), "is content")
    assert after["status"]["startedAt"] == vm["status"]["startedAt"], "it ran all the time"


async def test_volumes_are_encrypted_with_the_secret_of_their_owner(tenant: Tenant) -> None:
    name, text = f"class-{tenant.tag}", "correct horse battery staple"
    offered = {"encryption": {"secret": "disk-key"}}
    secret = {"metadata": {"name": "disk-key"}, "stringData": {"passphrase": "short"}}
    await tenant.client.create(VolumeClass.KIND, {"metadata": {"name": name}, "spec": offered})
    try:
        await tenant.volume("data", **{"size": "16Mi", "class": name})
        assert "kubectl create secret" in await tenant.says(Volume.KIND, "data", "SecretNotFound")
        await tenant.client.create(SECRET, secret, tenant.namespace)
        await tenant.patch(Volume.KIND, "data", size="17Mi")
        await tenant.says(Volume.KIND, "data", "PassphraseUnfit")
        await tenant.client.patch(SECRET, "disk-key", {"stringData": {"passphrase": text}}, tenant.namespace)
        await tenant.patch(Volume.KIND, "data", size="18Mi")
        await tenant.machine("vm", DATA)
        vm = await tenant.runs("vm")
        volume = await tenant.is_("data", "InUse", "vm")
        assert volume["status"]["encryption"] == {"secret": "disk-key", "key": "passphrase"}
        assert b"LUKS\xba\xbe" in tenant.file(volume).read_bytes()

        await tenant.client.delete(SECRET, "disk-key", tenant.namespace)
        await tenant.client.patch(VolumeClass.KIND, name, {"spec": {"encryption": None}})
        await tenant.patch(VirtualMachine.KIND, "vm", restartRequest="now")
        await tenant.wait(
            VirtualMachine.KIND, "vm", lambda v: v["status"].get("lastRestartRequest") == "now", "is restarted"
        )
        told = json.dumps(
            [await tenant.cloud.listed(kind) for kind in (WorkOrder.KIND, Volume.KIND, VirtualMachine.KIND)]
        )
        assert text not in told

        host, uid = host_namespace(vm["status"]["host"]), volume["metadata"]["uid"]
        assert await tenant.client.find(SECRET, f"luks-{uid}", host)
        await tenant.delete(VirtualMachine.KIND, "vm")
        await tenant.is_("data", "Available")
        await tenant.volume("copy", **{"class": name, "source": {"volume": "data"}})
        assert "encrypts" in await tenant.says(Volume.KIND, "copy", "EncryptedCopy")
        await tenant.delete(Volume.KIND, "data")
        await tenant.gone(Volume.KIND, "data")
        assert await tenant.client.find(SECRET, f"luks-{uid}", host) is None
        assert tenant.files(volume) == []
    finally:
        await tenant.client.delete(VolumeClass.KIND, name)


# In a pool that hosts share


@pytest_asyncio.fixture(loop_scope="module")
async def shared(made: Cloud, tenant: Tenant) -> AsyncIterator[str]:
    """Name of a pool that the hosts share, while the test runs."""
    name = f"shared-{tenant.tag}"
    spec = {"driver": "dir", "parameters": {"path": "/var/lib/kumulus/pools/x", "shared": True}}
    await made.client.create(StoragePool.KIND, {"metadata": {"name": name}, "spec": spec})
    try:
        await tenant.ready_pool(name)
        yield name
    finally:
        for kind in (VirtualMachine.KIND, Volume.KIND):
            for item in await made.listed(kind, tenant.namespace):
                await made.client.delete(kind, item["metadata"]["name"], tenant.namespace)
        await made.client.delete(StoragePool.KIND, name)
        await until(lambda: _no_pool(made, name), f"pool {name} is gone")


async def _no_pool(made: Cloud, name: str) -> bool:
    return await made.client.find(StoragePool.KIND, name) is None


async def test_a_volume_of_a_shared_pool_follows_its_machines_from_host_to_host(tenant: Tenant, shared: str) -> None:
    await tenant.volume("data", size="64Mi", pool=shared)
    await tenant.machine("one", DATA, on=0)
    await tenant.runs("one")
    volume = await tenant.is_("data", "InUse", "one")
    uid = volume["metadata"]["uid"]
    (file,) = tenant.shared_files(uid)
    pool = await tenant.client.get(StoragePool.KIND, shared)
    assert len(pool["status"]["hosts"]) >= 2
    assert pool["status"]["capacity"] == pool["status"]["hosts"][0]["capacity"], "counted once"
    keepers: list[set[str]] = []

    async def watch() -> None:
        while True:
            orders = [o for o in await tenant.cloud.listed(WorkOrder.KIND) if o["metadata"]["name"].endswith(uid)]
            keepers.append({order["metadata"]["namespace"] for order in orders})
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    for name, before, host in (("two", "one", 1), ("three", "two", 0)):
        await tenant.machine(name, DATA, on=host)
        assert f"attached to machine {before}" in await tenant.says(VirtualMachine.KIND, name, "VolumeInUse")
        await tenant.delete(VirtualMachine.KIND, before)
        vm = await tenant.runs(name)
        volume = await tenant.is_("data", "InUse", name)
        assert volume["status"]["host"] == vm["status"]["host"] == tenant.hosts[host]
        assert tenant.disks_of(vm) == {"data": str(file)}
    watching.cancel()
    assert all(len(hosts) <= 1 for hosts in keepers), "two hosts were told to see to it at a time"
    assert len(set().union(*keepers)) == 2 and volume["status"]["epoch"] == 2
    await tenant.delete(VirtualMachine.KIND, "three")
    await tenant.delete(Volume.KIND, "data")
    await tenant.gone(Volume.KIND, "data")
    assert tenant.shared_files(uid) == []


async def test_machines_of_a_pool_have_their_own_volumes_which_their_successors_take_over(tenant: Tenant) -> None:
    """`VirtualMachinePool`, with the controllers and agents that are real: made, of another template, fewer, gone."""
    pool = VirtualMachinePool.KIND
    kept = {"name": "data", "volumeTemplate": {"size": "32Mi", "reclaimPolicy": "Retain"}}
    disks = [kept, {"name": "tmp", "volumeTemplate": {"size": "16Mi"}}]
    machine = {"resources": {"cpus": 1, "memory": "64Mi"}, "disks": disks, "stop": {"gracePeriodSeconds": 1}}
    template = {"metadata": {"labels": {"app": "db"}}, "spec": machine}
    await tenant._make(pool, "db", {"replicas": 2, "selector": {"app": "db"}, "template": template})

    def whole(replicas: int) -> Callable[[Raw], bool]:
        return lambda item: (
            item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"]
            and condition(item).get("status") == "True"
            and item["status"]["replicas"] == item["status"]["updatedReplicas"] == replicas
        )

    await tenant.wait(pool, "db", whole(2), "has two machines")
    before = {name: await tenant.runs(name) for name in ("db-0", "db-1")}
    data = {name: await tenant.is_(f"{name}-data", "InUse", name) for name in before}
    temporary = {name: await tenant.is_(f"{name}-tmp", "InUse", name) for name in before}
    change = {"template": {"spec": {"resources": {"cpus": 1, "memory": "96Mi"}}}}
    await tenant.patch(pool, "db", **change)
    await tenant.wait(pool, "db", whole(2), "has two of the new template")
    for name, old in before.items():
        vm = await tenant.runs(name)
        assert vm["metadata"]["uid"] != old["metadata"]["uid"] and vm["status"]["resources"]["memory"] == "96Mi"
        volume = await tenant.is_(f"{name}-data", "InUse", name)
        assert volume["metadata"]["uid"] == data[name]["metadata"]["uid"], "what is retained is the successor's"
        assert tenant.disks_of(vm)["data"] == str(tenant.file(volume))
        assert tenant.files(temporary[name]) == [], "what is not is new"
    costs = {"metadata": {"annotations": {DELETION_COST: "-1"}}}  # else the newest goes: whichever was replaced last
    await tenant.client.patch(VirtualMachine.KIND, "db-1", costs, tenant.namespace)
    await tenant.patch(pool, "db", replicas=1)
    await tenant.gone(VirtualMachine.KIND, "db-1")
    await tenant.is_("db-1-data", "Available")
    await tenant.delete(pool, "db")
    await tenant.gone(VirtualMachine.KIND, "db-0")


@pytest.mark.wide
async def test_another_machine_is_made_beside_one_whose_host_is_silent_and_goes_when_it_returns(tenant: Tenant) -> None:
    """`VirtualMachinePool`, `healing`: only for a machine without volumes, and the one there is kept."""
    kind, silent = VirtualMachinePool.KIND, f"silent-{tenant.tag}"
    await tenant.cloud.add_host(silent, lease_seconds=3)
    await asyncio.to_thread(tenant.cloud.lab.services.wait_for_hosts, [*HOSTS, silent])
    machine = {"resources": {"cpus": 1, "memory": "64Mi"}, "stop": {"mode": "Force"}}
    template = {"metadata": {"labels": {"app": "site"}}, "spec": machine}
    healing = {"replace": ["HostUnknown"], "afterSeconds": 30}
    await tenant._make(
        kind, "site", {"replicas": 4, "selector": {"app": "site"}, "template": template, "healing": healing}
    )
    await tenant.wait(kind, "site", lambda item: condition(item).get("status") == "True", "has four machines")
    before = {vm["metadata"]["name"]: vm for vm in await tenant.cloud.listed(VirtualMachine.KIND, tenant.namespace)}
    lost = {name for name, vm in before.items() if vm["status"]["host"] == silent}
    assert lost and len(lost) < 4
    await tenant.cloud.hosts[silent].kill()
    for name in lost:
        await tenant.wait(VirtualMachine.KIND, name, phase("Unknown"), "its host is silent")

    async def names(wanted: set[str]) -> bool:
        listed = await tenant.cloud.listed(VirtualMachine.KIND, tenant.namespace)
        return {vm["metadata"]["name"] for vm in listed} == wanted

    more = {f"site-{place}" for place in range(4, 4 + len(lost))}
    assert await names(set(before)), "not at once"
    await until(lambda: names(set(before) | more), "others are made", 60)
    await tenant.wait(kind, "site", lambda item: condition(item).get("status") == "True", "has four again")
    tenant.cloud.hosts[silent].start()
    await until(lambda: names(set(before)), "those go")
    for name in lost:
        assert (await tenant.runs(name))["metadata"]["uid"] == before[name]["metadata"]["uid"]
    await tenant.delete(kind, "site")
    await until(lambda: names(set()), "all are gone")


async def test_hosts_that_share_a_pool_fetch_an_image_once(tenant: Tenant, shared: str) -> None:
    await tenant.image()
    path = f"/{tenant.namespace}/system.raw"
    before = tenant.fetched(path)
    for number in range(2):
        await tenant.volume(f"v{number}", pool=shared, source={"image": "system"})
        await tenant.machine(f"vm{number}", {"name": "data", "volume": f"v{number}"}, on=number)
    for number in range(2):
        await tenant.runs(f"vm{number}")
    assert tenant.fetched(path) <= before + 1
    cache = {"name": shared, "pool": shared, "state": "Ready"}
    await tenant.wait(Image.KIND, "system", lambda image: cache in image["status"]["caches"], "one cache for both")


async def test_a_volume_is_not_taken_from_a_host_that_is_silent(tenant: Tenant, shared: str) -> None:
    """Unknown is not dead: an operator who knows more says so."""
    silent = f"silent-{tenant.tag}"
    await tenant.cloud.add_host(silent, lease_seconds=5)
    await asyncio.to_thread(tenant.cloud.lab.services.wait_for_hosts, [*HOSTS, silent])
    await tenant.ready_pool(shared, hosts=len(tenant.cloud.hosts))
    await tenant.volume("data", size="64Mi", pool=shared)
    await tenant.machine("one", DATA, placement={"hostSelector": {"role": silent}})
    await tenant.runs("one")
    await tenant.delete(VirtualMachine.KIND, "one")
    volume = await tenant.is_("data", "Available")
    assert volume["status"]["host"] == silent
    await tenant.cloud.hosts[silent].kill()
    await tenant.machine("two", DATA, on=0)
    said = await tenant.wait(
        Volume.KIND, "data", lambda item: "does not answer" in condition(item).get("message", ""), "explains"
    )
    assert f"kubectl annotate volume data {FORCE_DETACH}=true" in condition(said)["message"]
    assert said["status"]["phase"] == "Moving" and said["status"]["host"] == silent
    waiting = await tenant.says(VirtualMachine.KIND, "two", "HandingOver", "VolumesReady")
    assert f"comes from host {silent}" in waiting
    change = {"metadata": {"annotations": {FORCE_DETACH: "true"}}}
    await tenant.client.patch(Volume.KIND, "data", change, tenant.namespace)
    await tenant.runs("two")
    volume = await tenant.is_("data", "InUse", "two")
    assert (volume["status"]["host"], volume["status"]["epoch"]) == (tenant.hosts[0], 1)
    assert FORCE_DETACH not in volume["metadata"].get("annotations", {})
    tenant.cloud.hosts[silent].start()
    await tenant.ready_pool(shared, hosts=len(tenant.cloud.hosts))
    assert (await tenant.is_("data", "InUse", "two"))["status"]["host"] == tenant.hosts[0]


# Domains of somebody else


@asynccontextmanager
async def planted(tenant: Tenant, tag: str, disk_format: str = "qcow2") -> AsyncIterator[ForeignDomain]:
    """Somebody's domain runs on the first host, with its disk in the directory of a pool. Others do not find it, or its pool."""
    host = tenant.cloud.hosts[HOSTS[0]]
    parameters = {"path": f"/var/lib/kumulus/pools/{tag}"}
    role = {"hostSelector": {"role": HOSTS[0]}}
    await tenant.client.create(
        StoragePool.KIND, {"metadata": {"name": tag}, "spec": {"driver": "dir", "parameters": parameters, **role}}
    )
    await tenant.ready_pool(tag, 1)
    file = host.directory / "pools" / tag / "old.qcow2"
    command = ["qemu-img", "create", "-q", "-f", disk_format, str(file), "16M"]
    await asyncio.to_thread(subprocess.run, command, check=True)
    shape = ForeignShape(
        "pc-q35-7.2",
        "bios",
        [ForeignDisk("vda", "disk", "virtio", "file", str(file), disk_format)],
        [ForeignNic("52:54:00:00:00:01", "bridge", "br0", "virtio")],
        ["graphics vnc"],
    )
    domain = ForeignDomain(str(uuid.uuid4()), "by-hand", "running", 1, 64 * MIB, True, shape)
    try:
        host.machine.plant(domain)
        await until(lambda: tenant.client.find(UnmanagedInstance.KIND, domain.uuid, HOME), "the domain is told of")
        yield domain
    finally:
        host.machine.uproot(domain.uuid)
        await tenant.client.delete(StoragePool.KIND, tag)


HOME = host_namespace(HOSTS[0])


class Import:
    """An import of a domain, by the operator."""

    def __init__(self, tenant: Tenant, domain: str) -> None:
        self.tenant, self.domain = tenant, domain
        self.name = f"get-{tenant.tag}"

    async def make(self, **spec: Any) -> None:
        body = {
            "unmanagedInstance": {"host": HOSTS[0], "name": self.domain},
            "template": {
                "namespace": self.tenant.namespace,
                "name": "vm",
                "disks": [{"target": "vda", "name": "root"}],
            },
            **spec,
        }
        await self.tenant.client.create(
            VirtualMachineImport.KIND, {"metadata": {"name": self.name}, "spec": body}, HOME
        )

    async def is_(self, wanted: str) -> Raw:
        async def probe() -> Raw | None:
            item = await self.tenant.client.find(VirtualMachineImport.KIND, self.name, HOME)
            return item if item is not None and phase(wanted)(item) else None

        try:
            found: Raw = await until(probe, f"the import is {wanted}", 30)
        except AssertionError as error:
            item = await self.tenant.client.find(VirtualMachineImport.KIND, self.name, HOME)
            raise AssertionError(f"{error}: {json.dumps((item or {}).get('status'), indent=1)}") from error
        return found

    async def gone(self) -> None:
        await self.tenant.client.delete(VirtualMachineImport.KIND, self.name, HOME)

        async def probe() -> bool:
            return await self.tenant.client.find(VirtualMachineImport.KIND, self.name, HOME) is None

        await until(probe, "the import is gone")


async def test_a_domain_of_somebody_else_becomes_a_machine_and_is_given_back(tenant: Tenant) -> None:
    async with planted(tenant, tenant.tag) as domain:
        host, order = tenant.cloud.hosts[HOSTS[0]].machine, Import(tenant, domain.uuid)
        file = Path(str(domain.shape.disks[0].source))
        await order.make(dryRun=True)
        said = (await order.is_("Planned"))["status"]["plan"]
        assert {(item["item"], item["when"], item.get("reason")) for item in said} == {
            ("cpus", "Now", None),
            ("memory", "Now", None),
            ("board", "Now", None),
            ("disk vda", "Now", None),
            ("disk vda", "NextStart", "BusChanges"),
            ("interface 52:54:00:00:00:01", "NextStart", "InterfaceDropped"),
            ("graphics vnc", "NextStart", "DeviceDropped"),
        }
        assert not await tenant.cloud.listed(Volume.KIND, tenant.namespace) and domain.uuid in host.foreign
        await tenant.client.patch(VirtualMachineImport.KIND, order.name, {"spec": {"dryRun": False}}, HOME)
        await order.is_("Succeeded")
        vm = await tenant.runs("vm")
        assert (vm["status"]["host"], vm["status"]["epoch"]) == (HOSTS[0], 1)
        assert host.domains[domain.uuid].state is DomainState.RUNNING and domain.uuid not in host.foreign
        assert domain.uuid not in host.starts, "it was not started"
        volume = await tenant.is_("vm-root", "InUse", "vm")
        assert tenant.file(volume).samefile(file), "nothing was copied"
        await order.gone()
        await tenant.patch(VirtualMachine.KIND, "vm", powerState="Stopped")
        await tenant.wait(VirtualMachine.KIND, "vm", phase("Stopped"), "is stopped")
        await tenant.patch(VirtualMachine.KIND, "vm", powerState="Running")
        await tenant.runs("vm")
        assert host.starts[domain.uuid] == 1 and not file.exists()  # noqa: ASYNC240
        kept = tenant.file(volume)
        await tenant.client.patch(
            VirtualMachine.KIND, "vm", {"metadata": {"annotations": {UNMANAGE: "true"}}}, tenant.namespace
        )
        await tenant.delete(VirtualMachine.KIND, "vm")
        await tenant.gone(VirtualMachine.KIND, "vm")
        await tenant.gone(Volume.KIND, "vm-root")
        assert host.foreign[domain.uuid].state == "running" and domain.uuid not in host.domains and kept.exists()
        await until(lambda: tenant.client.find(UnmanagedInstance.KIND, domain.uuid, HOME), "it is told of again")


@pytest.mark.wide
async def test_a_machine_whose_objects_were_lost_is_taken_over_as_it_runs(tenant: Tenant) -> None:
    await tenant.volume("data", size="16Mi")
    await tenant.machine("vm", DATA, on=0)
    uid = (await tenant.runs("vm"))["metadata"]["uid"]
    volume = await tenant.is_("data", "InUse", "vm")
    host = tenant.cloud.hosts[HOSTS[0]]
    began, kept = host.machine.domains[uid].started_at, tenant.file(volume)
    await host.kill()
    lost = [(VirtualMachine.KIND, "vm", tenant.namespace), (Volume.KIND, "data", tenant.namespace)]
    lost += [
        (WorkOrder.KIND, name, HOME)
        for name in (instance_order_name(uid), volume_order_name(volume["metadata"]["uid"]))
    ]
    for kind, name, namespace in lost:  # everything that is known of it
        await tenant.client.delete(kind, name, namespace)

    async def none_left() -> bool:
        found = [await tenant.client.find(kind, name, namespace) for kind, name, namespace in lost]
        for (kind, name, namespace), item in zip(lost, found, strict=True):
            if item is not None and item["metadata"].get("finalizers"):
                await tenant.client.patch(kind, name, {"metadata": {"finalizers": []}}, namespace)
        return not any(found)

    await until(none_left, "its objects are gone")
    host.start()

    async def told() -> Raw | None:
        item = await tenant.client.find(UnmanagedInstance.KIND, uid, HOME)
        disks = (item or {}).get("status", {}).get("disks", [])
        return item if item is not None and disks and disks[0].get("data") else None

    was = (await until(told, "the host tells of it"))["status"]["machine"]
    assert was == {"namespace": tenant.namespace, "name": "vm", "epoch": 1}
    await tenant.machine("vm", on=1)
    assert uid in await tenant.says(VirtualMachine.KIND, "vm", "FoundOnHost", "Scheduled")
    await tenant.delete(VirtualMachine.KIND, "vm")
    await tenant.gone(VirtualMachine.KIND, "vm")
    order = Import(tenant, uid)
    await order.make()
    await order.is_("Succeeded")
    vm = await tenant.runs("vm")
    assert (vm["status"]["host"], vm["status"]["epoch"]) == (HOSTS[0], 2), "placements go on"
    domain = host.machine.domains[uid]
    assert (domain.state, domain.started_at, host.machine.starts[uid]) == (DomainState.RUNNING, began, 1)
    again = await tenant.is_("vm-root", "InUse", "vm")
    assert tenant.file(again).samefile(kept)
    await order.gone()
