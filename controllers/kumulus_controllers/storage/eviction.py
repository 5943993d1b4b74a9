"""Which images leave a pool on a host, so that there is room for others. Decided here and nowhere else.

An image leaves by the deletion of its work order. The agent has the last word: it keeps what a disk stands on, also one
that no order tells of. What is in use, pinned, still on its way, or the only copy of what no source has any more, stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from kumulus.api.base import ConditionStatus
from kumulus.api.fabric import Host, HostCondition
from kumulus.api.host import WorkOrder, WorkState, WorkType
from kumulus.api.image import CachePolicy, ClusterImage, Image
from kumulus.api.pool_order import PoolRef
from kumulus.api.quantity import rounded, to_bytes
from kumulus.api.storage import ImageCacheLimits, StoragePool
from kumulus.kube.store import Key, Store
from kumulus.runtime.clock import parse_time
from kumulus.runtime.reconciler import Caches, Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result
from kumulus_controllers.events import tell
from kumulus_controllers.orders import FOR_UID, NAMESPACE, host_of, work_orders
from kumulus_controllers.storage.copies import AnyImage, refetchable

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 5.0
"""While images go: how soon to look again, if the agent says nothing."""
STALE_SECONDS = 120.0
"""An agent looks at a pool's room every minute. So long, what was evicted counts as free on top of what it said last."""
ONLY_COPY = "the only copy"
"""Why an image stays that no source has any more, and no other pool."""
SHORT_OF_ROOM = frozenset({"NoSpace", "InsufficientCapacity"})
"""Reasons of an import that did not fit."""


@dataclass(frozen=True, slots=True)
class Cached:
    """An image in a pool on a host."""

    order: str
    """Name of its work order."""
    size: int
    """Bytes it takes."""
    used_at: float
    """When a disk or volume there was last made of it, or had it; seconds since the epoch."""
    spared: str | None = None
    """Why it stays; None when it may go."""


@dataclass(frozen=True, slots=True)
class Room:
    """A pool on a host. Bytes."""

    capacity: int
    used: int
    short: bool = False
    """An image that is needed did not fit."""


def leaving(images: Iterable[Cached], room: Room, limits: ImageCacheLimits) -> list[Cached]:
    """The images that have to go, those that were not used for longest first, and no more than needed. Pure."""
    images = list(images)
    excess = to_bytes(limits.min_free) - max(room.capacity - room.used, 0)
    if limits.max_size is not None:
        excess = max(excess, sum(image.size for image in images) - to_bytes(limits.max_size))
    if room.short:
        excess = max(excess, 1)
    gone: list[Cached] = []
    for image in sorted(images, key=lambda image: (image.used_at, image.order)):
        if excess <= 0:
            break
        if image.spared is None:
            gone.append(image)
            excess -= max(image.size, 1)
    return gone


def in_use(orders: Iterable[WorkOrder], pool: str | None = None) -> set[str]:
    """Uids of the images that machines and volumes of a host are made of, as far as orders tell; with the uid of a pool,
    only those that are needed there. Pure."""
    found: set[str] = set()

    def there(ref: PoolRef | None) -> bool:
        return pool is None or (ref is not None and ref.uid == pool)

    for order in orders:
        if order.spec.instance is not None:
            found.update(d.image.uid for d in order.spec.instance.disks if d.image is not None and there(d.pool))
            found.update(d.image.uid for d in order.spec.instance.drives if d.image is not None and there(d.pool))
        disk = order.spec.disk
        origin = disk.volume.origin if disk is not None and disk.volume is not None else None
        if disk is not None and origin is not None and origin.image is not None and there(disk.pool):
            found.add(origin.image.uid)
    return found


