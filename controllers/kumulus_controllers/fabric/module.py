"""The module `controllers.fabric`."""

from __future__ import annotations

from kumulus.api.fabric import Zone
from kumulus.runtime.modules import Context, Module
from kumulus_controllers.fabric.automatic import AutomaticFencing
from kumulus_controllers.fabric.certificate import CertificateReconciler
from kumulus_controllers.fabric.fencing import METHODS, Fencer
from kumulus_controllers.fabric.host import HostReconciler
from kumulus_controllers.fabric.remediation import BUILT_IN, RemediationReconciler


async def _setup(context: Context) -> None:
    context.services.caches.store(Zone)
    context.reconcilers.append(HostReconciler(context.services))
    context.reconcilers.append(CertificateReconciler(context.services))
    context.reconcilers.append(AutomaticFencing(context.services))
    context.registry.offer(METHODS, METHODS)
    fencers: dict[str, Fencer] = {**BUILT_IN, **context.registry.plugged(METHODS)}
    context.reconcilers.append(RemediationReconciler(context.services, fencers))


fabric = Module(description="Hosts: join, liveness, capacity, certificates, fencing, removal.", setup=_setup)
