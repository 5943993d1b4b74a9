"""VolumeSnapshot: taken by the volume's host once, kept, removed when nothing stands on it.

The uid of the volume is on record before anything is ordered: from then on the volume is not removed. A snapshot that
is part of a machine's is ordered and removed by that one; here only its status is written, and its end awaited.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from kumulus.api.base import FINALIZER, FORCE_DETACH
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder, WorkType, snapshot_order_name
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.errors import AlreadyExists, NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result, Wait
from kumulus_controllers.orders import FOR_NAME
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage.snapshot_plan import (
    Scope,
    Target,
    derive_status,
    held,
    host_lost,
    own_order,
    owner_of,
    target,
)
from kumulus_controllers.storage.snapshots import PART_OF, Snapshots
from kumulus_controllers.storage.volume_plan import Lack
from kumulus_controllers.storage.volumes import OF_VOLUME, UID

log = structlog.get_logger(__name__)


class SnapshotReconciler:
    """Brings a snapshot of a volume to what its spec says. The only writer of its status."""

    name = "volumesnapshot"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._snapshots = Snapshots(services.caches)
        self._store = self._snapshots.store
        self._orders = self._snapshots.orders
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
                for part in order.spec.snapshot.items:
                    for snapshot in self._store.by(UID, part.snapshot):
                        wake(snapshot, urgent=True)
            elif order.spec.for_.kind == Volume.KIND.kind and (
                before is None or after is None or before.status.state is not after.status.state
            ):
                for snapshot in self._store.by(OF_VOLUME, f"{order.spec.for_.namespace}/{order.spec.for_.name}"):
                    wake(snapshot)
                self._wake_origin(order, enqueue)

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

        self._store.listen(snapshot_changed)
        snapshots.volumes.store.listen(volume_changed)
        snapshots.orders.listen(order_changed)
        snapshots.hosts.listen(host_changed)
        self._machines_snapshots.listen(owner_changed)

    def _wake_origin(self, order: WorkOrder, enqueue: Enqueue) -> None:
        """A clone came, was made or went: what it was made from may be waiting to go."""
        volume = order.spec.disk.volume if order.spec.disk is not None else None
        origin = volume.origin.snapshot if volume is not None and volume.origin is not None else None
        for snapshot in self._store.by(UID, origin.snapshot) if origin is not None else ():
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
        await self._remove_orphans(key, snapshot)
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
        if scope.order is not None or owner_of(snapshot) is not None:
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
        if await self._order(current, again):
            return await self._report(self._scope(current), None, None)
        return result

    def _scope(self, snapshot: VolumeSnapshot) -> Scope:
        scope = self._snapshots.scope(snapshot)
        going = owner_of(snapshot) is not None and self._snapshots.volumes.going(snapshot)
        return replace(scope, owner_going=going)

    async def _order(self, snapshot: VolumeSnapshot, found: Target) -> bool:
        """Have the host take it, or keep it; True when that was asked."""
        client, namespace = self._services.client, host_namespace(found.host)
        name = snapshot_order_name(snapshot.uid)
        spec = own_order(snapshot, found, self._services.term())
        body = {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec.to_json()}
        try:
            raw = await client.create(WorkOrder.KIND, body, namespace)
        except AlreadyExists:
            raw = await client.get(WorkOrder.KIND, name, namespace)
        return self._orders.apply(raw)

    async def _delete(self, scope: Scope) -> Result:
        snapshot, order, client = scope.snapshot, scope.order, self._services.client
        if FINALIZER not in snapshot.metadata.finalizers:
            return Done()
        if (busy := held(scope)) is not None:
            return await self._report(scope, None, busy)
        if order is None and snapshot.status.host is not None:
            order = await self._live_order(snapshot)
        if order is None:
            await drop_finalizer(client, self._store, snapshot)
            return Gone()
        if owner_of(snapshot) is None:
            await end_order(self._services, self._snapshots, order, snapshot)
        await self._report(self._scope(snapshot), None, None)
        return Wait("Deleting", 30.0)

    async def _live_order(self, snapshot: VolumeSnapshot) -> WorkOrder | None:
        """Before letting a snapshot go whose order this process has not seen go: is there really none?"""
        owner = owner_of(snapshot)
        name, namespace = snapshot_order_name(owner.uid if owner else snapshot.uid), snapshot.status.host or ""
        raw = await self._services.client.find(WorkOrder.KIND, name, host_namespace(namespace))
        if raw is None:
            return None
        self._orders.apply(raw)
        return WorkOrder.parse(raw)

    async def _remove_orphans(self, key: Key, snapshot: VolumeSnapshot | None) -> None:
        """Orders of a snapshot of that name that is no more are removed after a live look."""
        for order in self._orders.by(FOR_NAME, f"VolumeSnapshot/{key.namespace or ''}/{key.name}"):
            if order.deleting or (snapshot is not None and order.spec.for_.uid == snapshot.uid):
                continue
            live = await self._services.client.find(VolumeSnapshot.KIND, key.name, key.namespace)
            if live is None or live["metadata"]["uid"] != order.spec.for_.uid:
                log.info("removing the work order of a snapshot that is gone", namespace=key.namespace, name=key.name)
                await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)

    async def _report(self, scope: Scope, found: Target | None, lack: Lack | None) -> Result:
        snapshot = self._store.get(scope.snapshot.name, scope.snapshot.namespace) or scope.snapshot
        if snapshot.uid != scope.snapshot.uid:
            return Done()
        after = derive_status(scope, found, lack, rfc3339(self._services.clock.now()))
        try:
            await write_status(self._services.client, self._store, snapshot, snapshot.status, after)
        except NotFound:
            return Done()
        return Wait(lack.reason, 30.0) if lack is not None else Done()


async def end_order(
    services: Services, snapshots: Snapshots, order: WorkOrder, item: VolumeSnapshot | VirtualMachineSnapshot
) -> None:
    """Ask for the end of what an order keeps; when its host is given up, do not wait for that host."""
    client, orders = services.client, snapshots.orders
    if not order.deleting:
        raw = await client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if raw is None or "spec" not in raw:
            orders.remove(Key(order.namespace, order.name), order.uid)
        else:
            orders.apply(raw)
    elif item.metadata.annotations.get(FORCE_DETACH) == "true":
        await drop_finalizer(client, orders, order)


def _state(volume: Volume) -> tuple[object, ...]:
    """What of a volume decides whether a snapshot of it can be taken."""
    status = volume.status
    ready = status.condition("Ready")
    return (volume.uid, volume.deleting, status.phase, status.pool, status.host, ready.reason if ready else "")
