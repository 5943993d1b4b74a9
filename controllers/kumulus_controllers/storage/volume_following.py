"""Volumes in pools of one host that go to another host with their machine (docs/adr/0037).

The machine's placement decides: when that is the target's, its guest has come there with its disks. Then the volume's place
goes on record, the target is ordered to keep it, and only when it says that it has it the other host is told to remove it.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkState
from kumulus.api.migration import FINISHED, VirtualMachineMigration
from kumulus.api.storage import Volume
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus_controllers.orders import host_of
from kumulus_controllers.storage.volume_orders import VolumeOrders
from kumulus_controllers.storage.volume_plan import Place, Scope
from kumulus_controllers.storage.volumes import MOVES_VOLUME, UID, Volumes, brought

log = structlog.get_logger(__name__)

MOVES_MACHINE = "moves-machine"


def _machine_of(migration: VirtualMachineMigration) -> Iterable[str]:
    return (migration.status.vm_uid,) if migration.status.vm_uid is not None else ()


class VolumeFollowing:
    """Brings volumes after their machines."""

    def __init__(self, services: Services, volumes: Volumes, orders: VolumeOrders) -> None:
        self._client = services.client
        self._volumes = volumes
        self._orders = orders
        self._migrations = volumes.migrations
        self._migrations.add_index(MOVES_MACHINE, _machine_of)

    def attach(self, enqueue: Enqueue) -> None:
        """Volumes whose machine has come, or was not brought; also those that its spec names no more."""

        def wake(migration: VirtualMachineMigration) -> None:
            for uid in brought(migration):
                for volume in self._volumes.store.by(UID, uid):
                    enqueue(Key(volume.namespace, volume.name), urgent=True)

        def migration_changed(before: VirtualMachineMigration | None, after: VirtualMachineMigration | None) -> None:
            if before is not None and after is not None and before.status.phase is after.status.phase:
                return
            for item in filter(None, (before, after)):
                wake(item)

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            if after is not None and (before is None or before.status.host != after.status.host):
                for item in self._migrations.by(MOVES_MACHINE, after.uid):
                    wake(item)

        self._migrations.listen(migration_changed)
        self._volumes.machines.listen(machine_changed)

    def place(self, scope: Scope) -> Place | None:
        """Where it has come with its machine; None when it is on no such way, or not there yet. Which machine that is the
        migration says: that one's spec may not name it any more."""
        volume = scope.volume
        pool = self._volumes.pool(volume)
        for item in self._migrations.by(MOVES_VOLUME, volume.uid):
            status = item.status
            if status.phase in FINISHED or status.target_host is None or pool is None:
                continue
            if volume.status.host not in (status.source_host, status.target_host):
                continue
            vm = self._volumes.machines.get(item.spec.vm, item.namespace)
            if vm is not None and _taken_over(vm, item):
                return Place(pool, status.target_host, came_by=item.uid)
        return None

    async def clear(self, scope: Scope) -> None:
        """Where it is has it whole: have the host that it has left remove it. Looks before it does."""
        volume, order = scope.volume, scope.order
        if order is None or order.deleting or order.status.state is not WorkState.READY:
            return
        disk = order.spec.disk.volume if order.spec.disk is not None else None
        if disk is None or disk.came_by is None:  # how there came to be two orders is for somebody to look at
            return
        for stray in scope.left_behind:
            if stray.deleting:
                continue
            live = await self._client.find(Volume.KIND, volume.name, volume.namespace)
            now = Volume.parse(live) if live is not None else None
            if now is None or now.uid != volume.uid or now.status.host != host_of(order):
                return
            log.info("a volume has left", namespace=volume.namespace, name=volume.name, host=host_of(stray))
            await self._orders.delete(await self._orders.retain(stray, retain=False))


def _taken_over(vm: VirtualMachine, migration: VirtualMachineMigration) -> bool:
    status = migration.status
    return vm.uid == status.vm_uid and (vm.status.host, vm.status.epoch) == (status.target_host, status.epoch)
