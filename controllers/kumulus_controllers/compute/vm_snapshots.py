"""What there is around snapshots of machines, looked up in the caches."""

from __future__ import annotations

from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkType
from kumulus.api.machine_snapshot import RestorePhase, VirtualMachineSnapshot
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.compute.restores import FROM_VM_SNAPSHOT, restores
from kumulus_controllers.compute.vm_snapshot_plan import Kept, Scope
from kumulus_controllers.orders import FOR_UID, host_of
from kumulus_controllers.storage.handover import items_of
from kumulus_controllers.storage.snapshot_plan import owner_of
from kumulus_controllers.storage.snapshots import Snapshots

OF_MACHINE = "of-machine"


class VmSnapshots:
    """The caches, as snapshots of machines need them."""

    def __init__(self, caches: Caches) -> None:
        self.snapshots = Snapshots(caches)
        self.volumes = self.snapshots.volumes
        self.orders = self.snapshots.orders
        self.machines = self.volumes.machines
        self.store = self.volumes.machine_snapshots
        self.restores = restores(caches)
        self.store.add_index(OF_MACHINE, lambda item: (f"{item.namespace}/{item.spec.vm}",))

    def scope(self, snapshot: VirtualMachineSnapshot) -> Scope:
        """All that one pass over a snapshot looks at."""
        namespace, status = snapshot.namespace, snapshot.status
        vm = self.machines.get(snapshot.spec.vm, namespace)
        names = {disk.volume for disk in status.volumes} or self._names(vm)
        parts = {disk.snapshot: self.snapshots.store.get(disk.snapshot, namespace) for disk in status.volumes}
        there = {name: part for name, part in parts.items() if part is not None}
        own = [part for part in there.values() if (o := owner_of(part)) is not None and o.uid == snapshot.uid]
        orders = self.orders.by(FOR_UID, f"{WorkType.SNAPSHOT}/{snapshot.uid}")
        parts_kept = [
            self.snapshots.part(part, disk.volume_uid, disk.host)
            for disk in status.volumes
            if (part := there.get(disk.snapshot)) is not None and part in own
        ]
        known = {part.snapshot for part in parts_kept}
        strays = [item for order in orders for item in items_of(order) if item.snapshot not in known]
        return Scope(
            snapshot=snapshot,
            vm=vm,
            volumes={name: kept for name in names if (kept := self.kept(name, namespace)) is not None},
            orders=tuple(sorted(orders, key=host_of)),
            kept=(*parts_kept, *map(self.snapshots.stray, strays)),
            parts=there,
            clones=tuple(clone for part in own for clone in self.snapshots.clones(part)),
            restoring=tuple(
                item.name
                for item in self.restores.by(FROM_VM_SNAPSHOT, f"{namespace}/{snapshot.name}")
                if item.status.phase is RestorePhase.RESTORING
            ),
            host_gone=any(not part.shared and part.host is not None and not part.host_there for part in parts_kept),
        )

    def _names(self, vm: VirtualMachine | None) -> set[str]:
        found = (disk.volume_of(vm.name) for disk in vm.spec.disks) if vm is not None else ()
        return {name for name in found if name is not None}

    def kept(self, name: str, namespace: str | None) -> Kept | None:
        volume = self.volumes.store.get(name, namespace)
        if volume is None:
            return None
        order, pool = self.snapshots.volume_order(volume), self.volumes.pool(volume)
        return Kept(volume, order, pool, self.volumes.moved_by(volume))