class Retention:
    """Which images stay in a pool, and why. Reads caches only."""

    def __init__(self, caches: Caches) -> None:
        self._hosts = caches.store(Host)
        self._images: tuple[Store[Image], Store[ClusterImage]] = (caches.store(Image), caches.store(ClusterImage))
        self._orders = work_orders(caches)

    def why(self, order: WorkOrder, used: set[str], *, emptied: bool) -> str | None:
        """Why the image of an order stays in its pool; None when it may go. `emptied`: nothing is to be in that pool."""
        image = self.image(order)
        if order.spec.for_.uid in used:
            return "in use"
        if image is None or image.deleting or image.paused:
            return "not known"
        if image.spec.cache_policy is CachePolicy.EVERYWHERE and not emptied:
            return "pinned"
        if not refetchable(image.spec.source) and not self._elsewhere(order):
            return ONLY_COPY
        return None

    def image(self, order: WorkOrder) -> AnyImage | None:
        """The image of an order, if it is still that one."""
        ref = order.spec.for_
        for store in self._images:
            item: AnyImage | None = store.get(ref.name, ref.namespace)
            if item is not None and item.uid == ref.uid:
                return item
        return None

    def _elsewhere(self, order: WorkOrder) -> bool:
        """Whether a host that answers has the image in another pool, or on another host in one of its own, for now."""
        here = order.spec.disk.pool if order.spec.disk is not None else None
        for other in self._orders.by(FOR_UID, f"{WorkType.DISK}/{order.spec.for_.uid}"):
            host = self._hosts.get(host_of(other))
            ready = host.status.condition(HostCondition.READY) if host is not None and not host.deleting else None
            there = other.spec.disk.pool if other.spec.disk is not None else None
            if here is None or there is None:
                continue
            apart = there.uid != here.uid or (not here.shared and other.namespace != order.namespace)
            if (
                apart
                and other.status.state is WorkState.READY
                and not other.deleting
                and ready is not None
                and ready.status is ConditionStatus.TRUE
            ):
                return True
        return False


