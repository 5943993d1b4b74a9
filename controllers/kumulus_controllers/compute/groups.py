"""PlacementGroups: which there are in a namespace, and which machines are in them. Reads caches, writes nothing."""

from __future__ import annotations

from kumulus.api.compute import VirtualMachine
from kumulus.api.placement_group import PlacementGroup
from kumulus.kube.store import Store
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.planning.labels import labels_of, selects

NAMESPACE = "namespace"
TOPOLOGY = "topology"


class Groups:
    """The groups of each namespace, and their members."""

    def __init__(self, caches: Caches) -> None:
        self.store: Store[PlacementGroup] = caches.store(PlacementGroup)
        self.machines: Store[VirtualMachine] = caches.store(VirtualMachine)
        self.store.add_index(NAMESPACE, lambda group: (group.namespace or "",))
        self.store.add_index(TOPOLOGY, lambda group: (group.spec.topology_key,))
        self.machines.add_index(NAMESPACE, lambda vm: (vm.namespace or "",))

    def within(self, namespace: str) -> list[PlacementGroup]:
        """The groups of a namespace."""
        return self.store.by(NAMESPACE, namespace)

    def over(self, label: str) -> list[PlacementGroup]:
        """The groups of all namespaces whose topology this label of hosts is."""
        return self.store.by(TOPOLOGY, label)

    def of(self, vm: VirtualMachine) -> tuple[PlacementGroup, ...]:
        """The groups that a machine is in, by name."""
        found = [group for group in self.within(vm.namespace or "") if not group.deleting and has(group, vm)]
        return tuple(sorted(found, key=lambda group: group.name))

    def members(self, group: PlacementGroup) -> list[VirtualMachine]:
        """The machines that are in a group. Looks at all of its namespace."""
        wanted = labels_of(group.spec.selector)
        return [vm for vm in self.machines.by(NAMESPACE, group.namespace or "") if selects(wanted, vm.metadata.labels)]


def has(group: PlacementGroup, vm: VirtualMachine) -> bool:
    """Whether a machine of its namespace is in a group."""
    return selects(labels_of(group.spec.selector), vm.metadata.labels)
