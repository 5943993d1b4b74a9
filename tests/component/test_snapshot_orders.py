"""Snapshots and restores against a real API server: crashes of the controllers after every write.

What hosts do is written by the test: they take what they are asked to, revert what they are asked to, let go what goes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from kumulus.api.base import FINALIZER, Kind, Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube import errors
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.reflector import fill
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.restore import RestoreReconciler
from kumulus_controllers.compute.vm_snapshot import VmSnapshotReconciler
from kumulus_controllers.storage.snapshot import SnapshotReconciler
from kumulus_lab.cluster import NativeCluster
from tests.component.mortal import Crash, mortal
from tests.component.test_kube import connected

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
MADE: tuple[type[Resource], ...] = (
    VirtualMachineSnapshot,
    VolumeSnapshot,
    VirtualMachineRestore,
    VirtualMachine,
    Volume,
)


class Brain:
    """A controller process that has just started."""

    def __init__(self, client: KubeClient, term: int) -> None:
        self.client, self.caches = client, Caches()
        services = Services(client, self.caches, SystemClock(), lambda: term)
        self.reconcilers = (
            SnapshotReconciler(services),
            VmSnapshotReconciler(services),
            RestoreReconciler(services),
        )
        for reconciler in self.reconcilers:
            reconciler.attach(lambda key, *, urgent=False: None)

    async def passes(self, namespace: str) -> None:
        """Look, and one pass over everything in the namespace."""
        for store in self.caches:
            await fill(store, self.client, store.model.KIND, None)
        for reconciler in self.reconcilers:
            for key in sorted(reconciler.everything(), key=str):
                if key.namespace == namespace:
                    with suppress(errors.Conflict):
                        await reconciler.reconcile(key)


class Stage:
    """A host with a pool, and machines on it that are off, each with two volumes."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client, self.namespace, self.host = client, namespace, f"h-{namespace}"
        self.home = host_namespace(self.host)
        self.reverted: list[tuple[str, str]] = []

    async def _put(self, kind: Kind, name: str, spec: Raw, status: Raw, namespace: str | None, **meta: Any) -> Raw:
        made = await self.client.create(kind, {"metadata": {"name": name, **meta}, "spec": spec}, namespace)
        if status:
            made = await self.client.patch(kind, name, {"status": status}, namespace, subresource="status")
        return made

    async def build(self) -> Stage:
        await self._put(Host.KIND, self.host, {"zone": "z"}, {}, None)
        await self.client.create(NAMESPACE, {"metadata": {"name": self.home}})
        parameters = {"path": "/var/lib/kumulus/x"}
        spec = {"driver": "dir", "parameters": parameters}
        pool = await self._put(StoragePool.KIND, self.host, spec, {}, None)
        self.pool = {"uid": pool["metadata"]["uid"], "name": self.host, "driver": "dir", "parameters": parameters}
        return self

    async def remove(self) -> None:
        async for page, _ in self.client.list_pages(WorkOrder.KIND, self.home):
            for order in page:
                await self._let_go(order)
        for model in MADE:
            async for page, _ in self.client.list_pages(model.KIND, self.namespace):
                for item in page:
                    body = {"metadata": {"finalizers": []}}
                    await self.client.patch(model.KIND, item["metadata"]["name"], body, self.namespace)
        await self.client.delete(NAMESPACE, self.home)
        await self.client.delete(Host.KIND, self.host)
        await self.client.delete(StoragePool.KIND, self.host)

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
        vm = await self._put(VirtualMachine.KIND, name, spec, status, self.namespace)
        attached = {"vm": name, "uid": vm["metadata"]["uid"]}
        place = {"phase": "InUse", "size": "1Gi", "pool": self.host, "host": self.host, "attachedTo": attached}
        for disk in ("root", "data"):
            volume = await self._put(Volume.KIND, f"{name}-{disk}", {"size": "1Gi"}, place, self.namespace)
            uid = volume["metadata"]["uid"]
            order = {"type": "Disk", "disk": {"pool": self.pool, "volume": {"uid": uid}}}
            await self._order(f"volume-{uid}", order, volume, {"state": "Ready", "observedGeneration": 1})
        instance = {"epoch": 1, "power": "Stopped", "restartPolicy": "Always", "cpus": 1, "memory": 1}
        order = {"type": "Instance", "instance": {"uid": attached["uid"], **instance}}
        await self._order(f"instance-{attached['uid']}", order, vm, {"state": "Stopped", "observedGeneration": 1})

    async def _order(self, name: str, spec: Raw, of: Raw, status: Raw) -> None:
        meta = of["metadata"]
        for_ = {"kind": of["kind"], "namespace": self.namespace, "name": meta["name"], "uid": meta["uid"]}
        await self._put(WorkOrder.KIND, name, {**spec, "for": for_}, status, self.home, finalizers=[FINALIZER])

    async def _let_go(self, order: Raw) -> None:
        with suppress(errors.NotFound):
            body = {"metadata": {"finalizers": []}}
            await self.client.patch(WorkOrder.KIND, order["metadata"]["name"], body, self.home)

    async def agent(self) -> None:
        """What the host does."""
        async for page, _ in self.client.list_pages(WorkOrder.KIND, self.home):
            for order in page:
                if "deletionTimestamp" in order["metadata"]:
                    await self._let_go(order)
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
        async for page, _ in self.client.list_pages(WorkOrder.KIND, self.home):
            found += [self._line(order) for order in page if order["spec"]["for"]["name"].startswith(name)]
        return "\n".join(sorted(found)).replace(name, "NAME")

    def _line(self, item: Raw) -> str:
        meta = item["metadata"]
        spec = {key: value for key, value in item.get("spec", {}).items() if key != "term"}
        shown = (item["kind"], meta.get("finalizers"), "deletionTimestamp" in meta, spec, item.get("status"))
        who = item["spec"]["for"]["name"] if item["kind"] == "WorkOrder" else meta["name"]
        return TIME.sub("TIME", UUID.sub("UID", f"{who} {shown}"))


