"""Volumes with snapshots that go from host to host of a pool, against a real API server: crashes after every write.

What hosts do is written by the test: a pool that two of them share, and agents that do what the real ones do, and refuse
what the real ones refuse. After every pass it is looked at whether two hosts were told to see to one volume.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from kumulus.api.base import FORCE_DETACH, Kind, Resource
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.order_names import pool_order_name
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube import errors
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.reflector import fill
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.vm_snapshot import VmSnapshotReconciler
from kumulus_controllers.fleet_feed import FleetFeed
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.storage.snapshot import SnapshotReconciler
from kumulus_controllers.storage.volume import VolumeReconciler
from kumulus_lab.cluster import NativeCluster
from tests.component.cloud import condition
from tests.component.mortal import Crash, mortal
from tests.component.test_kube import connected

pytestmark = pytest.mark.cluster

Raw = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
MADE: tuple[type[Resource], ...] = (VirtualMachineSnapshot, VolumeSnapshot, VirtualMachine, Volume)
READY = [{"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastTransitionTime": NOW}]
PASSES = 12


class Brain:
    """A controller process that has just started."""

    def __init__(self, client: KubeClient, term: int) -> None:
        self.client, self.caches, fleet = client, Caches(), Fleet()
        FleetFeed(self.caches, fleet)
        services = Services(client, self.caches, SystemClock(), lambda: term)
        self.reconcilers = (
            VolumeReconciler(services, fleet),
            SnapshotReconciler(services),
            VmSnapshotReconciler(services),
        )
        for reconciler in self.reconcilers:
            reconciler.attach(lambda key, *, urgent=False: None)

    async def passes(self, namespace: str, name: str) -> None:
        """Look, and one pass over everything that the name is for."""
        for store in self.caches:
            await fill(store, self.client, store.model.KIND, None)
        for reconciler in self.reconcilers:
            for key in sorted(reconciler.everything(), key=str):
                if key.namespace == namespace and key.name.startswith(name):
                    with suppress(errors.Conflict):
                        await reconciler.reconcile(key)


class Stage:
    """Two hosts with a pool that they share, and machines with two volumes."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client, self.namespace = client, namespace
        self.hosts = [f"a-{namespace}", f"b-{namespace}"]
        self.silent: set[str] = set()
        self.data: dict[str, set[str]] = {}
        """What the pool has: snapshots, by volume."""

    async def _put(self, kind: Kind, name: str, spec: Raw, status: Raw, namespace: str | None, **meta: Any) -> Raw:
        made = await self.client.create(kind, {"metadata": {"name": name, **meta}, "spec": spec}, namespace)
        if status:
            made = await self.client.patch(kind, name, {"status": status}, namespace, subresource="status")
        return made

    async def build(self) -> Stage:
        parameters = {"path": "/var/lib/kumulus/x", "shared": True}
        spec = {"driver": "dir", "parameters": parameters}
        pool = await self._put(StoragePool.KIND, self.namespace, spec, {}, None)
        uid = pool["metadata"]["uid"]
        self.pool = {"uid": uid, "name": self.namespace, "driver": "dir", "parameters": parameters}
        for host in self.hosts:
            status = {"phase": "Ready", "allocatable": {"cpus": 100, "memory": 2**38}, "conditions": READY}
            await self._put(Host.KIND, host, {"zone": "z"}, status, None)
            await self.client.create(NAMESPACE, {"metadata": {"name": host_namespace(host)}})
            for_ = {"kind": "StoragePool", "name": self.namespace, "uid": uid}
            spec = {"type": "Pool", "for": for_, "pool": {"pool": self.pool}}
            state = {"state": "Ready", "pool": {"capacity": 2**42}}
            await self._put(WorkOrder.KIND, pool_order_name(uid), spec, state, host_namespace(host))
        return self

    async def remove(self) -> None:
        for host, order in await self.orders():
            await self._let_go(host, order)
        for model in MADE:
            for item in await self.listed(model.KIND, self.namespace):
                with suppress(errors.NotFound):
                    body = {"metadata": {"finalizers": []}}
                    await self.client.patch(model.KIND, item["metadata"]["name"], body, self.namespace)
        for host in self.hosts:
            await self.client.delete(NAMESPACE, host_namespace(host))
            await self.client.delete(Host.KIND, host)
        await self.client.delete(StoragePool.KIND, self.namespace)

    async def listed(self, kind: Kind, namespace: str) -> list[Raw]:
        return [item async for page, _ in self.client.list_pages(kind, namespace) for item in page]

    async def orders(self) -> list[tuple[str, Raw]]:
        return [(host, o) for host in self.hosts for o in await self.listed(WorkOrder.KIND, host_namespace(host))]

    async def machine(self, name: str, host: str, *disks: str) -> Raw:
        spec = {
            "resources": {"cpus": 1, "memory": "64Mi"},
            "powerState": "Stopped",
            "disks": [{"name": disk, "volume": f"{name.rpartition('-')[0]}-{disk}"} for disk in disks],
        }
        status = {"phase": "Stopped", "host": host, "epoch": 1}
        return await self._put(VirtualMachine.KIND, name, spec, status, self.namespace)

    async def begin(self, name: str) -> None:
        """A machine on the first host; a snapshot of one of its volumes, and one of both."""
        vm = await self.machine(f"{name}-vm", self.hosts[0], "root", "data")
        attached = {"vm": f"{name}-vm", "uid": vm["metadata"]["uid"]}
        place = {"phase": "InUse", "size": "1Gi", "pool": self.namespace, "host": self.hosts[0], "attachedTo": attached}
        for disk in ("root", "data"):
            await self._put(Volume.KIND, f"{name}-{disk}", {"size": "1Gi"}, {**place, "epoch": 0}, self.namespace)
        whole, one = {"vm": f"{name}-vm"}, {"volume": f"{name}-data"}
        await self._put(VirtualMachineSnapshot.KIND, f"{name}-all", whole, {}, self.namespace)
        await self._put(VolumeSnapshot.KIND, f"{name}-one", one, {}, self.namespace)
        await settle(Brain(self.client, 1), self, name, PASSES)
        assert await self.ready(name) == {f"{name}-{each}": self.hosts[0] for each in ("all-data", "all-root", "one")}

    async def ready(self, name: str) -> dict[str, str | None]:
        """The snapshots that can be used, and where they are."""
        found = {}
        for item in await self.listed(VolumeSnapshot.KIND, self.namespace):
            if item["metadata"]["name"].startswith(name) and item.get("status", {}).get("readyToUse"):
                found[item["metadata"]["name"]] = item["status"].get("host")
        return found

    async def _let_go(self, host: str, order: Raw) -> None:
        with suppress(errors.NotFound):
            body = {"metadata": {"finalizers": []}}
            await self.client.patch(WorkOrder.KIND, order["metadata"]["name"], body, host_namespace(host))

    async def agents(self, name: str) -> None:
        """What hosts do. Each sees to snapshots of the volumes that it has an order for, and of no others."""
        orders = [(host, o) for host, o in await self.orders() if o["spec"]["for"]["name"].startswith(name)]
        self.check(orders)
        for host, order in orders:
            if host in self.silent or order["spec"]["type"] == "Pool":
                continue
            has = {
                o["spec"]["disk"]["volume"]["uid"]
                for at, o in orders
                if at == host and o["spec"]["type"] == "Disk" and not (_going(o) and _left(o))
            }
            if _going(order):
                if _left(order) or self._removed(order, has):
                    await self._let_go(host, order)
            elif order.get("status", {}).get("observedGeneration", 0) < order["metadata"]["generation"]:
                await self._perform(host, order, has)

    def _removed(self, order: Raw, has: set[str]) -> bool:
        if order["spec"]["type"] == "Disk":
            uid = order["spec"]["disk"]["volume"]["uid"]
            assert not self.data.pop(uid), "a volume was removed that had snapshots"
            return True
        items = order["spec"]["snapshot"]["items"]
        if not has.issuperset(item["volume"] for item in items):
            return False
        for item in items:
            self.data[item["volume"]].discard(item["snapshot"])
        return True

    async def _perform(self, host: str, order: Raw, has: set[str]) -> None:
        status: Raw = {"state": "Ready", "observedGeneration": order["metadata"]["generation"]}
        if order["spec"]["type"] == "Disk":
            wanted = order["spec"]["disk"]["volume"]
            self.data.setdefault(wanted["uid"], set())
            status["disk"] = {"virtualSize": 2**30}
        else:
            wanted = order["spec"]["snapshot"]
            items = wanted["items"]
            missing = [i for i in items if i["snapshot"] not in self.data.get(i["volume"], ())]
            assert not (missing and wanted.get("taken")), "a host is told to keep what is not there"
            if missing and not has.issuperset(item["volume"] for item in items):
                return
            for item in items:
                self.data[item["volume"]].add(item["snapshot"])
            sizes = [{"snapshot": item["snapshot"], "virtualSize": 2**30, "size": 9} for item in items]
            status["snapshot"] = {"takenAt": NOW, "indications": [], "items": sizes}
        name = order["metadata"]["name"]
        with suppress(errors.NotFound):
            await self.client.patch(
                WorkOrder.KIND, name, {"status": status}, host_namespace(host), subresource="status"
            )

    def check(self, orders: list[tuple[str, Raw]]) -> None:
        """All orders that speak of a volume are on one host, and a snapshot of it is in one order."""
        where: dict[str, set[str]] = {}
        kept: list[str] = []
        for host, order in orders:
            if order["spec"]["type"] == "Disk":
                where.setdefault(order["spec"]["disk"]["volume"]["uid"], set()).add(host)
            for item in order["spec"].get("snapshot", {}).get("items", []):
                where.setdefault(item["volume"], set()).add(host)
                kept.append(item["snapshot"])
        assert all(len(hosts) == 1 for hosts in where.values()), f"two hosts see to a volume: {where}"
        assert len(kept) == len(set(kept)), "two orders keep one part"

    async def state(self, name: str) -> str:
        """All that there is, without what differs from one run to the next."""
        found: list[str] = []
        for model in MADE:
            for item in await self.listed(model.KIND, self.namespace):
                if item["metadata"]["name"].startswith(name):
                    found.append(self._line("", item))
        for host, order in await self.orders():
            if order["spec"]["for"]["name"].startswith(name):
                found.append(self._line(host, order))
        return "\n".join(sorted(found)).replace(name, "NAME")

    def _line(self, host: str, item: Raw) -> str:
        meta, status = item["metadata"], dict(item.get("status") or {})
        status.pop("observedGeneration", None)
        status["conditions"] = [(c["type"], c["reason"]) for c in status.get("conditions", [])]
        spec = {key: value for key, value in item.get("spec", {}).items() if key != "term"}
        shown = (item["kind"], meta.get("finalizers"), "deletionTimestamp" in meta, spec, status)
        who = f"{host} {item['spec']['for']['name']}" if item["kind"] == "WorkOrder" else meta["name"]
        return TIME.sub("TIME", UUID.sub("UID", f"{who} {shown}"))


