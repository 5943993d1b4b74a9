"""Images that are made of volumes: by the host that has the volume, while nobody writes to it."""

from __future__ import annotations

from dataclasses import dataclass

from kumulus.api.image import ClusterImage, Image
from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import StoragePool, Volume
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.store import Key, Store
from kumulus.runtime.reconciler import Caches, Enqueue
from kumulus_controllers.orders import HAS_VOLUME, at_rest, work_orders
from kumulus_controllers.storage.presence import pool_ref

MADE_OF = "made-of"
"""Index of images by the volume they are made of."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image is made, and of what."""

    host: str
    pool: PoolRef
    volume: str
    """Uid of the Volume."""
    snapshot: str | None = None
    """Uid of the VolumeSnapshot, if it is made of one."""


@dataclass(frozen=True, slots=True)
class Unready:
    """Why it cannot be made now."""

    reason: str
    message: str


def _made_of(image: Image | ClusterImage) -> tuple[str, ...]:
    source = image.spec.source
    return tuple(
        f"{kind.KIND.kind}/{image.namespace}/{name}"
        for kind, name in ((Volume, source.volume), (VolumeSnapshot, source.snapshot))
        if name is not None
    )


class Published:
    """The caches, as images of volumes need them."""

    def __init__(self, caches: Caches) -> None:
        self._volumes = caches.store(Volume)
        self._snapshots = caches.store(VolumeSnapshot)
        self._pools = caches.store(StoragePool)
        self._orders = work_orders(caches)

    def attach(self, enqueue: Enqueue, images: Store[Image | ClusterImage]) -> None:
        """A change of a volume or a snapshot is one for the images that are to be made of it."""
        images.add_index(MADE_OF, _made_of)

        def changed(before: Volume | VolumeSnapshot | None, after: Volume | VolumeSnapshot | None) -> None:
            item = after or before
            if item is not None:
                for image in images.by(MADE_OF, f"{item.KIND.kind}/{item.namespace}/{item.name}"):
                    enqueue(Key(image.namespace, image.name))

        self._volumes.listen(changed)
        self._snapshots.listen(changed)

    def origin(self, image: Image | ClusterImage) -> Origin | Unready:
        """Where the volume is, if an image can be made of it now."""
        source = image.spec.source
        if source.snapshot is not None:
            return self._of_snapshot(source.snapshot, image.namespace)
        return self._of_volume(source.volume or "", image.namespace)

    def _of_volume(self, name: str, namespace: str | None) -> Origin | Unready:
        volume = self._volumes.get(name, namespace)
        if volume is None or volume.deleting:
            return Unready("SourceNotFound", f"There is no Volume {name} in the namespace.")
        pool = self._pools.get(volume.status.pool) if volume.status.pool else None
        if pool is None or volume.status.host is None or volume.status.size is None:
            return Unready("SourceNotReady", f"Volume {name} is not made yet.")
        if volume.status.moving_to is not None:
            return Unready(
                "SourceNotReady",
                f"Volume {name} is being moved to StoragePool {volume.status.moving_to}: the image is made when that is done.",
            )
        for order in self._orders.by(HAS_VOLUME, volume.uid):
            if not at_rest(order):
                return Unready(
                    "SourceInUse",
                    f"Machine {order.spec.for_.name} writes to Volume {name}: stop it until the image is made.",
                )
        if volume.status.encryption is not None:
            return _encrypted(volume)
        return Origin(volume.status.host, pool_ref(pool), volume.uid)

    def _of_snapshot(self, name: str, namespace: str | None) -> Origin | Unready:
        snapshot = self._snapshots.get(name, namespace)
        if snapshot is None or snapshot.deleting:
            return Unready("SourceNotFound", f"There is no VolumeSnapshot {name} in the namespace.")
        status = snapshot.status
        pool = self._pools.get(status.pool) if status.pool else None
        if pool is None or status.host is None or status.volume_uid is None or not status.ready_to_use:
            return Unready("SourceNotReady", f"VolumeSnapshot {name} is not ready to use yet.")
        volume = self._volumes.get(snapshot.spec.volume, namespace)
        if volume is not None and volume.uid == status.volume_uid and volume.status.encryption is not None:
            return _encrypted(volume)
        return Origin(status.host, pool_ref(pool), status.volume_uid, snapshot.uid)


def _encrypted(volume: Volume) -> Unready:
    return Unready(
        "EncryptedCopy",
        f"Volume {volume.name} is encrypted, and an image is not: everybody who may use it could read it. Copy what is to"
        " be in the image to a volume of a class that does not encrypt, within a machine, and make it of that.",
    )
