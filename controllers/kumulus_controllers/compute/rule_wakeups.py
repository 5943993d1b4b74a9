"""What wakes a machine because of the rules of its placement: other machines, groups, and hosts. Reads caches, writes nothing.

A machine that waits may fit now, and one that has its place may break a rule now, or not any more. It is told, not moved.
"""

from __future__ import annotations

from collections.abc import Mapping

from kumulus.api.affinity import WhenUnsatisfiable
from kumulus.api.base import ConditionStatus
from kumulus.api.compute import VirtualMachine, VirtualMachineCondition
from kumulus.api.fabric import Host
from kumulus.api.placement_group import PlacementGroup
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches, Enqueue
from kumulus_controllers.compute.groups import Groups, has
from kumulus_controllers.compute.wakeups import HOST, on_host

RULED = "ruled"
WAITING = "waiting"
FOLLOWING = "following"
BROKEN = "broken"

EVERYWHERE = ""
"""Key under which those of all namespaces are found."""


def _ruled(vm: VirtualMachine) -> list[str]:
    """Placed, with rules of its own about other machines."""
    placement = vm.spec.placement
    ruled = placement.affinity is not None or placement.topology_spread_constraints
    return [vm.namespace or "", EVERYWHERE] if ruled and vm.status.host is not None else []


def _waiting(vm: VirtualMachine) -> list[str]:
    return [vm.namespace or ""] if vm.status.host is None else []


def _following(vm: VirtualMachine) -> list[str]:
    """It waits, and others that are placed may be what it waits for."""
    placement = vm.spec.placement
    near = placement.affinity.vm_affinity if placement.affinity is not None else None
    even = any(
        item.when_unsatisfiable is WhenUnsatisfiable.DO_NOT_SCHEDULE for item in placement.topology_spread_constraints
    )
    return _waiting(vm) if even or (near is not None and near.required) else []


def _broken(vm: VirtualMachine) -> list[str]:
    """It breaks a rule where it is."""
    found = vm.status.condition(VirtualMachineCondition.PLACEMENT_SATISFIED)
    return [vm.namespace or ""] if found is not None and found.status is ConditionStatus.FALSE else []


class RuleWakeups:
    """Listens for the sake of machines with rules."""

    def __init__(self, caches: Caches) -> None:
        self._groups = Groups(caches)
        self._machines = self._groups.machines
        self._hosts = caches.store(Host)
        for name, index in (
            (HOST, on_host),
            (RULED, _ruled),
            (WAITING, _waiting),
            (FOLLOWING, _following),
            (BROKEN, _broken),
        ):
            self._machines.add_index(name, index)

    def attach(self, enqueue: Enqueue) -> None:
        """Listen to the stores whose changes mean a pass. Called once."""

        def wake(*found: list[VirtualMachine]) -> None:
            for each in found:
                for vm in each:
                    enqueue(Key(vm.namespace, vm.name))

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            item = after or before
            if item is None:
                return
            namespace = item.namespace or ""
            had, has_ = _place(before), _place(after)
            if before is not None and after is not None and before.metadata.labels != after.metadata.labels:
                wake(self._machines.by(RULED, namespace), self._machines.by(WAITING, namespace))
                for group in self._groups.within(namespace):
                    if has(group, before) is not has(group, after):
                        wake(self._groups.members(group))
            elif had != has_:
                wake(self._machines.by(FOLLOWING if has_ is not None else BROKEN, namespace))

        def group_changed(before: PlacementGroup | None, after: PlacementGroup | None) -> None:
            item = after or before
            if item is None or (before and after and before.metadata.generation == after.metadata.generation):
                return
            wake(*(self._groups.members(group) for group in (before, after) if group is not None))

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is None or after is None:
                return
            if _standing(before) != _standing(after):
                wake(self._machines.by(HOST, after.name))
            if changed := _changed(before.metadata.labels, after.metadata.labels):
                # It may be elsewhere now, which those on other hosts are near to or far from.
                wake(self._machines.by(RULED, EVERYWHERE))
                wake(*(self._groups.members(group) for label in changed for group in self._groups.over(label)))

        self._machines.listen(machine_changed)
        self._groups.store.listen(group_changed)
        self._hosts.listen(host_changed)


def _place(vm: VirtualMachine | None) -> str | None:
    return vm.status.host if vm is not None else None


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The labels that are not the same."""
    return sorted(label for label in before.keys() | after.keys() if before.get(label) != after.get(label))


def _standing(host: Host) -> tuple[object, ...]:
    return (host.metadata.labels, host.spec.taints, host.spec.allowed_namespaces)