def _going(order: Raw) -> bool:
    return "deletionTimestamp" in order["metadata"]


def _left(order: Raw) -> bool:
    spec = order["spec"]
    return bool((spec["disk"]["volume"] if spec["type"] == "Disk" else spec["snapshot"]).get("retain"))


@pytest.fixture
async def stage(cluster: NativeCluster, namespace: str) -> AsyncIterator[Stage]:
    async with connected(cluster) as client:
        made = await Stage(client, namespace).build()
        try:
            yield made
        finally:
            await made.remove()


async def settle(brain: Brain, stage: Stage, name: str, passes: int) -> None:
    """Until nothing changes any more."""
    before = ""
    for _ in range(passes):
        await brain.passes(stage.namespace, name)
        await stage.agents(name)
        now = await stage.state(name)
        if now == before:
            return
        before = now
    raise AssertionError(f"no end after {passes} passes:\n{before}")


async def move(stage: Stage, name: str, *disks: str) -> None:
    """Another machine, on the other host, gets these volumes; the first one keeps the others."""
    left = [{"name": disk, "volume": f"{name}-{disk}"} for disk in ("root", "data") if disk not in disks]
    await stage.client.patch(VirtualMachine.KIND, f"{name}-vm", {"spec": {"disks": left}}, stage.namespace)
    await stage.machine(f"{name}-two", stage.hosts[1], *disks)


