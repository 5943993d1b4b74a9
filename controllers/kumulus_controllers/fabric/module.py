"""The module `controllers.fabric`."""

from __future__ import annotations

from kumulus.api.fabric import Zone
from kumulus.runtime.modules import Context, Module
from kumulus_controllers.fabric.certificate import CertificateReconciler
from kumulus_controllers.fabric.host import HostReconciler


async def _setup(context: Context) -> None:
    context.services.caches.store(Zone)
    context.reconcilers.append(HostReconciler(context.services))
    context.reconcilers.append(CertificateReconciler(context.services))


fabric = Module(description="Hosts: join, liveness, capacity, certificates, removal.", setup=_setup)
