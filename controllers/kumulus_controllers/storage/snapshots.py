"""What there is around snapshots: their volumes, orders and clones, looked up in the caches."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.fabric import Host
from kumulus.api.host import WorkOrder, WorkState, WorkType
from kumulus.api.snapshot_order import SnapshotItem
from kumulus.api.storage import Volume
from kumulus.api.volume_order import VolumeOrigin
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.api.volumes import CloneMode
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.orders import CLONE_OF, FOR_UID, SNAPSHOTS, host_of
from kumulus_controllers.storage.handover import Part, items_of
from kumulus_controllers.storage.snapshot_plan import Clone, Scope, owner_of, secret_of
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
        """The order that keeps a volume on its host, rather than one on a host that it has left."""
        orders = self.orders.by(FOR_UID, f"{WorkType.DISK}/{volume.uid}")
        return min(orders, key=lambda order: host_of(order) != volume.status.host, default=None)

    def order(self, snapshot: VolumeSnapshot) -> WorkOrder | None:
        """The order that keeps a snapshot, be it its own or one for several volumes."""
        return next(iter(self.orders.by(SNAPSHOTS, snapshot.uid)), None)

    def home(self, volume: str) -> str | None:
        """The host that sees to a volume, by uid, and is not asked to give it up."""
        for order in self.orders.by(FOR_UID, f"{WorkType.DISK}/{volume}"):
            wanted = order.spec.disk.volume if order.spec.disk is not None else None
            if wanted is not None and not (order.deleting and wanted.retain):
                return host_of(order)
        return None

    def part(self, snapshot: VolumeSnapshot, volume_uid: str, host: str | None) -> Part:
        """A snapshot of one volume as something that hosts keep; `host` is on record for it."""
        volume = self.volumes.store.get(snapshot.spec.volume, snapshot.namespace)
        there = volume is not None and volume.uid == volume_uid
        order = self.order(snapshot)
        found = (item.pool for item in (items_of(order) if order else ()) if item.snapshot == snapshot.uid)
        pool = next(found, None) or self.volumes.pool(volume if volume is not None and there else snapshot)
        known = self.hosts.get(host) if host is not None else None
        going = known is not None and known.deleting and pool is not None and pool.shared
        return Part(
            snapshot=snapshot.uid,
            volume=volume_uid,
            name=snapshot.spec.volume,
            pool=pool,
            secret=secret_of(volume) if volume is not None and there else None,
            there=there,
            home=self.home(volume_uid),
            host=host,
            host_there=known is not None and not going,
        )

    def stray(self, item: SnapshotItem) -> Part:
        """What an order keeps of which there is no VolumeSnapshot."""
        return Part(item.snapshot, item.volume, item.volume, item.pool, item.secret, home=self.home(item.volume))

    def scope(self, snapshot: VolumeSnapshot) -> Scope:
        """All that one pass over a snapshot looks at."""
        volume = self.volumes.store.get(snapshot.spec.volume, snapshot.namespace)
        known = snapshot.status.volume_uid
        return Scope(
            snapshot=snapshot,
            volume=volume,
            volume_order=self.volume_order(volume) if volume else None,
            pool=self.volumes.pool(volume) if volume else None,
            moved_by=self.volumes.moved_by(volume) if volume else None,
            order=self.order(snapshot),
            host_gone=snapshot.status.host is not None and self.hosts.get(snapshot.status.host) is None,
            clones=self.clones(snapshot),
            part=self.part(snapshot, known, snapshot.status.host) if known is not None else None,
        )

    def clones(self, snapshot: VolumeSnapshot) -> tuple[Clone, ...]:
        """Volumes that stand on it, or are still being copied from it."""
        found: dict[str, Clone] = {}
        for volume in self.volumes.store.by(FROM_SNAPSHOT, f"{snapshot.namespace}/{snapshot.name}"):
            order = self.volume_order(volume)
            known = _origin(order) if order is not None else None
            of_a_namesake = known is not None and known.snapshot is not None and known.snapshot.snapshot != snapshot.uid
            linked = volume.spec.source is not None and volume.spec.source.clone_mode is CloneMode.LINKED
            linked = linked and not volume.status.unlinked
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
