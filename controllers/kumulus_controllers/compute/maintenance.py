"""Host maintenance: carries out what `maintenance_plan` says. The only writer of `status.maintenance` of Hosts and of
`status.eviction` of machines; the conditions of the Host are made from the former by `fabric.host`.

Machines move by VirtualMachineMigrations that are made here, and are shut down by what `compute.eviction` makes of `eviction`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import structlog

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, HostCondition, host_namespace
from kumulus.api.host import HostReport, WorkOrder, WorkType
from kumulus.api.maintenance import FOR_MAINTENANCE, EvictionAction, MaintenancePhase, MaintenanceStatus, WaitingGuest
from kumulus.api.migration import FINISHED, MigrationPhase, VirtualMachineMigration
from kumulus.kube.errors import AlreadyExists, NotFound, Refused
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.conditions import derive
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers import events
from kumulus_controllers.compute import maintenance_plan as plans
from kumulus_controllers.compute import migration_scope
from kumulus_controllers.compute.machines import Machines, reports_of
from kumulus_controllers.compute.maintenance_attempts import Move, body
from kumulus_controllers.compute.migration import OF_MACHINE, of_machine
from kumulus_controllers.compute.migration_asking import asked
from kumulus_controllers.compute.migration_preflight import barred, blocked
from kumulus_controllers.compute.migration_turns import MigrationSettings
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import placement_request, resolve
from kumulus_controllers.compute.scope import Scope as Seen
from kumulus_controllers.compute.takeover_plan import hindrance_of_place
from kumulus_controllers.compute.wakeups import HOST, offers, on_host
from kumulus_controllers.fabric.host_maintenance import under_work
from kumulus_controllers.fleet_feed import closed, order_demand
from kumulus_controllers.orders import host_of
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Refusal
from kumulus_controllers.status import write_status
from kumulus_controllers.storage.volume_plan import Lack

log = structlog.get_logger(__name__)

EVICTED_FROM = "evicted-from"
ARRIVED = (*FINISHED, MigrationPhase.FINISHING)
"""Phases of a migration that brings nobody any more."""


class MaintenanceReconciler:
    """Empties hosts, and brings machines back."""

    name = "maintenance"

    def __init__(self, services: Services, fleet: Fleet, limits: MigrationSettings | None = None) -> None:
        self._services = services
        self._fleet = fleet
        self._limits = limits or MigrationSettings()
        self._known = Machines(services, fleet)
        self._hosts = services.caches.store(Host)
        self._reports = services.caches.store(HostReport)
        self._migrations = services.caches.store(VirtualMachineMigration)
        self._migrations.add_index(OF_MACHINE, of_machine)
        self._known.store.add_index(HOST, on_host)
        self._known.store.add_index(EVICTED_FROM, _evicted_from)

    def attach(self, enqueue: Enqueue) -> None:
        """Hosts that are maintained, or were; machines and orders there, and what moves to and from them."""

        def wake(*names: str | None) -> None:
            for name in set(names):
                host = self._hosts.get(name) if name is not None else None
                if host is not None and _concerns(host):
                    enqueue(Key(None, host.name))

        def host_changed(before: Host | None, after: Host | None) -> None:
            if after is None:
                return
            if before is None or _asks(before) != _asks(after):
                wake(after.name)
            if before is None or offers(before) != offers(after):  # others may have room now
                wake(*(host.name for host in self._hosts if host.name != after.name))

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            for vm in (before, after):
                if vm is not None:
                    wake(vm.status.host, *_evicted_from(vm))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is not None and order.spec.type is WorkType.INSTANCE:
                wake(host_of(order))

        def migration_changed(before: VirtualMachineMigration | None, after: VirtualMachineMigration | None) -> None:
            for item in (before, after):
                if item is not None:
                    label = item.metadata.labels.get(FOR_MAINTENANCE)
                    wake(label, item.status.source_host, item.status.target_host)

        self._hosts.listen(host_changed)
        self._known.store.listen(machine_changed)
        self._known.orders.listen(order_changed)
        self._migrations.listen(migration_changed)

    def everything(self) -> list[Key]:
        """Hosts that are maintained, or were."""
        return [Key(None, host.name) for host in self._hosts if _concerns(host)]

    async def reconcile(self, key: Key) -> Result:
        """One pass over a host."""
        host = self._hosts.get(key.name)
        if host is None:
            return Gone()
        if host.paused or not _concerns(host):
            return Done()
        began = host.status.maintenance.began_at if host.status.maintenance is not None else None
        if (
            began is None
        ):  # on record before anything is done, so that whoever comes next knows that there is something to end
            began = rfc3339(self._services.clock.now())
            first = MaintenanceStatus(phase=MaintenancePhase.EVACUATING, began_at=began)
            await self._write(host, first)
            host = self._hosts.get(key.name) or host
        scope = self._observe(host)
        outlook = plans.plan(scope, began)
        refused = [why for action in outlook.actions if (why := await self._take(host, action)) is not None]
        await self._write(host, plans.besides(outlook.status, refused))
        after = plans.LOOK_SECONDS if refused else outlook.after
        return Requeue(after) if after is not None else Done()

    async def _write(self, host: Host, status: MaintenanceStatus | None) -> None:
        """With the condition that `fabric.host` would make of it: one write instead of two."""
        facts = [under_work(status, guarded=host.guarded)] if status is not None else []
        before, generation = host.status.conditions, host.metadata.generation
        now = rfc3339(self._services.clock.now())
        made = derive(before, facts, generation=generation, now=now)
        others = tuple(item for item in before if item.type != HostCondition.MAINTENANCE)
        if status is not None:
            status = status.model_copy(update={"observed_generation": generation})
        after = host.status.model_copy(update={"maintenance": status, "conditions": (*others, *made)})
        await write_status(self._services.client, self._hosts, host, host.status, after)

    async def _take(self, host: Host, action: plans.Action) -> WaitingGuest | None:
        """May be repeated. What a quota or a policy of the machine's namespace refuses is said, and holds up no other machine."""
        client = self._services.client
        match action:
            case Move(vm=vm) as move:
                try:
                    raw = await client.create(VirtualMachineMigration.KIND, body(move), vm.namespace)
                except AlreadyExists:  # the cache is behind
                    raw = await client.get(VirtualMachineMigration.KIND, move.name, vm.namespace)
                except NotFound:  # its namespace goes
                    return None
                except Refused as error:
                    said = f"Its migration is refused: {error.message}"[:512]
                    return WaitingGuest(namespace=vm.namespace or "", name=vm.name, reason="Refused", message=said)
                self._migrations.apply(raw)
                log.info(
                    "a machine is to move", namespace=vm.namespace, name=vm.name, host=host.name, why=move.direction
                )
            case plans.Cancel(migration):
                kind = VirtualMachineMigration.KIND
                gone = await client.delete(kind, migration.name, migration.namespace, uid=migration.uid)
                if gone is not None and "spec" in gone:
                    self._migrations.apply(gone)
            case plans.Mark(vm, eviction):
                current = self._known.store.get(vm.name, vm.namespace)
                if current is None or current.uid != vm.uid:
                    return None
                after = current.status.model_copy(update={"eviction": eviction})
                try:
                    written = await write_status(client, self._known.store, current, current.status, after)
                except NotFound:
                    return None
                if written and eviction is not None and eviction.action is not EvictionAction.LIVE_MIGRATE:
                    how = {"Restart": "and is started on another host", "Stop": "until that is over"}[eviction.action]
                    said = f"Host {host.name} is being worked on: the machine is shut down {how} (spec.evictionPolicy)."
                    await events.tell(client, self._services.clock, current, "Evicted", said, action="Evict")
        return None

    def _observe(self, host: Host) -> plans.Scope:
        here = self._known.store.by(HOST, host.name)
        away = [vm for vm in self._known.store.by(EVICTED_FROM, host.name) if vm.status.host != host.name]
        seen: dict[str, Seen] = {vm.uid: self._known.observe(vm) for vm in (*here, *away)}

        @cache
        def others() -> tuple[list[Host], dict[str, HostReport]]:
            hosts = list(self._hosts)
            return hosts, reports_of(hosts, self._reports)

        def room(guest: plans.Guest) -> Lack | None:
            found = seen[guest.vm.uid]
            resolution = resolve(found)
            if isinstance(resolution, Problem):
                return Lack(resolution.reason, resolution.message, stalled=resolution.stalled)
            request = placement_request(found, resolution)
            if guest.order is not None:
                request = replace(request, demand=order_demand(guest.order)[0])
            if guest.blocked is None:
                request = replace(request, barred=barred(self._asked(found, host), *others(), here=found.host))
            refusal = self._fleet.place(request)
            return Lack("NoHostFits", str(refusal), stalled=False) if isinstance(refusal, Refusal) else None

        return plans.Scope(
            host=host,
            now=self._services.clock.now().timestamp(),
            at_once=self._limits.leaving if host.emptied else self._limits.coming,
            guests=tuple(self._guest(seen[vm.uid], host) for vm in here),
            away=tuple(self._guest(seen[vm.uid], host) for vm in away),
            arriving=tuple(
                item
                for item in self._migrations
                if item.status.target_host == host.name and item.status.phase not in ARRIVED
            ),
            astray=tuple(item for item in self._migrations if self._astray(item, host)),
            room=room,
            closed=closed(host) if host.spec.maintenance is None else None,
        )

    def _guest(self, seen: Seen, host: Host) -> plans.Guest:
        vm = seen.vm
        bound = hindrance_of_place(seen)
        return plans.Guest(
            vm=vm,
            order=seen.order,
            blocked=blocked(self._asked(seen, host)),
            bound=Lack(bound.reason, bound.message, stalled=bound.stalled) if bound is not None else None,
            ours=tuple(item for item in self._of(vm) if item.metadata.labels.get(FOR_MAINTENANCE) == host.name),
        )

    def _of(self, vm: VirtualMachine) -> list[VirtualMachineMigration]:
        return self._migrations.by(OF_MACHINE, f"{vm.namespace}/{vm.name}")

    def _astray(self, item: VirtualMachineMigration, host: Host) -> bool:
        """Whether it was made to get a machine off the host, which is not there any more. It would move it off another one."""
        vm = self._known.store.get(item.spec.vm, item.namespace)
        return plans.waits_to_leave(item, host.name) and (vm is None or vm.status.host != host.name)

    def _asked(self, seen: Seen, host: Host) -> migration_scope.Scope:
        """As if somebody asked just now for it to move. Migrations that were made for this host are not in its way."""
        name = seen.vm.status.host
        report = self._reports.get(name, host_namespace(name)) if name is not None else None
        others = (item for item in self._of(seen.vm) if item.metadata.labels.get(FOR_MAINTENANCE) != host.name)
        return asked(seen, report, others)


def _evicted_from(vm: VirtualMachine) -> Iterable[str]:
    return (vm.status.eviction.host,) if vm.status.eviction is not None else ()


def _concerns(host: Host) -> bool:
    """Whether it is maintained, or was."""
    return host.spec.maintenance is not None or host.status.maintenance is not None


def _asks(host: Host) -> tuple[object, ...]:
    """What of a host decides what is to be done about its maintenance."""
    return (host.spec, host.status.maintenance is None, host.alive, host.fencing, host.deleting, host.paused)
