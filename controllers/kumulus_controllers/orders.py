"""The store of work orders with the indexes that the subsystems share."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.compute import PowerState
from kumulus.api.fabric import HOST_NAMESPACE_PREFIX
from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.instance_order import MigrationState
from kumulus.api.pool_order import PoolRef
from kumulus.kube.store import Store
from kumulus.runtime.reconciler import Caches

FOR_UID = "for-uid"
FOR_NAME = "for-name"
NAMESPACE = "namespace"
DISKS_IN = "disks-in"
HAS_VOLUME = "has-volume"
SNAPSHOTS = "snapshots"
CLONE_OF = "clone-of"
SNAPSHOT_OF = "snapshot-of"
IMAGE_OF = "image-of"
IMAGES_IN = "images-in"
HAS_NIC = "has-nic"
ON_NETWORK = "on-network"

NOT_BEGUN = (None, WorkState.PENDING, WorkState.WAITING)
"""States of a work order in which the agent may still wait for what comes with it: images, a Secret."""


def _for_uid(order: WorkOrder) -> Iterable[str]:
    return (f"{order.spec.type}/{order.spec.for_.uid}",)


def _for_name(order: WorkOrder) -> Iterable[str]:
    return (f"{order.spec.for_.kind}/{order.spec.for_.namespace or ''}/{order.spec.for_.name}",)


def _namespace(order: WorkOrder) -> Iterable[str]:
    return (order.namespace or "",)


def _pools(order: WorkOrder) -> tuple[PoolRef, ...]:
    """The pools in which a machine's order, a volume's or a snapshot's has data, or a disc."""
    if order.spec.instance is not None:
        instance = order.spec.instance
        discs = (drive.pool for drive in instance.drives if drive.pool is not None)
        return (*(disk.pool for disk in instance.disks), *discs)
    if order.spec.disk is not None and order.spec.disk.volume is not None:
        move = order.spec.disk.volume.move
        return (order.spec.disk.pool, move.pool) if move is not None else (order.spec.disk.pool,)
    if order.spec.snapshot is not None:
        return tuple(item.pool for item in order.spec.snapshot.items)
    return ()


def data_in(order: WorkOrder | None) -> set[tuple[str, int]]:
    """Names of the pools in which it has data, and the bytes that the data may take."""
    if order is None:
        return set()
    if order.spec.instance is not None:
        disks = order.spec.instance.disks
        own = sum(disk.size or 0 for disk in disks if disk.volume is None)
        return {(disk.pool.name, own if disk.volume is None else 0) for disk in disks}
    if order.spec.disk is not None and order.spec.disk.volume is not None:
        size = order.spec.disk.volume.size or 0
        return {(pool.name, size) for pool in _pools(order)}
    return set()


def _disks_in(order: WorkOrder) -> Iterable[str]:
    return {pool.uid for pool in _pools(order)}


def superseded(order: WorkOrder) -> bool:
    """Whether its host was fenced and its machine has another placement: it is for cleaning up alone, and has nothing."""
    return order.spec.instance is not None and order.spec.instance.superseded


def volumes_in(order: WorkOrder) -> set[str]:
    """Uids of the volumes that a machine shall have, or has still as far as its agent knows."""
    if order.spec.instance is None or superseded(order):
        return set()
    wanted = {disk.volume for disk in order.spec.instance.disks if disk.volume is not None}
    return wanted | set(order.status.instance.volumes if order.status.instance else ())


def nics_in(order: WorkOrder) -> set[str]:
    """Uids of the NetworkInterfaces that a machine shall have, or has still as far as its agent knows."""
    if order.spec.instance is None or superseded(order):
        return set()
    wanted = {nic.uid for nic in order.spec.instance.nics}
    known = order.status.instance.nics if order.status.instance else ()
    return wanted | {nic.uid for nic in known if nic.attached}


def networks_in(order: WorkOrder) -> set[str]:
    """Uids of the networks that a machine shall have an interface in, or a gateway a leg."""
    if order.spec.gateway is not None:
        return {leg.network for leg in order.spec.gateway.legs if leg.uplink is None}
    if order.spec.instance is None or superseded(order):
        return set()
    return {nic.network for nic in order.spec.instance.nics}


def _snapshots(order: WorkOrder) -> Iterable[str]:
    """Uids of the VolumeSnapshots that it keeps."""
    return [item.snapshot for item in order.spec.snapshot.items] if order.spec.snapshot is not None else ()


def _clone_of(order: WorkOrder) -> Iterable[str]:
    """Uid of the VolumeSnapshot that its volume began with."""
    volume = order.spec.disk.volume if order.spec.disk is not None else None
    origin = volume.origin if volume is not None else None
    return (origin.snapshot.snapshot,) if origin is not None and origin.snapshot is not None else ()


def _snapshot_of(order: WorkOrder) -> Iterable[str]:
    return {item.volume for item in order.spec.snapshot.items} if order.spec.snapshot is not None else ()


def _image_of(order: WorkOrder) -> Iterable[str]:
    """Uid of the volume that an image is made of."""
    wanted = order.spec.disk.import_image if order.spec.disk is not None else None
    return (wanted.volume,) if wanted is not None and wanted.volume is not None else ()


def _images_in(order: WorkOrder) -> Iterable[str]:
    disk = order.spec.disk
    return (disk.pool.uid,) if disk is not None and disk.import_image is not None else ()


def work_orders(caches: Caches) -> Store[WorkOrder]:
    """The store, indexed by what an order is for, its namespace, its pools, volumes and images, the snapshots it keeps or clones,
    its interfaces and their networks, and those of a gateway's legs."""
    store = caches.reflected(WorkOrder)
    store.add_index(FOR_UID, _for_uid)
    store.add_index(FOR_NAME, _for_name)
    store.add_index(NAMESPACE, _namespace)
    store.add_index(DISKS_IN, _disks_in)
    store.add_index(HAS_VOLUME, volumes_in)
    store.add_index(SNAPSHOT_OF, _snapshot_of)
    store.add_index(SNAPSHOTS, _snapshots)
    store.add_index(CLONE_OF, _clone_of)
    store.add_index(IMAGE_OF, _image_of)
    store.add_index(IMAGES_IN, _images_in)
    store.add_index(HAS_NIC, nics_in)
    store.add_index(ON_NETWORK, networks_in)
    return store


def claim(order: WorkOrder) -> int:
    """How good a right a machine's order has to it, among several of it; the least is the best. Of two hosts between which it
    moves, the one that it leaves has it, until the other one's order is like any other (docs/adr/0029)."""
    instance = order.spec.instance
    if instance is None or instance.incoming is not None:
        return 2
    return 1 if instance.outgoing is not None else 0


def moved(order: WorkOrder) -> bool:
    """Whether the machine's guest has left that host for another one (docs/adr/0029)."""
    said = order.status.instance.migration if order.status.instance is not None else None
    return said is not None and said.state is MigrationState.SENT


def host_of(order: WorkOrder) -> str:
    """Name of the host whose namespace the order is in."""
    return (order.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX)


def done(order: WorkOrder) -> bool:
    """Whether the host has done what it is told now. One that waits, or has failed, has read it, and may have what it was
    told before."""
    current = (order.status.observed_generation or 0) >= order.metadata.generation
    return current and order.status.state is WorkState.READY


def at_rest(order: WorkOrder) -> bool:
    """Whether a machine is off and is to stay so: it writes to nothing."""
    return (
        order.spec.instance is not None
        and order.spec.instance.power is PowerState.STOPPED
        and order.status.state is WorkState.STOPPED
        and (order.status.observed_generation or 0) >= order.metadata.generation
    )