@pytest.fixture
async def stage(cluster: NativeCluster, namespace: str) -> AsyncIterator[Stage]:
    async with connected(cluster) as client:
        made = await Stage(client, namespace).build()
        try:
            yield made
        finally:
            await made.remove()


async def settle(brain: Brain, stage: Stage, passes: int = 3) -> None:
    for _ in range(passes):
        await brain.passes(stage.namespace)
        await stage.agent()


async def begin(stage: Stage, name: str, deed: str) -> None:
    """All is ready for the deed: only its own object is missing, or its deletion."""
    await stage.machine(name)
    snapshot = {"metadata": {"name": f"{name}-all"}, "spec": {"vm": name}}
    await stage.client.create(VirtualMachineSnapshot.KIND, snapshot, stage.namespace)
    if deed == "take":
        return
    await settle(Brain(stage.client, 1), stage, 3)
    if deed == "delete":
        await stage.client.delete(VirtualMachineSnapshot.KIND, f"{name}-all", stage.namespace)
        return
    target = {"vm": name} if deed == "restore" else {"newVM": f"{name}-new"}
    restore = {"metadata": {"name": f"{name}-back"}, "spec": {"snapshot": f"{name}-all", "target": target}}
    await stage.client.create(VirtualMachineRestore.KIND, restore, stage.namespace)


async def life(cluster: NativeCluster, stage: Stage, name: str, deed: str, lives: int | None) -> tuple[str, int]:
    """The deed under a process that dies after so many writes; its successor finishes."""
    await begin(stage, name, deed)
    stage.reverted.clear()
    async with mortal(cluster, lives) as client:
        with suppress(Crash):
            await settle(Brain(client, 1), stage)
        writes = client.writes
    await settle(Brain(stage.client, 2), stage)
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
    cluster: NativeCluster, stage: Stage, deed: str, words: tuple[str, ...]
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
