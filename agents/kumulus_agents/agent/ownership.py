"""Which uids the work orders of a host speak of: what has such a uid in its name is somebody's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kumulus.api.host import WorkOrder
from kumulus.api.volume_order import VolumeOrigin


def owned(orders: Iterable[WorkOrder]) -> frozenset[str]:
    """All of them, also those of orders that are being deleted. Rather one too many than one too few."""
    return frozenset(uid for order in orders for uid in _uids(order))


def _uids(order: WorkOrder) -> Iterator[str]:
    yield order.spec.for_.uid
    spec = order.spec
    if spec.instance is not None:
        yield spec.instance.uid
        for disk in spec.instance.disks:
            yield from (uid for uid in (disk.volume, disk.image.uid if disk.image else None) if uid is not None)
        yield from order.status.instance.volumes if order.status.instance is not None else ()
    if spec.disk is not None and spec.disk.import_image is not None:
        yield spec.disk.import_image.image.uid
    if spec.disk is not None and spec.disk.volume is not None:
        yield spec.disk.volume.uid
        yield from _origin(spec.disk.volume.origin)
    if spec.snapshot is not None:
        for item in spec.snapshot.items:
            yield from (item.snapshot, item.volume)


def _origin(origin: VolumeOrigin | None) -> Iterator[str]:
    """What a volume is being made of is not to be taken away meanwhile; what it adopts is."""
    if origin is None:
        return
    if origin.image is not None:
        yield origin.image.uid
    if origin.volume is not None:
        yield origin.volume
    if origin.snapshot is not None:
        yield from (origin.snapshot.snapshot, origin.snapshot.volume)
