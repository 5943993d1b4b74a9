"""VirtualMachine: resolve, place, order, follow, derive, delete.

At most one running copy: a machine is placed only while no work order of it exists anywhere, and
the placement (host, epoch) is written into its status, on condition that nobody has changed it,
before the work order is made. Whoever lost that race reads again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog

from kumulus.api.base import FINALIZER, FORCE_DETACH
from kumulus.api.compute import InstanceType, Phase, ResolvedSize, VirtualMachine
from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.api.host import WorkOrder, WorkOrderSpec, WorkType
from kumulus.api.instance_order import Drive, InstanceDisk, SeedRef
from kumulus.api.order_names import instance_order_name
from kumulus.api.pool_order import PoolRef
from kumulus.api.segments import Nic
from kumulus.api.storage import Volume
from kumulus.api.volumes import ReclaimPolicy
from kumulus.kube.errors import AlreadyExists, NotFound, Refused
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers import order_secret
from kumulus_controllers.compute.interfaces import Interfaces
from kumulus_controllers.compute.links import linked, meant, renewed_nics
from kumulus_controllers.compute.order import instance_order, renewed, seed_secret_name, template_volume
from kumulus_controllers.compute.phase import Placed, derive_status, placed
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import (
    Resolution,
    attached_disks,
    drives,
    held,
    image_of,
    misplaced,
    placement_request,
    resolve,
)
from kumulus_controllers.compute.restores import holding, restores
from kumulus_controllers.compute.scope import AnyImage, Scope, Use
from kumulus_controllers.compute.seed import Seed, SeedProblem, gather
from kumulus_controllers.compute.size import is_ordered, no_room, unsuited, wanted_size
from kumulus_controllers.compute.wakeups import Wakeups
from kumulus_controllers.orders import FOR_NAME, FOR_UID, NOT_BEGUN, host_of, work_orders
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Demand, Placement, Refusal
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage.copies import Copies
from kumulus_controllers.storage.image_orders import order_import
from kumulus_controllers.storage.sharing import Images
from kumulus_controllers.storage.volume_plan import Wanted, goes_with
from kumulus_controllers.storage.volumes import Volumes

log = structlog.get_logger(__name__)

TERMINATING_SHOWN_AFTER = 2.0
"""A deletion that takes longer is shown in the status; most do not, and save a write."""

LACK_SHOWN_AFTER = 2.0
"""What keeps a machine that has just been placed from its order mostly passes sooner than this, in seconds."""

A_DISC = Demand(cpus=0, memory=0, disk=1)
"""What is asked of a pool for the disc in a drive: images take no promised room."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A placement that this process has put on record and made no order of yet, so that nobody has."""

    epoch: int
    term: int
    """Of the leader that this process was then: after another one led, there may have been an order."""
    at: float
    """Monotonic seconds."""


