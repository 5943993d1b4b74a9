"""Volumes of one host that go to another one with their machine, whatever the machine's spec says meanwhile."""

from __future__ import annotations

from typing import Any, cast

from kumulus.api.base import FINALIZER, Kind
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.order_names import volume_order_name
from kumulus.api.storage import StoragePool, Volume
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.store import Key
from kumulus.runtime.clock import SystemClock
from kumulus.runtime.reconciler import Caches, Services
from kumulus_controllers.compute.migration import MigrationReconciler
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.storage.snapshot import SnapshotReconciler
from kumulus_controllers.storage.snapshots import Snapshots
from kumulus_controllers.storage.volume import VolumeReconciler
from kumulus_controllers.storage.volume_following import VolumeFollowing
from kumulus_controllers.storage.volume_orders import VolumeOrders
from kumulus_controllers.storage.volumes import Volumes
from tests.fault.memory_api import MemoryApi, MemoryClient

MACHINE, VOLUME, GO, POOL, SNAPSHOT = (f"00000000-0000-0000-0000-00000000000{n}" for n in range(1, 6))


class World:
    """A machine on its way from host `a` to `b` with a volume, which its spec names no more."""

    def __init__(self) -> None:
        self.caches = Caches()
        self.volumes = Volumes(self.caches)
        self.services = services = Services(cast(KubeClient, None), self.caches, SystemClock(), lambda: 1)
        self.following = VolumeFollowing(services, self.volumes, VolumeOrders(services))
        pool = {"driver": "dir", "parameters": {"path": "/p"}}
        self.caches.store(StoragePool).apply(meta("p", POOL, namespace=None) | {"spec": pool})
        self.keep("a")
        self.place("a", 4)
        self.migrates("Migrating")

    def keep(self, host: str, version: str = "1") -> None:
        used = {"phase": "InUse", "attachedTo": {"vm": "vm", "uid": MACHINE}}
        status = {"pool": "p", "host": host, "size": "1Gi", **used}
        self.volumes.store.apply(meta("v", VOLUME, version) | {"spec": {"size": "1Gi"}, "status": status})

    def ordered(self, host: str, state: str) -> None:
        owner = {"kind": "Volume", "namespace": "ns", "name": "v", "uid": VOLUME}
        pool = {"uid": POOL, "name": "p", "driver": "dir", "parameters": {"path": "/p"}}
        self.volumes.orders.apply(
            meta(volume_order_name(VOLUME), f"order-{host}", namespace=host_namespace(host))
            | {
                "spec": {"type": "Disk", "for": owner, "disk": {"pool": pool, "volume": {"uid": VOLUME}}},
                "status": {"state": state},
            }
        )

    def named(self) -> None:
        """The machine's spec names it, and nothing moves it yet."""
        disk = {"name": "root", "volume": "v"}
        self.caches.store(VirtualMachine).apply(
            meta("vm", MACHINE, "3")
            | {
                "spec": {"resources": {"cpus": 1, "memory": "64Mi"}, "disks": [disk]},
                "status": {"host": "a", "epoch": 4},
            }
        )
        self.caches.store(VirtualMachineMigration).apply(
            meta("go", GO, "3") | {"spec": {"vm": "vm", "withLocalDisks": True}}
        )

    def place(self, host: str, epoch: int, version: str = "1") -> None:
        self.caches.store(VirtualMachine).apply(
            meta("vm", MACHINE, version)
            | {
                "spec": {"resources": {"cpus": 1, "memory": "64Mi"}, "disks": []},
                "status": {"host": host, "epoch": epoch},
            }
        )

    def migrates(self, phase: str, version: str = "1") -> None:
        disk = {"name": "root", "volume": VOLUME, "pool": "p", "size": 1 << 30}
        self.caches.store(VirtualMachineMigration).apply(
            meta("go", GO, version)
            | {
                "spec": {"vm": "vm", "withLocalDisks": True},
                "status": {
                    "phase": phase,
                    "vmUid": MACHINE,
                    "sourceHost": "a",
                    "targetHost": "b",
                    "epoch": 5,
                    "disks": [disk],
                },
            }
        )


