"""VirtualMachineSnapshot: all volumes of a machine at one instant, by one work order.

What it consists of is on record before anything is made of it; then come the VolumeSnapshots, one a volume, whose uids
name what is kept; then the order. It owns the VolumeSnapshots: they are ordered, and removed, with it. In a pool that hosts
share its volumes may come to be on several hosts: each of them has an order for what is kept of its own (`handover.py`).
"""

from __future__ import annotations

from kumulus.api.base import FINALIZER
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.machine_snapshot import VirtualMachineRestore, VirtualMachineSnapshot
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.errors import AlreadyExists, Refused
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
    kept_order,
    part,
    whole_order,
)
from kumulus_controllers.compute.vm_snapshots import OF_MACHINE, VmSnapshots
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_report
from kumulus_controllers.storage.handover import Moves, moves
from kumulus_controllers.storage.snapshot_orders import SnapshotOrders, Spec, forced
from kumulus_controllers.storage.snapshot_plan import owner_of
from kumulus_controllers.storage.volume_plan import Lack
from kumulus_controllers.storage.volumes import KEEPS_VOLUME, UID, USES_VOLUME, come


class VmSnapshotReconciler:
    """Brings a snapshot of a machine to what its spec says. The only writer of its status."""

    name = "virtualmachinesnapshot"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lookup = VmSnapshots(services.caches)
        self._store = self._lookup.store
        self._parts = self._lookup.snapshots.store
        self._orders = self._lookup.orders
        self._keeping = SnapshotOrders(services, self._lookup.snapshots)
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
            elif order is not None and (before is None or after is None or before.deleting != after.deleting):
                wanted = order.spec.disk.volume if order.spec.disk is not None else None
                for snapshot in self._store.by(KEEPS_VOLUME, wanted.uid) if wanted is not None else ():
                    wake(snapshot)

        def restore_changed(before: VirtualMachineRestore | None, after: VirtualMachineRestore | None) -> None:
            item = after or before
            snapshot = self._store.get(item.spec.snapshot, item.namespace) if item is not None else None
            if snapshot is not None and snapshot.deleting:
                wake(snapshot)

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is not None and after is None:
                for snapshot in self._store:
                    if before.name in {snapshot.status.host, *(disk.host for disk in snapshot.status.volumes)}:
                        wake(snapshot)

        def migration_changed(before: VirtualMachineMigration | None, after: VirtualMachineMigration | None) -> None:
            vm = lookup.machines.get(before.spec.vm, before.namespace) if before is not None else None
            if vm is not None and come(before, after):
                self._wake_of(vm, enqueue)

        lookup.volumes.migrations.listen(migration_changed)
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
        uid = snapshot.uid if snapshot is not None else None
        await self._keeping.remove_orphans(VirtualMachineSnapshot.KIND, key, uid)
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
            gone = ", ".join(sorted({part.host or "" for part in scope.kept if not part.host_there}))
            lost = Lack("HostGone", f"Host {gone} was removed, and the snapshot with it: delete it.")
            return await self._report(scope, None, lost)
        if scope.moving != Moves():
            return await self._follow(scope)
        if scope.orders:
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
        spec = whole_order(scope, choice, self._services.term())
        await self._keeping.make(scope.snapshot.uid, choice.host, spec)
        return await self._report(self._lookup.scope(scope.snapshot), None, None)

    async def _follow(self, scope: Scope) -> Result:
        """Volumes go to other hosts: so does what is kept of them."""
        plan = scope.moving
        if plan.let_go:
            # On record first: from now on an order that is gone does not mean that its parts are.
            await self._report(scope, None, plan.lack)
            await self._keeping.let_go(plan.let_go, force=scope.snapshot.deleting and forced(scope.snapshot))
        if not scope.snapshot.deleting:  # else what nobody has may have been removed
            await self._keeping.take_up(plan.take_up, scope.snapshot.uid, self._spec(scope))
        scope = self._lookup.scope(self._store.get(scope.snapshot.name, scope.snapshot.namespace) or scope.snapshot)
        return await self._report(scope, None, scope.moving.lack)

    def _spec(self, scope: Scope) -> Spec:
        return lambda items: kept_order(
            scope.snapshot, items, self._services.term(), taken=scope.taken or scope.snapshot.deleting
        )

    async def _delete(self, scope: Scope) -> Result:
        snapshot, client = scope.snapshot, self._services.client
        if FINALIZER not in snapshot.metadata.finalizers:
            return Done()
        if (busy := held(scope)) is not None:
            return await self._report(scope, None, busy)
        if scope.moving.let_go:
            return await self._follow(scope)
        for order in scope.orders or await self._live_orders(scope):
            await self._keeping.end(order, snapshot)
        await self._delete_parts(scope)
        scope = self._lookup.scope(snapshot)
        if not scope.orders:
            # In the pool, and kept by nobody: it is removed where the volumes are, or will be.
            plan = moves([part for part in scope.kept if part.let_go], (), taken=True)
            if not plan.take_up and plan.lack is not None and not forced(snapshot):
                return await self._report(scope, None, plan.lack)
            if not plan.take_up:
                await drop_finalizer(client, self._store, snapshot)
                return Gone()
            await self._keeping.take_up(plan.take_up, snapshot.uid, self._spec(scope))
            for order in self._lookup.scope(snapshot).orders:
                await self._keeping.end(order, snapshot)
        await self._report(self._lookup.scope(snapshot), None, None)
        return Wait("Deleting", 30.0)

    async def _live_orders(self, scope: Scope) -> list[WorkOrder]:
        """Before letting a snapshot go whose orders this process has not seen go: are there really none?"""
        hosts = {disk.host for disk in scope.snapshot.status.volumes} | {scope.snapshot.status.host}
        found = [await self._keeping.live(scope.snapshot.uid, host) for host in sorted(filter(None, hosts))]
        return [order for order in found if order is not None]

    async def _delete_parts(self, scope: Scope) -> None:
        """They go when the order is gone. The garbage collector would ask for it as well, half a minute later."""
        for item in scope.parts.values():
            owner = owner_of(item)
            if item.deleting or owner is None or owner.uid != scope.snapshot.uid:
                continue
            raw = await self._services.client.delete(VolumeSnapshot.KIND, item.name, item.namespace, uid=item.uid)
            if raw is not None and "spec" in raw:
                self._parts.apply(raw)

    async def _report(self, scope: Scope, choice: Choice | None, lack: Lack | None) -> Result:
        after = derive_status(scope, choice, lack, rfc3339(self._services.clock.now()))
        await write_report(self._services.client, self._store, scope.snapshot, after)
        return Wait(lack.reason, 30.0) if lack is not None else Done()


def _whole(vm: VirtualMachine) -> tuple[object, ...]:
    """What of a machine decides what a snapshot of it consists of."""
    return (vm.uid, vm.deleting, vm.spec.disks)


def _use(volume: Volume) -> tuple[object, ...]:
    """What of a volume decides whether a snapshot of it can be taken, or go."""
    status = volume.status
    return (volume.uid, volume.deleting, status.phase, status.pool, status.size, status.attached_to)
