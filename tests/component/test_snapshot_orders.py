"""Snapshots and restores against a real API server: crashes of the controllers after every write.

What hosts do is written by the test: they take what they are asked to, revert what they are asked to, let go what goes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from kumulus.api.base import Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.client import KubeClient
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.restore import RestoreReconciler
from kumulus_controllers.compute.vm_snapshot import VmSnapshotReconciler
from kumulus_controllers.storage.snapshot import SnapshotReconciler
from kumulus_lab.cluster import NativeCluster
from tests.component.mortal import Crash, mortal
from tests.component.stage import NOW, TIME, UUID, Brain, Raw, Stage, settle
from tests.component.test_kube import connected

pytestmark = pytest.mark.cluster

MADE: tuple[type[Resource], ...] = (
    VirtualMachineSnapshot,
    VolumeSnapshot,
    VirtualMachineRestore,
    VirtualMachine,
    Volume,
)


def start(client: KubeClient, term: int) -> Brain:
    """A controller process that has just started."""
    caches = Caches()
    services = Services(client, caches, SystemClock(), lambda: term)
    return Brain(
        client, caches, (SnapshotReconciler(services), VmSnapshotReconciler(services), RestoreReconciler(services))
    )


class Snapshots(Stage):
    """A host with a pool, and machines on it that are off, each with two volumes."""

    made = MADE

    def __init__(self, client: KubeClient, namespace: str) -> None:
        super().__init__(client, namespace)
        self.reverted: list[tuple[str, str]] = []

    async def build(self) -> Snapshots:
        await self.put_host({})
        parameters = {"path": "/var/lib/kumulus/x"}
        spec = {"driver": "dir", "parameters": parameters}
        pool = await self.put(StoragePool.KIND, self.host, spec, {}, None)
        self.pool = {"uid": pool["metadata"]["uid"], "name": self.host, "driver": "dir", "parameters": parameters}
        return self

    async def remove(self) -> None:
        await self.clear(self.host)

    async def machine(self, name: str) -> None:
        """A machine that is off, with two volumes, as its controllers and its host would have it by now."""
        spec = {
            "resources": {"cpus": 1, "memory": "64Mi"},
            "powerState": "Stopped",
            "disks": [
                {"name": "root", "volumeTemplate": {"size": "1Gi"}},
                {"name": "data", "volume": f"{name}-data"},
            ],
        }
        status = {"phase": "Stopped", "host": self.host, "epoch": 1}
        vm = await self.put(VirtualMachine.KIND, name, spec, status, self.namespace)
        attached = {"vm": name, "uid": vm["metadata"]["uid"]}
        place = {"phase": "InUse", "size": "1Gi", "pool": self.host, "host": self.host, "attachedTo": attached}
        for disk in ("root", "data"):
            volume = await self.put(Volume.KIND, f"{name}-{disk}", {"size": "1Gi"}, place, self.namespace)
            uid = volume["metadata"]["uid"]
            order = {"type": "Disk", "disk": {"pool": self.pool, "volume": {"uid": uid}}}
            await self.put_order(f"volume-{uid}", order, volume, {"state": "Ready", "observedGeneration": 1})
        instance = {"epoch": 1, "power": "Stopped", "restartPolicy": "Always", "cpus": 1, "memory": 1}
        order = {"type": "Instance", "instance": {"uid": attached["uid"], **instance}}
        await self.put_order(f"instance-{attached['uid']}", order, vm, {"state": "Stopped", "observedGeneration": 1})

    async def agent(self) -> None:
        """What the host does."""
        for order in await self.orders():
            if "deletionTimestamp" in order["metadata"]:
                await self.let_go(order)
            elif order.get("status", {}).get("observedGeneration", 0) < order["metadata"]["generation"]:
                await self._perform(order)

    async def _perform(self, order: Raw) -> None:
        status: Raw = {"state": "Ready", "observedGeneration": order["metadata"]["generation"]}
        if order["spec"]["type"] == "Snapshot":
            items = [
                {"snapshot": i["snapshot"], "virtualSize": 2**30, "size": 9} for i in order["spec"]["snapshot"]["items"]
            ]
            status["snapshot"] = {"takenAt": NOW, "indications": ["GuestAgent"], "items": items}
        elif revert := order["spec"]["disk"]["volume"].get("revert"):
            self.reverted.append((order["spec"]["for"]["name"], revert["request"]))
            status["disk"] = {"reverted": revert["request"]}
        name = order["metadata"]["name"]
        await self.client.patch(WorkOrder.KIND, name, {"status": status}, self.home, subresource="status")

    async def state(self, name: str) -> str:
        """All that there is, without what differs from one run to the next."""
        found: list[str] = []
        for model in MADE:
            async for page, _ in self.client.list_pages(model.KIND, self.namespace):
                found += [self._line(item) for item in page if item["metadata"]["name"].startswith(f"{name}")]
        found += [self._line(order) for order in await self.orders() if order["spec"]["for"]["name"].startswith(name)]
        return "\n".join(sorted(found)).replace(name, "NAME")

    def _line(self, item: Raw) -> str:
        meta = item["metadata"]
        spec = {key: value for key, value in item.get("spec", {}).items() if key != "term"}
        shown = (item["kind"], meta.get("finalizers"), "deletionTimestamp" in meta, spec, item.get("status"))
        who = item["spec"]["for"]["name"] if item["kind"] == "WorkOrder" else meta["name"]
        return TIME.sub("TIME", UUID.sub("UID", f"{who} {shown}"))


@pytest.fixture
async def stage(cluster: NativeCluster, namespace: str) -> AsyncIterator[Snapshots]:
    async with connected(cluster) as client:
        made = await Snapshots(client, namespace).build()
        try:
            yield made
        finally:
            await made.remove()


async def begin(stage: Snapshots, name: str, deed: str) -> None:
    """All is ready for the deed: only its own object is missing, or its deletion."""
    await stage.machine(name)
    snapshot = {"metadata": {"name": f"{name}-all"}, "spec": {"vm": name}}
    await stage.client.create(VirtualMachineSnapshot.KIND, snapshot, stage.namespace)
    if deed == "take":
        return
    await settle(start(stage.client, 1), stage, 3)
    if deed == "delete":
        await stage.client.delete(VirtualMachineSnapshot.KIND, f"{name}-all", stage.namespace)
        return
    target = {"vm": name} if deed == "restore" else {"newVM": f"{name}-new"}
    restore = {"metadata": {"name": f"{name}-back"}, "spec": {"snapshot": f"{name}-all", "target": target}}
    await stage.client.create(VirtualMachineRestore.KIND, restore, stage.namespace)


async def life(cluster: NativeCluster, stage: Snapshots, name: str, deed: str, lives: int | None) -> tuple[str, int]:
    """The deed under a process that dies after so many writes; its successor finishes."""
    await begin(stage, name, deed)
    stage.reverted.clear()
    async with mortal(cluster, lives) as client:
        with suppress(Crash):
            await settle(start(client, 1), stage, 3)
        writes = client.writes
    await settle(start(stage.client, 2), stage, 3)
    return await stage.state(name), writes


@pytest.mark.parametrize(
    ("deed", "words"),
    [
        pytest.param(
            "take",
            ("NAME-all-root", "NAME-all-data", "'readyToUse': True", "'volumes': [{'disk': 'root'"),
            marks=pytest.mark.wide,
        ),
        ("restore", ("'phase': 'Succeeded'", "'state': 'Restored'")),
        pytest.param(
            "anew",
            ("NAME-new ('VirtualMachine'", "NAME-new-data ('Volume'", "'phase': 'Restoring'"),
            marks=pytest.mark.wide,
        ),
        ("delete", ()),
    ],
)
async def test_a_crash_after_any_write_ends_as_if_there_had_been_none(
    cluster: NativeCluster, stage: Snapshots, deed: str, words: tuple[str, ...]
) -> None:
    wanted, writes = await life(cluster, stage, "calm", deed, None)
    assert writes >= 4 and all(word in wanted for word in words), wanted
    if deed == "delete":
        assert "Snapshot" not in wanted, "nothing is left of it"
    for lives in range(1, writes + 1):
        name = f"crash-{lives}-x"
        found, _ = await life(cluster, stage, name, deed, lives)
        assert found == wanted, f"after write {lives}"
        if deed == "restore":
            assert {volume for volume, _ in stage.reverted} == {f"{name}-root", f"{name}-data"}
            assert len(stage.reverted) == 2 and len({request for _, request in stage.reverted}) == 1
