"""VirtualMachineRestore: a machine's volumes get back what a snapshot kept, or a new machine is made of it. Once.

That a restore has begun is on record before anything is done: from then on the machine is not started. A volume is asked
to revert by the uid of the restore, which its agent carries out once, however often it is asked; and a volume that is
recorded as restored is not asked again. What has begun is brought to its end, also when the restore is deleted.
"""

from __future__ import annotations

import structlog

from kumulus.api.base import FINALIZER
from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.machine_snapshot import (
    FINISHED,
    RestorePhase,
    RestoreState,
    VirtualMachineRestore,
    VirtualMachineSnapshot,
)
from kumulus.api.storage import Volume
from kumulus.api.volume_order import Revert
from kumulus.kube.errors import AlreadyExists, NotFound, Refused
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.compute.restore_plan import (
    RESTORED_BY,
    Scope,
    begun,
    blocked,
    derive_status,
    disks_of,
    gone,
    is_from,
    leaving,
    new_machine,
    new_volume,
    own_volumes,
    requested,
)
from kumulus_controllers.compute.restore_scope import Restores
from kumulus_controllers.compute.restores import FROM_VM_SNAPSHOT, MAKES_MACHINE, RESTORES_MACHINE
from kumulus_controllers.compute.vm_snapshot_plan import Kept
from kumulus_controllers.expiry import expire
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage.volume_plan import Lack
from kumulus_controllers.storage.volumes import UID, USES_VOLUME

log = structlog.get_logger(__name__)


