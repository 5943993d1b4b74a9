"""Volumes from their making to their end, and their moves, against a real API server: crashes of the controllers after
every write, and how many writes there are.

What hosts do is written by the test: they make and move what they are asked to, and say where it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from kumulus.api.base import Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.order_names import instance_order_name, pool_order_name, volume_order_name
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.client import KubeClient
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.machine import MachineReconciler
from kumulus_controllers.fleet_feed import FleetFeed
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.storage.volume import VolumeReconciler
from kumulus_lab.cluster import NativeCluster
from tests.component.mortal import Crash, mortal
from tests.component.stage import NOW, TIME, UUID, Brain, Raw, Stage, settle
from tests.component.test_kube import connected

pytestmark = pytest.mark.cluster

GIB = 1 << 30
OLD, NEW = "old", "new"
MADE = (VirtualMachine, Volume, VolumeSnapshot)


def start(client: KubeClient, term: int) -> Brain:
    """A controller process that has just started."""
    caches, fleet = Caches(), Fleet()
    FleetFeed(caches, fleet)
    services = Services(client, caches, SystemClock(), lambda: term)
    return Brain(client, caches, (VolumeReconciler(services, fleet), MachineReconciler(services, fleet)))


class Pools(Stage):
    """A host with two pools, and machines on it that run, each with a volume in the first of them."""

    made = MADE

    def __init__(self, client: KubeClient, namespace: str) -> None:
        super().__init__(client, namespace)
        self.pools: dict[str, Raw] = {}
        self.busy = False
        """The host is still at what it moves."""

    def pool(self, name: str) -> str:
        return f"{name}-{self.namespace}"

    async def build(self) -> Pools:
        ready = {"type": "Ready", "status": "True", "reason": "Ready", "lastTransitionTime": NOW}
        status = {"conditions": [ready], "allocatable": {"cpus": 64, "memory": 64 * GIB}, "phase": "Ready"}
        await self.put_host(status)
        for name in (OLD, NEW):
            spec = {"driver": "dir", "parameters": {"path": f"/var/lib/kumulus/{name}"}, "hostSelector": {"no": "host"}}
            made = await self.put(StoragePool.KIND, self.pool(name), spec, {}, None)
            ref = {"uid": made["metadata"]["uid"], "name": self.pool(name), **spec}
            del ref["hostSelector"]
            self.pools[name] = ref
            facts = {"state": "Ready", "observedGeneration": 1, "pool": {"capacity": 100 * GIB, "used": GIB}}
            await self.put_order(pool_order_name(ref["uid"]), {"type": "Pool", "pool": {"pool": ref}}, made, facts)
        return self

    async def remove(self) -> None:
        await self.clear(self.pool(OLD), self.pool(NEW))

    async def machine(self, name: str) -> None:
        """A machine that runs, with a volume made of an image, as its controllers and its host would have it by now."""
        spec = {"resources": {"cpus": 1, "memory": "64Mi"}, "disks": [{"name": "data", "volume": name}]}
        vm = await self.put(
            VirtualMachine.KIND, name, spec, {"phase": "Running", "host": self.host, "epoch": 1}, self.namespace
        )
        attached = {"vm": name, "uid": vm["metadata"]["uid"]}
        place = {"phase": "InUse", "size": "1Gi", "pool": self.pool(OLD), "host": self.host, "attachedTo": attached}
        volume = await self.put(Volume.KIND, name, {"size": "1Gi"}, place, self.namespace)
        uid = volume["metadata"]["uid"]
        origin = {"image": {"name": "i", "uid": uid, "format": "qcow2"}}
        order = {"pool": self.pools[OLD], "volume": {"uid": uid, "size": GIB, "origin": origin}}
        facts = {"state": "Ready", "observedGeneration": 1, "disk": {"virtualSize": GIB}}
        await self.put_order(volume_order_name(uid), {"type": "Disk", "disk": order}, volume, facts)
        disk = {"name": "data", "pool": self.pools[OLD], "volume": uid, "bootOrder": 1}
        instance = {"uid": attached["uid"], "epoch": 1, "power": "Running", "restartPolicy": "Always", "disks": [disk]}
        order = {"type": "Instance", "instance": {**instance, "cpus": 1, "memory": 1 << 26}}
        await self.put_order(
            instance_order_name(attached["uid"]), order, vm, {"state": "Running", "observedGeneration": 1}
        )

    async def bring(self, name: str) -> None:
        """A machine that brings a volume along, as its owner asks for it."""
        own = {"name": "own", "volumeTemplate": {"size": "1Gi"}}
        spec = {"resources": {"cpus": 1, "memory": "64Mi"}, "disks": [own]}
        await self.client.create(VirtualMachine.KIND, {"metadata": {"name": name}, "spec": spec}, self.namespace)

    async def agent(self) -> None:
        """What the host does. It is done at once, or at it while it is `busy`."""
        for order in await self.orders():
            spec, meta = order["spec"], order["metadata"]
            if "deletionTimestamp" in meta:
                await self.let_go(order)
                continue
            status: Raw = {"state": "Ready", "observedGeneration": meta["generation"]}
            if spec["type"] == "Instance":
                status["state"] = "Running"
            elif spec["type"] == "Disk":
                status["disk"] = {"virtualSize": spec["disk"]["volume"].get("size", GIB)}
                if move := spec["disk"]["volume"].get("move"):
                    back = self.busy or move.get("withdrawn")
                    status["disk"]["pool"] = (spec["disk"]["pool"] if back else move["pool"])["uid"]
                    if self.busy and not move.get("withdrawn"):
                        status["state"] = "Working"
                        status["disk"]["progress"] = {"bytes": 5, "total": 10}
            if spec["type"] != "Pool":
                await self.client.patch(
                    WorkOrder.KIND, meta["name"], {"status": status}, self.home, subresource="status"
                )

    async def patch(self, kind: Kind, name: str, namespace: str | None, **spec: Any) -> None:
        await self.client.patch(kind, name, {"spec": spec}, namespace)

    async def volume(self, name: str) -> Volume:
        return Volume.parse(await self.client.get(Volume.KIND, name, self.namespace))

    async def order(self, volume: Volume) -> WorkOrder:
        return WorkOrder.parse(await self.client.get(WorkOrder.KIND, volume_order_name(volume.uid), self.home))

    async def state(self, name: str) -> str:
        """All that there is, without what differs from one run to the next."""
        found: list[str] = []
        for model in MADE:
            async for page, _ in self.client.list_pages(model.KIND, self.namespace):
                found += [self._line(item) for item in page if item["metadata"]["name"] in (name, f"{name}-own")]
        found += [
            self._line(item) for item in await self.orders() if item["spec"]["for"]["name"] in (name, f"{name}-own")
        ]
        return "\n".join(sorted(found)).replace(name, "NAME")

    def _line(self, item: Raw) -> str:
        meta = item["metadata"]
        spec = {key: value for key, value in item.get("spec", {}).items() if key != "term"}
        status = dict(item.get("status") or {})
        status.pop("observedGeneration", None)
        for condition in status.get("conditions", ()):
            condition.pop("observedGeneration", None)
        shown = (item["kind"], meta.get("finalizers"), "deletionTimestamp" in meta, spec, status)
        return TIME.sub("TIME", UUID.sub("UID", str(shown)))


@pytest.fixture
async def stage(cluster: NativeCluster, namespace: str) -> AsyncIterator[Pools]:
    async with connected(cluster) as client:
        made = Pools(client, namespace)
        try:
            yield await made.build()
        finally:
            await made.remove()


async def begin(stage: Pools, name: str, deed: str) -> None:
    """All is ready for the deed: only what its owner, or the operator, changes for it is done."""
    if deed in ("make", "end"):
        await stage.patch(StoragePool.KIND, stage.pool(NEW), None, maintenance=True)
        await stage.bring(name)
        if deed == "end":
            await settle(start(stage.client, 1), stage, 4)
            await stage.client.delete(VirtualMachine.KIND, name, stage.namespace)
        return
    await stage.machine(name)
    if deed == "empty":
        await stage.patch(StoragePool.KIND, stage.pool(OLD), None, maintenance=True)
        return
    await stage.patch(Volume.KIND, name, stage.namespace, pool=stage.pool(NEW))
    if deed in ("withdraw", "delete"):
        stage.busy = True
        await settle(start(stage.client, 1), stage, 2)
        stage.busy = False
        if deed == "delete":
            await stage.client.delete(Volume.KIND, name, stage.namespace)
            await stage.client.delete(VirtualMachine.KIND, name, stage.namespace)
        else:
            await stage.patch(Volume.KIND, name, stage.namespace, pool=stage.pool(OLD))


async def life(cluster: NativeCluster, stage: Pools, name: str, deed: str, lives: int | None) -> tuple[str, int]:
    """The deed under a process that dies after so many writes; its successor finishes."""
    await begin(stage, name, deed)
    async with mortal(cluster, lives) as client:
        with suppress(Crash):
            await settle(start(client, 1), stage, 4)
        writes = client.writes
    await settle(start(stage.client, 2), stage, 5)
    return await stage.state(name), writes


@pytest.mark.parametrize(
    ("deed", "words", "without"),
    [
        ("make", ("'phase': 'Running'", "'phase': 'InUse'", "'vm': 'NAME'"), ("'Reconciling'", "/new'")),
        ("end", (), ("NAME",)),
        ("move", ("'pool': 'new-", "'phase': 'InUse'"), ("movingTo", "'move'", "'origin'", "/old'", "Moving")),
        pytest.param(
            "empty",
            ("'pool': 'new-", "'phase': 'InUse'"),
            ("movingTo", "'move'", "'origin'", "/old'", "Moving"),
            marks=pytest.mark.wide,
        ),
        ("withdraw", ("'phase': 'InUse'", "'origin'"), ("movingTo", "'move'", "/new'", "Moving")),
        pytest.param("delete", (), ("NAME",), marks=pytest.mark.wide),
    ],
)
async def test_a_crash_after_any_write_ends_as_if_there_had_been_none(
    cluster: NativeCluster, stage: Pools, deed: str, words: tuple[str, ...], without: tuple[str, ...]
) -> None:
    wanted, writes = await life(cluster, stage, "calm", deed, None)
    assert writes >= 3 and all(word in wanted for word in words), wanted
    assert bool(wanted) == bool(words)
    assert not any(word in wanted for word in without), wanted
    for lives in range(1, writes + 1):
        found, _ = await life(cluster, stage, f"crash-{lives}-x", deed, lives)
        assert found == wanted, f"after write {lives}"


class Counting(KubeClient):
    """Notes what is asked of single objects: the verb, and the resource with its subresource."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.asked: Counter[str] = Counter()

    async def request(self, method: str, path: str, **more: Any) -> Raw:
        found = re.search(r"/namespaces/[^/]+/(\w+)(?:/[^/]+(/\w+)?)?$", path)
        if found is not None and "query" not in more:  # a list has a query
            self.asked[f"{method} {found[1]}{found[2] or ''}"] += 1
        return await super().request(method, path, **more)


