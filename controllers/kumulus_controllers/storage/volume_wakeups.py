"""What wakes a volume: which changes elsewhere mean a pass over it. Reads caches, writes nothing."""

from __future__ import annotations

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.image import ClusterImage, Image
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.pool_order import UnownedFile
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue
from kumulus_controllers.orders import DISKS_IN, NOT_BEGUN, at_rest, volumes_in
from kumulus_controllers.storage.emptying import IN_POOL
from kumulus_controllers.storage.handover import items_of
from kumulus_controllers.storage.image_orders import arrived
from kumulus_controllers.storage.move_plan import MOVING, WAITING_FOR_TURN
from kumulus_controllers.storage.volumes import (
    AWAITS_MOVE,
    COPY_OF,
    FROM_SNAPSHOT,
    HOST,
    TO_POOL,
    UID,
    UNMADE,
    Volumes,
    turn,
    volume_keys,
)

WOKEN = 4
"""So many volumes that wait for their turn to be moved are woken when one is over."""


class VolumeWakeups:
    """Listens for the volumes' sake."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._orders = volumes.orders

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; machines that use them and their orders; what they are made from; their classes."""
        volumes = self._volumes

        def volume_changed(before: Volume | None, after: Volume | None) -> None:
            item = after or before
            if item is None:
                return
            enqueue(Key(item.namespace, item.name))
            self._enqueue_copies(enqueue, item)
            if after is None or (after.status.size is not None and (before is None or before.status.size is None)):
                self._enqueue_origin(enqueue, item)
            if before is not None and _leaves(before) and (after is None or not _leaves(after)):
                self._next_turn(enqueue, before)

        def machine_changed(before: VirtualMachine | None, after: VirtualMachine | None) -> None:
            if before is not None and after is not None and _using(before) == _using(after):
                return
            for vm in (before, after):
                for key in volume_keys(vm) if vm is not None else ():
                    enqueue(key)

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is None:
                return
            if order.spec.type is WorkType.DISK and order.spec.for_.kind == Volume.KIND.kind:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name), urgent=True)
            elif order.spec.type is WorkType.POOL:
                if _unowned(before) != _unowned(after):
                    self._enqueue_unmade(enqueue)
                if after is not None and (before is None or before.status.state is not after.status.state):
                    self._enqueue_moves(enqueue, order.spec.for_.name)
            elif order.spec.type is WorkType.SNAPSHOT:
                had, has = ({part.volume for part in items_of(one)} if one else set() for one in (before, after))
                for uid in had - has:
                    self._enqueue_uid(enqueue, uid)
            elif arrived(before, after):
                self._enqueue_waiting(enqueue, order)
            elif order.spec.type is WorkType.INSTANCE:
                had, has = (volumes_in(item) if item else set() for item in (before, after))
                for uid in (had ^ has) | _otherwise(before, after):
                    for volume in volumes.store.by(UID, uid):
                        enqueue(Key(volume.namespace, volume.name), urgent=True)
                if before is None or after is None or at_rest(before) != at_rest(after):
                    for uid in had | has:
                        for volume in volumes.store.by(UID, uid):
                            self._enqueue_copies(enqueue, volume)

        def origin_changed(before: Image | ClusterImage | None, after: Image | ClusterImage | None) -> None:
            item = after or before
            if item is None or (
                before
                and after
                and before.status.phase is after.status.phase
                and before.spec.allowed_namespaces == after.spec.allowed_namespaces
            ):
                return
            self._enqueue_unmade(enqueue)

        def pool_changed(before: StoragePool | None, after: StoragePool | None) -> None:
            if before is None or after is None or before.spec != after.spec:
                self._enqueue_unmade(enqueue)
                item = after or before
                if item is not None:
                    self._enqueue_moves(enqueue, item.name)
                if before is not None and after is not None and before.spec.maintenance != after.spec.maintenance:
                    for volume in volumes.store.by(IN_POOL, after.name):
                        enqueue(Key(volume.namespace, volume.name))

        def class_changed(before: VolumeClass | None, after: VolumeClass | None) -> None:
            self._enqueue_unmade(enqueue)

        def host_changed(before: Host | None, after: Host | None) -> None:
            item = after or before
            if (
                item is not None
                and (after is None or after.deleting)
                and (before is None or not before.deleting or not after)
            ):
                for volume in volumes.store.by(HOST, item.name):
                    enqueue(Key(volume.namespace, volume.name))

        volumes.hosts.listen(host_changed)

        def snapshot_changed(before: VolumeSnapshot | None, after: VolumeSnapshot | None) -> None:
            if before is not None and after is not None and _offers(before) == _offers(after):
                return
            for item in (before, after):
                if item is None:
                    continue
                for volume in volumes.store.by(FROM_SNAPSHOT, f"{item.namespace}/{item.name}"):
                    enqueue(Key(volume.namespace, volume.name))
                for volume in volumes.store.by(UID, item.status.volume_uid or ""):
                    if volume.deleting or volume.status.condition(MOVING) is not None:
                        enqueue(Key(volume.namespace, volume.name))

        def whole_changed(before: VirtualMachineSnapshot | None, after: VirtualMachineSnapshot | None) -> None:
            if before is not None and after is None:
                for disk in before.status.volumes:
                    for volume in volumes.store.by(UID, disk.volume_uid):
                        enqueue(Key(volume.namespace, volume.name))

        volumes.store.listen(volume_changed)
        volumes.machine_snapshots.listen(whole_changed)
        volumes.snapshots.listen(snapshot_changed)
        volumes.machines.listen(machine_changed)
        volumes.orders.listen(order_changed)
        volumes.images.images.listen(origin_changed)
        volumes.images.cluster_images.listen(origin_changed)
        volumes.classes.listen(class_changed)
        volumes.pools.listen(pool_changed)

    def _enqueue_waiting(self, enqueue: Enqueue, image: WorkOrder) -> None:
        """An image has come into a pool that hosts share, or will not: volumes need not wait longer for it."""
        for order in self._orders.by(DISKS_IN, image.spec.disk.pool.uid if image.spec.disk else ""):
            if order.spec.for_.kind == Volume.KIND.kind and order.status.state in NOT_BEGUN:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name))

    def _enqueue_copies(self, enqueue: Enqueue, volume: Volume) -> None:
        """Volumes that are to be copies of this one."""
        for other in self._volumes.store.by(COPY_OF, f"{volume.namespace}/{volume.name}"):
            enqueue(Key(other.namespace, other.name))

    def _enqueue_origin(self, enqueue: Enqueue, copy: Volume) -> None:
        """A copy was made or went: the volume that it is of may be waiting to move."""
        source = copy.spec.source
        if source is not None and source.volume is not None:
            enqueue(Key(copy.namespace, source.volume))
        elif source is not None and source.snapshot is not None:
            snapshot = self._volumes.snapshots.get(source.snapshot, copy.namespace)
            if snapshot is not None:
                enqueue(Key(copy.namespace, snapshot.spec.volume))

    def _enqueue_uid(self, enqueue: Enqueue, uid: str) -> None:
        for volume in self._volumes.store.by(UID, uid):
            enqueue(Key(volume.namespace, volume.name), urgent=True)

    def _enqueue_moves(self, enqueue: Enqueue, pool: str) -> None:
        """Volumes that are to be in a pool, and are not."""
        for volume in self._volumes.store.by(TO_POOL, pool):
            enqueue(Key(volume.namespace, volume.name))

    def _next_turn(self, enqueue: Enqueue, gone: Volume) -> None:
        """A volume is not moved out of its pool any more: the next few may be. Each that is not lets another one try."""
        waiting = self._volumes.store.by(AWAITS_MOVE, turn(gone))
        for volume in sorted(waiting, key=lambda item: (item.namespace or "", item.name))[:WOKEN]:
            enqueue(Key(volume.namespace, volume.name))

    def _enqueue_unmade(self, enqueue: Enqueue) -> None:
        for volume in self._volumes.store.by(UNMADE, "yes"):
            enqueue(Key(volume.namespace, volume.name))


def _leaves(volume: Volume) -> bool:
    """Whether it takes one of the turns of its pool, or waits for one."""
    moving = volume.status.condition(MOVING)
    return moving is not None and (moving.status is ConditionStatus.TRUE or moving.reason == WAITING_FOR_TURN)


def _unowned(order: WorkOrder | None) -> tuple[UnownedFile, ...]:
    """What a host lists that volumes may be made of."""
    return order.status.pool.unowned if order is not None and order.status.pool is not None else ()


def _otherwise(before: WorkOrder | None, after: WorkOrder | None) -> set[str]:
    """Uids of the volumes that a machine has in another manner than before."""
    one, two = (set(o.status.instance.manners) if o and o.status.instance else set() for o in (before, after))
    return {manner.volume for manner in one ^ two}


def _offers(snapshot: VolumeSnapshot) -> tuple[object, ...]:
    """What of a snapshot decides what becomes of its volume and of its clones."""
    status = snapshot.status
    return (snapshot.uid, snapshot.deleting, status.ready_to_use, status.volume_uid, status.phase)


def _using(vm: VirtualMachine) -> tuple[object, ...]:
    """What of a machine decides which volumes it may have."""
    return (vm.uid, vm.spec.disks, vm.status.host, vm.deleting)
