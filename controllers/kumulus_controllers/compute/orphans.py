"""Machines that run on hosts and whose objects were lost: nothing of their names is started beside them."""

from __future__ import annotations

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import IGNORE_ORPHANS, REBUILD
from kumulus.api.machine_import import origin_of
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.rebuild import Rebuild


def epoch_before(vm: VirtualMachine) -> int:
    """The placement that the domain is of which the machine was, when it was a machine's before; 0 of any other. Pure."""
    origin = origin_of(vm)
    return origin.epoch if origin is not None else 0


class Orphans:
    """What hosts tell of them."""

    def __init__(self, caches: Caches) -> None:
        self._rebuild = Rebuild(caches)

    def of(self, vm: VirtualMachine) -> Problem | None:
        """Why a machine that was never placed is not started: one of its name runs on a host, or is defined there. It names no
        host: tenants read it. A host that lies (`IGNORE_ORPHANS`) hinders nobody."""
        if vm.status.epoch or origin_of(vm) is not None:
            return None
        for found in self._rebuild.lost(Key(vm.namespace, vm.name)):
            return Problem(
                "FoundOnHost",
                f"There is the domain {found.item.name} of a machine of this name, whose objects were lost: it is not started a"
                f" second time. It becomes that domain when the operator gives its Host the annotation {REBUILD}=true, which is"
                " for hosts of a control plane that is rebuilt; else the operator removes the domain, or, if its host says what"
                f" is not so, gives that Host the annotation {IGNORE_ORPHANS}=true (kubectl get unmanaged -A shows the host).",
            )
        return None