async def test_a_life_with_a_volume_takes_thirteen_writes_of_controllers_and_no_reads(
    cluster: NativeCluster, stage: Pools
) -> None:
    """Its host adds four: what it reports of the two orders, and that each has ended."""
    client = await Counting.from_kubeconfig(cluster.kubeconfig, user_agent="test-counting")
    try:
        brain = start(client, 1)
        await stage.bring("vm")
        await settle(brain, stage, 4)
        found = await stage.state("vm")
        assert "'phase': 'Running'" in found and "'phase': 'InUse'" in found
        await stage.client.delete(VirtualMachine.KIND, "vm", stage.namespace)
        await settle(brain, stage, 4)
        assert await stage.state("vm") == ""
    finally:
        await client.close()
    assert isinstance(client, Counting)
    assert client.asked == {
        "PATCH virtualmachines": 2,  # its finalizer, on and off
        "PATCH virtualmachines/status": 2,  # where it is, and that it runs
        "POST volumes": 1,
        "PATCH volumes": 1,  # its finalizer is off
        "PATCH volumes/status": 2,  # where it is and who may write to it, and that it is there
        "DELETE volumes": 1,
        "POST workorders": 2,
        "DELETE workorders": 2,
    }


async def test_the_machine_is_told_of_the_other_pool_and_is_not_restarted(stage: Pools) -> None:
    await stage.machine("vm")
    await stage.patch(Volume.KIND, "vm", stage.namespace, pool=stage.pool(NEW))
    brain = start(stage.client, 1)
    stage.busy = True
    await settle(brain, stage, 3)
    volume = await stage.volume("vm")
    assert (volume.status.phase, volume.status.pool, volume.status.moving_to) == (
        "Moving",
        stage.pool(OLD),
        stage.pool(NEW),
    )
    assert volume.status.progress is not None and volume.status.progress.total == 10
    ready = volume.status.condition("Ready")
    assert ready is not None and ready.status == "True", "it can be used all the time"
    vm = VirtualMachine.parse(await stage.client.get(VirtualMachine.KIND, "vm", stage.namespace))
    disks = vm.status.condition("VolumesReady")
    assert disks is not None and disks.status == "True"
    stage.busy = False
    await settle(brain, stage, 3)
    name = instance_order_name(vm.uid)
    instance = WorkOrder.parse(await stage.client.get(WorkOrder.KIND, name, stage.home)).spec.instance
    assert instance is not None and instance.disks[0].pool.name == stage.pool(NEW)
    assert (instance.epoch, str(instance.power), instance.restart_request) == (1, "Running", None)
    volume = await stage.volume("vm")
    assert (volume.status.pool, volume.status.progress, volume.status.moving_to) == (stage.pool(NEW), None, None)
    before = await stage.state("vm")
    await settle(brain, stage, 2)
    assert await stage.state("vm") == before


