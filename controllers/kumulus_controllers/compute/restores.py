"""The store of restores with its indexes, and which of them holds a machine."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_snapshot import VirtualMachineRestore
from kumulus.kube.store import Store
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.compute.restore_plan import holder
from kumulus_controllers.storage.volumes import UID

RESTORES_MACHINE = "restores-machine"
MAKES_MACHINE = "makes-machine"
FROM_VM_SNAPSHOT = "from-vm-snapshot"


def _restores(restore: VirtualMachineRestore) -> Iterable[str]:
    name = restore.spec.target.vm
    return (f"{restore.namespace}/{name}",) if name is not None else ()


def _makes(restore: VirtualMachineRestore) -> Iterable[str]:
    name = restore.spec.target.new_vm
    return (f"{restore.namespace}/{name}",) if name is not None else ()


def restores(caches: Caches) -> Store[VirtualMachineRestore]:
    """The store of restores, indexed by their machines and snapshots."""
    store = caches.store(VirtualMachineRestore)
    store.add_index(UID, lambda item: (item.uid,))
    store.add_index(RESTORES_MACHINE, _restores)
    store.add_index(MAKES_MACHINE, _makes)
    store.add_index(FROM_VM_SNAPSHOT, lambda item: (f"{item.namespace}/{item.spec.snapshot}",))
    return store


def holding(store: Store[VirtualMachineRestore], vm: VirtualMachine) -> VirtualMachineRestore | None:
    """The restore that keeps a machine from being started."""
    return holder(store.by(RESTORES_MACHINE, f"{vm.namespace}/{vm.name}"))