class RestoreReconciler:
    """Carries restores out. The only writer of their status."""

    name = "virtualmachinerestore"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._restores = Restores(services.caches)
        self._store = self._restores.store

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes and those of other restores of the machine; snapshots, machines, volumes and the orders of both."""
        restores = self._restores

        def wake(index: str, value: str) -> None:
            for item in self._store.by(index, value):
                if item.status.phase not in FINISHED or item.deleting:
                    enqueue(Key(item.namespace, item.name))

        def machine(namespace: str | None, name: str) -> None:
            wake(RESTORES_MACHINE, f"{namespace}/{name}")
            wake(MAKES_MACHINE, f"{namespace}/{name}")

        def restore_changed(before: VirtualMachineRestore | None, after: VirtualMachineRestore | None) -> None:
            item = after or before
            if item is None:
                return
            enqueue(Key(item.namespace, item.name))
            if item.spec.target.vm is not None and (after is None or after.status.phase in FINISHED):
                wake(RESTORES_MACHINE, f"{item.namespace}/{item.spec.target.vm}")

        def snapshot_changed(before: VirtualMachineSnapshot | None, after: VirtualMachineSnapshot | None) -> None:
            item = after or before
            if item is not None:
                wake(FROM_VM_SNAPSHOT, f"{item.namespace}/{item.name}")

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            item = after or before
            if item is not None:
                machine(item.namespace, item.name)

        def volume_changed(before: Volume | None, after: Volume | None) -> None:
            item = after or before
            if item is None:
                return
            for vm in restores.machines.by(USES_VOLUME, f"{item.namespace}/{item.name}"):
                machine(vm.namespace, vm.name)
            made_by = item.metadata.annotations.get(RESTORED_BY)
            if made_by is not None:
                wake(UID, made_by)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is None:
                return
            if order.spec.type is WorkType.INSTANCE:
                machine(order.spec.for_.namespace, order.spec.for_.name)
            elif order.spec.disk is not None and order.spec.disk.volume is not None:
                revert = order.spec.disk.volume.revert
                if revert is not None:
                    wake(UID, revert.request)

        self._store.listen(restore_changed)
        restores.lookup.store.listen(snapshot_changed)
        restores.machines.listen(machine_changed)
        restores.lookup.volumes.store.listen(volume_changed)
        restores.orders.listen(order_changed)

    def everything(self) -> list[Key]:
        """All restores."""
        return self._store.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a restore."""
        restore = self._store.get(key.name, key.namespace)
        if restore is None:
            return Gone()
        if restore.paused:
            return Done()
        if restore.deleting:
            return await self._delete(self._restores.scope(restore))
        if restore.status.phase in FINISHED:
            return await expire(
                self._services, restore, restore.status.finished_at, restore.spec.ttl_seconds_after_finished
            )
        if restore.spec.target.vm is not None and await ensure_finalizer(self._services.client, self._store, restore):
            restore = self._store.get(key.name, key.namespace) or restore
        scope = self._restores.scope(restore)
        if not begun(scope) and (lack := blocked(scope)) is not None:
            return await self._report(scope, RestorePhase.PENDING, lack)
        if restore.status.phase is not RestorePhase.RESTORING:
            # From this write on the machine is not started; what was so before it may not be so any more.
            await self._report(scope, RestorePhase.RESTORING, None)
            current = self._store.get(key.name, key.namespace)
            if current is None or current.uid != restore.uid or current.deleting:
                return Done()
            scope = self._restores.scope(current)
            if (lack := blocked(scope)) is not None:
                return await self._report(scope, RestorePhase.PENDING, lack)
        if (lack := gone(scope)) is not None:
            return await self._report(scope, RestorePhase.FAILED, lack)
        lack = await (self._revert(scope) if scope.in_place else self._make(scope))
        return await self._report(self._restores.scope(scope.restore), RestorePhase.RESTORING, lack)

    async def _revert(self, scope: Scope) -> Lack | None:
        """Ask for each volume's content once."""
        for disk in disks_of(scope):
            kept, part = scope.volumes.get(disk.volume), scope.parts.get(disk.snapshot)
            if disk.state is RestoreState.RESTORED or requested(scope.restore, kept):
                continue
            if part is None:
                return Lack("SnapshotNotFound", f"VolumeSnapshot {disk.snapshot} of disk {disk.disk} is gone.")
            if kept is None or kept.order is None:
                return Lack("VolumeNotReady", f"Volume {disk.volume} cannot be reached just now.", stalled=False)
            await self._ask(kept.order, Revert(snapshot=part.uid, request=scope.restore.uid))
        return None

    async def _ask(self, order: WorkOrder, revert: Revert | None) -> None:
        """Write into a volume's order what it is to be given, if anything."""
        change = {
            "metadata": {"resourceVersion": order.metadata.resource_version},
            "spec": {
                "term": max(self._services.term(), order.spec.term),
                "disk": {"volume": {"revert": revert.to_json() if revert is not None else None}},
            },
        }
        raw = await self._services.client.patch(WorkOrder.KIND, order.name, change, order.namespace)
        self._restores.orders.apply(raw)

    async def _make(self, scope: Scope) -> Lack | None:
        """Make the volumes and the machine that are not there yet."""
        restore, snapshot = scope.restore, scope.snapshot
        if restore.status.vm_uid is not None:
            return None
        if snapshot is None:
            return Lack("SnapshotNotFound", f"VirtualMachineSnapshot {restore.spec.snapshot} is gone.")
        client, volumes = self._services.client, self._restores.lookup.volumes.store
        try:
            for disk, name in own_volumes(restore, snapshot):
                if name not in scope.volumes:
                    body = new_volume(restore, disk, name)
                    try:
                        volumes.apply(await client.create(Volume.KIND, body, restore.namespace))
                    except AlreadyExists:
                        volumes.apply(await client.get(Volume.KIND, name, restore.namespace))
                there = volumes.get(name, restore.namespace)
                if there is not None and not is_from(restore, there):
                    return Lack("VolumeExists", f"There is a Volume {name} already: delete it, or take another newVM.")
            body = new_machine(restore, snapshot)
            machines, name = self._restores.machines, scope.machine
            try:
                machines.apply(await client.create(VirtualMachine.KIND, body, restore.namespace))
            except AlreadyExists:
                machines.apply(await client.get(VirtualMachine.KIND, name, restore.namespace))
        except Refused as refused:  # by a quota, say, or because the namespace ends
            return Lack("Refused", f"The new machine cannot be made: {refused.message}")
        vm = machines.get(name, restore.namespace)
        if vm is not None and not is_from(restore, vm):
            return Lack("VirtualMachineExists", f"There is a VirtualMachine {name} already: take another newVM.")
        return None

    async def _delete(self, scope: Scope) -> Result:
        """What has begun is brought to its end, or taken back where it cannot be."""
        if FINALIZER not in scope.restore.metadata.finalizers:
            return Done()
        if (lack := leaving(scope)) is not None:
            wait = await self._revert(scope)
            return await self._report(self._restores.scope(scope.restore), RestorePhase.RESTORING, wait or lack)
        for kept in self._unfinished(scope):
            assert kept.order is not None
            try:
                await self._ask(kept.order, None)
            except NotFound:
                continue
        await drop_finalizer(self._services.client, self._store, scope.restore)
        return Gone()

    def _unfinished(self, scope: Scope) -> list[Kept]:
        """Volumes whose hosts are still asked for something."""
        if scope.restore.status.phase in FINISHED or not scope.in_place:
            return []
        found = [(disk, scope.volumes.get(disk.volume)) for disk in disks_of(scope)]
        return [kept for disk, kept in found if kept is not None and requested(scope.restore, kept)]

    async def _report(self, scope: Scope, phase: RestorePhase, lack: Lack | None) -> Result:
        restore = self._store.get(scope.restore.name, scope.restore.namespace) or scope.restore
        if restore.uid != scope.restore.uid:
            return Done()
        after = derive_status(scope, phase, lack, rfc3339(self._services.clock.now()))
        try:
            await write_status(self._services.client, self._store, restore, restore.status, after)
        except NotFound:
            return Done()
        if after.phase in FINISHED:
            return Requeue(0.0)
        return Wait(lack.reason, 30.0) if lack is not None else Done()