async def test_what_is_made_of_a_volume_and_its_move_see_each_other(stage: Pools) -> None:
    """A snapshot that is on record keeps the volume; it moves once that is gone."""
    await stage.machine("vm")
    volume = await stage.volume("vm")
    taken = {"volumeUid": volume.uid, "phase": "Ready"}
    await stage.put(VolumeSnapshot.KIND, "s", {"volume": "vm"}, taken, stage.namespace)
    await stage.patch(Volume.KIND, "vm", stage.namespace, pool=stage.pool(NEW))
    brain = start(stage.client, 1)
    await settle(brain, stage, 2)
    volume = await stage.volume("vm")
    moving, stalled = volume.status.condition("Moving"), volume.status.condition("Stalled")
    assert moving is not None and (moving.status, moving.reason) == ("False", "HasSnapshots")
    assert f"kubectl -n {stage.namespace} delete volsnap/s" in moving.message and stalled is not None
    assert volume.status.moving_to is None and str(volume.status.phase) == "InUse"
    await stage.client.delete(VolumeSnapshot.KIND, "s", stage.namespace)
    await settle(brain, stage, 4)
    assert (await stage.volume("vm")).status.pool == stage.pool(NEW)


async def test_a_volume_grows_when_its_move_is_over(stage: Pools) -> None:
    await stage.machine("vm")
    await stage.patch(Volume.KIND, "vm", stage.namespace, pool=stage.pool(NEW))
    brain = start(stage.client, 1)
    stage.busy = True
    await settle(brain, stage, 2)
    await stage.patch(Volume.KIND, "vm", stage.namespace, size="2Gi")
    await settle(brain, stage, 2)
    order = (await stage.order(await stage.volume("vm"))).spec.disk
    assert order is not None and order.volume is not None and order.volume.move is not None
    assert order.volume.size == GIB
    stage.busy = False
    await settle(brain, stage, 4)
    volume = await stage.volume("vm")
    assert (volume.status.pool, volume.status.size) == (stage.pool(NEW), 2 * GIB)


