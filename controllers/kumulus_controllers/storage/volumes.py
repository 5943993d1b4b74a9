"""What there is around volumes: their classes, origins, orders and users, looked up in the caches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder, WorkState, WorkType
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.migration import FINISHED, VirtualMachineMigration
from kumulus.api.order_names import pool_order_name
from kumulus.api.pool_order import PoolRef, UnownedFile
from kumulus.api.storage import StoragePool, Volume, VolumeClass
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.api.volumes import CloneMode
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Caches
from kumulus_controllers.orders import (
    CLONE_OF,
    FOR_UID,
    HAS_VOLUME,
    IMAGE_OF,
    SNAPSHOT_OF,
    at_rest,
    host_of,
    work_orders,
)
from kumulus_controllers.storage.emptying import IN_POOL, in_pool
from kumulus_controllers.storage.move_plan import MOVING, WAITING_FOR_TURN
from kumulus_controllers.storage.presence import pool_ref
from kumulus_controllers.storage.sharing import Images, Reference
from kumulus_controllers.storage.snapshot_plan import owner_of
from kumulus_controllers.storage.volume_plan import Lack, Manner, Scope, Wanted, default_class, existing_of, wanted

USES_VOLUME = "uses-volume"
UID = "uid"
COPY_OF = "copy-of"
HOST = "host"
UNMADE = "unmade"
OF_CLASS = "of-class"
FROM_SNAPSHOT = "from-snapshot"
OF_VOLUME = "of-volume"
OF_VOLUME_UID = "of-volume-uid"
KEEPS_VOLUME = "keeps-volume"
TO_POOL = "to-pool"
AWAITS_MOVE = "awaits-move"
MOVES_VOLUME = "moves-volume"


def volume_keys(vm: VirtualMachine) -> set[Key]:
    """The volumes that a machine's disks are, whether they exist or not."""
    names = (disk.volume_of(vm.name) for disk in vm.spec.disks)
    return {Key(vm.namespace, name) for name in names if name is not None}


def _uses(vm: VirtualMachine) -> Iterable[str]:
    return map(str, volume_keys(vm))


def _copy_of(volume: Volume) -> Iterable[str]:
    source = volume.spec.source
    return (f"{volume.namespace}/{source.volume}",) if source is not None and source.volume is not None else ()


def _from_snapshot(volume: Volume) -> Iterable[str]:
    source = volume.spec.source
    return (f"{volume.namespace}/{source.snapshot}",) if source is not None and source.snapshot is not None else ()


def _of_volume_uid(snapshot: VolumeSnapshot) -> Iterable[str]:
    return (snapshot.status.volume_uid,) if snapshot.status.volume_uid is not None else ()


def _to_pool(volume: Volume) -> Iterable[str]:
    """The pool that it is to be in, and is not."""
    wanted = volume.spec.pool
    return (wanted,) if wanted is not None and volume.status.pool not in (None, wanted) else ()


def brought(migration: VirtualMachineMigration) -> Sequence[str]:
    """Uids of the volumes that go along with a machine to another host."""
    return [disk.volume for disk in migration.status.disks if disk.volume is not None]


def come(before: VirtualMachineMigration | None, after: VirtualMachineMigration | None) -> Sequence[str]:
    """Uids of the volumes that are on no way any more, from this change on."""
    if before is None or before.status.phase in FINISHED or (after is not None and after.status.phase not in FINISHED):
        return ()
    return brought(before)


def turn(volume: Volume) -> str:
    """Among which volumes it waits for its turn to be moved: those of its pool and host."""
    return f"{volume.status.pool}/{volume.status.host}"


def awaits_move(volume: Volume) -> Iterable[str]:
    """Where it waits for its turn, if it does."""
    moving = volume.status.condition(MOVING)
    return (turn(volume),) if moving is not None and moving.reason == WAITING_FOR_TURN else ()


