"""Keeps the fleet equal to the caches: hosts that are ready, pools on them, and what is promised to machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import ResolvedSize, VirtualMachine
from kumulus.api.fabric import Host, HostCondition, Zone, host_namespace
from kumulus.api.host import DriverUplinks, HostReport, WorkOrder, WorkState, WorkType
from kumulus.api.pool_order import PoolFacts
from kumulus.api.quantity import to_bytes
from kumulus.api.storage import StoragePool, Volume
from kumulus.kube.store import Store
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.orders import FOR_UID, claim, host_of, superseded, work_orders
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.residents import Resident
from kumulus_controllers.planning.rules import repels
from kumulus_controllers.planning.views import Demand, HostView, Moving, PoolView

UID = "uid"


def closed(host: Host, *, guests: bool = True) -> str | None:
    """Why a host takes no machines, or, without `guests`, nothing of what its watchdog leaves alone; None when it does."""
    if host.deleting:
        return "being removed"
    ready = host.status.condition(HostCondition.READY)
    if ready is None or ready.status is not ConditionStatus.TRUE or host.status.allocatable is None:
        return "not ready"
    if host.spec.unschedulable:
        return "cordoned"
    if host.fencing:
        return "fenced"
    if host.spec.maintenance is not None:
        return "in maintenance"
    if guests and host.unarmed:
        return "without its watchdog"
    return None


def host_view(host: Host, report: HostReport | None = None, zone: Zone | None = None) -> HostView:
    """A host as placement sees it."""
    allocatable = host.status.allocatable
    network = report.status.network if report is not None else None
    return HostView(
        name=host.name,
        uid=host.uid,
        zone=host.spec.zone,
        cpus=allocatable.cpus if allocatable else 0,
        memory=allocatable.memory if allocatable else 0,
        labels=host.metadata.labels,
        taints=host.spec.taints,
        namespaces=host.spec.allowed_namespaces,
        closed=closed(host),
        baseline=zone.spec.cpu_baseline if zone is not None else None,
        cpu_models=_names(host.status.cpu.models if host.status.cpu is not None else ()),
        machine_types=_names(host.status.machine_types),
        features=frozenset(host.status.features),
        networks=frozenset(network.drivers) if network is not None else frozenset(),
        network_lack=network.message if network is not None else None,
        uplinks=uplinks(report),
    )


@lru_cache(maxsize=256)
def _names(said: tuple[str, ...]) -> frozenset[str]:
    """Most hosts of a cloud say the same: it is kept once."""
    return frozenset(said)


def uplinks(report: HostReport | None) -> Mapping[str, DriverUplinks] | None:
    """What a host's agent says of VLANs, by what makes networks; None when it has not said anything."""
    network = report.status.network if report is not None else None
    said = network.uplinks if network is not None else None
    return {item.driver.value: item for item in said} if said is not None else None


def order_demand(order: WorkOrder) -> tuple[Demand, str | None]:
    """What the machine of an Instance order takes, and the uid of the pool of its disks."""
    instance = order.spec.instance
    assert instance is not None
    own = [disk for disk in instance.disks if disk.volume is None]
    return Demand(instance.cpus, instance.memory, sum(d.size or 0 for d in own)), own[0].pool.uid if own else None


def resident(machine: VirtualMachine) -> Resident:
    """What rules of other machines may ask of a machine."""
    return Resident(
        machine.uid, machine.namespace, machine.name, machine.metadata.labels, repels(machine.spec.placement)
    )


def _asked(machine: VirtualMachine) -> tuple[object, ...]:
    return machine.uid, machine.metadata.labels, machine.spec.placement


def besides(uid: str, host: str) -> str:
    """What the promise to a machine on another host than its own is called."""
    return f"{uid}@{host}"


def keep_beside(fleet: Fleet, machine: VirtualMachine, host: str, demand: Demand) -> None:
    """Promise a machine room on another host than its own, where it counts for the rules of others as well."""
    name = besides(machine.uid, host)
    fleet.put_machine(replace(resident(machine), uid=name, of=machine.uid))
    fleet.assign(name, host, demand, None)


def along(volume: str | None, machine: str, disk: str) -> str:
    """What the promise to a disk is called that moves with its machine: of a volume, or of the machine's own of that name."""
    return f"{volume or f'{machine}/{disk}'}@moving"


def drop_beside(fleet: Fleet, name: str) -> None:
    """Take that back; `name` is what `besides` says. Nothing promised: nothing."""
    fleet.release(name)
    fleet.drop_machine(name)


