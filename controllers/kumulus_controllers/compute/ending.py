"""The end of a machine: its work order first, then its volumes and interfaces, its finalizer last."""

from __future__ import annotations

import structlog

from kumulus.api.base import FINALIZER, FORCE_DETACH
from kumulus.api.compute import Phase, VirtualMachine, VirtualMachineCondition
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.machine_import import UNMANAGE
from kumulus.api.migration import VirtualMachineMigration
from kumulus.api.order_names import instance_order_name
from kumulus.api.storage import Volume
from kumulus.kube.errors import NotFound, Refused
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers import order_secret
from kumulus_controllers.compute import takeover_plan
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.phase import placed
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.orders import FOR_NAME
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.status import drop_finalizer
from kumulus_controllers.storage.volume_plan import goes_with
from kumulus_controllers.storage.volumes import UID

log = structlog.get_logger(__name__)

TERMINATING_SHOWN_AFTER = 2.0
"""A deletion that takes longer is shown in the status; most do not, and save a write."""


class Ending:
    """Takes down what there is of a machine that goes or is gone."""

    def __init__(self, services: Services, fleet: Fleet, known: Machines) -> None:
        self._services = services
        self._fleet = fleet
        self._known = known
        self._deleting_since: dict[str, float] = {}
        self._migrations = services.caches.store(VirtualMachineMigration)
        self._migrations.add_index(UID, lambda migration: (migration.uid,))

    def attach(self, enqueue: Enqueue) -> None:
        """Machines that are being deleted, when what moves them comes to something else."""

        def migration_changed(before: VirtualMachineMigration | None, after: VirtualMachineMigration | None) -> None:
            item = after or before
            if item is None or (before is not None and after is not None and _stands(before) == _stands(after)):
                return
            vm = self._known.store.get(item.spec.vm, item.namespace)
            if vm is not None and vm.deleting:
                enqueue(Key(vm.namespace, vm.name))

        self._migrations.listen(migration_changed)

    async def delete(self, scope: Scope) -> Result:
        """One pass over a machine that is being deleted."""
        vm, client = scope.vm, self._services.client
        if FINALIZER not in vm.metadata.finalizers:
            return Done()
        orders = self._known.orders_of(vm)
        if not orders and vm.status.host is not None and vm.uid not in self._deleting_since:
            orders = await self._live_orders(vm)
        forced = vm.metadata.annotations.get(FORCE_DETACH) == "true"
        moves = next(filter(None, map(_brings_disks, orders)), None)
        if not forced and moves is not None:  # that ends first, and says which of two hosts has what was written last
            if (soon := self._unsaid(vm)) is not None:
                return soon
            migration = next(iter(self._migrations.by(UID, moves)), None)
            return await self._known.report(self._known.observe(vm), placed(scope), None, moves_first(vm, migration))
        for order in orders:
            if not order.deleting:
                await self._delete_order(await self._unmanaged(vm, order))
            elif forced:
                await drop_finalizer(client, self._known.orders, order)
            elif order.spec.instance is not None and takeover_plan.let_go(vm, order.spec.instance.epoch):
                try:
                    await self._unmanaged(vm, order)  # it was ended before, to be started elsewhere
                except NotFound:
                    self._known.orders.remove(Key(order.namespace, order.name), order.uid)
        if not self._known.orders_of(vm):
            await self._give_up_volumes(vm)
            await self._delete_own_volumes(vm)
            await self._known.interfaces.drop(vm, all_of_them=True)
            await drop_finalizer(client, self._known.store, vm)
            self._deleting_since.pop(vm.uid, None)
            self._fleet.release(vm.uid)
            for volume in self._known.volumes.of(vm).values():
                if volume.status.pool is None:  # it had room with the machine, and was never made
                    self._fleet.let_go(volume.uid)
            return Gone()
        if (soon := self._unsaid(vm)) is not None:
            return soon
        return await self._known.report(self._known.observe(vm), placed(scope), None, None)

    def _unsaid(self, vm: VirtualMachine) -> Requeue | None:
        """When to look again, while it need not be said yet that it is being deleted."""
        now = self._services.clock.monotonic()
        since = self._deleting_since.setdefault(vm.uid, now)
        shown = now - since >= TERMINATING_SHOWN_AFTER or vm.status.phase is Phase.TERMINATING
        return None if shown else Requeue(TERMINATING_SHOWN_AFTER)

    async def remove_orphans(self, key: Key, vm: VirtualMachine | None) -> None:
        """Work orders of a machine of that name that is no more: removed after a live look."""
        for order in self._known.orders.by(FOR_NAME, f"VirtualMachine/{key.namespace or ''}/{key.name}"):
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

    async def _delete_order(self, order: WorkOrder) -> None:
        """Ask for the end of a work order. Its Secret goes first."""
        await order_secret.take_back_seed(self._services.client, order)
        raw = await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if raw is None or "spec" not in raw or FINALIZER not in raw["metadata"].get("finalizers", ()):
            self._known.orders.remove(Key(order.namespace, order.name), order.uid)
        else:
            self._known.orders.apply(raw)

    async def _unmanaged(self, vm: VirtualMachine, order: WorkOrder) -> WorkOrder:
        """The order, which says that its end leaves the domain as it is, if that is wanted."""
        instance = order.spec.instance
        if vm.metadata.annotations.get(UNMANAGE) != "true" or instance is None or instance.unmanage:
            return order
        change = {
            "metadata": {"resourceVersion": order.metadata.resource_version},
            "spec": {"term": max(self._services.term(), order.spec.term), "instance": {"unmanage": True}},
        }
        raw = await self._services.client.patch(WorkOrder.KIND, order.name, change, order.namespace)
        self._known.orders.apply(raw)
        return WorkOrder.parse(raw)

    async def _give_up_volumes(self, vm: VirtualMachine) -> None:
        """A machine that goes on as nobody's keeps its disks: their data stays, whatever their volumes say."""
        if vm.metadata.annotations.get(UNMANAGE) != "true":
            return
        for volume in self._known.volumes.of(vm).values():
            if volume.deleting:
                continue
            change = {"metadata": {"annotations": {UNMANAGE: "true"}}}
            store = self._known.volumes.store
            store.apply(await self._services.client.patch(Volume.KIND, volume.name, change, volume.namespace))
            try:
                raw = await self._services.client.delete(Volume.KIND, volume.name, volume.namespace, uid=volume.uid)
            except Refused:  # protected from deletion: its data is safe all the same
                continue
            if raw is not None and "spec" in raw:
                store.apply(raw)

    async def _delete_own_volumes(self, vm: VirtualMachine) -> None:
        """The volumes that go with the machine. The garbage collector would see to them as well, half a minute later."""
        for volume in self._known.volumes.of(vm).values():
            if not volume.deleting and goes_with(volume, vm.uid):
                try:
                    raw = await self._services.client.delete(Volume.KIND, volume.name, volume.namespace, uid=volume.uid)
                except Refused:  # protected from deletion: it outlives the machine after all
                    log.info("a volume of a machine that goes is protected", namespace=vm.namespace, name=volume.name)
                    continue
                if raw is not None and "spec" in raw:
                    self._known.volumes.store.apply(raw)

    async def _live_orders(self, vm: VirtualMachine) -> list[WorkOrder]:
        """Before letting a placed machine go whose work order this process has not seen go: is there really none?"""
        namespace = host_namespace(vm.status.host or "")
        raw = await self._services.client.find(WorkOrder.KIND, instance_order_name(vm.uid), namespace)
        if raw is None:
            return []
        self._known.orders.apply(raw)
        return [WorkOrder.parse(raw)]


