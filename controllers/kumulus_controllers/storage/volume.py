"""Volume: given a place with its first machine, made there, grown, handed to one machine at a time, removed.

In a pool that hosts share it goes from host to host as well (ADR 10): the agent that has it lets go and says so before
another one is told of it.
"""

from __future__ import annotations

import zlib

import structlog

from kumulus.api.base import FINALIZER, FORCE_DETACH
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import PoolRef, UnownedFile, WorkOrder, WorkType, volume_order_name
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.storage import Attachment, ClusterImage, Image, StoragePool, Volume, VolumeClass, VolumePhase
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.builtin import SECRET
from kumulus.kube.errors import AlreadyExists, NotFound
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.orders import DISKS_IN, FOR_NAME, NOT_BEGUN, at_rest, host_of, volumes_in
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.pools import choose
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage import passphrase
from kumulus_controllers.storage.copies import Copies
from kumulus_controllers.storage.image import arrived, heard, order_import
from kumulus_controllers.storage.pool import pool_ref
from kumulus_controllers.storage.volume_plan import (
    HANDING_OVER,
    Lack,
    Place,
    Scope,
    Wanted,
    attachment,
    derive_status,
    handing_over,
    held,
    home,
    host_lost,
    keeper,
    kept_back,
    renewed,
    retained,
    retaining,
    volume_order,
    wanted,
)
from kumulus_controllers.storage.volumes import COPY_OF, FROM_SNAPSHOT, HOST, UID, UNMADE, Volumes, volume_keys

log = structlog.get_logger(__name__)