def meta(name: str, uid: str, version: str = "1", namespace: str | None = "ns") -> dict[str, Any]:
    at = {"namespace": namespace} if namespace is not None else {}
    return {"metadata": {"name": name, "uid": uid, "resourceVersion": version, **at}}


def test_a_volume_that_is_taken_out_of_the_spec_on_the_way_goes_along() -> None:
    world, woken = World(), set[Key]()
    world.following.attach(lambda key, *, urgent=False: woken.add(key))
    volume = world.volumes.store.get("v", "ns")
    assert volume is not None and world.volumes.scope(volume).users == ()
    assert world.following.place(world.volumes.scope(volume)) is None
    world.place("b", 5, "2")
    assert woken == {Key("ns", "v")}
    place = world.following.place(world.volumes.scope(volume))
    assert place is not None and (place.host, place.came_by) == ("b", GO)


def test_it_is_seen_to_when_it_is_on_record_at_the_target_and_there() -> None:
    world = World()
    migrations = MigrationReconciler(world.services, Fleet())
    world.ordered("b", "Ready")

    def left() -> tuple[frozenset[str], set[str]]:
        going = world.caches.store(VirtualMachineMigration).get("go", "ns")
        assert going is not None
        found = migrations._scope(going)
        return found.unsettled, {name for name, use in found.volumes.items() if use.volume.status.host == "a"}

    assert left() == ({"root"}, {"root"})
    world.keep("b", "2")
    assert left() == (frozenset(), set())


def test_a_host_that_has_its_old_order_still_is_no_target() -> None:
    """Its end would take away the only copy: it has the same name as what came back."""
    world = World()
    world.named()
    migrations = MigrationReconciler(world.services, Fleet())
    going = world.caches.store(VirtualMachineMigration).get("go", "ns")
    assert going is not None
    world.ordered("a", "Ready")
    assert migrations._scope(going).kept_on == {}
    world.ordered("b", "Ready")
    assert migrations._scope(going).kept_on == {"b": "root"}


def test_a_snapshot_waits_while_its_volume_is_brought_along_and_is_then_of_the_right_copy() -> None:
    world, woken = World(), set[Key]()
    snapshots = Snapshots(world.caches)
    SnapshotReconciler(world.services).attach(lambda key, *, urgent=False: woken.add(key))
    snapshots.store.apply(meta("s", SNAPSHOT) | {"spec": {"volume": "v"}})
    snapshot = snapshots.store.get("s", "ns")
    assert snapshot is not None
    for host in "ab":
        world.ordered(host, "Ready")
    assert snapshots.scope(snapshot).moved_by == "go"
    world.keep("b", "2")
    woken.clear()
    world.migrates("Succeeded", "2")
    assert woken == {Key("ns", "s")}
    found = snapshots.scope(snapshot)
    order = found.volume_order
    assert found.moved_by is None and order is not None and order.namespace == host_namespace("b")


