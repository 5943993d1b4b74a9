"""A machine without a work order: what it brings along is made, it is placed, and its order written.

At most one running copy: a machine is placed only while no work order of it exists anywhere, and
the placement (host, epoch) is written into its status, on condition that nobody has changed it,
before the work order is made. Whoever lost that race reads again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import structlog

from kumulus.api.base import FINALIZER
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.instance_order import SeedRef
from kumulus.api.order_names import instance_order_name
from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import Volume
from kumulus.api.volumes import ReclaimPolicy
from kumulus.kube.errors import AlreadyExists, Refused
from kumulus.runtime.reconciler import Services
from kumulus.runtime.result import Done, Requeue, Result, Wait
from kumulus_controllers.compute import eviction
from kumulus_controllers.compute.links import linked
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.order import instance_order, seed_secret_name, template_volume
from kumulus_controllers.compute.orphans import Orphans, epoch_before
from kumulus_controllers.compute.phase import Placed, derive_status, placed
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.provisions import Provisions
from kumulus_controllers.compute.rebuild_machine import RebuildMachine
from kumulus_controllers.compute.rebuild_plan import Match
from kumulus_controllers.compute.resolve import (
    Resolution,
    attached_disks,
    drives,
    misplaced,
    placement_request,
    resolve,
)
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.compute.seed import Seed, SeedProblem, gather
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import superseded
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Placement, Refusal
from kumulus_controllers.status import write_status
from kumulus_controllers.storage.volume_plan import Wanted

log = structlog.get_logger(__name__)

LACK_SHOWN_AFTER = 2.0
"""What keeps a machine that has just been placed from its order mostly passes sooner than this, in seconds."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A placement that this process has put on record and made no order of yet, so that nobody has."""

    epoch: int
    term: int
    """Of the leader that this process was then: after another one led, there may have been an order."""
    at: float
    """Monotonic seconds."""


