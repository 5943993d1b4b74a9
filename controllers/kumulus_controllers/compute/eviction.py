"""What a machine is to be while its host is emptied (ADR 38). Pure.

By what is on record and nothing that was done or missed before: when the maintenance is taken away the machine is again what its
spec says. A host that is fenced is past maintenance: what was there is for the rules of ADR 33.
"""

from __future__ import annotations

from dataclasses import replace

from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder
from kumulus.api.maintenance import Eviction, EvictionAction
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.compute.takeover_plan import hindrance_of_place
from kumulus_controllers.orders import at_rest

IN_MAINTENANCE = "HostInMaintenance"


def emptied(host: Host | None) -> bool:
    """Whether machines are to leave that host, and can."""
    return host is not None and host.emptied and not host.fencing


def eviction_of(vm: VirtualMachine, host: Host | None) -> Eviction | None:
    """What is being done to the machine for its host's sake; None: nothing, or nothing any more."""
    found = vm.status.eviction
    if found is None or host is None or not emptied(host) or found.host != host.name or vm.status.host != host.name:
        return None
    return found


def in_force(scope: Scope) -> Scope:
    """The machine as it is to be while its host is emptied: one that is shut down for it is off, and one that is off there is not
    started there."""
    vm, host, order = scope.vm, scope.host, scope.order
    if host is None or vm.spec.power_state is not PowerState.RUNNING or vm.deleting or not emptied(host):
        return scope
    found = eviction_of(vm, host)
    evicted = found is not None and found.action is not EvictionAction.LIVE_MIGRATE
    if not (evicted or _off(order)) or order is None:
        return scope
    off = vm.model_copy(update={"spec": vm.spec.model_copy(update={"power_state": PowerState.STOPPED})})
    if found is not None and found.action is EvictionAction.STOP:
        said = f"Host {host.name} is being worked on, and its evictionPolicy is Stop: it is started when that is over."
    else:
        said = (
            f"Host {host.name} is being worked on: it is started on another host as soon as one takes it, or there when that is"
            " over."
        )
    return replace(scope, vm=off, evicted=Problem(IN_MAINTENANCE, said, "Scheduled", stalled=False))


def _off(order: WorkOrder | None) -> bool:
    return order is not None and order.spec.instance is not None and order.spec.instance.power is PowerState.STOPPED


def leaves(scope: Scope) -> bool:
    """Whether a machine that is off may be placed on another host, as far as it and its host are concerned: its host is emptied, and
    it is to run; or its host is being removed."""
    vm, host, order = scope.vm, scope.host, scope.order
    if host is None or host.fencing or vm.deleting or vm.paused or not host.alive:
        return False
    if order is not None and not at_rest(order):
        return False
    stops = (found := eviction_of(vm, host)) is not None and found.action is EvictionAction.STOP
    wanted = scope.evicted is not None or (order is None and vm.spec.power_state is PowerState.RUNNING)
    if not host.deleting and (stops or not wanted or not emptied(host)):
        return False
    return scope.restore is None and hindrance_of_place(scope) is None