async def life(cluster: NativeCluster, stage: Stage, name: str, lives: int | None, *disks: str) -> int:
    """The volumes move, under a process that dies after so many writes."""
    await stage.begin(name)
    await move(stage, name, *disks)
    async with mortal(cluster, lives) as client:
        with suppress(Crash):
            await settle(Brain(client, 1), stage, name, PASSES)
        return client.writes


@pytest.mark.wide
@pytest.mark.parametrize(
    ("disks", "there"),
    [
        (("data",), {"all-data": 1, "all-root": 0, "one": 1}),
        (("data", "root"), {"all-data": 1, "all-root": 1, "one": 1}),
    ],
)
async def test_a_crash_after_any_write_of_a_handover_ends_as_if_there_had_been_none(
    cluster: NativeCluster, stage: Stage, disks: tuple[str, ...], there: dict[str, int]
) -> None:
    writes = await life(cluster, stage, "calm", None, *disks)
    wanted, places = await stage.state("calm"), {each: stage.hosts[host] for each, host in there.items()}
    assert await stage.ready("calm") == {f"calm-{each}": host for each, host in places.items()}, wanted
    kept = sorted(len(snapshots) for snapshots in stage.data.values())
    assert kept == [1, 2] and writes >= 8, wanted
    for lives in range(1, writes + 1):
        name = f"crash-{lives}-x"
        await life(cluster, stage, name, lives, *disks)
        await settle(Brain(stage.client, 2), stage, name, PASSES)
        assert await stage.state(name) == wanted, f"after write {lives}"
        assert await stage.ready(name) == {f"{name}-{each}": host for each, host in places.items()}


