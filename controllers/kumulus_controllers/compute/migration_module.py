"""The module `controllers.compute.migration`: without it no machine moves."""

from __future__ import annotations

from kumulus.runtime.modules import Context, Module
from kumulus_controllers.compute.migration import MigrationReconciler
from kumulus_controllers.compute.migration_turns import LIMITS, MigrationSettings
from kumulus_controllers.module import fleet_of


async def _setup(context: Context) -> None:
    context.registry.offer(LIMITS)
    context.registry.plug(LIMITS, "limits", context.settings)
    context.reconcilers.append(MigrationReconciler(context.services, fleet_of(context.registry), context.settings))


migration = Module(description="Machines that run go to other hosts.", setup=_setup, settings=MigrationSettings)
