"""What is known of machines, and the one way into their status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from kumulus.api.compute import ResolvedSize, VirtualMachine
from kumulus.api.fabric import Host, Zone, host_namespace
from kumulus.api.host import HostReport, WorkOrder, WorkType
from kumulus.api.instance_type import InstanceType
from kumulus.api.storage import Volume
from kumulus.kube.errors import NotFound
from kumulus.kube.store import Key, Store
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Services
from kumulus.runtime.result import Done, Result, Wait
from kumulus_controllers.compute import eviction
from kumulus_controllers.compute.groups import Groups
from kumulus_controllers.compute.interfaces import Interfaces
from kumulus_controllers.compute.phase import Placed, derive_status
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import Resolution, image_of, standing_request
from kumulus_controllers.compute.restores import holding, restores
from kumulus_controllers.compute.schedule import Hours, hours, in_force
from kumulus_controllers.compute.scope import AnyImage, Scope, Use
from kumulus_controllers.orders import FOR_UID, host_of, superseded, work_orders
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.status import write_status
from kumulus_controllers.storage.sharing import Images
from kumulus_controllers.storage.volumes import Volumes

A_MOMENT = 0.05
"""Seconds: whoever looks at a schedule when it is due is not to look too early."""


def reports_of(hosts: Iterable[Host], reports: Store[HostReport]) -> dict[str, HostReport]:
    """What the agents of these hosts say of them, by name of the host; of some there may be nothing."""
    found = ((host.name, reports.get(host.name, host_namespace(host.name))) for host in hosts)
    return {name: report for name, report in found if report is not None}


def order_of(vm: VirtualMachine, orders: Sequence[WorkOrder]) -> WorkOrder | None:
    """The work order that the machine is placed by. While it moves there are two of it (docs/adr/0029): the one on the host
    that is on record counts. Pure."""
    placed = [order for order in orders if vm.status.host is not None and host_of(order) == vm.status.host]
    others = [order for order in orders if order.spec.instance is None or order.spec.instance.incoming is None]
    return max(
        placed or others,
        key=lambda o: (o.spec.instance.epoch if o.spec.instance else 0, not o.deleting),
        default=None,
    )


class Machines:
    """What this process knows of machines and of what they name; what it finds out of one is reported here."""

    def __init__(self, services: Services, fleet: Fleet) -> None:
        caches = services.caches
        self._services = services
        self._fleet = fleet
        self.store = caches.store(VirtualMachine)
        self.hosts = caches.store(Host)
        self.volumes = Volumes(caches)
        self.interfaces = Interfaces(services)
        self.orders = work_orders(caches)
        self._types = caches.store(InstanceType)
        self._images = Images(caches)
        self._zones = caches.store(Zone)
        self._reports = caches.store(HostReport)
        self._restores = restores(caches)
        self._groups = Groups(caches)

    def observe(self, vm: VirtualMachine) -> Scope:
        """A machine with everything that its state follows from."""
        order = order_of(vm, self.orders_of(vm))
        host = vm.status.host or (host_of(order) if order else None)
        found = self.hosts.get(host) if host else None
        zone = self._zones.get(found.spec.zone) if found is not None else None
        said = hours(vm, self._services.clock.now())
        found_out = Scope(
            vm=in_force(vm, said),
            hours=said,
            order=order,
            host=found,
            report=self._reports.get(host, host_namespace(host)) if host else None,
            instance_type=self._types.get(vm.spec.instance_type) if vm.spec.instance_type else None,
            images=self._images_of(vm),
            zone_exists=vm.spec.zone is None or self._zones.get(vm.spec.zone) is not None,
            volumes={disk: self.use(volume, host) for disk, volume in self.volumes.of(vm).items()},
            links=self.interfaces.links(vm),
            baseline=zone.spec.cpu_baseline if zone is not None else None,
            restore=holding(self._restores, vm),
            groups=self._groups.of(vm),
        )
        return eviction.in_force(found_out)

    def orders_of(self, vm: VirtualMachine) -> Sequence[WorkOrder]:
        """Its work orders, those on their way out as well; not what fenced hosts have to clean up."""
        return [order for order in self.all_orders_of(vm) if not superseded(order)]

    def all_orders_of(self, vm: VirtualMachine) -> Sequence[WorkOrder]:
        """Its work orders, also what fenced hosts have to clean up."""
        return self.orders.by(FOR_UID, f"{WorkType.INSTANCE}/{vm.uid}")

    async def still_placed(self, vm: VirtualMachine) -> bool:
        """Before an order is made for what was placed by an earlier pass: the cache of machines may be behind that of work
        orders. A live look: it is neither gone nor going, nor somewhere else. Raises `KubeError`."""
        live = await self._services.client.find(VirtualMachine.KIND, vm.name, vm.namespace)
        if live is None:
            return False
        self.store.apply(live)
        now = VirtualMachine.parse(live)
        return (
            now.uid == vm.uid
            and not now.deleting
            and (now.status.host, now.status.epoch) == (vm.status.host, vm.status.epoch)
        )

    def use(self, volume: Volume, host: str | None) -> Use:
        """A volume as a machine on that host has it."""
        pool = self.volumes.pool(volume)
        usable = pool is None or host is None or not pool.shared or self.volumes.usable(pool, host)
        return Use(volume, self.volumes.wanted(volume), pool, self.volumes.manner(volume), usable)

    def _images_of(self, vm: VirtualMachine) -> Mapping[str, AnyImage]:
        found: dict[str, AnyImage] = {}
        for disk in vm.spec.disks:
            wanted = image_of(vm, disk)
            if wanted is not None:
                image = self._images.find(wanted)
                if image is not None:
                    found[wanted.key] = image
        return found

    async def report(
        self,
        scope: Scope,
        where: Placed | None,
        resolution: Resolution | None,
        problem: Problem | None,
        *,
        size: ResolvedSize | None = None,
        too_large: Problem | None = None,
    ) -> Result:
        """Write what is derived into the status, if it differs; how to go on from it."""
        vm = self.store.get(scope.vm.name, scope.vm.namespace) or scope.vm
        if vm.uid != scope.vm.uid:
            return Done()
        said = hours(vm, self._services.clock.now())
        unsatisfied = self._unsatisfied(scope) if where is not None else ()
        current = eviction.in_force(
            replace(scope, vm=in_force(vm, said), hours=said, evicted=None, unsatisfied=unsatisfied)
        )
        after = derive_status(current, where, resolution, problem, self.now(), size=size, too_large=too_large)
        try:
            await write_status(self._services.client, self.store, vm, vm.status, after)
        except NotFound:
            return Done()
        problem = problem or too_large
        if problem is not None:
            return Wait(problem.reason, 15.0 if problem.reason.startswith("Secret") else 60.0)
        if vm.deleting:
            return Wait("Terminating", 30.0)
        return Done()

    def _unsatisfied(self, scope: Scope) -> tuple[str, ...]:
        """Which rules of its placement do not hold any more where it is, in words that come after its host."""
        return tuple(map(str, self._fleet.unsatisfied(standing_request(scope))))

    def due(self, key: Key) -> float | None:
        """In how many seconds its schedule says something else; None: it has none."""
        vm, now = self.store.get(key.name, key.namespace), self._services.clock.now()
        said = hours(vm, now) if vm is not None else None
        return max((said.at - now).total_seconds(), 0.0) + A_MOMENT if isinstance(said, Hours) else None

    def now(self) -> str:
        """The time as it stands in a status."""
        return rfc3339(self._services.clock.now())
