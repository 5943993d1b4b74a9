"""PlacementGroup: how many are in it, where they are, and whether that is as its policy has it.

Says what is so and nothing more: placing goes by the groups themselves (`groups`), not by what is written here.
"""

from __future__ import annotations

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.placement_group import PlacementGroup
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.compute.group_plan import derive_status, place_of
from kumulus_controllers.compute.groups import Groups, has
from kumulus_controllers.status import write_report

COUNT_SECONDS = 5.0
"""How stale the counts may be: they are no reason for a write per machine."""


class PlacementGroupReconciler:
    """Says of a group what is so. The only writer of its status."""

    name = "placementgroup"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._groups = Groups(services.caches)
        self._hosts = services.caches.store(Host)
        self._counted: dict[str, float] = {}

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; members that come, go and are placed; labels of hosts."""
        groups = self._groups

        def group_changed(before: PlacementGroup | None, after: PlacementGroup | None) -> None:
            item = after or before
            if item is not None and not (before and after and before.metadata.generation == after.metadata.generation):
                enqueue(Key(item.namespace, item.name))

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            item = after or before
            if item is None or (before is not None and after is not None and _asked(before) == _asked(after)):
                return
            for group in groups.within(item.namespace or ""):
                if any(vm is not None and has(group, vm) for vm in (before, after)):
                    enqueue(Key(group.namespace, group.name))

        def host_changed(before: Host | None, after: Host | None) -> None:
            if before is None or after is None or before.metadata.labels != after.metadata.labels:
                for group in groups.store:
                    enqueue(Key(group.namespace, group.name))

        groups.store.listen(group_changed)
        groups.machines.listen(machine_changed)
        self._hosts.listen(host_changed)

    def everything(self) -> list[Key]:
        """All groups."""
        return self._groups.store.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a group."""
        clock = self._services.clock
        group = self._groups.store.get(key.name, key.namespace)
        if group is None:
            self._counted.pop(str(key), None)
            return Gone()
        if group.paused or group.deleting:
            return Done()
        since = clock.monotonic() - self._counted.get(str(key), float("-inf"))
        if since < COUNT_SECONDS and group.status.observed_generation == group.metadata.generation:
            return Requeue(COUNT_SECONDS - since)
        after = derive_status(
            group,
            self._groups.members(group),
            lambda host: self._place(host, group.spec.topology_key),
            rfc3339(clock.now()),
        )
        if after.to_json() == group.status.to_json():
            return Done()
        self._counted[str(key)] = clock.monotonic()
        await write_report(self._services.client, self._groups.store, group, after)
        return Done()

    def _place(self, name: str, key: str) -> str | None:
        host = self._hosts.get(name)
        return place_of(host.labels if host is not None else None, name, key)


def _asked(vm: VirtualMachine) -> tuple[object, ...]:
    return (vm.uid, vm.metadata.labels, vm.status.host)