class Cloud:
    """A Volume that is being deleted, whose machine has just come to host `b` with it; orders as they were at `a`."""

    def __init__(self) -> None:
        self.client = MemoryClient(MemoryApi())
        self.caches = Caches()
        services = Services(self.client, self.caches, SystemClock(), lambda: 1)
        self.reconciler = VolumeReconciler(services, Fleet())
        self.volume = ""

    async def build(self) -> None:
        for namespace in ("ns", host_namespace("a"), host_namespace("b")):
            await self.client.create(NAMESPACE, {"metadata": {"name": namespace}})
        pool = await self.make(StoragePool.KIND, "p", None, {"driver": "dir", "parameters": {"path": "/p"}})
        size = {"resources": {"cpus": 1, "memory": "64Mi"}}
        vm = await self.make(VirtualMachine.KIND, "vm", "ns", size, {"host": "b", "epoch": 5})
        used = {"phase": "InUse", "attachedTo": {"vm": "vm", "uid": vm}}
        placed = {"pool": "p", "host": "a", "size": 1 << 30, **used}
        self.volume = await self.make(Volume.KIND, "v", "ns", {"size": "1Gi"}, placed)
        disk = {"name": "root", "volume": self.volume, "pool": "p", "size": 1 << 30}
        way = {"vmUid": vm, "sourceHost": "a", "targetHost": "b", "epoch": 5, "disks": [disk]}
        wanted = {"vm": "vm", "withLocalDisks": True}
        await self.make(VirtualMachineMigration.KIND, "go", "ns", wanted, {"phase": "Migrating", **way})
        ref = {"uid": pool, "name": "p", "driver": "dir", "parameters": {"path": "/p"}}
        owner = {"kind": "Volume", "namespace": "ns", "name": "v", "uid": self.volume}
        kept = {"type": "Disk", "for": owner, "disk": {"pool": ref, "volume": {"uid": self.volume, "size": 1 << 30}}}
        await self.make(WorkOrder.KIND, self.order, host_namespace("a"), kept, {"state": "Ready"})
        instance = {
            "uid": vm,
            "epoch": 5,
            "cpus": 1,
            "memory": 64 << 20,
            "power": "Running",
            "restartPolicy": "Always",
            "disks": [{"name": "root", "pool": ref, "volume": self.volume, "bootOrder": 1}],
        }
        machine = {"kind": "VirtualMachine", "namespace": "ns", "name": "vm", "uid": vm}
        has = {"type": "Instance", "for": machine, "instance": instance}
        await self.make(WorkOrder.KIND, "machine", host_namespace("b"), has, {"state": "Running"})
        await self.client.delete(Volume.KIND, "v", "ns")
        await self.look()

    @property
    def order(self) -> str:
        return volume_order_name(self.volume)

    async def make(
        self, kind: Kind, name: str, namespace: str | None, spec: Any, status: dict[str, Any] | None = None
    ) -> str:
        body = {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec}
        made = await self.client.create(kind, body, namespace)
        if status is not None:
            await self.client.patch(kind, name, {"status": status}, namespace, subresource="status")
        return str(made["metadata"]["uid"])

    async def look(self) -> None:
        """The caches have what there is."""
        for model in (StoragePool, VirtualMachine, Volume, VirtualMachineMigration, WorkOrder):
            async for page, _ in self.client.list_pages(model.KIND):
                for item in page:
                    self.caches.store(model).apply(item)

    async def passes(self) -> None:
        await self.reconciler.reconcile(Key("ns", "v"))
        await self.look()


async def test_a_volume_that_is_deleted_on_the_way_goes_along_and_its_machine_does_not_wait_for_it() -> None:
    cloud = Cloud()
    await cloud.build()
    await cloud.passes()
    volume = await cloud.client.get(Volume.KIND, "v", "ns")
    assert volume["status"]["host"] == "b" and "deletionTimestamp" in volume["metadata"]
    there = await cloud.client.get(WorkOrder.KIND, cloud.order, host_namespace("b"))
    assert there["spec"]["disk"]["volume"]["cameBy"], "it is the copy that came with the guest"
    assert (
        "deletionTimestamp"
        not in (await cloud.client.get(WorkOrder.KIND, cloud.order, host_namespace("a")))["metadata"]
    )
    ready = {"status": {"state": "Ready", "observedGeneration": 1}}
    await cloud.client.patch(WorkOrder.KIND, cloud.order, ready, host_namespace("b"), subresource="status")
    await cloud.look()
    await cloud.passes()
    left = await cloud.client.get(WorkOrder.KIND, cloud.order, host_namespace("a"))
    assert "deletionTimestamp" in left["metadata"], "what it has left is removed"
    kept = await cloud.client.get(WorkOrder.KIND, cloud.order, host_namespace("b"))
    assert "deletionTimestamp" not in kept["metadata"], "its machine has it"