class EvictionReconciler:
    """Keeps room for images in the pools of hosts. Its objects are the work orders of pools, one a pool and host."""

    name = "imagecache"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._pools = services.caches.store(StoragePool)
        self._retention = Retention(services.caches)
        self._orders = work_orders(services.caches)
        self._freed: dict[Key, tuple[float, int]] = {}
        """When images were last evicted there, and bytes that were, which the agent's report may not show yet."""
        self._used: dict[tuple[str, str], float] = {}
        """When an image was last used in a host's namespace, as this process has seen."""

    def attach(self, enqueue: Enqueue) -> None:
        """Room that changes, images that come or do not fit, disks that go, limits that change."""

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            order = after or before
            if order is None:
                return
            if order.spec.type is WorkType.POOL:
                enqueue(Key(order.namespace, order.name))
                return
            disk = order.spec.disk
            if disk is not None and disk.import_image is not None:
                if before is None or after is None or before.status.state is not after.status.state:
                    self._enqueue_pool(enqueue, order.namespace, disk.pool.uid)
            elif before is not None and (left := in_use((before,)) - (in_use((after,)) if after else set())):
                for uid in left:
                    self._used[order.namespace or "", uid] = self._services.clock.now().timestamp()
                for pool in self._presences(order.namespace):
                    enqueue(Key(pool.namespace, pool.name))

        def pool_changed(before: StoragePool | None, after: StoragePool | None) -> None:
            if after is not None and before is not None and _keeping(before) != _keeping(after):
                for order in self._orders.by(FOR_UID, f"{WorkType.POOL}/{after.uid}"):
                    enqueue(Key(order.namespace, order.name))

        self._orders.listen(order_changed)
        self._pools.listen(pool_changed)

    def everything(self) -> list[Key]:
        """All pools of all hosts."""
        return [Key(order.namespace, order.name) for order in self._orders if order.spec.type is WorkType.POOL]

    async def reconcile(self, key: Key) -> Result:
        """One pass over a pool on a host."""
        order = self._orders.get(key.name, key.namespace)
        presence = order.spec.pool if order is not None else None
        if order is None or presence is None:
            self._freed.pop(key, None)
            return Gone()
        pool, facts = self._pools.get(presence.pool.name), order.status.pool
        if pool is None or pool.paused or facts is None or order.status.state is not WorkState.READY or order.deleting:
            return Done()
        here = self._orders.by(NAMESPACE, order.namespace or "")
        imports = {o.name: o for o in here if _image_in(o, presence.pool.uid) is not None}
        if any(o.deleting and o.status.reason != "ImageInUse" for o in imports.values()):
            return Requeue(SETTLE_SECONDS)  # room is on its way
        emptied = pool.spec.maintenance
        cached = self._cached(imports, in_use(here, presence.pool.uid), emptied=emptied)
        short = any(o.status.state is WorkState.FAILED and o.status.reason in SHORT_OF_ROOM for o in imports.values())
        freed, now = 0, self._services.clock.monotonic()
        if key in self._freed:
            at, freed = self._freed[key]
            if now - at > STALE_SECONDS:
                self._freed.pop(key)
                freed = 0
        room = Room(facts.capacity or 0, max((facts.used or 0) - freed, 0), short and not freed)
        going = [image for image in cached if image.spared is None] if emptied else []
        going = going or leaving(cached, room, pool.spec.image_cache)
        for image in going:
            await self._evict(imports[image.order], pool, image)
            freed += image.size
            self._freed[key] = (now, freed)
        return Requeue(STALE_SECONDS + 1) if freed else Done()

    def _cached(self, imports: Mapping[str, WorkOrder], used: set[str], *, emptied: bool) -> list[Cached]:
        """The images that are there; of a pool that is to be emptied, those that did not come as well."""
        found = []
        settled = (WorkState.READY, WorkState.FAILED) if emptied else (WorkState.READY,)
        for order in imports.values():
            if order.status.state not in settled or order.deleting:
                continue
            uid = order.spec.for_.uid
            made = order.metadata.creation_timestamp
            found.append(
                Cached(
                    order=order.name,
                    size=(order.status.disk.size or 0) if order.status.disk is not None else 0,
                    used_at=self._used.get(
                        (order.namespace or "", uid), parse_time(made).timestamp() if made is not None else 0.0
                    ),
                    spared=self._retention.why(order, used, emptied=emptied),
                )
            )
        return found

    async def _evict(self, order: WorkOrder, pool: StoragePool, image: Cached) -> None:
        raw = await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if raw is not None and "spec" in raw:
            self._orders.apply(raw)
        host = host_of(order)
        log.info("image evicted", image=order.spec.for_.name, host=host, pool=pool.name, bytes=image.size)
        if (item := self._retention.image(order)) is not None:
            why = "as that is to be emptied" if pool.spec.maintenance else "to make room"
            note = f"The image leaves pool {pool.name} on {host} {why} ({rounded(image.size)}): no disk is made of it."
            await tell(self._services.client, self._services.clock, item, "ImageEvicted", note, action="RemoveFromPool")

    def _presences(self, namespace: str | None) -> list[WorkOrder]:
        return [o for o in self._orders.by(NAMESPACE, namespace or "") if o.spec.type is WorkType.POOL]

    def _enqueue_pool(self, enqueue: Enqueue, namespace: str | None, pool: str) -> None:
        for order in self._presences(namespace):
            if order.spec.pool is not None and order.spec.pool.pool.uid == pool:
                enqueue(Key(order.namespace, order.name))


def _keeping(pool: StoragePool) -> tuple[object, ...]:
    """What of a pool decides which images it keeps."""
    return (pool.spec.image_cache, pool.spec.maintenance)


def _image_in(order: WorkOrder, pool: str) -> str | None:
    """Uid of the image that the order keeps in that pool."""
    disk = order.spec.disk
    return disk.import_image.image.uid if disk and disk.import_image and disk.pool.uid == pool else None