class MachineReconciler:
    """Brings a machine to what its spec says."""

    name = "virtualmachine"

    def __init__(self, services: Services, fleet: Fleet) -> None:
        caches = services.caches
        self._services = services
        self._fleet = fleet
        self._machines = caches.store(VirtualMachine)
        self._types = caches.store(InstanceType)
        self._images = Images(caches)
        self._hosts = caches.store(Host)
        self._zones = caches.store(Zone)
        self._volumes = Volumes(caches)
        self._interfaces = Interfaces(services)
        self._restores = restores(caches)
        self._orders = work_orders(caches)
        self._copies = Copies(caches)
        self._deleting_since: dict[str, float] = {}
        self._fresh: dict[str, Fresh] = {}
        """By uid of the machine."""
        self._handed_over: set[str] = set()
        """Uids of work orders not begun yet whose Secret this process has seen to."""

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; work orders first of all; what unplaced machines wait for; hosts that vanish and return."""

        def order_gone(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if before is not None and after is None:
                self._handed_over.discard(before.uid)

        def machine_gone(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            if before is not None and (after is None or after.uid != before.uid):
                self._fresh.pop(before.uid, None)

        self._orders.listen(order_gone)
        self._machines.listen(machine_gone)
        Wakeups(self._services.caches).attach(enqueue)

    def everything(self) -> list[Key]:
        """All machines, and those that only a left-over work order remembers."""
        keys = set(self._machines.keys())
        for order in self._orders:
            if order.spec.type is WorkType.INSTANCE:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    def _observe(self, vm: VirtualMachine) -> Scope:
        orders = self._orders.by(FOR_UID, f"{WorkType.INSTANCE}/{vm.uid}")
        order = max(
            orders, key=lambda o: (o.spec.instance.epoch if o.spec.instance else 0, not o.deleting), default=None
        )
        host = vm.status.host or (host_of(order) if order else None)
        return Scope(
            vm=vm,
            order=order,
            host=self._hosts.get(host) if host else None,
            instance_type=self._types.get(vm.spec.instance_type) if vm.spec.instance_type else None,
            images=self._images_of(vm),
            zone_exists=vm.spec.zone is None or self._zones.get(vm.spec.zone) is not None,
            volumes={disk: self._use(volume, host) for disk, volume in self._volumes.of(vm).items()},
            links=self._interfaces.links(vm),
            restore=holding(self._restores, vm),
        )

    def _use(self, volume: Volume, host: str | None) -> Use:
        pool = self._volumes.pool(volume)
        usable = pool is None or host is None or not pool.shared or self._volumes.usable(pool, host)
        return Use(volume, self._volumes.wanted(volume), pool, self._volumes.manner(volume), usable)

    def _images_of(self, vm: VirtualMachine) -> Mapping[str, AnyImage]:
        found: dict[str, AnyImage] = {}
        for disk in vm.spec.disks:
            wanted = image_of(vm, disk)
            if wanted is not None:
                image = self._images.find(wanted)
                if image is not None:
                    found[wanted.key] = image
        return found

    async def reconcile(self, key: Key) -> Result:
        """One pass over a machine."""
        vm = self._machines.get(key.name, key.namespace)
        await self._remove_orphans(key, vm)
        if vm is None:
            return Gone()
        if vm.paused:
            # Nothing is done to it, also not removed; only whoever waits for its end is told what it waits for.
            return await self._report(scope := self._observe(vm), placed(scope), None, None) if vm.deleting else Done()
        if vm.deleting:
            return await self._delete(self._observe(vm))
        if await ensure_finalizer(self._services.client, self._machines, vm):
            vm = self._machines.get(key.name, key.namespace) or vm
        scope = self._observe(vm)
        if scope.order is not None and (vm.status.host is None or scope.order.deleting):
            return await self._adopt(scope)
        if scope.order is None:
            if (problem := held(scope)) is not None:
                return await self._report(scope, placed(scope), None, problem)
            return await self._bring_about(scope)
        return await self._follow(scope, scope.order)

    async def _follow(self, scope: Scope, order: WorkOrder) -> Result:
        """There is a work order: bring into it what may change, see that what it names is there, report."""
        vm, host = scope.vm, host_of(order)
        refused = await self._interfaces.make(scope)
        scope = replace(scope, links=self._interfaces.links(vm))
        volumes, problem = attached_disks(scope, host)
        discs, discless = drives(scope, self._disc_pool(scope, host))
        nics, unlinked = linked(scope)
        problem = problem or discless or refused or unlinked
        nics = renewed_nics(vm, order, nics, meant(scope))
        with self._granted(scope, order) as (size, too_large):
            await self._renew(order, vm, volumes, discs, nics, held=scope.restore is not None, size=size)
        await self._interfaces.drop(vm)
        await self._bring_discs(scope, host, discs)
        if order.status.state in NOT_BEGUN:
            problem = await self._provide(scope) or problem
        elif problem is not None:
            problem = replace(problem, hinders=False)
        return await self._report(
            self._observe(vm), placed(scope), None, held(scope) or problem, size=size, too_large=too_large
        )

    @contextmanager
    def _granted(self, scope: Scope, order: WorkOrder) -> Iterator[tuple[ResolvedSize | None, Problem | None]]:
        """The size to order, for which room is kept; or None for the one that is ordered, and why it is no other."""
        size, instance = wanted_size(scope), order.spec.instance
        assert instance is not None
        if isinstance(size, Problem):
            yield None, size
        elif is_ordered(size, instance):
            yield size, None
        elif (problem := unsuited(scope, size)) is not None:
            yield None, problem
        else:
            has = scope.vm.status.resources or size
            most = max(size.cpus, has.cpus), max(size.memory_bytes, has.memory_bytes)
            with self._fleet.enlarging(scope.vm.uid, *most) as lack:
                yield (size, None) if lack is None else (None, no_room(size, lack))

    async def _adopt(self, scope: Scope) -> Result:
        """A work order exists that the status does not know (the status was lost), or one that is on its way out."""
        order = scope.order
        assert order is not None and order.spec.instance is not None
        if order.deleting:
            return await self._report(scope, placed(scope), None, None)
        host = host_of(order)
        found = self._hosts.get(host)
        where = Placed(host, found.spec.zone if found else "", order.spec.instance.epoch)
        log.info(
            "placement found again from the work order", namespace=scope.vm.namespace, name=scope.vm.name, host=host
        )
        resolution = resolve(scope)
        return await self._report(scope, where, None if isinstance(resolution, Problem) else resolution, None)

    async def _bring_about(self, scope: Scope) -> Result:
        """There is no work order: make the volumes and interfaces it brings along, resolve, place unless placed, order."""
        try:
            if await self._make_volumes(scope):
                scope = self._observe(scope.vm)
        except Refused as refused:  # by a quota, say, or because the namespace ends
            problem = Problem(
                "VolumeRefused", f"The machine's volume cannot be made: {refused.message}", "VolumesReady"
            )
            return await self._report(scope, placed(scope), None, problem)
        if (refusal := await self._interfaces.make(scope)) is not None:
            return await self._report(scope, placed(scope), None, refusal)
        await self._interfaces.drop(scope.vm)
        scope = self._observe(scope.vm)
        resolution = resolve(scope)
        where = placed(scope)
        if isinstance(resolution, Problem):
            return await self._report(scope, where, None, resolution)
        try:
            nics = linked(scope)[0]
            seed = await gather(self._services.client, scope.vm, nics, self._interfaces.wires(nics))
        except SeedProblem as problem:
            return await self._report(scope, where, resolution, Problem(problem.reason, str(problem)))
        if where is None:
            placement = self._fleet.place(placement_request(scope, resolution))
            if isinstance(placement, Refusal):
                return await self._report(scope, None, resolution, Problem("NoHostFits", str(placement), stalled=False))
            return await self._place(scope, resolution, placement, seed)
        if self._placed_just_now(scope.vm) is None and not await self._still_wanted(scope.vm):
            return Wait("CacheBehind", 5.0)
        if misplaced(resolution, where.host):
            return await self._unplace(scope, resolution)
        view = self._fleet.host(where.host)
        pool = self._fleet.pool_for(resolution.demand, view, scope.vm.uid, scope.vm.namespace) if view else None
        return await self._order(scope, resolution, where, pool, seed)

    def _placed_just_now(self, vm: VirtualMachine) -> Fresh | None:
        """The machine's placement, if this process put it on record since it leads and made no order of it yet: there
        was none that could have gone."""
        fresh = self._fresh.get(vm.uid)
        if fresh is None or (fresh.epoch, fresh.term) != (vm.status.epoch, self._services.term()):
            return None
        return fresh

    async def _still_wanted(self, vm: VirtualMachine) -> bool:
        """Before ordering anew what was placed by an earlier pass: the cache of machines may be behind that of work orders."""
        live = await self._services.client.find(VirtualMachine.KIND, vm.name, vm.namespace)
        if live is None:
            return False
        self._machines.apply(live)
        now = VirtualMachine.parse(live)
        return (
            now.uid == vm.uid
            and not now.deleting
            and (now.status.host, now.status.epoch) == (vm.status.host, vm.status.epoch)
        )

    async def _provide(self, scope: Scope) -> Problem | None:
        """See that what the work order waits for is there. It is made right after the order, and a crash may have come between."""
        vm, order = scope.vm, scope.order
        assert order is not None and order.spec.instance is not None
        images = {image.uid: image for image in scope.images.values()}
        for disk in order.spec.instance.disks:
            image = images.get(disk.image.uid) if disk.image is not None else None
            if image is not None and not image.deleting:
                await order_import(self._services, self._fleet, self._copies, image, host_of(order), disk.pool)
        seed = order.spec.instance.seed
        if seed is None or seed.secret is None or order.uid in self._handed_over:
            return None
        try:
            nics = order.spec.instance.nics
            gathered = await gather(self._services.client, vm, nics, self._interfaces.wires(nics))
        except SeedProblem as problem:
            return Problem(problem.reason, str(problem), "VolumesReady")
        if gathered is not None:
            await self._hand_over(vm, gathered, order)
        return None

    def _disc_pool(self, scope: Scope, host: str) -> PoolRef | None:
        """The pool into which discs for the machine's drives are brought: one that it uses already, if that is open."""
        if all(disk.cdrom is None for disk in scope.vm.spec.disks):
            return None
        view = self._fleet.host(host)
        if view is None:
            return None
        instance = scope.order.spec.instance if scope.order is not None else None
        used = {disk.pool.uid for disk in instance.disks} if instance is not None else set()
        for pool in view.pools:
            if pool.open and pool.ref.uid in used:
                return pool.ref
        return self._fleet.pool_for(A_DISC, view, scope.vm.uid)

    async def _bring_discs(self, scope: Scope, host: str, discs: tuple[Drive, ...]) -> None:
        """Have the host bring the discs that its agent waits for into their pools."""
        images = {image.uid: image for image in scope.images.values()}
        for drive in discs:
            image = images.get(drive.image.uid) if drive.image is not None else None
            if image is not None and drive.pool is not None and not image.deleting:
                await order_import(self._services, self._fleet, self._copies, image, host, drive.pool)

    async def _make_volumes(self, scope: Scope) -> bool:
        """Make the volumes that the machine brings along; True when one was made. They go with it unless they are retained."""
        vm, made = scope.vm, False
        for disk in vm.spec.disks:
            name = disk.volume_of(vm.name)
            if disk.volume_template is None or name is None or disk.name in scope.volumes:
                continue
            offered = self._volumes.offered(disk.volume_template.volume_class)
            policy = disk.volume_template.reclaim_policy or (
                offered.spec.reclaim_policy if offered else ReclaimPolicy.DELETE
            )
            body = template_volume(vm, disk.volume_template, name, policy)
            try:
                raw = await self._services.client.create(Volume.KIND, body, vm.namespace)
            except AlreadyExists:
                raw = await self._services.client.get(Volume.KIND, name, vm.namespace)
            self._volumes.store.apply(raw)
            made = True
        return made

    async def _unplace(self, scope: Scope, resolution: Resolution) -> Result:
        """A volume went elsewhere before the machine had a work order: nothing runs, so it may be placed anew."""
        vm = scope.vm
        log.info("placed anew", namespace=vm.namespace, name=vm.name, host=vm.status.host)
        self._fleet.release(vm.uid)
        return await self._report(scope, None, resolution, None)

    async def _place(self, scope: Scope, resolution: Resolution, placement: Placement, seed: Seed | None) -> Result:
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
        where = Placed(host, view.zone if view else "", (vm.status.epoch or 0) + 1)
        try:
            after = derive_status(
                replace(scope, order=None, host=self._hosts.get(host)),
                where,
                resolution,
                None,
                self._now(),
            )
            await write_status(client, self._machines, vm, vm.status, after)
        except BaseException:
            self._fleet.release(vm.uid)
            for uid in placement.volumes:
                self._fleet.let_go(uid)
            raise
        self._fresh[vm.uid] = Fresh(where.epoch, self._services.term(), self._services.clock.monotonic())
        current = self._machines.get(vm.name, vm.namespace)
        if current is None or current.uid != vm.uid:
            self._fresh.pop(vm.uid, None)
            self._fleet.release(vm.uid)
            return Done()
        return await self._order(self._observe(current), resolution, where, pool, seed)

    async def _order(
        self, scope: Scope, resolution: Resolution, where: Placed, pool: PoolRef | None, seed: Seed | None
    ) -> Result:
        """Write the work order for a machine that is placed; then its images and its Secret, which the agent waits for."""
        vm, client = scope.vm, self._services.client
        view = self._fleet.host(where.host)
        if view is None or (pool is None and resolution.disks):
            why = "is gone" if view is None else "has no storage pool that is ready"
            return await self._report(
                scope, where, resolution, Problem("HostNotUsable", f"Host {where.host} {why}.", stalled=False)
            )
        ref = None
        if seed is not None:
            ref = SeedRef(secret=seed_secret_name(vm.uid)) if seed.secret else SeedRef(data=dict(seed.files))
        volumes, problem = attached_disks(scope, where.host)
        discs, discless = drives(scope, pool or self._disc_pool(scope, where.host))
        nics, unlinked = linked(scope)
        if (problem := problem or discless or unlinked) is not None:
            fresh = self._placed_just_now(vm)
            quiet = fresh.at + LACK_SHOWN_AFTER - self._services.clock.monotonic() if fresh is not None else 0.0
            if quiet > 0 and not problem.stalled:
                return Requeue(quiet)
            return await self._report(scope, where, resolution, problem)
        self._fresh.pop(vm.uid, None)
        spec = instance_order(vm, resolution, pool, volumes, discs, where.epoch, self._services.term(), ref, nics)
        body = {"metadata": {"name": instance_order_name(vm.uid), "finalizers": [FINALIZER]}, "spec": spec.to_json()}
        namespace = host_namespace(where.host)
        try:
            raw = await client.create(WorkOrder.KIND, body, namespace)
        except AlreadyExists:
            raw = await client.get(WorkOrder.KIND, instance_order_name(vm.uid), namespace)
        self._orders.apply(raw)
        if seed is not None and seed.secret:
            await self._hand_over(vm, seed, WorkOrder.parse(raw))
        if pool is not None:
            for disk in resolution.disks:
                await order_import(self._services, self._fleet, self._copies, disk.image, where.host, pool)
        await self._bring_discs(scope, where.host, discs)
        return await self._report(self._observe(vm), where, resolution, None)

    async def _hand_over(self, vm: VirtualMachine, seed: Seed, order: WorkOrder) -> None:
        """Copy first-boot data with secrets in it into the host's namespace; it goes when the work order goes."""
        content = {"stringData": dict(seed.files)}
        body = order_secret.belonging(seed_secret_name(vm.uid), order, content)
        await order_secret.give(self._services.client, body, order)
        self._handed_over.add(order.uid)

    async def _renew(
        self,
        order: WorkOrder,
        vm: VirtualMachine,
        volumes: tuple[InstanceDisk, ...],
        discs: tuple[Drive, ...],
        nics: tuple[Nic, ...],
        *,
        held: bool,
        size: ResolvedSize | None,
    ) -> None:
        """Bring what may change of a placed machine into its work order."""
        wanted: WorkOrderSpec = renewed(
            vm, order.spec, volumes, discs, self._services.term(), nics=nics, held=held, size=size
        )
        patch = merge_patch(order.spec.to_json(), wanted.to_json())
        if not patch:
            return
        body = {"metadata": {"resourceVersion": order.metadata.resource_version}, "spec": patch}
        self._orders.apply(await self._services.client.patch(WorkOrder.KIND, order.name, body, order.namespace))

    async def _delete(self, scope: Scope) -> Result:
        vm, client = scope.vm, self._services.client
        if FINALIZER not in vm.metadata.finalizers:
            return Done()
        orders = self._orders.by(FOR_UID, f"{WorkType.INSTANCE}/{vm.uid}")
        if not orders and vm.status.host is not None and vm.uid not in self._deleting_since:
            orders = await self._live_orders(vm)
        forced = vm.metadata.annotations.get(FORCE_DETACH) == "true"
        for order in orders:
            if not order.deleting:
                await self._delete_order(order)
            elif forced:
                await drop_finalizer(client, self._orders, order)
        if not self._orders.by(FOR_UID, f"{WorkType.INSTANCE}/{vm.uid}"):
            await self._delete_own_volumes(vm)
            await self._interfaces.drop(vm, all_of_them=True)
            await drop_finalizer(client, self._machines, vm)
            self._deleting_since.pop(vm.uid, None)
            self._fleet.release(vm.uid)
            for volume in self._volumes.of(vm).values():
                if volume.status.pool is None:  # it had room with the machine, and was never made
                    self._fleet.let_go(volume.uid)
            return Gone()
        now = self._services.clock.monotonic()
        since = self._deleting_since.setdefault(vm.uid, now)
        if now - since < TERMINATING_SHOWN_AFTER and vm.status.phase is not Phase.TERMINATING:
            return Requeue(TERMINATING_SHOWN_AFTER)
        return await self._report(self._observe(vm), placed(scope), None, None)

    async def _delete_own_volumes(self, vm: VirtualMachine) -> None:
        """The volumes that go with the machine. The garbage collector would see to them as well, half a minute later."""
        for volume in self._volumes.of(vm).values():
            if not volume.deleting and goes_with(volume, vm.uid):
                try:
                    raw = await self._services.client.delete(Volume.KIND, volume.name, volume.namespace, uid=volume.uid)
                except Refused:  # protected from deletion: it outlives the machine after all
                    log.info("a volume of a machine that goes is protected", namespace=vm.namespace, name=volume.name)
                    continue
                if raw is not None and "spec" in raw:
                    self._volumes.store.apply(raw)

    async def _live_orders(self, vm: VirtualMachine) -> list[WorkOrder]:
        """Before letting a placed machine go whose work order this process has not seen go: is there really none?"""
        namespace = host_namespace(vm.status.host or "")
        raw = await self._services.client.find(WorkOrder.KIND, instance_order_name(vm.uid), namespace)
        if raw is None:
            return []
        self._orders.apply(raw)
        return [WorkOrder.parse(raw)]

    async def _delete_order(self, order: WorkOrder) -> None:
        """Ask for the end of a work order. Its Secret goes first: the garbage collector may take half a minute."""
        seed = order.spec.instance.seed if order.spec.instance is not None else None
        if seed is not None and seed.secret is not None:
            await order_secret.take_back(self._services.client, seed.secret, order)
        raw = await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if raw is None or "spec" not in raw or FINALIZER not in raw["metadata"].get("finalizers", ()):
            self._orders.remove(Key(order.namespace, order.name), order.uid)
        else:
            self._orders.apply(raw)

    async def _remove_orphans(self, key: Key, vm: VirtualMachine | None) -> None:
        """Work orders of a machine of that name that is no more: removed after a live look."""
        for order in self._orders.by(FOR_NAME, f"VirtualMachine/{key.namespace or ''}/{key.name}"):
            if (
                order.spec.type is not WorkType.INSTANCE
                or order.deleting
                or (vm is not None and order.spec.for_.uid == vm.uid)
            ):
                continue
            live = await self._services.client.find(VirtualMachine.KIND, key.name, key.namespace)
            if live is None or live["metadata"]["uid"] != order.spec.for_.uid:
                log.info("removing the work order of a machine that is gone", namespace=key.namespace, name=key.name)
                await self._delete_order(order)

    async def _report(
        self,
        scope: Scope,
        where: Placed | None,
        resolution: Resolution | None,
        problem: Problem | None,
        *,
        size: ResolvedSize | None = None,
        too_large: Problem | None = None,
    ) -> Result:
        vm = self._machines.get(scope.vm.name, scope.vm.namespace) or scope.vm
        if vm.uid != scope.vm.uid:
            return Done()
        current = replace(scope, vm=vm)
        after = derive_status(current, where, resolution, problem, self._now(), size=size, too_large=too_large)
        try:
            await write_status(self._services.client, self._machines, vm, vm.status, after)
        except NotFound:
            return Done()
        problem = problem or too_large
        if problem is not None:
            return Wait(problem.reason, 15.0 if problem.reason.startswith("Secret") else 60.0)
        if vm.deleting:
            return Wait("Terminating", 30.0)
        return Done()

    def _now(self) -> str:
        return rfc3339(self._services.clock.now())
