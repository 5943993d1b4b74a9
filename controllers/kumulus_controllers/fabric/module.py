"""The module `controllers.fabric`."""

from __future__ import annotations

from kumulus.api.fabric import Zone
from kumulus.runtime.modules import Context, Module
from kumulus_controllers.fabric.automatic import AutomaticFencing
from kumulus_controllers.fabric.certificate import CertificateReconciler
from kumulus_controllers.fabric.fencing import METHODS, Fencer
from kumulus_controllers.fabric.host import HostReconciler
from kumulus_controllers.fabric.remediation import BUILT_IN, RemediationReconciler
from kumulus_controllers.fabric.watchdog import WatchdogReconciler
from kumulus_controllers.fabric.witness import WITNESSES, Witness, WitnessReconciler, built_in
from kumulus_controllers.fabric.witness_book import WitnessBook


async def _setup(context: Context) -> None:
    context.services.caches.store(Zone)
    context.registry.offer(METHODS, METHODS)
    context.registry.offer(WITNESSES, WITNESSES)
    fencers: dict[str, Fencer] = {**BUILT_IN, **context.registry.plugged(METHODS)}
    witnesses: dict[str, Witness] = {**built_in(fencers), **context.registry.plugged(WITNESSES)}
    book = WitnessBook()
    context.reconcilers.append(HostReconciler(context.services, book))
    context.reconcilers.append(CertificateReconciler(context.services))
    context.reconcilers.append(AutomaticFencing(context.services, book))
    context.reconcilers.append(RemediationReconciler(context.services, fencers, book))
    context.reconcilers.append(WatchdogReconciler(context.services))
    context.reconcilers.append(WitnessReconciler(context.services, book, witnesses))


fabric = Module(description="Hosts: join, liveness, witnesses, capacity, certificates, fencing, removal.", setup=_setup)