async def test_two_at_once_leave_a_pool_and_the_others_follow(stage: Pools) -> None:
    names = [f"vm-{number}" for number in range(5)]
    for name in names:
        await stage.machine(name)
    await stage.patch(StoragePool.KIND, stage.pool(OLD), None, maintenance=True)
    brain = start(stage.client, 1)
    stage.busy = True
    await settle(brain, stage, 2)
    moving = [(await stage.volume(name)).status.condition("Moving") for name in names]
    assert sorted(str(item.reason) for item in moving if item) == ["Moving"] * 2 + ["WaitingForTurn"] * 3
    stage.busy = False
    await stage.patch(StoragePool.KIND, stage.pool(OLD), None, maintenance=False)
    await settle(brain, stage, 4)
    there = [(await stage.volume(name)).status.pool for name in names]
    assert sorted(map(str, there)) == sorted([stage.pool(NEW)] * 2 + [stage.pool(OLD)] * 3), (
        "what is on its way goes on"
    )
    assert not any([(await stage.volume(name)).status.condition("Moving") for name in names])
    await stage.patch(StoragePool.KIND, stage.pool(OLD), None, maintenance=True)
    await settle(brain, stage, 8)
    assert {(await stage.volume(name)).status.pool for name in names} == {stage.pool(NEW)}
