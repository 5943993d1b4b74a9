"""VolumeSnapshot: taken by the volume's host once, kept, removed when nothing stands on it.

The uid of the volume is on record before anything is ordered: from then on the volume is not removed. A snapshot that
is part of a machine's is ordered and removed by that one; here only its status is written, and its end awaited. In a pool
that hosts share it goes with its volume from host to host (`handover.py`).
"""

from __future__ import annotations

from dataclasses import replace

from kumulus.api.base import FINALIZER
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result, Wait
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_report
from kumulus_controllers.storage.handover import Moves, items_of, moves
from kumulus_controllers.storage.snapshot_orders import SnapshotOrders, Spec, forced
from kumulus_controllers.storage.snapshot_plan import (
    Scope,
    Target,
    derive_status,
    held,
    host_lost,
    kept_order,
    moving,
    own_order,
    owner_of,
    target,
)
from kumulus_controllers.storage.snapshots import PART_OF, Snapshots
from kumulus_controllers.storage.volume_plan import Lack
from kumulus_controllers.storage.volumes import OF_VOLUME, UID, come


class SnapshotReconciler:
    """Brings a snapshot of a volume to what its spec says. The only writer of its status."""

    name = "volumesnapshot"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._snapshots = Snapshots(services.caches)
        self._store = self._snapshots.store
        self._orders = self._snapshots.orders
        self._keeping = SnapshotOrders(services, self._snapshots)
        self._machines_snapshots = services.caches.store(VirtualMachineSnapshot)

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; the volume it is of, and those made from it; orders; the machine's snapshot it is part of; hosts that go."""
        snapshots = self._snapshots

        def wake(item: VolumeSnapshot, *, urgent: bool = False) -> None:
            enqueue(Key(item.namespace, item.name), urgent=urgent)

        def snapshot_changed(before: VolumeSnapshot | None, after: VolumeSnapshot | None) -> None:
            item = after or before
            if item is not None:
                wake(item)

        def volume_changed(before: Volume | None, after: Volume | None) -> None:
            item = after or before
            if item is None:
                return
            if before is None or after is None or _state(before) != _state(after):
                for snapshot in self._store.by(OF_VOLUME, f"{item.namespace}/{item.name}"):
                    wake(snapshot)
            source = item.spec.source
            origin = self._store.get(source.snapshot, item.namespace) if source and source.snapshot else None
            if origin is not None and origin.deleting:
                wake(origin)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is None:
                return
            if order.spec.snapshot is not None:
                parts = {item.snapshot for one in (before, after) if one is not None for item in items_of(one)}
                for part in parts:  # also those that were taken out of it
                    for snapshot in self._store.by(UID, part):
                        wake(snapshot, urgent=True)
            elif order.spec.for_.kind == Volume.KIND.kind and (
                before is None or after is None or _standing(before) != _standing(after)
            ):
                for snapshot in self._store.by(OF_VOLUME, f"{order.spec.for_.namespace}/{order.spec.for_.name}"):
                    wake(snapshot)
            self._wake_origins(before, after, enqueue)

        def owner_changed(before: VirtualMachineSnapshot | None, after: VirtualMachineSnapshot | None) -> None:
            item = after or before
            if item is not None and (before is None or after is None or before.deleting != after.deleting):
                for snapshot in self._store.by(PART_OF, item.uid):
                    wake(snapshot)

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is not None and after is None:
                for snapshot in self._store:
                    if snapshot.status.host == before.name:
                        wake(snapshot)

        def migration_changed(before: VirtualMachineMigration | None, after: VirtualMachineMigration | None) -> None:
            for uid in come(before, after):
                for volume in snapshots.volumes.store.by(UID, uid):
                    for snapshot in self._store.by(OF_VOLUME, f"{volume.namespace}/{volume.name}"):
                        wake(snapshot)

        snapshots.volumes.migrations.listen(migration_changed)
        self._store.listen(snapshot_changed)
        snapshots.volumes.store.listen(volume_changed)
        snapshots.orders.listen(order_changed)
        snapshots.hosts.listen(host_changed)
        self._machines_snapshots.listen(owner_changed)

    def _wake_origins(self, before: WorkOrder | None, after: WorkOrder | None, enqueue: Enqueue) -> None:
        """A clone came, was made, was moved away or went: what it was made from may be waiting to go."""
        same = before is not None and after is not None and before.status.state is after.status.state
        if same and _origin(before) == _origin(after):
            return
        for uid in {_origin(order) for order in (before, after)} - {None}:
            for snapshot in self._store.by(UID, uid or ""):
                if snapshot.deleting:
                    enqueue(Key(snapshot.namespace, snapshot.name))

    def everything(self) -> list[Key]:
        """All snapshots, and those that only a left-over work order remembers."""
        keys = set(self._store.keys())
        for order in self._orders:
            if order.spec.type is WorkType.SNAPSHOT and order.spec.for_.kind == VolumeSnapshot.KIND.kind:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    async def reconcile(self, key: Key) -> Result:
        """One pass over a snapshot."""
        snapshot = self._store.get(key.name, key.namespace)
        await self._keeping.remove_orphans(VolumeSnapshot.KIND, key, snapshot.uid if snapshot is not None else None)
        if snapshot is None:
            return Gone()
        if snapshot.paused:
            return Done()
        if not snapshot.deleting and await ensure_finalizer(self._services.client, self._store, snapshot):
            snapshot = self._store.get(key.name, key.namespace) or snapshot
        scope = self._scope(snapshot)
        if snapshot.deleting:
            return await self._delete(scope)
        if (lost := host_lost(scope)) is not None:
            return await self._report(scope, None, lost)
        if owner_of(snapshot) is not None:
            return await self._report(scope, None, moving(scope).lack)
        if moving(scope) != Moves():
            return await self._follow(scope)
        if scope.order is not None:
            return await self._report(scope, None, None)
        found = target(scope)
        if isinstance(found, Lack):
            return await self._report(scope, None, found)
        # Which volume it is of is on record before it is taken: whoever removes the volume sees it from now on.
        result = await self._report(scope, found, None)
        current = self._store.get(key.name, key.namespace)
        if current is None or current.uid != snapshot.uid or current.deleting:
            return Done()
        again = target(self._scope(current))
        if isinstance(again, Lack):
            return await self._report(self._scope(current), None, again)
        if await self._keeping.make(current.uid, again.host, own_order(current, again, self._services.term())):
            return await self._report(self._scope(current), None, None)
        return result

    def _scope(self, snapshot: VolumeSnapshot) -> Scope:
        scope = self._snapshots.scope(snapshot)
        going = owner_of(snapshot) is not None and self._snapshots.volumes.going(snapshot)
        return replace(scope, owner_going=going)

    async def _follow(self, scope: Scope) -> Result:
        """Its volume goes to another host: so does what is kept of it."""
        plan = moving(scope)
        if plan.let_go:
            # On record first: from now on an order that is gone does not mean that the snapshot is.
            await self._report(scope, None, plan.lack)
            await self._keeping.let_go(plan.let_go, force=scope.snapshot.deleting and forced(scope.snapshot))
        if not scope.snapshot.deleting:  # else what nobody has may have been removed
            await self._keeping.take_up(plan.take_up, scope.snapshot.uid, self._spec(scope))
        scope = self._scope(self._store.get(scope.snapshot.name, scope.snapshot.namespace) or scope.snapshot)
        return await self._report(scope, None, moving(scope).lack)

    def _spec(self, scope: Scope) -> Spec:
        return lambda items: kept_order(
            scope.snapshot, items, self._services.term(), taken=scope.taken or scope.snapshot.deleting
        )

    async def _delete(self, scope: Scope) -> Result:
        snapshot, order, client = scope.snapshot, scope.order, self._services.client
        if FINALIZER not in snapshot.metadata.finalizers:
            return Done()
        if (busy := held(scope)) is not None:
            return await self._report(scope, None, busy)
        if owner_of(snapshot) is not None:
            return await self._delete_part(scope)
        if moving(scope).let_go:
            return await self._follow(scope)
        if order is None and snapshot.status.host is not None:
            order = await self._keeping.live(snapshot.uid, snapshot.status.host)
        if order is None and scope.part is not None and scope.part.let_go:
            # In the pool, and kept by nobody: it is removed where the volume is, or will be.
            plan = moves((scope.part,), (), taken=True)
            if not plan.take_up and not forced(snapshot):
                return await self._report(scope, None, plan.lack)
            await self._keeping.take_up(plan.take_up, snapshot.uid, self._spec(scope))
            order = self._snapshots.order(snapshot)
        if order is None:
            await drop_finalizer(client, self._store, snapshot)
            return Gone()
        await self._keeping.end(order, snapshot)
        await self._report(self._scope(snapshot), None, None)
        return Wait("Deleting", 30.0)

    async def _delete_part(self, scope: Scope) -> Result:
        """It goes when the machine's snapshot that has it removed is gone."""
        snapshot, owner = scope.snapshot, owner_of(scope.snapshot)
        assert owner is not None
        whole = await self._services.client.find(VirtualMachineSnapshot.KIND, owner.name, snapshot.namespace)
        if whole is None or whole["metadata"]["uid"] != owner.uid:
            await drop_finalizer(self._services.client, self._store, snapshot)
            return Gone()
        await self._report(scope, None, None)
        return Wait("Deleting", 30.0)

    async def _report(self, scope: Scope, found: Target | None, lack: Lack | None) -> Result:
        after = derive_status(scope, found, lack, rfc3339(self._services.clock.now()))
        await write_report(self._services.client, self._store, scope.snapshot, after)
        return Wait(lack.reason, 30.0) if lack is not None else Done()


def _standing(order: WorkOrder) -> tuple[object, ...]:
    """What of a volume's order decides what becomes of its snapshots."""
    return (order.status.state, order.deleting)


def _origin(order: WorkOrder | None) -> str | None:
    """Uid of the snapshot that a volume's order says it is made from."""
    volume = order.spec.disk.volume if order is not None and order.spec.disk is not None else None
    origin = volume.origin.snapshot if volume is not None and volume.origin is not None else None
    return origin.snapshot if origin is not None else None


def _state(volume: Volume) -> tuple[object, ...]:
    """What of a volume decides whether a snapshot of it can be taken."""
    status = volume.status
    ready = status.condition("Ready")
    return (volume.uid, volume.deleting, status.phase, status.pool, status.host, ready.reason if ready else "")
