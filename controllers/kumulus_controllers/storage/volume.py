"""Volume: given a place with its first machine, made there, grown, handed to one machine at a time, removed."""

from __future__ import annotations

import structlog

from kumulus.api.base import FINALIZER, FORCE_DETACH
from kumulus.api.compute import VirtualMachine
from kumulus.api.fabric import host_namespace
from kumulus.api.host import PoolRef, WorkOrder, WorkType, volume_order_name
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.storage import Attachment, ClusterImage, Image, Volume, VolumeClass
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.builtin import SECRET
from kumulus.kube.errors import AlreadyExists, NotFound
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result, Wait
from kumulus_controllers.orders import FOR_NAME, volumes_in
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.pools import choose
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage import passphrase
from kumulus_controllers.storage.copies import Copies
from kumulus_controllers.storage.image import order_import
from kumulus_controllers.storage.volume_plan import (
    Lack,
    Place,
    Scope,
    Wanted,
    attachment,
    derive_status,
    held,
    host_lost,
    keeper,
    renewed,
    volume_order,
    wanted,
)
from kumulus_controllers.storage.volumes import COPY_OF, FROM_SNAPSHOT, UID, UNMADE, Volumes, at_rest, volume_keys

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
            if item is None or (before and after and before.status.phase is after.status.phase):
                return
            self._enqueue_unmade(enqueue)

        def class_changed(before: VolumeClass | None, after: VolumeClass | None) -> None:
            self._enqueue_unmade(enqueue)

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
        volumes.images.listen(origin_changed)
        volumes.cluster_images.listen(origin_changed)
        volumes.classes.listen(class_changed)

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
        # Where it is, and who may write, is on record before anything is made of it.
        result = await self._report(scope, place, attached, None)
        current = self._volumes.store.get(key.name, key.namespace)
        if current is None or current.uid != volume.uid:
            return Done()
        if isinstance(again := wanted(self._volumes.scope(current)), Lack):
            # What it is made from went meanwhile; nobody who saw the volume's place from then on lets it go.
            return await self._report(self._volumes.scope(current), None, keeper(scope), again)
        ordered = await self._order(current, want, place)
        if (lack := await self._hand_over(self._volumes.scope(current), want)) is not None:
            return await self._report(self._volumes.scope(current), place, attached, lack)
        return await self._report(self._volumes.scope(current), place, attached, None) if ordered else result

    async def _hand_over(self, scope: Scope, want: Wanted) -> Lack | None:
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
            return Place(pool, volume.status.host)
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
                    return Place(found.ref, host)
        chosen = choose(view, self._fleet.load(host), 0, (want.demand,))
        if isinstance(chosen, str):
            return Lack("NoPoolFits", f"Host {host}, where the machine is, is {chosen}.", stalled=False)
        return Place(chosen.volumes[volume.uid], host)

    def _beside(self, volume: Volume, pool: PoolRef, host: str) -> Place | Lack:
        """Where what it is made from is."""
        if volume.spec.pool not in (None, pool.name):
            return Lack(
                "SourceElsewhere",
                f"Its source is in StoragePool {pool.name}, and it shall be in {volume.spec.pool}: leave spec.pool empty.",
            )
        return Place(pool, host)

    async def _order(self, volume: Volume, want: Wanted, place: Place) -> bool:
        """Have the host make it, or grow it; True when something was written."""
        client, term = self._services.client, self._services.term()
        namespace, name = host_namespace(place.host), volume_order_name(volume.uid)
        if want.origin is not None and want.origin.image is not None:
            image = self._volumes.scope(volume).image
            if image is not None:
                await order_import(client, self._orders, self._copies, image, place.host, place.pool, term)
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
            order = await self._live_order(volume)
        if order is None:
            await drop_finalizer(client, self._volumes.store, volume)
            return Gone()
        if not order.deleting:
            if order.spec.disk is not None and order.spec.disk.volume is not None and order.spec.disk.volume.secret:
                await client.delete(SECRET, order.spec.disk.volume.secret, order.namespace)
            raw = await client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
            if raw is None or "spec" not in raw:
                self._orders.remove(Key(order.namespace, order.name), order.uid)
            else:
                self._orders.apply(raw)
        elif volume.metadata.annotations.get(FORCE_DETACH) == "true":
            await drop_finalizer(client, self._orders, order)
        await self._report(self._volumes.scope(volume), None, None, None)
        return Wait("Deleting", 30.0)

    async def _live_order(self, volume: Volume) -> WorkOrder | None:
        """Before letting a volume go whose order this process has not seen go: is there really none?"""
        namespace = host_namespace(volume.status.host or "")
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