def _place(machine: VirtualMachine) -> tuple[str | None, ResolvedSize | None]:
    return machine.status.host, machine.status.resources


def _at_least(demand: Demand, has: ResolvedSize | None) -> Demand:
    """What it takes until its next start, where it has another size than its order gives it then."""
    if has is None:
        return demand
    return replace(demand, cpus=max(demand.cpus, has.cpus), memory=max(demand.memory, has.memory_bytes))


def reached(facts: PoolFacts, percent: int | None) -> bool:
    """Whether so much of a pool is in use on a host. Pure."""
    return percent is not None and bool(facts.capacity) and 100 * (facts.used or 0) >= percent * (facts.capacity or 0)


class FleetFeed:
    """Listens to the caches for the fleet's sake."""

    def __init__(self, caches: Caches, fleet: Fleet) -> None:
        self._fleet = fleet
        self._pools: Store[StoragePool] = caches.store(StoragePool)
        self._orders = work_orders(caches)
        self._machines: Store[VirtualMachine] = caches.reserving(VirtualMachine)
        self._beside: dict[str, frozenset[str]] = {}
        """Names of further promises to machines, by uid of the machine."""
        self._along: dict[str, frozenset[str]] = {}
        """Names of promises to disks that move with a machine, by its uid."""
        self._machines.add_index(UID, lambda vm: (vm.uid,))
        self._hosts: Store[Host] = caches.store(Host)
        self._reports: Store[HostReport] = caches.store(HostReport)
        self._zones: Store[Zone] = caches.store(Zone)
        self._zones.listen(self._zone_changed)
        self._hosts.listen(self._host_changed)
        self._reports.listen(self._report_changed)
        self._orders.listen(self._order_changed)
        self._machines.listen(self._machine_changed)
        self._pools.listen(self._pool_changed)
        self._volumes: Store[Volume] = caches.store(Volume)
        self._volumes.listen(self._volume_changed)

    def _host_changed(self, before: Host | None, after: Host | None) -> None:
        if after is not None:
            report = self._reports.get(after.name, host_namespace(after.name))
            self._fleet.put_host(host_view(after, report, self._zones.get(after.spec.zone)))
        elif before is not None:
            self._fleet.drop_host(before.name)

    def _zone_changed(self, before: Zone | None, after: Zone | None) -> None:
        zone = after or before
        if zone is None or (before is not None and after is not None and before.spec == after.spec):
            return
        for host in self._hosts:
            if host.spec.zone == zone.name:
                self._host_changed(host, host)

    def _report_changed(self, before: HostReport | None, after: HostReport | None) -> None:
        report = after or before
        host = self._hosts.get(report.name) if report is not None else None
        if host is not None and (before is None or after is None or before.status.network != after.status.network):
            self._host_changed(host, host)

    def _order_changed(self, before: WorkOrder | None, after: WorkOrder | None) -> None:
        order = after or before
        if order is None:
            return
        if order.spec.type is WorkType.INSTANCE:
            self._promise(order.spec.for_.uid)
        elif order.spec.type is WorkType.POOL and order.spec.pool is not None:
            if after is None:
                self._fleet.drop_pool(host_of(order), order.spec.pool.pool.uid)
            else:
                self._put_pool(after)

    def _put_pool(self, order: WorkOrder) -> None:
        assert order.spec.pool is not None
        ref, facts = order.spec.pool.pool, order.status.pool
        pool = self._pools.get(ref.name)
        if pool is None or pool.uid != ref.uid:
            return
        capacity = facts.capacity or 0 if facts else 0
        stops_at = pool.spec.thresholds.stop_new_volumes_at
        self._fleet.put_pool(
            host_of(order),
            PoolView(
                ref=ref,
                promisable=int(max(capacity - to_bytes(pool.spec.reserved), 0) * pool.spec.overprovisioning),
                open=order.status.state is WorkState.READY
                and not order.deleting
                and not pool.deleting
                and not pool.spec.maintenance,
                labels=pool.metadata.labels,
                stops_at=stops_at if facts is not None and reached(facts, stops_at) else None,
                namespaces=pool.spec.allowed_namespaces,
                usable=order.status.state is WorkState.READY and not order.deleting,
            ),
        )

    def _pool_changed(self, before: StoragePool | None, after: StoragePool | None) -> None:
        if after is not None:
            for order in self._orders.by(FOR_UID, f"{WorkType.POOL}/{after.uid}"):
                self._put_pool(order)

    def _volume_changed(self, before: Volume | None, after: Volume | None) -> None:
        """A volume has a promise from when it is bound until it is gone, and while it is moved one in the other pool too."""
        if before is not None and (after is None or after.uid != before.uid):
            self._fleet.let_go(before.uid)
            self._fleet.moved(before.uid)
        if after is None or after.status.pool is None or after.status.host is None:
            return
        pool = self._pools.get(after.status.pool)
        if pool is None:
            return
        size = max(to_bytes(after.spec.size) if after.spec.size else 0, after.status.size or 0)
        self._fleet.keep(after.uid, after.status.host, pool.uid, size)
        if before is not None and before.status.host != after.status.host and after.status.attached_to is not None:
            self._promise_disks(after.status.attached_to.uid)
        target = self._pools.get(after.status.moving_to) if after.status.moving_to is not None else None
        if target is None:
            self._fleet.moved(after.uid)
            return
        moving = after.status.condition("Moving")
        idle = moving is not None and moving.status is not ConditionStatus.TRUE
        self._fleet.move(after.uid, Moving(after.status.host, pool.uid, target.uid, size, idle))

    def _machine_changed(self, before: VirtualMachine | None, after: VirtualMachine | None) -> None:
        machine = after or before
        if after is not None and (before is None or _asked(before) != _asked(after)):
            self._fleet.put_machine(resident(after))
        if before is not None and (after is None or after.uid != before.uid):
            self._fleet.drop_machine(before.uid)
            self._promise(before.uid)
        if machine is not None and (before is None or after is None or _place(before) != _place(after)):
            self._promise(machine.uid)

    def _elsewhere(self, uid: str, host: str) -> bool:
        """Whether the machine is placed on another host by now."""
        return any(vm.status.host is not None and vm.status.host != host for vm in self._machines.by(UID, uid))

    def _promise(self, uid: str) -> None:
        """A machine has a promise while a work order of it exists, or its status names a host; and on each further host on
        which there is one, while it moves or a fenced host has one of an earlier placement."""
        self._promise_disks(uid)
        known = [order for order in self._orders.by(FOR_UID, f"{WorkType.INSTANCE}/{uid}") if not superseded(order)]
        orders = sorted(known, key=lambda order: (self._elsewhere(uid, host_of(order)), claim(order)))
        beside = {besides(uid, host_of(order)): order for order in orders[1:]}
        for name in self._beside.pop(uid, frozenset()) - beside.keys():
            drop_beside(self._fleet, name)
        if beside:
            self._beside[uid] = frozenset(beside)
        for name, order in beside.items():
            machine = next(iter(self._machines.by(UID, uid)), None)
            if machine is not None:
                keep_beside(self._fleet, machine, host_of(order), order_demand(order)[0])
            else:
                self._fleet.assign(name, host_of(order), order_demand(order)[0], None)
        for order in orders[:1]:
            demand, pool = order_demand(order)
            for machine in self._machines.by(UID, uid):
                demand = _at_least(demand, machine.status.resources)
            self._fleet.assign(uid, host_of(order), demand, pool)
            return
        for machine in self._machines.by(UID, uid):
            size = machine.status.resources
            if machine.status.host is not None and size is not None:
                if self._fleet.where(uid) != machine.status.host:
                    self._fleet.assign(uid, machine.status.host, Demand(size.cpus, to_bytes(size.memory)), None)
                return
        self._fleet.release(uid)

    def _promise_disks(self, uid: str) -> None:
        """Room for disks that come along with a machine: from its order there until that is one like any other, and for
        volumes until they are on record there."""
        before, now = self._along.pop(uid, frozenset()), set[str]()
        for order in self._orders.by(FOR_UID, f"{WorkType.INSTANCE}/{uid}"):
            instance, host = order.spec.instance, host_of(order)
            assert instance is not None
            sizes = {disk.name: disk.size for disk in instance.incoming.disks} if instance.incoming is not None else {}
            for disk in instance.disks:
                name = along(disk.volume, uid, disk.name)
                if disk.name in sizes:
                    self._fleet.keep(name, host, disk.pool.uid, sizes[disk.name])
                    now.add(name)
                elif disk.volume is not None and name in before and self._follows(disk.volume, name, host):
                    now.add(name)
        for name in before - now:
            self._fleet.let_go(name)
        if now:
            self._along[uid] = frozenset(now)

    def _follows(self, volume: str, promise: str, host: str) -> bool:
        """Whether the volume is promised room on that host, and is on record on another one still."""
        there, kept = self._fleet.kept(promise), self._fleet.kept(volume)
        return there is not None and there[0] == host and kept is not None and kept[0] != host