def _brings_disks(order: WorkOrder) -> str | None:
    """Uid of the migration by which the machine moves with disks that only one host has; None when it does not. Pure."""
    instance = order.spec.instance
    if instance is None or order.deleting:
        return None
    ways = (instance.outgoing, instance.incoming)
    return next((way.migration for way in ways if way is not None and way.disks), None)


def _stands(migration: VirtualMachineMigration) -> tuple[object, ...]:
    ready = migration.status.condition("Ready")
    return migration.status.phase, ready.reason if ready is not None else None


def moves_first(vm: VirtualMachine, migration: VirtualMachineMigration | None) -> Problem:
    """Why a machine that is deleted while it moves with its disks is there still, and the way out. Pure."""
    lost = f"kubectl annotate vm {vm.name} {FORCE_DETACH}=true"
    if migration is None:
        message = (
            f"It was being moved with its disks, and nothing is known of the migration any more. To let it go: {lost}"
        )
        return Problem("MigrationGone", message, VirtualMachineCondition.READY)
    status, ready = migration.status, migration.status.condition("Ready")
    said = f" It says: {ready.message.rstrip('.')}." if ready is not None and ready.message else ""
    return Problem(
        "MigrationEndsFirst",
        f"VirtualMachineMigration {migration.name} ends first, and tells whether host {status.source_host} or"
        f" {status.target_host} has what was written last to the machine's disks.{said} If one of them is gone for good, and"
        f" the disks may be lost: {lost}",
        VirtualMachineCondition.READY,
        stalled=False,
    )
