"""VirtualMachineSnapshot: all volumes of a machine at one instant, by one work order.

What it consists of is on record before anything is made of it; then come the VolumeSnapshots, one a volume, whose uids
name what is kept; then the order. It owns the VolumeSnapshots: they are ordered, and removed, with it.
"""

from __future__ import annotations

import structlog

from kumulus.api.base import FINALIZER
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder, WorkType, snapshot_order_name
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.errors import AlreadyExists, NotFound, Refused
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result, Wait
from kumulus_controllers.compute.vm_snapshot_plan import (
    Choice,
    Scope,
    choose,
    derive_status,
    foreign,
    held,
    part,
    whole_order,
)
from kumulus_controllers.compute.vm_snapshots import OF_MACHINE, VmSnapshots
from kumulus_controllers.orders import FOR_NAME
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage.snapshot import end_order
from kumulus_controllers.storage.snapshot_plan import owner_of
from kumulus_controllers.storage.volume_plan import Lack
from kumulus_controllers.storage.volumes import KEEPS_VOLUME, UID, USES_VOLUME

log = structlog.get_logger(__name__)


class VmSnapshotReconciler:
    """Brings a snapshot of a machine to what its spec says. The only writer of its status."""

    name = "virtualmachinesnapshot"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lookup = VmSnapshots(services.caches)
        self._store = self._lookup.store
        self._parts = self._lookup.snapshots.store
        self._orders = self._lookup.orders
        self._store.add_index(UID, lambda item: (item.uid,))

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; the machine and its volumes; the order; the parts, and what is made from them; hosts that go."""
        lookup = self._lookup

        def wake(item: VirtualMachineSnapshot, *, urgent: bool = False) -> None:
            enqueue(Key(item.namespace, item.name), urgent=urgent)

        def snapshot_changed(before: VirtualMachineSnapshot | None, after: VirtualMachineSnapshot | None) -> None:
            item = after or before
            if item is not None:
                wake(item)

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            item = after or before
            if item is not None and (before is None or after is None or _whole(before) != _whole(after)):
                self._wake_of(item, enqueue)

        def volume_changed(before: Volume | None, after: Volume | None) -> None:
            item = after or before
            if item is None or (before is not None and after is not None and _use(before) == _use(after)):
                return
            for vm in lookup.machines.by(USES_VOLUME, f"{item.namespace}/{item.name}"):
                self._wake_of(vm, enqueue)
            for snapshot in self._store.by(KEEPS_VOLUME, item.uid):
                wake(snapshot)
            source = item.spec.source
            origin = self._parts.get(source.snapshot, item.namespace) if source and source.snapshot else None
            if origin is not None:
                part_changed(None, origin)

        def part_changed(before: VolumeSnapshot | None, after: VolumeSnapshot | None) -> None:
            item = after or before
            owner = owner_of(item) if item is not None else None
            for snapshot in self._store.by(UID, owner.uid) if owner is not None else ():
                if snapshot.deleting or before is None or after is None:
                    wake(snapshot)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.for_.kind == VirtualMachineSnapshot.KIND.kind:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name), urgent=True)

        def restore_changed(before: VirtualMachineRestore | None, after: VirtualMachineRestore | None) -> None:
            item = after or before
            snapshot = self._store.get(item.spec.snapshot, item.namespace) if item is not None else None
            if snapshot is not None and snapshot.deleting:
                wake(snapshot)

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is not None and after is None:
                for snapshot in self._store:
                    if snapshot.status.host == before.name:
                        wake(snapshot)

        self._store.listen(snapshot_changed)
        lookup.machines.listen(machine_changed)
        lookup.volumes.store.listen(volume_changed)
        self._parts.listen(part_changed)
        self._orders.listen(order_changed)
        lookup.restores.listen(restore_changed)
        lookup.snapshots.hosts.listen(host_changed)

    def _wake_of(self, vm: VirtualMachine, enqueue: Enqueue) -> None:
        """Snapshots of a machine that are not taken yet."""
        for snapshot in self._store.by(OF_MACHINE, f"{vm.namespace}/{vm.name}"):
            if snapshot.status.taken_at is None:
                enqueue(Key(snapshot.namespace, snapshot.name))

    def everything(self) -> list[Key]:
        """All snapshots, and those that only a left-over work order remembers."""
        keys = set(self._store.keys())
        for order in self._orders:
            if order.spec.type is WorkType.SNAPSHOT and order.spec.for_.kind == VirtualMachineSnapshot.KIND.kind:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    async def reconcile(self, key: Key) -> Result:
        """One pass over a snapshot."""
        snapshot = self._store.get(key.name, key.namespace)
        await self._remove_orphans(key, snapshot)
        if snapshot is None:
            return Gone()
        if snapshot.paused:
            return Done()
        if not snapshot.deleting and await ensure_finalizer(self._services.client, self._store, snapshot):
            snapshot = self._store.get(key.name, key.namespace) or snapshot
        scope = self._lookup.scope(snapshot)
        if snapshot.deleting:
            return await self._delete(scope)
        if scope.host_gone:
            lost = Lack("HostGone", f"Host {snapshot.status.host} was removed, and the snapshot with it: delete it.")
            return await self._report(scope, None, lost)
        if scope.order is not None:
            return await self._report(scope, None, None)
        choice = choose(scope)
        if isinstance(choice, Lack):
            return await self._report(scope, None, choice)
        await self._report(scope, choice, None)
        current = self._store.get(key.name, key.namespace)
        if current is None or current.uid != snapshot.uid or current.deleting:
            return Done()
        scope = self._lookup.scope(current)
        if (lack := foreign(scope) or await self._make_parts(scope)) is not None:
            return await self._report(scope, None, lack)
        return await self._order(self._lookup.scope(current))

    async def _make_parts(self, scope: Scope) -> Lack | None:
        """Make the VolumeSnapshots that are not there yet."""
        snapshot, client = scope.snapshot, self._services.client
        for disk in snapshot.status.volumes:
            if disk.snapshot in scope.parts:
                continue
            try:
                raw = await client.create(VolumeSnapshot.KIND, part(snapshot, disk), snapshot.namespace)
            except AlreadyExists:
                raw = await client.get(VolumeSnapshot.KIND, disk.snapshot, snapshot.namespace)
            except Refused as refused:  # by a quota, say, or because the namespace ends
                return Lack("SnapshotRefused", f"The snapshot of a volume cannot be made: {refused.message}")
            self._parts.apply(raw)
        return None

    async def _order(self, scope: Scope) -> Result:
        choice = foreign(scope) or choose(scope)
        if isinstance(choice, Lack):
            return await self._report(scope, None, choice)
        if any(disk.snapshot not in scope.parts for disk in choice.disks):
            return Wait("CacheBehind", 5.0)
        client, namespace = self._services.client, host_namespace(choice.host)
        name = snapshot_order_name(scope.snapshot.uid)
        spec = whole_order(scope, choice, self._services.term())
        body = {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec.to_json()}
        try:
            raw = await client.create(WorkOrder.KIND, body, namespace)
        except AlreadyExists:
            raw = await client.get(WorkOrder.KIND, name, namespace)
        self._orders.apply(raw)
        return await self._report(self._lookup.scope(scope.snapshot), None, None)

    async def _delete(self, scope: Scope) -> Result:
        snapshot, order, client = scope.snapshot, scope.order, self._services.client
        if FINALIZER not in snapshot.metadata.finalizers:
            return Done()
        if (busy := held(scope)) is not None:
            return await self._report(scope, None, busy)
        if order is None and snapshot.status.host is not None:
            order = await self._live_order(snapshot)
        if order is not None:
            await end_order(self._services, self._lookup.snapshots, order, snapshot)
        await self._delete_parts(scope)
        if order is None:
            await drop_finalizer(client, self._store, snapshot)
            return Gone()
        await self._report(self._lookup.scope(snapshot), None, None)
        return Wait("Deleting", 30.0)

    async def _delete_parts(self, scope: Scope) -> None:
        """They go when the order is gone. The garbage collector would ask for it as well, half a minute later."""
        for item in scope.parts.values():
            owner = owner_of(item)
            if item.deleting or owner is None or owner.uid != scope.snapshot.uid:
                continue
            raw = await self._services.client.delete(VolumeSnapshot.KIND, item.name, item.namespace, uid=item.uid)
            if raw is not None and "spec" in raw:
                self._parts.apply(raw)

    async def _live_order(self, snapshot: VirtualMachineSnapshot) -> WorkOrder | None:
        """Before letting a snapshot go whose order this process has not seen go: is there really none?"""
        namespace = host_namespace(snapshot.status.host or "")
        raw = await self._services.client.find(WorkOrder.KIND, snapshot_order_name(snapshot.uid), namespace)
        if raw is None:
            return None
        self._orders.apply(raw)
        return WorkOrder.parse(raw)

    async def _remove_orphans(self, key: Key, snapshot: VirtualMachineSnapshot | None) -> None:
        """Orders of a snapshot of that name that is no more are removed after a live look."""
        for order in self._orders.by(FOR_NAME, f"VirtualMachineSnapshot/{key.namespace or ''}/{key.name}"):
            if order.deleting or (snapshot is not None and order.spec.for_.uid == snapshot.uid):
                continue
            live = await self._services.client.find(VirtualMachineSnapshot.KIND, key.name, key.namespace)
            if live is None or live["metadata"]["uid"] != order.spec.for_.uid:
                log.info("removing the work order of a snapshot that is gone", namespace=key.namespace, name=key.name)
                await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)

    async def _report(self, scope: Scope, choice: Choice | None, lack: Lack | None) -> Result:
        snapshot = self._store.get(scope.snapshot.name, scope.snapshot.namespace) or scope.snapshot
        if snapshot.uid != scope.snapshot.uid:
            return Done()
        after = derive_status(scope, choice, lack, rfc3339(self._services.clock.now()))
        try:
            await write_status(self._services.client, self._store, snapshot, snapshot.status, after)
        except NotFound:
            return Done()
        return Wait(lack.reason, 30.0) if lack is not None else Done()


def _whole(vm: VirtualMachine) -> tuple[object, ...]:
    """What of a machine decides what a snapshot of it consists of."""
    return (vm.uid, vm.deleting, vm.spec.disks)


def _use(volume: Volume) -> tuple[object, ...]:
    """What of a volume decides whether a snapshot of it can be taken, or go."""
    status = volume.status
    return (volume.uid, volume.deleting, status.phase, status.pool, status.size, status.attached_to)
