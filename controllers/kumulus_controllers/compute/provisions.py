"""What has to be at a host beside a machine's work order."""

from __future__ import annotations

from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder
from kumulus.api.instance_order import Drive
from kumulus.api.pool_order import PoolRef
from kumulus.runtime.reconciler import Services
from kumulus_controllers import order_secret
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.order import seed_secret_name
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import AnyImage, Scope
from kumulus_controllers.compute.seed import Seed, SeedProblem, gather
from kumulus_controllers.orders import host_of
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Demand
from kumulus_controllers.storage.copies import Copies
from kumulus_controllers.storage.image_orders import order_import

A_DISC = Demand(cpus=0, memory=0, disk=1)
"""What is asked of a pool for the disc in a drive: images take no promised room."""


class Provisions:
    """What a machine's work order names and its agent waits for: images, discs, first-boot data with secrets."""

    def __init__(self, services: Services, fleet: Fleet, known: Machines) -> None:
        self._services = services
        self._fleet = fleet
        self._known = known
        self._copies = Copies(services.caches)
        self._handed_over: set[str] = set()
        """Uids of work orders not begun yet whose Secret this process has seen to."""

    def attach(self) -> None:
        """Forget work orders that are gone."""

        def order_gone(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if before is not None and after is None:
                self._handed_over.discard(before.uid)

        self._known.orders.listen(order_gone)

    async def provide(self, scope: Scope) -> Problem | None:
        """See that what the work order waits for is there. It is made right after the order, and a crash may have come between."""
        vm, order = scope.vm, scope.order
        assert order is not None and order.spec.instance is not None
        images = {image.uid: image for image in scope.images.values()}
        for disk in () if order.spec.instance.adopt else order.spec.instance.disks:  # they are there
            image = images.get(disk.image.uid) if disk.image is not None else None
            if image is not None and not image.deleting:
                await self.bring(image, host_of(order), disk.pool)
        seed = order.spec.instance.seed
        if seed is None or seed.secret is None or order.uid in self._handed_over:
            return None
        try:
            nics = order.spec.instance.nics
            gathered = await gather(self._services.client, vm, nics, self._known.interfaces.wires(nics))
        except SeedProblem as problem:
            return Problem(problem.reason, str(problem), "VolumesReady")
        if gathered is not None:
            await self.hand_over(vm, gathered, order)
        return None

    def disc_pool(self, scope: Scope, host: str) -> PoolRef | None:
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

    async def bring_discs(self, scope: Scope, host: str, discs: tuple[Drive, ...]) -> None:
        """Have the host bring the discs that its agent waits for into their pools."""
        images = {image.uid: image for image in scope.images.values()}
        for drive in discs:
            image = images.get(drive.image.uid) if drive.image is not None else None
            if image is not None and drive.pool is not None and not image.deleting:
                await self.bring(image, host, drive.pool)

    async def bring(self, image: AnyImage, host: str, pool: PoolRef) -> None:
        """Have a host bring an image into a pool of it, unless it is there or on its way."""
        await order_import(self._services, self._fleet, self._copies, image, host, pool)

    async def hand_over(self, vm: VirtualMachine, seed: Seed, order: WorkOrder) -> None:
        """Copy first-boot data with secrets in it into the host's namespace; it goes when the work order goes."""
        content = {"stringData": dict(seed.files)}
        body = order_secret.belonging(seed_secret_name(vm.uid), order, content)
        await order_secret.give(self._services.client, body, order)
        self._handed_over.add(order.uid)