class Placing:
    """Brings about the work order of a machine that has none."""

    def __init__(self, services: Services, fleet: Fleet, known: Machines, provisions: Provisions) -> None:
        self._services = services
        self._fleet = fleet
        self._known = known
        self._provisions = provisions
        self._orphans = Orphans(services.caches)
        self._rebuild = RebuildMachine(services, known)
        self._ordering = Ordering(services, known.orders)
        self._fresh: dict[str, Fresh] = {}
        """By uid of the machine."""

    def attach(self) -> None:
        """Forget machines that are gone."""

        def machine_gone(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            if before is not None and (after is None or after.uid != before.uid):
                self._fresh.pop(before.uid, None)

        self._known.store.listen(machine_gone)

    async def bring_about(self, scope: Scope) -> Result:
        """There is no work order: make the volumes and interfaces it brings along, resolve, place unless placed, order."""
        found: Match | Problem | None = None
        try:
            found = await self._rebuild.bring_about(scope)
            if isinstance(found, Problem):
                return await self._known.report(scope, placed(scope), None, found)
            if found is not None:
                scope = self._known.observe(self._known.store.get(scope.vm.name, scope.vm.namespace) or scope.vm)
            if await self._make_volumes(scope):
                scope = self._known.observe(scope.vm)
        except Refused as refused:  # by a quota, say, or because the namespace ends
            problem = Problem(
                "VolumeRefused", f"The machine's volume cannot be made: {refused.message}", "VolumesReady"
            )
            return await self._known.report(scope, placed(scope), None, problem)
        nics_found = found.nics if found is not None else None
        if (refusal := await self._known.interfaces.make(scope, nics_found)) is not None:
            return await self._known.report(scope, placed(scope), None, refusal)
        await self._known.interfaces.drop(scope.vm)
        scope = self._known.observe(scope.vm)
        resolution = resolve(scope)
        where = placed(scope)
        if isinstance(resolution, Problem):
            return await self._known.report(scope, where, None, resolution)
        if found is not None and any(item.use.volume.status.host is None for item in resolution.volumes):
            waits = Problem("TakingOver", "Its volumes become the data that its domain has.", "VolumesReady", False)
            return await self._known.report(scope, None, resolution, waits)
        try:
            nics = linked(scope)[0]
            seed = await gather(self._services.client, scope.vm, nics, self._known.interfaces.wires(nics))
        except SeedProblem as problem:
            return await self._known.report(scope, where, resolution, Problem(problem.reason, str(problem)))
        if where is None:
            if (orphan := self._orphans.of(scope.vm)) is not None:
                return await self._known.report(scope, None, resolution, orphan)
            placement = self._fleet.place(placement_request(scope, resolution))
            if isinstance(placement, Refusal):
                return await self._known.report(
                    scope, None, resolution, Problem("NoHostFits", str(placement), stalled=False)
                )
            own = self._rebuild.pool(scope.vm, self._fleet.host(placement.host))
            if isinstance(own, Problem):
                return await self._known.report(scope, None, resolution, own)
            if own is not None:
                placement = replace(placement, pool=own)
            return await self.place(scope, resolution, placement, seed)
        if self._placed_just_now(scope.vm) is None and not await self._known.still_placed(scope.vm):
            return Wait("CacheBehind", 5.0)
        if misplaced(resolution, where.host) or eviction.leaves(scope):
            return await self._unplace(scope, resolution, where)
        view = self._fleet.host(where.host)
        own = self._rebuild.pool(scope.vm, view)
        if isinstance(own, Problem):
            return await self._known.report(scope, where, resolution, own)
        pool = own
        if pool is None and view is not None:
            pool = self._fleet.pool_for(resolution.demand, view, scope.vm.uid, scope.vm.namespace)
        return await self._order(scope, resolution, where, pool, seed)

    def _placed_just_now(self, vm: VirtualMachine) -> Fresh | None:
        """The machine's placement, if this process put it on record since it leads and made no order of it yet: there
        was none that could have gone."""
        fresh = self._fresh.get(vm.uid)
        if fresh is None or (fresh.epoch, fresh.term) != (vm.status.epoch, self._services.term()):
            return None
        return fresh

    async def _make_volumes(self, scope: Scope) -> bool:
        """Make the volumes that the machine brings along; True when one was made. They go with it unless they are retained."""
        vm, made = scope.vm, False
        for disk in vm.spec.disks:
            name = disk.volume_of(vm.name)
            if disk.volume_template is None or name is None or disk.name in scope.volumes:
                continue
            offered = self._known.volumes.offered(disk.volume_template.volume_class)
            policy = disk.volume_template.reclaim_policy or (
                offered.spec.reclaim_policy if offered else ReclaimPolicy.DELETE
            )
            body = template_volume(vm, disk.volume_template, name, policy)
            try:
                raw = await self._services.client.create(Volume.KIND, body, vm.namespace)
            except AlreadyExists:
                raw = await self._services.client.get(Volume.KIND, name, vm.namespace)
            self._known.volumes.store.apply(raw)
            made = True
        return made

    async def _unplace(self, scope: Scope, resolution: Resolution, where: Placed) -> Result:
        """A volume went elsewhere, or the host is emptied, before the machine had a work order: nothing runs, so it may be placed
        anew. By a live look: a leader before this one may have made the order, and it runs."""
        vm = scope.vm
        live = await self._ordering.live(instance_order_name(vm.uid), where.host)
        if live is not None and not superseded(live):
            return Wait("CacheBehind", 2.0)
        log.info("placed anew", namespace=vm.namespace, name=vm.name, host=vm.status.host)
        self._fleet.release(vm.uid)
        return await self._known.report(scope, None, resolution, None)

    async def place(
        self,
        scope: Scope,
        resolution: Resolution,
        placement: Placement,
        seed: Seed | None,
        *,
        failovers: tuple[str, ...] | None = None,
    ) -> Result:
        """Put a placement on record, then order. `failovers`: its host is lost, and that is when this happened; it is ordered
        by the next pass, when what is left of the last placement is out of the way."""
        vm, client = scope.vm, self._services.client
        host, pool = placement.host, placement.pool
        view = self._fleet.host(host)
        self._fleet.assign(vm.uid, host, resolution.demand, pool.uid if pool else None)
        sizes = {
            item.use.volume.uid: item.use.wanted.size
            for item in resolution.volumes
            if isinstance(item.use.wanted, Wanted)
        }
        for uid, ref in placement.volumes.items():
            self._fleet.keep(uid, host, ref.uid, sizes[uid])
        where = Placed(host, view.zone if view else "", (vm.status.epoch or epoch_before(vm)) + 1)
        try:
            after = derive_status(
                replace(scope, order=None, host=self._known.hosts.get(host)),
                where,
                resolution,
                None,
                self._known.now(),
                failovers=failovers,
            )
            await write_status(client, self._known.store, vm, vm.status, after)
        except BaseException:
            self._fleet.release(vm.uid)
            for uid in placement.volumes:
                self._fleet.let_go(uid)
            raise
        self._fresh[vm.uid] = Fresh(where.epoch, self._services.term(), self._services.clock.monotonic())
        current = self._known.store.get(vm.name, vm.namespace)
        if current is None or current.uid != vm.uid:
            self._fresh.pop(vm.uid, None)
            self._fleet.release(vm.uid)
            return Done()
        if failovers is not None:
            return Requeue(0.0)
        return await self._order(self._known.observe(current), resolution, where, pool, seed)

    async def _order(
        self, scope: Scope, resolution: Resolution, where: Placed, pool: PoolRef | None, seed: Seed | None
    ) -> Result:
        """Write the work order for a machine that is placed; then its images and its Secret, which the agent waits for."""
        vm, client = scope.vm, self._services.client
        view = self._fleet.host(where.host)
        if view is None or (pool is None and resolution.disks):
            why = "is gone" if view is None else "has no storage pool that is ready"
            return await self._known.report(
                scope, where, resolution, Problem("HostNotUsable", f"Host {where.host} {why}.", stalled=False)
            )
        ref = None
        if seed is not None:
            ref = SeedRef(secret=seed_secret_name(vm.uid)) if seed.secret else SeedRef(data=dict(seed.files))
        volumes, problem = attached_disks(scope, where.host)
        discs, discless = drives(scope, pool or self._provisions.disc_pool(scope, where.host))
        nics, unlinked = linked(scope)
        if (problem := problem or discless or unlinked) is not None:
            fresh = self._placed_just_now(vm)
            quiet = fresh.at + LACK_SHOWN_AFTER - self._services.clock.monotonic() if fresh is not None else 0.0
            if quiet > 0 and not problem.stalled:
                return Requeue(quiet)
            return await self._known.report(scope, where, resolution, problem)
        self._fresh.pop(vm.uid, None)
        spec = instance_order(
            vm, resolution, pool, volumes, discs, where.epoch, self._services.term(), ref, nics, scope.baseline
        )
        body = {"metadata": {"name": instance_order_name(vm.uid), "finalizers": [FINALIZER]}, "spec": spec.to_json()}
        namespace = host_namespace(where.host)
        try:
            raw = await client.create(WorkOrder.KIND, body, namespace)
        except AlreadyExists:
            raw = await client.get(WorkOrder.KIND, instance_order_name(vm.uid), namespace)
        self._known.orders.apply(raw)
        if seed is not None and seed.secret:
            await self._provisions.hand_over(vm, seed, WorkOrder.parse(raw))
        adopts = spec.instance is not None and spec.instance.adopt
        if pool is not None and not adopts:
            for disk in resolution.disks:
                await self._provisions.bring(disk.image, where.host, pool)
        await self._provisions.bring_discs(scope, where.host, discs)
        return await self._known.report(self._known.observe(vm), where, resolution, None)
