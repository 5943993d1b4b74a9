"""The module `controllers.compute`."""

from __future__ import annotations

from kumulus.runtime.modules import Context, Module
from kumulus_controllers.compute.console import ConsoleReconciler
from kumulus_controllers.compute.group import PlacementGroupReconciler
from kumulus_controllers.compute.machine import MachineReconciler
from kumulus_controllers.compute.restore import RestoreReconciler
from kumulus_controllers.compute.vm_import import ImportReconciler
from kumulus_controllers.compute.vm_pool import PoolReconciler
from kumulus_controllers.compute.vm_snapshot import VmSnapshotReconciler
from kumulus_controllers.module import fleet_of


async def _setup(context: Context) -> None:
    context.reconcilers.append(MachineReconciler(context.services, fleet_of(context.registry)))
    context.reconcilers.append(PlacementGroupReconciler(context.services))
    context.reconcilers.append(ConsoleReconciler(context.services))
    context.reconcilers.append(VmSnapshotReconciler(context.services))
    context.reconcilers.append(RestoreReconciler(context.services))
    context.reconcilers.append(PoolReconciler(context.services))
    context.reconcilers.append(ImportReconciler(context.services))


compute = Module(
    description="Machines: resolve, place, follow, delete; placement groups; consoles; snapshots, restores; pools.",
    setup=_setup,
)