@pytest.mark.wide
@pytest.mark.parametrize("what", ["snapshots", "everything"])
async def test_what_is_deleted_in_the_middle_of_a_handover_goes(
    cluster: NativeCluster, stage: Stage, what: str
) -> None:
    writes = await life(cluster, stage, "calm", None, "data")
    for lives in range(1, writes + 1):
        name = f"crash-{lives}-x"
        await life(cluster, stage, name, lives, "data")
        for kind, each in (
            (VirtualMachineSnapshot.KIND, "all"),
            (VolumeSnapshot.KIND, "one"),
            *((VirtualMachine.KIND, each) for each in ("vm", "two") if what == "everything"),
            *((Volume.KIND, each) for each in ("data", "root") if what == "everything"),
        ):
            await stage.client.delete(kind, f"{name}-{each}", stage.namespace)
        await settle(Brain(stage.client, 2), stage, name, 2 * PASSES)
        assert await stage.ready(name) == {}
        left = await stage.state(name)
        assert "Snapshot" not in left, f"after write {lives}: {left}"
        if what == "everything":
            assert left == "", f"after write {lives}"
        kept = sorted(len(snapshots) for snapshots in stage.data.values())
        assert kept == [0] * (len(kept) - 2) + [1, 2], f"after write {lives}: those of the first run alone are left"


