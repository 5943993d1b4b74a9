"""Machines that run on hosts and whose objects were lost: nothing of their names is started beside them."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import HOST_NAMESPACE_PREFIX, IGNORE_ORPHANS, Host
from kumulus.api.machine_import import origin_of
from kumulus.api.unmanaged import UnmanagedInstance
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.compute.problem import Problem

BY_MACHINE = "orphan-of-machine"


def epoch_before(vm: VirtualMachine) -> int:
    """The placement that the domain is of which the machine was, when it was a machine's before; 0 of any other. Pure."""
    origin = origin_of(vm)
    return origin.epoch if origin is not None else 0


def _of_machine(item: UnmanagedInstance) -> Iterable[str]:
    machine = item.status.machine
    return (f"{machine.namespace}/{machine.name}",) if machine is not None else ()


class Orphans:
    """What hosts tell of them."""

    def __init__(self, caches: Caches) -> None:
        self._store = caches.store(UnmanagedInstance)
        self._hosts = caches.store(Host)
        self._store.add_index(BY_MACHINE, _of_machine)

    def of(self, vm: VirtualMachine) -> Problem | None:
        """Why a machine that was never placed is not started: one of its name runs on a host, or is defined there. It names no
        host: tenants read it. A host that lies (`IGNORE_ORPHANS`) hinders nobody."""
        if vm.status.epoch or origin_of(vm) is not None:
            return None
        for found in self._store.by(BY_MACHINE, f"{vm.namespace}/{vm.name}"):
            host = self._hosts.get((found.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX))
            if host is not None and host.metadata.annotations.get(IGNORE_ORPHANS) == "true":
                continue
            return Problem(
                "FoundOnHost",
                f"There is the domain {found.name} of a machine of this name, whose objects were lost: it is not started a second"
                " time. The operator takes that over once this one is deleted (kumulusctl vm import), removes it, or, if its host"
                f" says what is not so, gives that Host the annotation {IGNORE_ORPHANS}=true (kubectl get unmanaged -A shows"
                " the host).",
            )
        return None
