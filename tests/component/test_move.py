"""Moving volumes and emptying pools as their owner and operator see them: agents with real pools; simulated hypervisors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kumulus.api.compute import VirtualMachine
from kumulus.api.image import Image
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.cli.people import main
from kumulus.kube.builtin import NAMESPACE
from kumulus_lab.lab import Lab, Wanted
from kumulus_lab.state import Hypervisor
from tests.component.cloud import Cloud, Raw, cloud, condition, phase, until
from tests.component.test_snapshot import PART_SIZE, qemu_io
from tests.component.test_volume import DATA, HOSTS, Tenant
from tests.conftest import new_lab
from tests.unit.storage.material import needs_root

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module"), needs_root]

KINDS = (VolumeSnapshot, VirtualMachine, Volume, Image)


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


class Mover(Tenant):
    """A tenant with pools of their own."""

    @property
    def role(self) -> dict[str, str]:
        """Of the class and the pools that its volumes may be in."""
        return {"tier": self.tag}

    @asynccontextmanager
    async def pool(self, name: str, *, shared: bool = False) -> AsyncIterator[str]:
        """A pool with the label, while the block runs."""
        full = f"{name}-{self.tag}"
        parameters = {"path": f"/var/lib/kumulus/pools/{full}", **({"shared": True} if shared else {})}
        body = {"metadata": {"name": full, "labels": self.role}, "spec": {"driver": "dir", "parameters": parameters}}
        await self.client.create(StoragePool.KIND, body)
        try:
            await self.ready_pool(full)
            yield full
        finally:
            await self.clear()
            await self.client.delete(StoragePool.KIND, full)

            async def gone() -> bool:
                return await self.client.find(StoragePool.KIND, full) is None

            await until(gone, f"pool {full} is gone")

    async def clear(self) -> None:
        """Nothing is left in the namespace."""
        for model in KINDS:
            for item in await self.cloud.listed(model.KIND, self.namespace):
                await self.client.delete(model.KIND, item["metadata"]["name"], self.namespace)

            async def none(model: Any = model) -> bool:
                return not await self.cloud.listed(model.KIND, self.namespace)

            await until(none, f"no {model.KIND.plural} are left")

    async def in_pool(self, name: str, pool: str) -> Raw:
        """The volume, once it is in that pool and nowhere else."""

        def holds(volume: Raw) -> bool:
            status = volume.get("status", {})
            return status.get("pool") == pool and "movingTo" not in status and condition(volume, "Moving") == {}

        return await self.wait(Volume.KIND, name, holds, f"is in pool {pool}")

    async def uses(self, vm: str, pool: str) -> Path:
        """The path that the hypervisor has for the machine's disk, once it is in that pool."""

        async def probe() -> Path | None:
            (path,) = self.disks_of(await self.find(VirtualMachine.KIND, vm)).values()
            return Path(path) if pool in path else None

        found: Path = await until(probe, f"the machine writes to pool {pool}")
        return found

    async def emptied(self, pool: str, reason: str) -> str:
        """What the pool says is left in it."""
        found: Raw = {}

        async def probe() -> bool:
            nonlocal found
            found = condition(await self.client.get(StoragePool.KIND, pool), "Emptied")
            return found.get("reason") == reason

        try:
            await until(probe, f"pool {pool}: Emptied is {reason}", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {found}") from error
        return str(found["message"])

    async def maintain(self, pool: str, on: bool = True) -> None:
        await self.client.patch(StoragePool.KIND, pool, {"spec": {"maintenance": on}})


@pytest_asyncio.fixture(loop_scope="module")
async def tenant(made: Cloud) -> AsyncIterator[Mover]:
    tenant = Mover(made, secrets.token_hex(3))
    await made.client.create(NAMESPACE, {"metadata": {"name": tenant.namespace}})
    offered = {"metadata": {"name": tenant.tag}, "spec": {"poolSelector": tenant.role}}
    await made.client.create(VolumeClass.KIND, offered)
    try:
        yield tenant
    finally:
        await tenant.clear()
        await made.client.delete(VolumeClass.KIND, tenant.tag)
        await made.client.delete(NAMESPACE, tenant.namespace)


async def test_a_volume_moves_while_its_machine_runs_and_back(tenant: Mover, lab: Lab) -> None:
    async with tenant.pool("one") as one, tenant.pool("two") as two:
        await tenant.volume("data", **{"size": "64Mi", "pool": one, "class": tenant.tag})
        await tenant.machine("vm", DATA)
        vm = await tenant.runs("vm")
        volume = await tenant.is_("data", "InUse", "vm")
        qemu_io(await tenant.uses("vm", one), f"write -P 7 0 {PART_SIZE}")

        command = ["--kubeconfig", str(lab.kubeconfig), "-n", tenant.namespace, "volume", "move", "data"]
        code = await asyncio.to_thread(main, [*command, "--to", two, "--wait", "--timeout", "60"])
        assert code == 0
        await tenant.in_pool("data", two)
        there = await tenant.uses("vm", two)
        qemu_io(there, f"read -P 7 0 {PART_SIZE}")
        assert all(two in str(file) for file in tenant.files(volume)), "nothing is left in the other one"
        after = await tenant.runs("vm")
        assert after["status"]["startedAt"] == vm["status"]["startedAt"], "it ran all the time"
        assert condition(after, "VolumesReady")["status"] == "True"

        await tenant.patch(VirtualMachine.KIND, "vm", powerState="Stopped")
        await tenant.wait(VirtualMachine.KIND, "vm", phase("Stopped"), "is off")
        await tenant.patch(Volume.KIND, "data", pool=one)
        await tenant.in_pool("data", one)
        await tenant.patch(VirtualMachine.KIND, "vm", powerState="Running")
        await tenant.runs("vm")
        qemu_io(await tenant.uses("vm", one), f"read -P 7 0 {PART_SIZE}")


async def test_in_a_shared_pool_it_goes_from_host_to_host_and_out_again_where_it_is(tenant: Mover) -> None:
    async with tenant.pool("own") as own, tenant.pool("nfs", shared=True) as nfs:
        await tenant.volume("data", **{"size": "64Mi", "pool": own, "class": tenant.tag})
        await tenant.machine("one", DATA, on=0)
        await tenant.runs("one")
        await tenant.patch(Volume.KIND, "data", pool=nfs)
        volume = await tenant.in_pool("data", nfs)
        assert volume["status"]["epoch"] == 0
        await tenant.delete(VirtualMachine.KIND, "one")
        await tenant.machine("two", DATA, on=1)
        await tenant.runs("two")
        volume = await tenant.is_("data", "InUse", "two")
        assert (volume["status"]["host"], volume["status"]["epoch"]) == (HOSTS[1], 1)
        await tenant.patch(Volume.KIND, "data", pool=own)
        volume = await tenant.in_pool("data", own)
        assert volume["status"]["host"] == HOSTS[1] and "epoch" not in volume["status"]
        await tenant.uses("two", own)


async def test_what_keeps_a_volume_is_said_and_once_it_is_gone_the_volume_moves(tenant: Mover) -> None:
    async with tenant.pool("one") as one, tenant.pool("two") as two:
        await tenant.volume("data", **{"size": "64Mi", "pool": one, "class": tenant.tag})
        await tenant.machine("vm", DATA)
        await tenant.runs("vm")
        await tenant.client.create(
            VolumeSnapshot.KIND, {"metadata": {"name": "s"}, "spec": {"volume": "data"}}, tenant.namespace
        )
        await tenant.wait(VolumeSnapshot.KIND, "s", phase("Ready"), "is taken")
        await tenant.patch(Volume.KIND, "data", pool="nowhere")
        assert "There is no StoragePool nowhere" in await tenant.says(Volume.KIND, "data", "PoolNotFound", "Moving")
        await tenant.patch(Volume.KIND, "data", pool=two)
        said = await tenant.says(Volume.KIND, "data", "HasSnapshots", "Moving")
        assert f"kubectl -n {tenant.namespace} delete volsnap/s" in said
        volume = await tenant.is_("data", "InUse", "vm")
        assert condition(volume)["status"] == "True" and condition(volume, "Stalled")["reason"] == "HasSnapshots"
        await tenant.delete(VolumeSnapshot.KIND, "s")
        await tenant.in_pool("data", two)


async def test_a_pool_in_maintenance_is_emptied_but_for_what_is_pinned_and_what_nobody_owns(tenant: Mover) -> None:
    await tenant.image()
    async with tenant.pool("old") as old:
        kind = {"class": tenant.tag}
        for number in range(5):
            await tenant.volume(f"v{number}", **{"source": {"image": "system"}, "size": "96Mi", **kind})
            await tenant.machine(f"vm{number}", {"name": "d", "volume": f"v{number}"}, on=0)
        await tenant.volume("pinned", **{"size": "64Mi", "pool": old, **kind})
        await tenant.volume("retained", **{"size": "64Mi", "reclaimPolicy": "Retain", **kind})
        for name in ("pinned", "retained"):
            await tenant.machine(f"m-{name}", {"name": "d", "volume": name}, on=0)
        started = {}
        for name in [f"vm{number}" for number in range(5)] + ["m-pinned", "m-retained"]:
            started[name] = (await tenant.runs(name))["status"]["startedAt"]
        for model, name in ((VirtualMachine, "m-retained"), (Volume, "retained")):
            await tenant.delete(model.KIND, name)
            await tenant.gone(model.KIND, name)
        async with tenant.pool("new") as new:
            await tenant.maintain(old)
            for number in range(5):
                await tenant.in_pool(f"v{number}", new)
                await tenant.uses(f"vm{number}", new)
            said = await tenant.emptied(old, "Blocked")
            assert f"Pinned: {tenant.namespace}/pinned" in said
            assert "leave spec.pool out" in await tenant.says(Volume.KIND, "pinned", "Pinned", "Moving")
            await tenant.patch(Volume.KIND, "pinned", pool=None)
            await tenant.in_pool("pinned", new)
            said = await tenant.emptied(old, "UnownedData")
            assert "1 files that nobody owns" in said and f"kumulusctl pool unowned {old}" in said
            for name in started.keys() - {"m-retained"}:
                assert (await tenant.runs(name))["status"]["startedAt"] == started[name], "it ran all the time"
            await tenant.wait(
                Image.KIND,
                "system",
                lambda image: all(cache["pool"] != old for cache in image["status"].get("caches", ())),
                "is kept there no more",
            )
            for host in tenant.hosts:
                left = tenant.cloud.hosts[host].directory / "pools" / old
                assert len(list(left.rglob("*.qcow2"))) <= 1, "what was retained, and that is all"
                for file in left.rglob("*.qcow2"):
                    file.unlink()
            await tenant.maintain(old, on=False)
            await tenant.clear()
