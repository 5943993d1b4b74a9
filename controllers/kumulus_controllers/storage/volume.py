"""Volume: given a place with its first machine, made there, grown, moved, handed to one machine at a time, removed.

In a pool that hosts share it goes from host to host as well (ADR 10): the agent that has it lets go and says so before
another one is told of it. From pool to pool it goes on the host that has it (ADR 16).
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from kumulus.api.base import FINALIZER, FORCE_DETACH
from kumulus.api.compute import VirtualMachine
from kumulus.api.host import WorkOrder, WorkType
from kumulus.api.storage import Attachment, Volume, VolumePhase
from kumulus.kube.errors import NotFound
from kumulus.kube.store import Key
from kumulus.runtime.clock import rfc3339
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Requeue, Result, Wait
from kumulus_controllers.orders import FOR_NAME, host_of
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Moving
from kumulus_controllers.status import drop_finalizer, ensure_finalizer, write_status
from kumulus_controllers.storage import passphrase
from kumulus_controllers.storage.copies import Copies
from kumulus_controllers.storage.image_orders import heard, order_import
from kumulus_controllers.storage.move_plan import Course, Sight, asked, course
from kumulus_controllers.storage.places import Places
from kumulus_controllers.storage.snapshot_orders import SnapshotOrders
from kumulus_controllers.storage.snapshots import Snapshots
from kumulus_controllers.storage.volume_following import VolumeFollowing
from kumulus_controllers.storage.volume_handover import Handover
from kumulus_controllers.storage.volume_orders import VolumeOrders
from kumulus_controllers.storage.volume_plan import (
    Lack,
    Place,
    Scope,
    Wanted,
    attachment,
    brought_along,
    held,
    host_lost,
    keeper,
    retained,
    stands_on,
    wanted,
)
from kumulus_controllers.storage.volume_status import derive_status
from kumulus_controllers.storage.volume_wakeups import VolumeWakeups
from kumulus_controllers.storage.volumes import Volumes, volume_keys

log = structlog.get_logger(__name__)


PENDING_SHOWN_AFTER = 2.0
"""That a volume waits for the machine that brought it along to be placed is shown when it takes longer, in seconds."""

DELETING_SHOWN_AFTER = 2.0
"""A removal that takes longer, in seconds, is shown in the status; most do not, and save a write."""


@dataclass(frozen=True, slots=True)
class Going:
    """An order that this process saw, or had, end: once it is no more in the cache, it is gone."""

    host: str
    since: float
    """Monotonic seconds."""


class VolumeReconciler:
    """Brings a volume to what its spec says. The only writer of its status."""

    name = "volume"

    def __init__(self, services: Services, fleet: Fleet, moves_at_once: int = 2) -> None:
        self._services = services
        self._fleet = fleet
        self._moves_at_once = moves_at_once
        self._volumes = Volumes(services.caches)
        self._places = Places(self._volumes, fleet)
        self._orders = VolumeOrders(services)
        self._snapshots = SnapshotOrders(services, Snapshots(services.caches))
        self._handover = Handover(services, fleet, self._volumes, self._snapshots, self._report)
        self._following = VolumeFollowing(services, self._volumes, self._orders)
        self._given: set[str] = set()
        """Uids of orders whose passphrase this process has seen on the host."""
        self._copies = Copies(services.caches)
        self._going: dict[str, Going] = {}
        """By uid of the volume that is being removed."""
        self._new: dict[str, float] = {}
        """Since when, in monotonic seconds, a volume waits for the machine that brought it along; by its uid."""

    def attach(self, enqueue: Enqueue) -> None:
        """Own changes; machines that use them and their orders; what they are made from; their classes, pools and hosts."""

        def order_gone(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if before is not None and after is None:
                self._given.discard(before.uid)

        def volume_gone(before: Volume | None, after: Volume | None) -> None:
            if before is not None and (after is None or after.uid != before.uid):
                self._going.pop(before.uid, None)
            if before is not None and (after is None or after.uid != before.uid or after.status.phase is not None):
                self._new.pop(before.uid, None)

        self._volumes.orders.listen(order_gone)
        self._volumes.store.listen(volume_gone)
        VolumeWakeups(self._volumes).attach(enqueue)
        self._following.attach(enqueue)

    def everything(self) -> list[Key]:
        """All volumes, and those that only a left-over work order remembers."""
        keys = set(self._volumes.store.keys())
        for order in self._volumes.orders:
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
        if keeper(scope) is None and await self._wanted_still(volume):
            return Requeue(1.0)
        if (lost := host_lost(scope)) is not None:
            return await self._report(scope, None, keeper(scope), lost)
        want = wanted(scope)
        if isinstance(want, Lack):
            return await self._report(scope, None, keeper(scope), want)
        new = scope.order is None and volume.status.size is None
        if want.encryption is not None and new and stands_on(scope) is None:
            text = await passphrase.read(client, volume, want.encryption)
            if isinstance(text, Lack):
                return await self._report(scope, None, keeper(scope), text)
        attached = attachment(scope)
        place = self._following.place(scope) or self._places.find(scope, want, attached)
        if isinstance(place, Lack):
            return await self._report(scope, None, keeper(scope), place)
        if place is None:
            return Requeue(quiet) if (quiet := self._unsaid(scope)) > 0 else await self._report(scope, None, None, None)
        if scope.left_behind:
            await self._following.clear(scope)
        if scope.shared and (place.host != volume.status.host or scope.strays):
            waits = await self._handover.run(scope, place, attached)
            if waits is not None:
                return waits
            scope = self._volumes.scope(volume)
        # Where it is and goes, and who may write, is on record before anything is made of it.
        found = self._course(scope, want, place)
        result = await self._report(scope, found.place, attached, None, found)
        current = self._volumes.store.get(key.name, key.namespace)
        if current is None or current.uid != volume.uid:
            return Done()
        scope = self._volumes.scope(current)
        if isinstance(again := wanted(scope), Lack):
            # What it is made from went meanwhile; nobody who saw the volume's place from then on lets it go.
            return await self._report(scope, None, keeper(scope), again)
        # And whoever saw that it goes lets it: so with what came before that was seen, another look tells.
        at = self._course(scope, want, found.place)
        ordered = await self._order(current, want, at)
        scope = self._volumes.scope(current)
        if (lack := await self._give_passphrase(scope, want)) is not None:
            return await self._report(scope, at.place, attached, lack, at)
        changed = ordered or (at.to, at.lack) != (found.to, found.lack)
        return await self._report(scope, at.place, attached, None, at) if changed else result

    def _unsaid(self, scope: Scope) -> float:
        """For how many seconds it need not be said that the volume waits for its first machine: that has just made it."""
        volume, now = scope.volume, self._services.clock.monotonic()
        if volume.status.phase is not None or not brought_along(scope):
            return 0.0
        return self._new.setdefault(volume.uid, now) + PENDING_SHOWN_AFTER - now

    async def _wanted_still(self, volume: Volume) -> bool:
        """Whether the machine that has it on record wants it, by a live look: caches of machines and of volumes are of
        different moments, and what is let go of another machine may write to."""
        if (before := volume.status.attached_to) is None:
            return False
        live = await self._services.client.find(VirtualMachine.KIND, before.vm, volume.namespace)
        vm = VirtualMachine.parse(live) if live is not None else None
        key = Key(volume.namespace, volume.name)
        return vm is not None and vm.uid == before.uid and not vm.deleting and key in volume_keys(vm)

    async def _give_passphrase(self, scope: Scope, want: Wanted) -> Lack | None:
        """Give the host the passphrase of a volume; once in the life of this process, in case somebody took it away."""
        order = scope.order
        if want.encryption is None or order is None or order.deleting or order.uid in self._given:
            return None
        lack = await passphrase.copy(self._services.client, scope.volume, order, want.encryption, stands_on(scope))
        if lack is None:
            self._given.add(order.uid)
        return lack

    def _course(self, scope: Scope, want: Wanted, place: Place) -> Course:
        """Where it is and goes. Room in the pool that it goes to is its own from here on: nothing is awaited before."""
        volume, host = scope.volume, place.host
        if place.came_by is not None:  # it goes nowhere else before it is there
            return Course(place)
        if volume.status.moving_to is None:  # room of an attempt that did not get on record
            self._fleet.moved(volume.uid)
        sight = Sight(
            host=host,
            view=self._fleet.host(host),
            load=self._fleet.load(host),
            heard=heard(self._fleet, host),
            moves=self._fleet.leaving(host, place.pool.uid, but=volume.uid),
            limit=self._moves_at_once,
        )
        at = course(scope, want, place, sight)
        if at.to is not None:
            idle = at.lack is not None
            self._fleet.move(volume.uid, Moving(host, at.place.pool.uid, at.to.uid, want.size, idle))
        return at

    async def _order(self, volume: Volume, want: Wanted, at: Course) -> bool:
        """Have the host make it, grow it or move it, of an image that is on its way; True when something was written."""
        if want.origin is not None and want.origin.image is not None:
            image = self._volumes.scope(volume).image
            if image is not None:
                await order_import(self._services, self._fleet, self._copies, image, at.place.host, at.place.pool)
        return await self._orders.ensure(volume, want, at)

    async def _delete(self, scope: Scope) -> Result:
        volume, order, client = scope.volume, scope.order, self._services.client
        if FINALIZER not in volume.metadata.finalizers:
            return Done()
        if scope.left_behind:
            await self._following.clear(scope)
        if (busy := held(scope)) is not None:
            stranded = busy.reason == "HasSnapshots" and scope.shared and order is None
            taken_up = await self._take_up(scope, busy) if stranded else None
            return taken_up or await self._hold(scope, busy)
        going = self._going.get(volume.uid)
        if order is None and volume.status.host is not None and (going is None or going.host != volume.status.host):
            order = await self._orders.live(volume, volume.status.host)
        handed = volume.status.phase is VolumePhase.MOVING and volume.status.moving_to is None
        left = scope.host is None or handed
        if order is None and scope.shared and left and (again := await self._take_up(scope)) is not None:
            return again
        if order is None:
            await drop_finalizer(client, self._volumes.store, volume)
            return Gone()
        # What was wanted a moment ago need not be in the order yet; and it may have been about to be handed over.
        order = await self._orders.retain(order, retained(scope))
        if not order.deleting:
            await self._orders.delete(order)
        elif volume.metadata.annotations.get(FORCE_DETACH) == "true":
            await drop_finalizer(client, self._volumes.orders, order)
        now = self._services.clock.monotonic()
        if going is None or going.host != host_of(order):
            going = self._going[volume.uid] = Going(host_of(order), now)
        quiet = going.since + DELETING_SHOWN_AFTER - now
        if quiet > 0 and volume.status.phase is not VolumePhase.DELETING:
            return Requeue(quiet)
        await self._report(self._volumes.scope(volume), None, None, None)
        return Wait("Deleting", 30.0)

    async def _hold(self, scope: Scope, busy: Lack) -> Result:
        """It cannot go now. A move that has come to its end meanwhile is seen to: whoever has it has it where it is. And it
        goes after its machine to another host, which waits for that."""
        want, pool, host = wanted(scope), self._volumes.pool(scope.volume), scope.volume.status.host
        if not isinstance(want, Lack):  # what is kept of it goes first, and is not merged without its passphrase
            busy = await self._give_passphrase(scope, want) or busy
            if (there := self._following.place(scope)) is not None:
                return await self._follow(scope, want, there, busy)
        if asked(scope.order) is None or scope.order is None or isinstance(want, Lack) or pool is None or host is None:
            return await self._report(scope, None, keeper(scope), busy)
        at = self._course(scope, want, Place(pool, host, scope.volume.status.epoch))
        result = await self._report(scope, at.place, keeper(scope), busy, at)
        if at.over:
            await self._orders.direct(scope.order, at)
        return result

    async def _follow(self, scope: Scope, want: Wanted, there: Place, busy: Lack) -> Result:
        """It has come there with its machine and stays as long as that has it: that is on record before it is ordered."""
        at = self._course(scope, want, there)
        result = await self._report(scope, there, keeper(scope), busy, at)
        current = self._volumes.store.get(scope.volume.name, scope.volume.namespace)
        if current is not None and current.uid == scope.volume.uid:
            await self._orders.ensure(current, want, at)
        return result

    async def _take_up(self, scope: Scope, busy: Lack | None = None) -> Result | None:
        """The host that saw to a volume that is to be removed is gone, or has given it up; its data is not: have a host
        remove it, or what is kept of it first (`busy`).

        None when there is nothing to remove, or nobody who could.
        """
        volume, want = scope.volume, wanted(scope)
        pool = self._volumes.pool(volume)
        if pool is None or isinstance(want, Lack) or (want.retain and busy is None) or volume.status.size is None:
            return None
        place = self._places.shared(scope, pool, None)
        if isinstance(place, Lack):
            return await self._report(scope, None, None, place)
        if busy is not None and (
            self._snapshots.elsewhere(volume.uid, place.host)
            or await self._orders.live(volume, volume.status.host or place.host) is not None
        ):
            return None
        await self._report(scope, place, None, busy)
        current = self._volumes.store.get(volume.name, volume.namespace)
        if current is not None and current.uid == volume.uid:
            await self._order(current, want, Course(place))
        return Wait("Deleting", 5.0)

    async def _remove_orphans(self, key: Key, volume: Volume | None) -> None:
        """Orders of a volume of that name that is no more are removed after a live look. Their data stays if they say so."""
        for order in self._volumes.orders.by(FOR_NAME, f"Volume/{key.namespace or ''}/{key.name}"):
            if order.deleting or (volume is not None and order.spec.for_.uid == volume.uid):
                continue
            live = await self._services.client.find(Volume.KIND, key.name, key.namespace)
            if live is None or live["metadata"]["uid"] != order.spec.for_.uid:
                log.info("removing the work order of a volume that is gone", namespace=key.namespace, name=key.name)
                await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)

    async def _report(
        self,
        scope: Scope,
        place: Place | None,
        attached: Attachment | None,
        lack: Lack | None,
        at: Course | None = None,
    ) -> Result:
        store = self._volumes.store
        volume = store.get(scope.volume.name, scope.volume.namespace) or scope.volume
        if volume.uid != scope.volume.uid:
            return Done()
        after = derive_status(scope, place, attached, lack, rfc3339(self._services.clock.now()), at)
        try:
            await write_status(self._services.client, store, volume, volume.status, after)
        except NotFound:
            return Done()
        lack = lack or (at.lack if at is not None else None)
        return Wait(lack.reason, 30.0) if lack is not None else Done()
