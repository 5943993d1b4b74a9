"""What there is around restores, looked up in the caches."""

from __future__ import annotations

from kumulus.api.host import WorkType
from kumulus.api.machine_snapshot import VirtualMachineRestore
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.compute.machines import order_of
from kumulus_controllers.compute.restore_plan import Scope, disks_of
from kumulus_controllers.compute.restores import RESTORES_MACHINE, restores
from kumulus_controllers.compute.vm_snapshots import VmSnapshots
from kumulus_controllers.orders import FOR_UID, superseded


class Restores:
    """The caches, as restores need them."""

    def __init__(self, caches: Caches) -> None:
        self.store = restores(caches)
        self.lookup = VmSnapshots(caches)
        self.machines = self.lookup.machines
        self.orders = self.lookup.orders

    def scope(self, restore: VirtualMachineRestore) -> Scope:
        """All that one pass over a restore looks at."""
        namespace, target = restore.namespace, restore.spec.target
        vm = self.machines.get(target.vm or target.new_vm or "", namespace)
        instances = self.orders.by(FOR_UID, f"{WorkType.INSTANCE}/{vm.uid}") if vm is not None else ()
        instances = [order for order in instances if not superseded(order)]
        scope = Scope(
            restore=restore,
            snapshot=self.lookup.store.get(restore.spec.snapshot, namespace),
            vm=vm,
            instance=order_of(vm, instances) if vm is not None else None,
        )
        disks = disks_of(scope)
        volumes = {disk.volume: self.lookup.kept(disk.volume, namespace) for disk in disks}
        parts = {disk.snapshot: self.lookup.snapshots.store.get(disk.snapshot, namespace) for disk in disks}
        others = self.store.by(RESTORES_MACHINE, f"{namespace}/{target.vm}") if target.vm is not None else ()
        return Scope(
            restore=restore,
            snapshot=scope.snapshot,
            vm=vm,
            instance=scope.instance,
            volumes={name: kept for name, kept in volumes.items() if kept is not None},
            parts={name: part for name, part in parts.items() if part is not None},
            others=tuple(other for other in others if other.uid != restore.uid),
        )