class Volumes:
    """The caches, as volumes need them."""

    def __init__(self, caches: Caches) -> None:
        self.store = caches.store(Volume)
        self.classes = caches.store(VolumeClass)
        self.pools = caches.store(StoragePool)
        self.machines = caches.store(VirtualMachine)
        self.migrations = caches.store(VirtualMachineMigration)
        self.images = Images(caches)
        self.hosts = caches.store(Host)
        self.snapshots = caches.store(VolumeSnapshot)
        self.machine_snapshots = caches.store(VirtualMachineSnapshot)
        self.orders = work_orders(caches)
        self.store.add_index(UID, lambda volume: (volume.uid,))
        self.store.add_index(COPY_OF, _copy_of)
        self.store.add_index(UNMADE, lambda volume: ("yes",) if volume.status.pool is None else ())
        self.store.add_index(HOST, lambda volume: (volume.status.host,) if volume.status.host else ())
        self.store.add_index(
            OF_CLASS, lambda volume: (volume.status.volume_class,) if volume.status.volume_class else ()
        )
        self.store.add_index(FROM_SNAPSHOT, _from_snapshot)
        self.store.add_index(IN_POOL, in_pool)
        self.store.add_index(TO_POOL, _to_pool)
        self.store.add_index(AWAITS_MOVE, awaits_move)
        self.snapshots.add_index(OF_VOLUME, lambda snapshot: (f"{snapshot.namespace}/{snapshot.spec.volume}",))
        self.snapshots.add_index(OF_VOLUME_UID, _of_volume_uid)
        self.machine_snapshots.add_index(KEEPS_VOLUME, lambda item: [disk.volume_uid for disk in item.status.volumes])
        self.machines.add_index(USES_VOLUME, _uses)
        self.migrations.add_index(MOVES_VOLUME, brought)

    def of(self, vm: VirtualMachine) -> Mapping[str, Volume]:
        """The volumes of a machine that exist, by the name of the disk."""
        found: dict[str, Volume] = {}
        for disk in vm.spec.disks:
            name = disk.volume_of(vm.name)
            volume = self.store.get(name, vm.namespace) if name else None
            if volume is not None:
                found[disk.name] = volume
        return found

    def scope(self, volume: Volume) -> Scope:
        """All that one pass over a volume looks at."""
        spec = volume.spec
        orders = self.orders.by(FOR_UID, f"{WorkType.DISK}/{volume.uid}")
        source = self.store.get(spec.source.volume, volume.namespace) if spec.source and spec.source.volume else None
        snapshot = None
        if spec.source is not None and spec.source.snapshot is not None:
            snapshot = self.snapshots.get(spec.source.snapshot, volume.namespace)
        image = None
        if spec.source is not None and spec.source.image is not None:
            wanted_image = Reference(spec.source.image, volume.namespace or "", spec.source.image_namespace)
            image = self.images.find(wanted_image)
        existing = existing_of(volume)
        users = tuple(self.machines.by(USES_VOLUME, f"{volume.namespace}/{volume.name}"))
        pool = self.pool(volume)
        shared = pool is not None and pool.shared
        # While it is moved it stays with its host: the pool that it comes into may be that host's own.
        moves = volume.status.moving_to is not None
        at_home = [order for order in orders if host_of(order) == volume.status.host]
        elsewhere = [order for order in orders if order not in at_home]
        placed = volume.status.host is not None and pool is not None and not shared
        return Scope(
            volume=volume,
            order=next(iter(at_home if placed else at_home or orders), None),
            left_behind=tuple(elsewhere) if placed else (),
            strays=tuple(elsewhere) if shared else (),
            shared=shared,
            reaching=self._reaching(pool, users) if pool is not None and shared and not moves else frozenset(),
            pool=self.pools.get(volume.status.pool) if volume.status.pool is not None else None,
            target=self.pools.get(volume.status.moving_to) if volume.status.moving_to is not None else None,
            linked=self._linked(volume),
            copied=self._copied(volume, orders),
            snapped=bool(self.orders.by(SNAPSHOT_OF, volume.uid)),
            host=self.hosts.get(volume.status.host) if volume.status.host else None,
            volume_class=self.class_of(volume),
            asked=self._asked(volume),
            existing=self._existing(volume),
            existing_owned=existing is not None and bool(self.store.by(UID, existing.id)),
            image=image,
            source=source,
            source_busy=self._writer(source) if source else None,
            snapshot=snapshot,
            made_of=self._made_of(source, snapshot),
            snapshot_going=snapshot is not None and self.going(snapshot),
            snapshots=self.kept(volume),
            users=users,
            instances=tuple(self.orders.by(HAS_VOLUME, volume.uid)),
        )

    def _made_of(self, source: Volume | None, snapshot: VolumeSnapshot | None) -> Volume | None:
        if snapshot is not None and snapshot.status.volume_uid is not None:
            return next(iter(self.store.by(UID, snapshot.status.volume_uid)), None)
        return source

    def _asked(self, volume: Volume) -> StoragePool | None:
        """The pool that it names: before it is made that of the data that it is to be."""
        existing, name = existing_of(volume), volume.spec.pool
        if existing is not None and volume.status.size is None:
            name = existing.pool
        return self.pools.get(name) if name is not None else None

    def _existing(self, volume: Volume) -> UnownedFile | None:
        """The data that it is to be, as its host lists it."""
        asked = existing_of(volume)
        pool = self.pools.get(asked.pool) if asked is not None else None
        if asked is None or pool is None or volume.status.size is not None:
            return None
        for order in self.orders.by(FOR_UID, f"{WorkType.POOL}/{pool.uid}"):
            if host_of(order) == asked.host and order.status.pool is not None:
                return next((file for file in order.status.pool.unowned if file.id == asked.id), None)
        return None

    def moved_by(self, volume: Volume) -> str | None:
        """Name of the migration by which its machine brings it along to another host just now."""
        found = (
            item.name for item in self.migrations.by(MOVES_VOLUME, volume.uid) if item.status.phase not in FINISHED
        )
        return next(found, None)

    def going(self, snapshot: VolumeSnapshot) -> bool:
        """Whether a snapshot is being removed. One that is part of a machine's goes when that goes, and not before."""
        owner = owner_of(snapshot)
        if owner is None:
            return snapshot.deleting
        whole = self.machine_snapshots.get(owner.name, snapshot.namespace)
        return whole is None or whole.uid != owner.uid or whole.deleting

    def kept(self, volume: Volume) -> tuple[str, ...]:
        """What is kept of it, as `kubectl delete` takes it."""
        found = {f"vmsnap/{item.name}" for item in self.machine_snapshots.by(KEEPS_VOLUME, volume.uid)}
        for item in self.snapshots.by(OF_VOLUME_UID, volume.uid):
            owner = owner_of(item)
            found.add(f"vmsnap/{owner.name}" if owner is not None else f"volsnap/{item.name}")
        return tuple(sorted(found))

    def offered(self, name: str | None) -> VolumeClass | None:
        """The class of that name; without a name the default one, if there is any."""
        return self.classes.get(name) if name is not None else default_class(self.classes)

    def class_of(self, volume: Volume) -> VolumeClass | None:
        """The class it got with its place; before that the one it would get. Another default later changes nothing."""
        if volume.status.pool is None:
            return self.offered(volume.spec.volume_class)
        name = volume.status.volume_class or volume.spec.volume_class
        return self.classes.get(name) if name is not None else None

    def manner(self, volume: Volume) -> Manner | None:
        """How machines have it, as its class says now; None when its class is gone, and nothing is to change."""
        offered = self.class_of(volume)
        if offered is None:
            return None if volume.status.volume_class is not None else Manner()
        return Manner(offered.spec.qos, offered.spec.cache)

    def wanted(self, volume: Volume) -> Wanted | Lack:
        """What the volume is to be, or why that cannot be said yet."""
        return wanted(self.scope(volume))

    def pool(self, item: Volume | VolumeSnapshot) -> PoolRef | None:
        """The pool that a volume or a snapshot is in, with what a driver has to know."""
        pool = self.pools.get(item.status.pool) if item.status.pool else None
        return pool_ref(pool) if pool else None

    def _reaching(self, pool: PoolRef, users: Iterable[VirtualMachine]) -> frozenset[str]:
        """Of the hosts of these machines, those that can use the pool."""
        hosts = {vm.status.host for vm in users if vm.status.host is not None}
        return frozenset(host for host in hosts if self.usable(pool, host))

    def usable(self, pool: PoolRef, host: str) -> bool:
        """Whether the agent of the host says that the pool can be used there."""
        order = self.orders.get(pool_order_name(pool.uid), host_namespace(host))
        return order is not None and not order.deleting and order.status.state is WorkState.READY

    def _linked(self, volume: Volume) -> tuple[str, ...]:
        """Names of the volumes that stand on snapshots of it."""
        found: set[str] = set()
        for snapshot in self.snapshots.by(OF_VOLUME_UID, volume.uid):
            for other in self.store.by(FROM_SNAPSHOT, f"{snapshot.namespace}/{snapshot.name}"):
                linked = other.spec.source is not None and other.spec.source.clone_mode is CloneMode.LINKED
                if linked and other.status.pool is not None and not other.status.unlinked:
                    found.add(other.name)
        return tuple(sorted(found))

    def _copied(self, volume: Volume, orders: Iterable[WorkOrder]) -> str | None:
        """What is being made as a copy of this volume, or is on record to be made beside it: a volume, or an image."""
        for other in self.store.by(COPY_OF, f"{volume.namespace}/{volume.name}"):
            if other.status.pool is not None and other.status.size is None:
                return f"Volume {other.name}"
        for order in self.orders.by(IMAGE_OF, volume.uid):
            disk, state = order.spec.disk, order.status.state
            here = disk is not None and disk.pool.name == volume.status.pool and host_of(order) == volume.status.host
            to_come = not order.deleting and state not in (WorkState.READY, WorkState.REFUSED)
            if here and (state is WorkState.WORKING or to_come):
                return f"{order.spec.for_.kind} {order.spec.for_.name}"
        return self._copied_from_snapshot(volume, stays=any(not order.deleting for order in orders))

    def _copied_from_snapshot(self, volume: Volume, *, stays: bool) -> str | None:
        """A volume that is being made from a snapshot of this one: copied, or linked.

        As long as this one's host is not asked to give it up (`stays`), one that has a place counts, ordered or not; from
        then on what has no order yet waits for the snapshot.
        """
        for snapshot in self.snapshots.by(OF_VOLUME_UID, volume.uid):
            for order in self.orders.by(CLONE_OF, snapshot.uid):
                made = next(iter(self.store.by(UID, order.spec.for_.uid)), None)
                if order.status.state is not WorkState.READY and (made is None or made.status.size is None):
                    return f"Volume {order.spec.for_.name}"
            for other in self.store.by(FROM_SNAPSHOT, f"{snapshot.namespace}/{snapshot.name}"):
                if stays and other.status.pool is not None and other.status.size is None:
                    return f"Volume {other.name}"
        return None

    def _writer(self, volume: Volume) -> str | None:
        """Name of a machine that may be writing to it now."""
        for order in self.orders.by(HAS_VOLUME, volume.uid):
            if not at_rest(order):
                return order.spec.for_.name
        return None