@pytest.mark.wide
async def test_a_snapshot_of_several_hosts_is_deleted_while_a_volume_goes_back(
    cluster: NativeCluster, stage: Stage
) -> None:
    async def back(name: str, lives: int | None) -> int:
        await life(cluster, stage, name, None, "data")
        async with mortal(cluster, lives) as client:
            brain = Brain(client, 2)
            for kind, each in ((VirtualMachineSnapshot.KIND, "all"), (VirtualMachine.KIND, "two")):
                await stage.client.delete(kind, f"{name}-{each}", stage.namespace)
            both = [{"name": disk, "volume": f"{name}-{disk}"} for disk in ("root", "data")]
            patch = {"spec": {"disks": both}}
            await stage.client.patch(VirtualMachine.KIND, f"{name}-vm", patch, stage.namespace)
            with suppress(Crash):
                await settle(brain, stage, name, PASSES)
            writes = client.writes
        await settle(Brain(stage.client, 3), stage, name, PASSES)
        assert await stage.ready(name) == {f"{name}-one": stage.hosts[0]}, f"after write {lives}"
        kept = sorted(map(len, stage.data.values()))
        assert kept == [0] * (len(kept) // 2) + [1] * (len(kept) // 2), f"after write {lives}"
        return writes

    for lives in range(1, await back("calm", None) + 1):
        await back(f"crash-{lives}-x", lives)


async def test_snapshots_go_with_a_volume_that_is_taken_from_a_silent_host(
    cluster: NativeCluster, stage: Stage
) -> None:
    await stage.begin("vol")
    stage.silent.add(stage.hosts[0])
    unready = [{**READY[0], "status": "False"}]
    await stage.client.patch(Host.KIND, stage.hosts[0], {"status": {"conditions": unready}}, None, subresource="status")
    await move(stage, "vol", "data")
    brain = Brain(stage.client, 1)
    await settle(brain, stage, "vol", PASSES)
    assert await stage.ready("vol") == {"vol-all-root": stage.hosts[0]}
    one = await stage.client.get(VolumeSnapshot.KIND, "vol-one", stage.namespace)
    assert one["status"]["phase"] == "Moving" and "host" not in one["status"]
    assert "vol-data" in condition(one)["message"] and condition(one)["reason"] == "HandingOver"
    volume = await stage.client.get(Volume.KIND, "vol-data", stage.namespace)
    assert FORCE_DETACH in condition(volume)["message"]

    change = {"metadata": {"annotations": {FORCE_DETACH: "true"}}}
    await stage.client.patch(Volume.KIND, "vol-data", change, stage.namespace)
    await settle(brain, stage, "vol", PASSES)
    a, b = stage.hosts
    assert await stage.ready("vol") == {"vol-all-root": a, "vol-all-data": b, "vol-one": b}
    volume = await stage.client.get(Volume.KIND, "vol-data", stage.namespace)
    assert not volume["metadata"].get("annotations"), "it was meant for one host"
    stage.silent.clear()
    await settle(brain, stage, "vol", PASSES)
    assert await stage.ready("vol") == {"vol-all-root": a, "vol-all-data": b, "vol-one": b}
    assert sorted(map(len, stage.data.values())) == [1, 2]


@pytest.mark.wide
async def test_what_was_said_of_a_silent_host_is_never_left_for_the_next_one(
    cluster: NativeCluster, stage: Stage
) -> None:
    """Whatever write the process died after: the volume is taken once, or its owner is asked once more."""
    stage.silent.add(stage.hosts[0])

    async def taken(name: str, lives: int | None) -> int:
        stage.silent.clear()
        await stage.begin(name)
        stage.silent.add(stage.hosts[0])
        unready = {"status": {"conditions": [{**READY[0], "status": "False"}]}}
        await stage.client.patch(Host.KIND, stage.hosts[0], unready, None, subresource="status")
        await move(stage, name, "data")
        await settle(Brain(stage.client, 1), stage, name, PASSES)
        change = {"metadata": {"annotations": {FORCE_DETACH: "true"}}}
        await stage.client.patch(Volume.KIND, f"{name}-data", change, stage.namespace)
        async with mortal(cluster, lives) as client:
            with suppress(Crash):
                await settle(Brain(client, 2), stage, name, PASSES)
        await settle(Brain(stage.client, 3), stage, name, PASSES)
        volume = await stage.client.get(Volume.KIND, f"{name}-data", stage.namespace)
        assert not volume["metadata"].get("annotations"), f"after write {lives}"
        if volume["status"]["host"] == stage.hosts[0]:
            assert FORCE_DETACH in condition(volume)["message"], f"after write {lives}"
            await stage.client.patch(Volume.KIND, f"{name}-data", change, stage.namespace)
            await settle(Brain(stage.client, 3), stage, name, PASSES)
            volume = await stage.client.get(Volume.KIND, f"{name}-data", stage.namespace)
        assert volume["status"]["host"] == stage.hosts[1], f"after write {lives}"
        return client.writes

    for lives in range(1, await taken("calm", None) + 1):
        await taken(f"crash-{lives}-x", lives)


async def test_a_volume_that_comes_back_finds_its_snapshots_in_one_order_again(
    cluster: NativeCluster, stage: Stage
) -> None:
    await stage.begin("vol")
    brain = Brain(stage.client, 1)
    await move(stage, "vol", "data")
    await settle(brain, stage, "vol", PASSES)
    await stage.client.delete(VirtualMachine.KIND, "vol-two", stage.namespace)
    both = [{"name": disk, "volume": f"vol-{disk}"} for disk in ("root", "data")]
    await stage.client.patch(VirtualMachine.KIND, "vol-vm", {"spec": {"disks": both}}, stage.namespace)
    await settle(brain, stage, "vol", PASSES)
    snapshots = [(host, o) for host, o in await stage.orders() if o["spec"]["type"] == "Snapshot"]
    assert {host for host, _ in snapshots} == {stage.hosts[0]}
    assert sorted(len(o["spec"]["snapshot"]["items"]) for _, o in snapshots) == [1, 2]
    whole = await stage.client.get(VirtualMachineSnapshot.KIND, "vol-all", stage.namespace)
    assert whole["status"]["phase"] == "Ready" and whole["status"]["host"] == stage.hosts[0]


async def test_a_snapshot_that_is_not_taken_yet_is_taken_where_its_volumes_are(
    cluster: NativeCluster, stage: Stage
) -> None:
    await stage.begin("vol")
    brain = Brain(stage.client, 1)
    perform = stage._perform

    async def busy(host: str, order: Raw, has: set[str]) -> None:
        if order["spec"]["type"] == "Disk" or host == stage.hosts[1]:
            await perform(host, order, has)

    stage._perform = busy  # type: ignore[method-assign]
    for kind, each, spec in (
        (VirtualMachineSnapshot.KIND, "vol-late", {"vm": "vol-vm"}),
        (VolumeSnapshot.KIND, "vol-later", {"volume": "vol-data"}),
    ):
        await stage.client.create(kind, {"metadata": {"name": each}, "spec": spec}, stage.namespace)
    await settle(brain, stage, "vol", PASSES)
    await move(stage, "vol", "data")
    await settle(brain, stage, "vol", PASSES)
    assert (await stage.ready("vol"))["vol-later"] == stage.hosts[1]
    late = await stage.client.get(VirtualMachineSnapshot.KIND, "vol-late", stage.namespace)
    assert condition(late)["reason"] == "VolumesElsewhere", "half of it would be of another instant"
    patch = {"spec": {"disks": []}}
    await stage.client.patch(VirtualMachine.KIND, "vol-vm", patch, stage.namespace)
    more = [{"name": disk, "volume": f"vol-{disk}"} for disk in ("data", "root")]
    await stage.client.patch(VirtualMachine.KIND, "vol-two", {"spec": {"disks": more}}, stage.namespace)
    await settle(brain, stage, "vol", PASSES)
    ready = await stage.ready("vol")
    assert ready["vol-late-data"] == ready["vol-late-root"] == stage.hosts[1]