class VolumeReconciler:
    """Brings a volume to what its spec says. The only writer of its status."""

    name = "volume"

    def __init__(self, services: Services, fleet: Fleet) -> None:
        self._services = services
        self._fleet = fleet
        self._volumes = Volumes(services.caches)
        self._orders = self._volumes.orders
        self._handed_over: set[str] = set()
        """Uids of orders whose passphrase this process has seen on the host."""
        self._copies = Copies(services.caches)

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; machines that use them and their orders; what they are made from; their classes."""
        volumes = self._volumes

        def volume_changed(before: Volume | None, after: Volume | None) -> None:
            item = after or before
            if item is None:
                return
            enqueue(Key(item.namespace, item.name))
            self._enqueue_copies(enqueue, item)

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
            if after is None:
                self._handed_over.discard(order.uid)
            if order.spec.type is WorkType.DISK and order.spec.for_.kind == Volume.KIND.kind:
                enqueue(Key(order.spec.for_.namespace, order.spec.for_.name), urgent=True)
            elif order.spec.type is WorkType.POOL:
                if _unowned(before) != _unowned(after):
                    self._enqueue_unmade(enqueue)
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
                    if volume.deleting:
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

    def _enqueue_unmade(self, enqueue: Enqueue) -> None:
        for volume in self._volumes.store.by(UNMADE, "yes"):
            enqueue(Key(volume.namespace, volume.name))

    def everything(self) -> list[Key]:
        """All volumes, and those that only a left-over work order remembers."""
        keys = set(self._volumes.store.keys())
        for order in self._orders:
            if order.spec.type is WorkType.DISK and order.spec.for_.kind == Volume.KIND.kind:
                keys.add(Key(order.spec.for_.namespace, order.spec.for_.name))
        return list(keys)

    async def reconcile(self, key: Key) -> Result:
        """One pass over a volume."""
        volume = self._volumes.store.get(key.name, key.namespace)
        await self._remove_orphans(key, volume)
        if volume is None:
            return Gone()
        if volume.paused:
            return Done()
        client = self._services.client
        if not volume.deleting and await ensure_finalizer(client, self._volumes.store, volume):
            volume = self._volumes.store.get(key.name, key.namespace) or volume
        scope = self._volumes.scope(volume)
        if volume.deleting:
            return await self._delete(scope)
        if (lost := host_lost(scope)) is not None:
            return await self._report(scope, None, keeper(scope), lost)
        want = wanted(scope)
        if isinstance(want, Lack):
            return await self._report(scope, None, keeper(scope), want)
        if want.encryption is not None and scope.order is None and volume.status.size is None:
            text = await passphrase.read(client, volume, want.encryption)
            if isinstance(text, Lack):
                return await self._report(scope, None, keeper(scope), text)
        attached = attachment(scope)
        place = self._place(scope, want, attached)
        if isinstance(place, Lack):
            return await self._report(scope, None, keeper(scope), place)
        if place is None:
            return await self._report(scope, None, None, None)
        if scope.shared and (place.host != volume.status.host or scope.strays):
            waits = await self._hand_over(scope, place, attached)
            if waits is not None:
                return waits
            scope = self._volumes.scope(volume)
        # Where it is, and who may write, is on record before anything is made of it.
        result = await self._report(scope, place, attached, None)
        current = self._volumes.store.get(key.name, key.namespace)
        if current is None or current.uid != volume.uid:
            return Done()
        if isinstance(again := wanted(self._volumes.scope(current)), Lack):
            # What it is made from went meanwhile; nobody who saw the volume's place from then on lets it go.
            return await self._report(self._volumes.scope(current), None, keeper(scope), again)
        ordered = await self._order(current, want, place)
        if (lack := await self._give_passphrase(self._volumes.scope(current), want)) is not None:
            return await self._report(self._volumes.scope(current), place, attached, lack)
        return await self._report(self._volumes.scope(current), place, attached, None) if ordered else result

    async def _give_passphrase(self, scope: Scope, want: Wanted) -> Lack | None:
        """Give the host the passphrase of a volume; once in the life of this process, in case somebody took it away."""
        order = scope.order
        if want.encryption is None or order is None or order.uid in self._handed_over:
            return None
        lack = await passphrase.copy(self._services.client, scope.volume, order, want.encryption)
        if lack is None:
            self._handed_over.add(order.uid)
        return lack

    def _place(self, scope: Scope, want: Wanted, attached: Attachment | None) -> Place | Lack | None:
        """Where the volume is; a new one goes where its origin is, else where its first machine is. None: nobody needs it yet."""
        volume = scope.volume
        if volume.status.pool is not None:
            pool = self._volumes.pool(volume)
            if pool is None or volume.status.host is None:
                return Lack("PoolGone", f"StoragePool {volume.status.pool} is gone, and the data with it.")
            return self._shared_place(scope, pool, attached) if scope.shared else Place(pool, volume.status.host)
        existing = volume.spec.source.existing if volume.spec.source is not None else None
        if existing is not None:
            if scope.asked is None or self._fleet.host(existing.host) is None:
                return Lack("HostNotUsable", f"Host {existing.host} is gone.")
            return Place(pool_ref(scope.asked), existing.host)
        if scope.source is not None and want.origin is not None and want.origin.volume is not None:
            pool = self._volumes.pool(scope.source)
            if pool is None or scope.source.status.host is None:
                return Lack("SourceNotReady", f"Volume {scope.source.name} cannot be reached.")
            return self._beside(volume, pool, scope.source.status.host)
        if scope.snapshot is not None and want.origin is not None and want.origin.snapshot is not None:
            pool = self._volumes.pool(scope.snapshot)
            if pool is None or scope.snapshot.status.host is None:
                return Lack("SnapshotNotReady", f"VolumeSnapshot {scope.snapshot.name} cannot be reached.")
            return self._beside(volume, pool, scope.snapshot.status.host)
        host = next((vm.status.host for vm in scope.users if attached and vm.uid == attached.uid), None)
        view = self._fleet.host(host) if host else None
        if host is None:
            return None
        if view is None:
            return Lack("HostNotUsable", f"Host {host} is gone.", stalled=False)
        kept = self._fleet.kept(volume.uid)
        if kept is not None and kept[0] == host:
            for found in view.pools:
                if found.ref.uid == kept[1]:
                    return Place(found.ref, host, 0 if found.ref.shared else None)
        chosen = choose(view, self._fleet.load(host), 0, (want.demand,), volume.namespace)
        if isinstance(chosen, str):
            return Lack("NoPoolFits", f"Host {host}, where the machine is, is {chosen}.", stalled=False)
        ref = chosen.volumes[volume.uid]
        return Place(ref, host, 0 if ref.shared else None)

    def _shared_place(self, scope: Scope, pool: PoolRef, attached: Attachment | None) -> Place | Lack:
        """Where a volume that was made goes, or stays."""
        status = scope.volume.status
        host = home(scope, attached)
        if host is None:
            others = [name for name in self._fleet.using(pool.uid) if name != status.host]
            if not others:
                return Lack(
                    "NoHostReaches",
                    f"No other host than {status.host} can use pool {pool.name}, where the data is: have one join.",
                )
            host = others[zlib.crc32(scope.volume.uid.encode()) % len(others)]
        return Place(pool, host, (status.epoch or 0) + (host != status.host))

    async def _hand_over(self, scope: Scope, place: Place, attached: Attachment | None) -> Result | None:
        """Have every other host let go of the volume; None once none of them has it, as seen live.

        The order that an agent has let go of is gone, and it says `retain`: the data stays. Who may write is on record
        first, so that nobody else gets the volume meanwhile.
        """
        volume, client = scope.volume, self._services.client
        here = Place(place.pool, volume.status.host or place.host, volume.status.epoch)
        if (busy := kept_back(scope, place.host)) is not None:
            return await self._report(scope, here, attached, busy)
        hosts = {host_of(order) for order in scope.strays} | {volume.status.host or place.host}
        for name in sorted(hosts - {place.host}):
            order = self._orders.get(volume_order_name(volume.uid), host_namespace(name))
            order = order or await self._live_order(volume, name)
            if order is None:
                continue
            answers = heard(self._fleet, name)
            await self._report(scope, here, attached, handing_over(scope, order, place.host, heard=answers))
            if not order.deleting:
                await self._delete_order(await self._retain(order, True))
            elif volume.metadata.annotations.get(FORCE_DETACH) == "true" and not answers:
                log.warning("a volume is taken from a host that does not answer", volume=volume.name, host=name)
                await drop_finalizer(client, self._orders, order)
                await self._forced(volume)
            return Wait(HANDING_OVER, 10.0)
        # What it was made from is asked for only while no order knows it: with one that has just gone, look again.
        seen = [order for order in (scope.order, *scope.strays) if order is not None and host_of(order) != place.host]
        return Requeue(0.1) if seen else None

    async def _retain(self, order: WorkOrder, retain: bool) -> WorkOrder:
        """The order, changed so that its end leaves the data where it is, or does not."""
        patch = merge_patch(order.spec.to_json(), retaining(order.spec, retain, self._services.term()).to_json())
        if not patch:
            return order
        change = {"metadata": {"resourceVersion": order.metadata.resource_version}, "spec": patch}
        raw = await self._services.client.patch(WorkOrder.KIND, order.name, change, order.namespace)
        self._orders.apply(raw)
        return WorkOrder.parse(raw)

    async def _delete_order(self, order: WorkOrder) -> None:
        """Ask for the end of an order. Its passphrase goes first: the garbage collector may take half a minute."""
        if order.spec.disk is not None and order.spec.disk.volume is not None and order.spec.disk.volume.secret:
            await self._services.client.delete(SECRET, order.spec.disk.volume.secret, order.namespace)
        raw = await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if raw is None or "spec" not in raw:
            self._orders.remove(Key(order.namespace, order.name), order.uid)
        else:
            self._orders.apply(raw)

    async def _forced(self, volume: Volume) -> None:
        """Take the annotation off: it was meant for one host, and must not take the volume from the next one."""
        change = {"metadata": {"annotations": {FORCE_DETACH: None}}}
        raw = await self._services.client.patch(Volume.KIND, volume.name, change, volume.namespace)
        self._volumes.store.apply(raw)

    def _refused(self, pool_uid: str, host: str, namespace: str | None) -> Lack | None:
        """Why a copy cannot be beside its source, because of the pool that is in."""
        view = self._fleet.host(host)
        for pool in view.pools if view is not None else ():
            if pool.ref.uid == pool_uid and not pool.admits(namespace):
                return Lack("PoolNotAllowed", f"StoragePool {pool.ref.name} may not be used in namespace {namespace}.")
            if pool.ref.uid == pool_uid and pool.stops_at is not None:
                return Lack(
                    "PoolFull",
                    f"StoragePool {pool.ref.name}, where its source is, is filled to {pool.stops_at}% on host {host} and"
                    " takes nothing new: ask your operator for room.",
                )
        return None

    def _beside(self, volume: Volume, pool: PoolRef, host: str) -> Place | Lack:
        """Where what it is made from is."""
        if volume.spec.pool not in (None, pool.name):
            return Lack(
                "SourceElsewhere",
                f"Its source is in StoragePool {pool.name}, and it shall be in {volume.spec.pool}: leave spec.pool empty.",
            )
        if (refused := self._refused(pool.uid, host, volume.namespace)) is not None:
            return refused
        return Place(pool, host, 0 if pool.shared else None)

    async def _order(self, volume: Volume, want: Wanted, place: Place) -> bool:
        """Have the host make it, or grow it; True when something was written."""
        client, term = self._services.client, self._services.term()
        namespace, name = host_namespace(place.host), volume_order_name(volume.uid)
        if want.origin is not None and want.origin.image is not None:
            image = self._volumes.scope(volume).image
            if image is not None:
                await order_import(self._services, self._fleet, self._copies, image, place.host, place.pool)
        order = self._orders.get(name, namespace)
        if order is None:
            body = {
                "metadata": {"name": name, "finalizers": [FINALIZER]},
                "spec": volume_order(volume, want, place, term).to_json(),
            }
            try:
                raw = await client.create(WorkOrder.KIND, body, namespace)
            except AlreadyExists:
                raw = await client.get(WorkOrder.KIND, name, namespace)
            self._orders.apply(raw)
            return True
        if order.deleting:  # a host is letting go of it: whoever is to have it next gets an order of its own
            return False
        patch = merge_patch(order.spec.to_json(), renewed(order.spec, want, term).to_json())
        if not patch:
            return False
        change = {"metadata": {"resourceVersion": order.metadata.resource_version}, "spec": patch}
        self._orders.apply(await client.patch(WorkOrder.KIND, name, change, namespace))
        return True

    async def _delete(self, scope: Scope) -> Result:
        volume, order, client = scope.volume, scope.order, self._services.client
        if FINALIZER not in volume.metadata.finalizers:
            return Done()
        if (busy := held(scope)) is not None:
            return await self._report(scope, None, keeper(scope), busy)
        if order is None and volume.status.host is not None:
            order = await self._live_order(volume, volume.status.host)
        left = scope.host is None or volume.status.phase is VolumePhase.MOVING
        if order is None and scope.shared and left and (again := await self._take_up(scope)) is not None:
            return again
        if order is None:
            await drop_finalizer(client, self._volumes.store, volume)
            return Gone()
        if scope.shared:  # it may have been about to be handed over
            order = await self._retain(order, retained(scope))
        if not order.deleting:
            await self._delete_order(order)
        elif volume.metadata.annotations.get(FORCE_DETACH) == "true":
            await drop_finalizer(client, self._orders, order)
        await self._report(self._volumes.scope(volume), None, None, None)
        return Wait("Deleting", 30.0)

    async def _take_up(self, scope: Scope) -> Result | None:
        """The host that saw to a volume that is to be removed is gone; its data is not: have another host remove it.

        None when there is nothing to remove, or nobody who could.
        """
        volume, want = scope.volume, wanted(scope)
        pool = self._volumes.pool(volume)
        if pool is None or isinstance(want, Lack) or want.retain or volume.status.size is None:
            return None
        place = self._shared_place(scope, pool, None)
        if isinstance(place, Lack):
            return await self._report(scope, None, None, place)
        await self._report(scope, place, None, None)
        current = self._volumes.store.get(volume.name, volume.namespace)
        if current is not None and current.uid == volume.uid:
            await self._order(current, want, place)
        return Wait("Deleting", 5.0)

    async def _live_order(self, volume: Volume, host: str) -> WorkOrder | None:
        """Before acting on the absence of an order that this process has not seen go: is there really none?"""
        namespace = host_namespace(host)
        raw = await self._services.client.find(WorkOrder.KIND, volume_order_name(volume.uid), namespace)
        if raw is None:
            return None
        self._orders.apply(raw)
        return WorkOrder.parse(raw)

    async def _remove_orphans(self, key: Key, volume: Volume | None) -> None:
        """Orders of a volume of that name that is no more are removed after a live look. Their data stays if they say so."""
        for order in self._orders.by(FOR_NAME, f"Volume/{key.namespace or ''}/{key.name}"):
            if order.deleting or (volume is not None and order.spec.for_.uid == volume.uid):
                continue
            live = await self._services.client.find(Volume.KIND, key.name, key.namespace)
            if live is None or live["metadata"]["uid"] != order.spec.for_.uid:
                log.info("removing the work order of a volume that is gone", namespace=key.namespace, name=key.name)
                await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)

    async def _report(
        self, scope: Scope, place: Place | None, attached: Attachment | None, lack: Lack | None
    ) -> Result:
        store = self._volumes.store
        volume = store.get(scope.volume.name, scope.volume.namespace) or scope.volume
        if volume.uid != scope.volume.uid:
            return Done()
        after = derive_status(scope, place, attached, lack, rfc3339(self._services.clock.now()))
        try:
            await write_status(self._services.client, store, volume, volume.status, after)
        except NotFound:
            return Done()
        return Wait(lack.reason, 30.0) if lack is not None else Done()


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
