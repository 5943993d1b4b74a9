"""VirtualMachineMigration: carries out what `migration_plan` says, a step a pass, each of which may be repeated.

The only writer of migrations' status, and of `incoming` and `outgoing` in the orders of machines. A machine's placement is
moved here by one write, on condition that nobody has changed the machine meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import structlog

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import HostReport, WorkOrder, WorkState, WorkType
from kumulus.api.migration import FINISHED, MigrationPhase, MovingDisk, VirtualMachineMigration
from kumulus.api.order_names import instance_order_name, volume_order_name
from kumulus.api.storage import Volume
from kumulus.kube.errors import NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import parse_time, rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.compute import migration_disks
from kumulus_controllers.compute.machines import Machines, reports_of
from kumulus_controllers.compute.migration_orders import sending, settled, target_order, withdrawn
from kumulus_controllers.compute.migration_plan import Move, Step, derive_status, plan
from kumulus_controllers.compute.migration_preflight import barred
from kumulus_controllers.compute.migration_readying import Readying
from kumulus_controllers.compute.migration_scope import Scope, facts
from kumulus_controllers.compute.migration_turns import (
    MigrationSettings,
    Way,
    astray,
    busy,
    full,
    moving,
    twice,
    under_way,
)
from kumulus_controllers.compute.migration_turns import before as in_order
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import placement_request, resolve
from kumulus_controllers.compute.scope import Use
from kumulus_controllers.compute.wakeups import offers
from kumulus_controllers.expiry import expire
from kumulus_controllers.fleet_feed import besides, drop_beside, keep_beside, order_demand
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import FOR_UID, host_of
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Refusal
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage.volume_plan import Lack
from kumulus_controllers.storage.volumes import UID

log = structlog.get_logger(__name__)

OF_MACHINE = "of-machine"
STEPS = 6
"""In one pass at most: each writes something, and the next follows from it."""


def of_machine(migration: VirtualMachineMigration) -> Iterable[str]:
    """The machine that it moves: for the index."""
    return (f"{migration.namespace}/{migration.spec.vm}",)


class MigrationReconciler:
    """Moves machines."""

    name = "virtualmachinemigration"

    def __init__(self, services: Services, fleet: Fleet, limits: MigrationSettings | None = None) -> None:
        self._limits = limits or MigrationSettings()
        self._chosen: dict[str, Way] = {}
        """What this process is putting on record, by uid of the migration."""
        self._services = services
        self._fleet = fleet
        self._store = services.caches.store(VirtualMachineMigration)
        self._store.add_index(OF_MACHINE, of_machine)
        self._reports = services.caches.store(HostReport)
        self._hosts = services.caches.store(Host)
        self._known = Machines(services, fleet)
        self._readying = Readying(services, fleet, self._known)
        self._ordering = Ordering(services, self._known.orders)
        self._begun: dict[str, float] = {}
        """When this process first saw a migration that had begun, by uid: monotonic seconds."""

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes, those of the machine and of its orders; hosts, for those that have found none."""
        self._readying.attach()

        def wake(namespace: str | None, name: str) -> None:
            for item in self._store.by(OF_MACHINE, f"{namespace}/{name}"):
                if item.status.phase not in FINISHED or item.deleting:
                    enqueue(Key(item.namespace, item.name), urgent=item.status.target_host is not None)

        def migration_changed(before: VirtualMachineMigration | None, after: VirtualMachineMigration | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(item.namespace, item.name))
                if after is None or after.status.phase in FINISHED:
                    self._begun.pop(item.uid, None)
                    wake(item.namespace, item.spec.vm)
                if before is not None and moving(before) and not (after is not None and moving(after)):
                    for other in sorted(self._store, key=in_order):
                        if other.status.phase is MigrationPhase.PENDING:
                            enqueue(Key(other.namespace, other.name))

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            item = after or before
            if item is not None:
                wake(item.namespace, item.name)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.INSTANCE:
                wake(order.spec.for_.namespace, order.spec.for_.name)
            elif after is not None and after.spec.type is WorkType.DISK and after.status.state is WorkState.READY:
                volume = self._known.volumes.store.get(after.spec.for_.name, after.spec.for_.namespace)
                if volume is not None and volume.status.attached_to is not None:
                    wake(volume.namespace, volume.status.attached_to.vm)

        def report_changed(before: HostReport | None, after: HostReport | None) -> None:
            if after is None or before is None or before.status.migration != after.status.migration:
                for item in self._store:
                    if item.status.phase is MigrationPhase.PENDING:
                        enqueue(Key(item.namespace, item.name))

        def volume_changed(before: Volume | None, after: Volume | None) -> None:
            attached = after.status.attached_to if after is not None else None
            if (
                after is not None
                and attached is not None
                and (before is None or before.status.host != after.status.host)
            ):
                wake(after.namespace, attached.vm)

        self._known.volumes.store.listen(volume_changed)

        def host_changed(before: Host | None, after: Host | None) -> None:
            if after is not None and after.fenced and (before is None or not before.fenced):
                for item in self._store:
                    if after.name in (item.status.source_host, item.status.target_host):
                        enqueue(Key(item.namespace, item.name))
            if before is None or after is None or offers(before) != offers(after):
                report_changed(None, None)

        self._hosts.listen(host_changed)
        self._store.listen(migration_changed)
        self._known.store.listen(machine_changed)
        self._known.orders.listen(order_changed)
        self._reports.listen(report_changed)

    def everything(self) -> list[Key]:
        """All migrations."""
        return self._store.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a migration."""
        for _ in range(STEPS):
            migration = self._store.get(key.name, key.namespace)
            if migration is None:
                return Gone()
            if migration.paused:
                return Done()
            if migration.status.phase in FINISHED and not migration.deleting:
                return await expire(
                    self._services, migration, migration.status.finished_at, migration.spec.ttl_seconds_after_finished
                )
            if not migration.deleting:
                await ensure_finalizer(self._services.client, self._store, migration)
                migration = self._store.get(key.name, key.namespace) or migration
            scope = self._scope(migration)
            move = plan(scope)
            if move.step is Step.WAIT:
                return await self._wait(scope, move)
            if move.step is Step.LEAVE:
                self._release(scope)
                await drop_finalizer(self._services.client, self._store, migration)
                return Gone()
            if (result := await self._take(scope, move)) is not None:
                return result
        return Requeue(0.1)

    def _scope(self, migration: VirtualMachineMigration) -> Scope:
        status = migration.status
        vm = self._known.store.get(migration.spec.vm, migration.namespace)
        orders = self._known.orders_of(vm) if vm is not None else ()
        by_host = {host_of(order): order for order in orders}
        left = status.source_host or (vm.status.host if vm is not None else None)
        seen = self._known.observe(vm) if vm is not None else None
        target = (
            self._reports.get(status.target_host, host_namespace(status.target_host)) if status.target_host else None
        )
        host = self._hosts.get(left) if left is not None else None
        volumes = self._uses(migration, seen.volumes if seen is not None else {})
        return Scope(
            migration=migration,
            vm=seen.vm if seen is not None else None,
            source_fenced=host is not None and host.fenced,
            now=self._now(migration),
            source=by_host.get(left) if left is not None else None,
            target=by_host.get(status.target_host) if status.target_host is not None else None,
            endpoint=target.status.migration if target is not None else None,
            source_report=self._reports.get(left, host_namespace(left)) if left is not None else None,
            volumes=volumes,
            pinned=self._pinned(migration, volumes),
            kept_on=self._kept_on(migration, volumes, left),
            unsettled=frozenset(disk.name for disk in status.disks if not self._seen_to(disk, status.target_host)),
            links=seen.links if seen is not None else {},
            restoring=seen.restore.name if seen is not None and seen.restore is not None else None,
            others=tuple(
                other
                for other in self._store.by(OF_MACHINE, f"{migration.namespace}/{migration.spec.vm}")
                if other.uid != migration.uid
            ),
        )

    def _uses(self, migration: VirtualMachineMigration, named: Mapping[str, Use]) -> Mapping[str, Use]:
        """What the machine's spec names, and what goes along: a disk that is taken out of it meanwhile goes all the same."""
        found = dict(named)
        for disk in migration.status.disks:
            if (volume := self._volume(disk)) is not None:
                found[disk.name] = self._known.use(volume, migration.status.target_host)
        return found

    def _volume(self, disk: MovingDisk) -> Volume | None:
        return next(iter(self._known.volumes.store.by(UID, disk.volume)), None) if disk.volume is not None else None

    def _pinned(self, migration: VirtualMachineMigration, volumes: Mapping[str, Use]) -> Mapping[str, Lack]:
        if not migration.spec.with_local_disks:
            return {}
        found = {}
        for name, use in volumes.items():
            if not use.shared:
                at = self._known.volumes.scope(use.volume)
                lack = migration_disks.pinned(name, at.snapshots, at.linked, at.copied)
                if lack is not None:
                    found[name] = lack
        return found

    def _kept_on(
        self, migration: VirtualMachineMigration, volumes: Mapping[str, Use], here: str | None
    ) -> dict[str, str]:
        """The end of an order on a host that a volume has left takes away what is there under its uid, also what came anew."""
        if not migration.spec.with_local_disks:
            return {}
        return {
            host_of(order): name
            for name, use in volumes.items()
            if not use.shared
            for order in self._known.orders.by(FOR_UID, f"{WorkType.DISK}/{use.volume.uid}")
            if host_of(order) != here
        }

    def _seen_to(self, disk: MovingDisk, host: str | None) -> bool:
        """Whether the volume is on record there, and that host says that it has it. What is the machine's own comes and goes
        with its order; a volume that is no more does not come."""
        if disk.volume is None or host is None or (volume := self._volume(disk)) is None:
            return True
        if volume.status.host != host:
            return False
        order = self._known.orders.get(volume_order_name(disk.volume), host_namespace(host))
        return order is not None and order.status.state is WorkState.READY

    def _now(self, migration: VirtualMachineMigration) -> float:
        """The time by which it is judged whether it takes too long: since it began, by this process' own watch, for the clock on
        the wall may jump. After a change of leaders it is given its time once more."""
        clock, started = self._services.clock, migration.status.started_at
        if started is None:
            return clock.now().timestamp()
        begun = self._begun.setdefault(migration.uid, clock.monotonic())
        return parse_time(started).timestamp() + clock.monotonic() - begun

    async def _take(self, scope: Scope, move: Move) -> Result | None:
        """Take the step; None when the next one follows at once."""
        migration, term = scope.migration, self._services.term()
        source, target = scope.source, scope.target
        match move.step:
            case Step.CHOOSE:
                return await self._choose(scope)
            case Step.MAKE_TARGET:
                return await self._make_target(scope)
            case Step.SEND:
                assert source is not None
                if scope.endpoint is None:
                    host = migration.status.target_host
                    lack = Lack("NoTunnel", f"Host {host} does not say where it takes guests.", stalled=False)
                    return await self._report(scope, replace(move, lack=lack))
                await self._ordering.change(source, sending(source.spec, migration, scope.endpoint, term))
            case Step.TAKE_OVER:
                await self._take_over(scope)
            case Step.SETTLE:
                assert target is not None
                await self._ordering.change(target, settled(target.spec, term))
            case Step.END_SOURCE:
                assert source is not None
                await self._end(source)
            case Step.GIVE_UP:
                assert move.lack is not None
                failure = {"failure": move.lack.reason[:64], "failure_message": move.lack.message[:2048]}
                after = migration.status.model_copy(update={**failure, "phase": move.phase})
                await write_status(self._services.client, self._store, migration, migration.status, after)
            case Step.WITHDRAW:
                assert source is not None
                await self._ordering.change(source, withdrawn(source.spec, term))
            case Step.END_TARGET:
                await self._end_target(scope)
            case Step.FINISH:
                self._release(scope)
                return await self._report(scope, move)
            case _:
                raise AssertionError(move.step)
        return None

    async def _choose(self, scope: Scope) -> Result | None:
        """Choose a target, and keep room there. Whoever chooses also promises, without awaiting in between."""
        vm, migration = scope.vm, scope.migration
        assert vm is not None and scope.source is not None
        seen = self._known.observe(vm)
        resolution = resolve(seen)
        if isinstance(resolution, Problem):
            lack = Lack(resolution.reason, resolution.message, stalled=resolution.stalled)
            return await self._report(scope, Move(Step.WAIT, MigrationPhase.PENDING, lack))
        if (elsewhere := astray(migration, vm.status.host)) is not None:
            return await self._report(scope, Move(Step.WAIT, MigrationPhase.PENDING, elsewhere))
        asked = migration.spec.target_host
        if asked is not None and self._hosts.get(asked) is None:
            lack = Lack("HostNotFound", f"There is no Host {asked}. Hosts: kubectl get hosts.")
            return await self._report(scope, Move(Step.WAIT, MigrationPhase.PENDING, lack))
        ways = {**under_way(self._store), **self._chosen}
        queued = twice(ways, vm.uid) or full(ways, vm.status.host or "", self._limits)
        if queued is not None:
            return await self._report(scope, Move(Step.WAIT, MigrationPhase.PENDING, queued, after=30.0))
        hosts = list(self._hosts)
        reports = reports_of(hosts, self._reports)
        demand, disks = order_demand(scope.source)[0], migration_disks.along(scope)
        request = placement_request(seen, resolution)
        local = {scope.volumes[disk.name].volume.name for disk in disks if disk.volume is not None}
        request = replace(
            request,
            demand=replace(demand, disk=0),
            volumes=(*request.volumes, *migration_disks.demands(disks, vm.uid)),
            bound={name: host for name, host in request.bound.items() if name not in local},
            barred={**busy(ways, self._limits), **barred(scope, hosts, reports, here=seen.host)},
        )
        chosen = self._fleet.place(request)
        if isinstance(chosen, Refusal):
            lack = Lack("NoHostFits", str(chosen), stalled=False)
            return await self._report(scope, Move(Step.WAIT, MigrationPhase.PENDING, lack, after=30.0))
        keep_beside(self._fleet, vm, chosen.host, demand)
        self._chosen[migration.uid] = Way(vm.status.host or "", chosen.host, vm.uid)
        self._keep(vm.uid, chosen.host, disks)
        after = migration.status.model_copy(
            update={
                "phase": MigrationPhase.PREPARING,
                "vm_uid": vm.uid,
                "source_host": vm.status.host,
                "target_host": chosen.host,
                "epoch": (vm.status.epoch or 0) + 1,
                "disks": disks,
                "started_at": rfc3339(self._services.clock.now()),
            }
        )
        try:
            await write_status(self._services.client, self._store, migration, migration.status, after)
        except BaseException:
            drop_beside(self._fleet, besides(vm.uid, chosen.host))
            self._let_go(vm.uid, disks)
            raise
        finally:
            self._chosen.pop(migration.uid, None)
        log.info("a machine moves", namespace=vm.namespace, name=vm.name, source=vm.status.host, target=chosen.host)
        return None

    async def _make_target(self, scope: Scope) -> Result | None:
        vm, source, status = scope.vm, scope.source, scope.migration.status
        assert vm is not None and source is not None and status.target_host is not None
        # Another leader may have chosen: the room it kept was in its memory.
        keep_beside(self._fleet, vm, status.target_host, order_demand(source)[0])
        self._keep(vm.uid, status.target_host, status.disks)
        if not await self._known.still_placed(vm):
            return Wait("CacheBehind", 5.0)
        spec = target_order(source.spec, scope.migration, self._services.term())
        await self._ordering.make(instance_order_name(vm.uid), status.target_host, spec)
        return None

    async def _wait(self, scope: Scope, move: Move) -> Result:
        """Report what it waits for; the target waits for what its order names."""
        vm, source, target = scope.vm, scope.source, scope.target
        asked = move.phase is MigrationPhase.PREPARING and facts(target, scope.migration) is None
        if asked and vm is not None and source is not None and target is not None and not target.deleting:
            lack = await self._readying.provide(vm, source, target)
            move = move if lack is None else Move(Step.WAIT, MigrationPhase.PREPARING, lack, 5.0)
        return await self._report(scope, move)

    async def _take_over(self, scope: Scope) -> None:
        """The machine's placement is the target's from this write on."""
        vm, status = scope.vm, scope.migration.status
        assert vm is not None and status.target_host is not None
        found = self._hosts.get(status.target_host)
        after = vm.status.model_copy(
            update={
                "host": status.target_host,
                "epoch": status.epoch,
                "zone": (found.spec.zone if found is not None else None) or vm.status.zone,
            }
        )
        await write_status(self._services.client, self._known.store, vm, vm.status, after)
        log.info("a machine has moved", namespace=vm.namespace, name=vm.name, host=status.target_host)

    async def _end_target(self, scope: Scope) -> None:
        """What is there may be the machine itself by now: what is known of it, of its orders and of the migration comes by several
        watches, one of which may be behind. So all of it is asked for, and the order ends only as it was then."""
        client, migration, vm = self._services.client, scope.migration, scope.vm
        if (raw := await client.find(VirtualMachineMigration.KIND, migration.name, migration.namespace)) is not None:
            self._store.apply(raw)
        if vm is not None and (raw := await client.find(VirtualMachine.KIND, vm.name, vm.namespace)) is not None:
            self._known.store.apply(raw)
        if migration.status.vm_uid is not None:
            for host in filter(None, (migration.status.source_host, migration.status.target_host)):
                await self._ordering.live(instance_order_name(migration.status.vm_uid), host)
        fresh = self._scope(self._store.get(migration.name, migration.namespace) or migration)
        if plan(fresh).step is Step.END_TARGET and fresh.target is not None:
            await self._end(fresh.target, unchanged=True)

    async def _end(self, order: WorkOrder, *, unchanged: bool = False) -> None:
        """Its Secrets go first, for the garbage collector may take half a minute; with `unchanged` only once it is certain."""
        if unchanged:
            await self._ordering.end(order, unchanged=True)
        await self._readying.take_back(order)
        if not unchanged:
            await self._ordering.end(order)

    def _release(self, scope: Scope) -> None:
        """Room that was kept for an order that was never made; for one that there is, the order counts."""
        host, uid = scope.migration.status.target_host, scope.migration.status.vm_uid
        if host is not None and uid is not None and scope.target is None:
            drop_beside(self._fleet, besides(uid, host))
            self._let_go(uid, scope.migration.status.disks)

    def _keep(self, machine: str, host: str, disks: Sequence[MovingDisk]) -> None:
        """Promise room there for disks that go along."""
        for disk in disks:
            pool = self._known.volumes.pools.get(disk.pool)
            if pool is not None:
                self._fleet.keep(migration_disks.promised(disk, machine), host, pool.uid, disk.size)

    def _let_go(self, machine: str, disks: Sequence[MovingDisk]) -> None:
        for disk in disks:
            self._fleet.let_go(migration_disks.promised(disk, machine))

    async def _report(self, scope: Scope, move: Move) -> Result:
        migration = self._store.get(scope.migration.name, scope.migration.namespace)
        if migration is None or migration.uid != scope.migration.uid:
            return Done()
        after = derive_status(replace(scope, migration=migration), move, rfc3339(self._services.clock.now()))
        try:
            await write_status(self._services.client, self._store, migration, migration.status, after)
        except NotFound:
            return Done()
        if move.after is not None:
            return Requeue(move.after)
        return Wait(move.lack.reason, 30.0) if move.lack is not None else Done()
