"""What there is around snapshots: their volumes, orders and clones, looked up in the caches."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.fabric import Host
from kumulus.api.host import VolumeOrigin, WorkOrder, WorkState, WorkType
from kumulus.api.storage import Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.api.volumes import CloneMode
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.orders import CLONE_OF, FOR_UID, SNAPSHOTS
from kumulus_controllers.storage.snapshot_plan import Clone, Scope, owner_of
from kumulus_controllers.storage.volumes import FROM_SNAPSHOT, UID, Volumes

PART_OF = "part-of"


def _part_of(snapshot: VolumeSnapshot) -> Iterable[str]:
    owner = owner_of(snapshot)
    return (owner.uid,) if owner is not None else ()


def _origin(order: WorkOrder) -> VolumeOrigin | None:
    volume = order.spec.disk.volume if order.spec.disk is not None else None
    return volume.origin if volume is not None else None


class Snapshots:
    """The caches, as snapshots need them."""

    def __init__(self, caches: Caches) -> None:
        self.volumes = Volumes(caches)
        self.store = self.volumes.snapshots
        self.orders = self.volumes.orders
        self.hosts = caches.store(Host)
        self.store.add_index(UID, lambda snapshot: (snapshot.uid,))
        self.store.add_index(PART_OF, _part_of)

    def volume_order(self, volume: Volume) -> WorkOrder | None:
        """The order that keeps a volume on its host."""
        return next(iter(self.orders.by(FOR_UID, f"{WorkType.DISK}/{volume.uid}")), None)

    def order(self, snapshot: VolumeSnapshot) -> WorkOrder | None:
        """The order that keeps a snapshot, be it its own or one for several volumes."""
        return next(iter(self.orders.by(SNAPSHOTS, snapshot.uid)), None)

    def scope(self, snapshot: VolumeSnapshot) -> Scope:
        """All that one pass over a snapshot looks at."""
        volume = self.volumes.store.get(snapshot.spec.volume, snapshot.namespace)
        return Scope(
            snapshot=snapshot,
            volume=volume,
            volume_order=self.volume_order(volume) if volume else None,
            pool=self.volumes.pool(volume) if volume else None,
            order=self.order(snapshot),
            host_gone=snapshot.status.host is not None and self.hosts.get(snapshot.status.host) is None,
            clones=self.clones(snapshot),
        )

    def clones(self, snapshot: VolumeSnapshot) -> tuple[Clone, ...]:
        """Volumes that stand on it, or are still being copied from it."""
        found: dict[str, Clone] = {}
        for volume in self.volumes.store.by(FROM_SNAPSHOT, f"{snapshot.namespace}/{snapshot.name}"):
            order = self.volume_order(volume)
            known = _origin(order) if order is not None else None
            of_a_namesake = known is not None and known.snapshot is not None and known.snapshot.snapshot != snapshot.uid
            linked = volume.spec.source is not None and volume.spec.source.clone_mode is CloneMode.LINKED
            if volume.status.pool is not None and not of_a_namesake and (linked or volume.status.size is None):
                found[volume.name] = Clone(volume.name, linked)
        for order in self.orders.by(CLONE_OF, snapshot.uid):
            origin, name = _origin(order), order.spec.for_.name
            if origin is not None and (origin.linked or not self._made(order)):
                found[name] = Clone(name, origin.linked)
        return tuple(found.values())

    def _made(self, order: WorkOrder) -> bool:
        """Whether the volume of that order was made once. A copy that failed to grow needs its origin no more."""
        volume = next(iter(self.volumes.store.by(UID, order.spec.for_.uid)), None)
        return order.status.state is WorkState.READY or (volume is not None and volume.status.size is not None)
