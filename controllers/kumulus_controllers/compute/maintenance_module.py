"""The module `controllers.compute.migration.maintenance`: without it nothing happens to machines of hosts in maintenance."""

from __future__ import annotations

from kumulus.runtime.modules import Context, Module
from kumulus_controllers.compute.maintenance import MaintenanceReconciler
from kumulus_controllers.compute.migration_turns import limits_of
from kumulus_controllers.module import fleet_of


async def _setup(context: Context) -> None:
    reconciler = MaintenanceReconciler(context.services, fleet_of(context.registry), limits_of(context.registry))
    context.reconcilers.append(reconciler)


maintenance = Module(description="Hosts in maintenance are emptied, and machines come back.", setup=_setup)
