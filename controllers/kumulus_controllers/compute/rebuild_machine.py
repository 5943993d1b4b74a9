"""A machine whose objects were lost, and that was applied again, becomes the domain that it was.

That it is the domain is put on record in the machine (the annotation `IMPORTED`, as of an import) before anything is made of
it; from then on it is placed on that host alone, with the next epoch, and the agent there takes the domain over. What it brings
along is made of what the domain has. Each step may be repeated; who dies between two has left a domain that is as it was.
"""

from __future__ import annotations

import structlog

from kumulus.api.compute import VirtualMachine
from kumulus.api.machine_import import FOUND, IMPORTED, IMPORTED_BY, Origin, origin_of
from kumulus.api.network import NetworkInterface
from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import Volume
from kumulus.api.volumes import ReclaimPolicy
from kumulus.kube.errors import AlreadyExists, Conflict, NotFound
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Services
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.order import template_volume
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.rebuild_plan import Match, match, pool_of
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.planning.views import HostView
from kumulus_controllers.rebuild import Lost, Rebuild
from kumulus_controllers.storage.volume_plan import found_as

log = structlog.get_logger(__name__)


class RebuildMachine:
    """Has machines become what their hosts have of them."""

    def __init__(self, services: Services, known: Machines) -> None:
        self._services = services
        self._known = known
        self._rebuild = Rebuild(services.caches)

    async def bring_about(self, scope: Scope) -> Match | Problem | None:
        """Before a machine that was never placed brings anything along: what it is to be made of; why it waits; None when no
        host has anything of it. Raises `Refused` when a volume may not be made."""
        vm = scope.vm
        if vm.status.epoch or IMPORTED_BY in vm.metadata.annotations:
            return None
        lost = self._lost(vm)
        if lost is None or isinstance(lost, Problem):
            return lost
        links = {name: link.interface for name, link in scope.links.items()}
        volumes = {name: use.volume for name, use in scope.volumes.items()}
        found = match(vm, lost, volumes, links)
        if isinstance(found, Problem):
            return found
        if not _is_on_record(vm, lost) and not await self._record(vm, lost):
            return Problem("TakingOver", "The machine was changed just now.", stalled=False)
        # What is on record alone binds it to that host.
        recorded = self._known.store.get(vm.name, vm.namespace)
        if recorded is None or recorded.uid != vm.uid or not _is_on_record(recorded, lost):
            return Problem("TakingOver", "That it is the domain which was found is not on record yet.", stalled=False)
        if (why := await self._make(scope, found)) is not None:
            return why
        return found

    def pool(self, vm: VirtualMachine, view: HostView | None) -> PoolRef | Problem | None:
        """The pool that its ephemeral disks are in, of a machine that has not been taken over yet; None when that is to be
        chosen as for any other."""
        origin = origin_of(vm)
        if origin is None or (vm.status.epoch or origin.epoch + 1) != origin.epoch + 1:
            return None
        if IMPORTED_BY in vm.metadata.annotations or all(disk.ephemeral is None for disk in vm.spec.disks):
            return None
        told = self._rebuild.lost(Key(vm.namespace, vm.name))
        lost = next((one for one in told if (one.host, one.item.name) == (origin.host, origin.domain)), None)
        refs = {pool.ref.name: pool.ref for pool in view.pools} if view is not None else {}
        wanted = pool_of(vm, lost) if lost is not None else None
        if wanted is None or wanted not in refs:
            return Problem("TakingOver", "Its host does not tell of the pool of its disks now.", "VolumesReady", False)
        return refs[wanted]

    def _lost(self, vm: VirtualMachine) -> Lost | Problem | None:
        """Its domain, when it is to become that one; or why that is not to be said."""
        origin, found = origin_of(vm), self._rebuild.lost(Key(vm.namespace, vm.name))
        if origin is not None:
            for one in found:
                if _is_on_record(vm, one):
                    return one
            if not (len(found) == 1 and found[0].rebuilt and _went_on(origin, found[0])):
                return Problem(
                    "DomainGone",
                    f"The machine is to be the domain {origin.domain}, and its host does not tell of that now. It is not started"
                    " anew meanwhile; if the domain is gone for good, delete the machine and make it again.",
                )
        if found and not found[0].rebuilt:
            return None  # told by `Orphans`, once all else is clear
        if len(found) > 1:
            return Problem(
                "FoundOnHosts",
                f"There are {len(found)} domains of a machine of this name, whose objects were lost: {found[0].item.name} and"
                f" {found[1].item.name}. Which of them it is, is not guessed: the operator removes the other one, once what it"
                " has is not needed (kubectl get unmanaged -A).",
            )
        if self._rebuild.unheard():  # also when there is one: another host may have a newer one
            return Problem(
                "HostsNotHeard",
                "The control plane is being rebuilt, and not every host has told yet which machines it has: this one may run"
                " there. It goes on when all have told (kubectl get hostreports -A -o yaml: orphanCount, for the operator).",
                stalled=False,
            )
        return found[0] if found else None

    async def _record(self, vm: VirtualMachine, lost: Lost) -> bool:
        """Put on record that it is that domain, unless somebody has changed it meanwhile."""
        annotations = {IMPORTED: f"{lost.host}/{lost.item.name}/{lost.epoch}"}
        body = {"metadata": {"resourceVersion": vm.metadata.resource_version, "annotations": annotations}}
        try:
            self._known.store.apply(await self._services.client.patch(vm.KIND, vm.name, body, vm.namespace))
        except (Conflict, NotFound):
            return False
        log.info("machine is a domain that was found", namespace=vm.namespace, name=vm.name, domain=lost.item.name)
        return True

    async def _make(self, scope: Scope, found: Match) -> Problem | None:
        """Make what it brings along of what the domain has; what it waits for then."""
        vm, volumes = scope.vm, self._known.volumes
        for disk in vm.spec.disks:
            data = found.volumes.get(disk.name)
            name = disk.volume_of(vm.name)
            if data is None or name is None:
                continue
            there = volumes.store.get(name, vm.namespace)
            if there is None:
                if disk.volume_template is None:
                    continue  # it is waited for by its name
                offered = volumes.offered(disk.volume_template.volume_class)
                policy = disk.volume_template.reclaim_policy or (
                    offered.spec.reclaim_policy if offered else ReclaimPolicy.DELETE
                )
                body = template_volume(vm, disk.volume_template, name, policy)
                body["metadata"]["annotations"][FOUND] = found_as(data)
                try:
                    raw = await self._services.client.create(Volume.KIND, body, vm.namespace)
                except AlreadyExists:
                    raw = await self._services.client.get(Volume.KIND, name, vm.namespace)
                volumes.store.apply(raw)
                there = volumes.store.get(name, vm.namespace)
            if there is not None and not await self._say(there, found_as(data)):
                return Problem("TakingOver", f"Volume {name} was changed just now.", "VolumesReady", stalled=False)
        for name in found.renew:
            await self._end(name, vm)
        return None

    async def _say(self, volume: Volume, data: str) -> bool:
        """Have the volume be that data, unless it is something already."""
        if volume.metadata.annotations.get(FOUND) == data:
            return True
        if volume.status.pool is not None or volume.deleting:
            return False
        body = {"metadata": {"resourceVersion": volume.metadata.resource_version, "annotations": {FOUND: data}}}
        try:
            raw = await self._services.client.patch(Volume.KIND, volume.name, body, volume.namespace)
        except (Conflict, NotFound):
            return False
        self._known.volumes.store.apply(raw)
        return True

    async def _end(self, name: str, vm: VirtualMachine) -> None:
        """End an interface that the machine brought along, and that no host ever had: it has not the addresses of the domain."""
        raw = await self._services.client.find(NetworkInterface.KIND, name, vm.namespace)
        there = NetworkInterface.parse(raw) if raw is not None else None
        if there is not None and there.status.host is None and not there.deleting:
            await self._known.interfaces.end(there)


def _is_on_record(vm: VirtualMachine, lost: Lost) -> bool:
    return origin_of(vm) == Origin(lost.host, lost.item.name, lost.epoch)


def _went_on(origin: Origin, lost: Lost) -> bool:
    """Whether it is the domain on record, placed again since: what is on record came with a backup of the machine."""
    return (lost.host, lost.item.name) == (origin.host, origin.domain) and 0 < origin.epoch < lost.epoch
