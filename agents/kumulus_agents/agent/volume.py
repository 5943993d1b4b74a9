"""Volumes in pools: what Disk orders with `volume` ask for. They are made, grown and removed beside other work.

A volume that was made once is never made anew: an empty disk in place of a lost one is worse than none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress

import structlog

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.pool_order import PoolRef
from kumulus.api.volume_order import DiskFacts, ExistingFile, Revert, VolumeOrder, VolumeOrigin
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.copied_disks import CopiedDisks
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.moving import Moves
from kumulus_agents.agent.orders import Orders, departed
from kumulus_agents.agent.ownership import owned
from kumulus_agents.agent.passphrases import Passphrases, encrypting
from kumulus_agents.agent.pool import steady
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.agent.tidying import Tidying, suspended
from kumulus_agents.agent.whereabouts import Whereabouts
from kumulus_agents.hypervisor.domain import Domain, DomainState
from kumulus_agents.hypervisor.protocol import Hypervisor, HypervisorError
from kumulus_agents.storage.adoption import Adopting, not_offered
from kumulus_agents.storage.lock import Locking
from kumulus_agents.storage.protocol import ProgressListener, StorageDriver, StorageError, StoredVolume
from kumulus_agents.storage.sizes import whole_sectors

log = structlog.get_logger(__name__)

COPIES = 2
"""Copies at once. What is made in a moment does not wait for them."""


class Volumes:
    """The volumes in this host's pools."""

    def __init__(
        self,
        orders: Orders,
        pools: Pools,
        hypervisor: Hypervisor,
        passphrases: Passphrases,
        work: DiskWork,
        reservations: Reservations,
        tidying: Tidying,
        whereabouts: Whereabouts,
        *,
        host: str,
        wake: Callable[[str], None],
        arrived: Callable[[str], None],
        removed: Callable[[], None],
    ) -> None:
        """`host` is this one's name; `wake` has an order looked at soon, by name; `arrived` is told the uid of each volume that was made,
        `removed` that one is gone."""
        self._orders = orders
        self._pools = pools
        self._hypervisor = hypervisor
        self._passphrases = passphrases
        self._work = work
        self._host = host
        self._reservations = reservations
        self._tidying = tidying
        self._wake = wake
        self._arrived = arrived
        self._removed = removed
        self._slots = asyncio.Semaphore(COPIES)
        self._whereabouts = whereabouts
        self._moves = Moves(
            pools,
            hypervisor,
            reservations,
            tidying,
            whereabouts,
            passphrases,
            self._slots,
            host=host,
            left=self._has_left,
        )
        self._seen: dict[str, str] = {}
        """Orders whose volume was whole, as this process has made sure of: by name, with the uid, for another may come by that name."""
        self._undone: set[str] = set()
        """Orders whose last attempt failed somewhere, after a revert say: the next one sets right what that left."""
        self._forgotten: set[str] = set()
        """Snapshots that this process has forgotten, because an order said so."""

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        self._seen.pop(name, None)
        self._undone.discard(name)
        self._moves.forget(name)

    def _sure_of(self, order: WorkOrder) -> bool:
        return self._seen.get(order.name) == order.uid

    def has(self, volume: str) -> bool:
        """Whether this host sees to the volume, as it has made sure of: an order for it is carried out and stays."""
        return any(self._sure_of(order) and not order.deleting for order in self._orders.keepers(volume))

    async def holds(self, volume: str) -> bool:
        """The same of a volume of a pool that hosts share, as the pool itself says now: an agent that the API server does not reach has
        orders that may be old. Raises `StorageError`: VolumeElsewhere when another host has taken it."""
        if not self.has(volume):
            return False
        for order in self._orders.keepers(volume):
            wanted = order.spec.disk.volume if order.spec.disk is not None else None
            if wanted is not None and not order.deleting:
                here = await self._whereabouts.of(order)
                if here.shared:
                    await self._pools.driver(here).claim_volume(wanted.uid, self._host, wanted.epoch)
        return self.has(volume)

    def sees_to(self, volume: str) -> bool:
        """Whether snapshots of the volume are taken and removed here: as long as it is not to be left to another host."""
        return any(self._sure_of(order) and not _leaves(order) for order in self._orders.keepers(volume))

    def let_go(self, volume: str) -> None:
        """A machine neither wants the volume any more nor has it: it may be removed, grown or copied now."""
        for order in self._orders.keepers(volume):
            self._work.wake_waiting(order.name)
            self._wake(order.name)
        self.origin_arrived(volume)

    def may_be_free(self, volume: str) -> None:
        """A machine that has the volume may have gone off: it may be reverted or grown now."""
        for order in self._orders.keepers(volume):
            self._work.wake_waiting(order.name)

    def origin_arrived(self, uid: str) -> None:
        """An image, a volume or a snapshot is there, or free: who begins with it need not wait longer."""
        for order in self._orders.store:
            image = order.spec.disk.import_image if order.spec.disk is not None else None
            if image is not None and uid in (image.volume, image.snapshot):
                self._work.wake_waiting(order.name)
            wanted = order.spec.disk.volume if order.spec.disk is not None else None
            origin = wanted.origin if wanted is not None else None
            if origin is not None and uid in _begins_with(origin):
                self._work.wake_waiting(order.name)

    async def perform(self, order: WorkOrder, pool: PoolRef, wanted: VolumeOrder) -> Result:
        """One pass over a volume. Raises `KubeError`."""
        known = order.status.disk or DiskFacts()
        known = known.model_copy(update={"progress": None, "pool": self._moves.pool(order)})
        try:
            if order.deleting:
                return await self._remove(order, wanted, known)
            return await self._ensure(order, wanted, known)
        except (StorageError, HypervisorError) as error:
            if order.deleting and error.reason in ("VolumeInUse", "VolumeBusy"):
                held = self._work.in_use(order, error.reason, str(error))
            else:
                held = self._work.hold(order, error)
            return await self._work.report_hold(order, held, known)

    async def _ensure(self, order: WorkOrder, wanted: VolumeOrder, known: DiskFacts) -> Result:
        if wanted.move is not None and wanted.move.withdrawn and self._work.outdated(order):
            await self._work.cancel(order.name)
        if (result := await self._work.under_way(order, known)) is not None:
            return result
        here = await self._whereabouts.of(order)
        driver = self._pools.driver(here)
        volume = await driver.volume(wanted.uid)
        if volume is None and wanted.came_by is not None:
            await CopiedDisks(self._pools).settle_volume(here, wanted.uid, wanted.came_by)
            volume = await driver.volume(wanted.uid)
        if volume is None and (wanted.existing or known.virtual_size is not None):
            raise StorageError(
                "The volume was made and its file is not in the pool any more. Bring the file or the pool's file system"
                " back; if the data is lost, delete the volume and restore it from a backup.",
                reason="VolumeLost",
                retryable=False,
            )
        asked = wanted.revert is not None and volume is not None and volume.reverted != wanted.revert.request
        asked = asked or not self._forgotten.issuperset(wanted.forget) or order.name in self._undone
        if volume is None or asked or not self._sure_of(order) or volume.virtual_size < (wanted.size or 0):
            return self._work.begin(order, lambda progress: self._bring_about(order, wanted, here, progress))
        if not self._moves.ended(order):
            return self._work.begin(order, lambda progress: self._move(order, wanted, progress))
        self._work.settled(order.name)
        pool = here.uid if wanted.move is not None else None
        await self._orders.report(order, _ready(order, wanted, volume, known, pool))
        return Done()

    async def _move(self, order: WorkOrder, wanted: VolumeOrder, progress: ProgressListener) -> None:
        try:
            await self._moves.bring_about(order, wanted, progress)
        finally:
            self._wake_deleted(wanted.uid)
        self._arrived(wanted.uid)

    def _has_left(self, order: WorkOrder) -> None:
        """Nothing of the order's volume is left in its pool."""
        origin = order.spec.disk.volume.origin if order.spec.disk is not None and order.spec.disk.volume else None
        if origin is not None and origin.linked and origin.snapshot is not None:
            self._unlinked(origin.snapshot.volume)
        self._removed()

    async def _bring_about(
        self, order: WorkOrder, wanted: VolumeOrder, pool: PoolRef, progress: ProgressListener
    ) -> None:
        """Make the volume and let it grow, in the pool that it is in, whatever of that is left to do."""
        self._undone.add(order.name)
        driver = self._pools.driver(pool)
        if pool.shared:
            await self._claim(driver, wanted)
        origin = wanted.origin
        copied = (origin.volume or (origin.snapshot.volume if origin.snapshot else None)) if origin else None
        copies = copied is not None or (origin is not None and wanted.thick)
        try:
            async with AsyncExitStack() as stack:
                if copies and await driver.volume(wanted.uid) is None:
                    await stack.enter_async_context(self._slots)
                if wanted.origin is not None and wanted.origin.existing is not None:
                    volume = await self._adopt(order, wanted, wanted.origin.existing, driver)
                else:
                    volume = await self._ensure_volume(wanted, driver, progress)
        finally:
            if copied is not None:
                self._wake_deleted(copied)
        await self._forget(wanted, driver)
        await self._set_right(wanted, driver, progress)
        if wanted.revert is not None and volume.reverted != wanted.revert.request:
            volume = await self._revert(wanted, wanted.revert, driver)
        if wanted.size is not None and volume.virtual_size < wanted.size:
            volume = await self._grow(wanted, wanted.size, driver)
        log.info("volume is there", order=order.name, volume=order.spec.for_.name, size=volume.virtual_size)
        self._seen[order.name] = order.uid
        self._undone.discard(order.name)
        self._arrived(wanted.uid)

    async def _claim(self, driver: StorageDriver, wanted: VolumeOrder) -> None:
        """Mark the volume as this host's, and keep out whoever had it and did not give it up: before, for one that hangs is in the way
        of the mark, and after, for who came in between."""
        if not isinstance(driver, Locking) or not wanted.epoch:
            await driver.claim_volume(wanted.uid, self._host, wanted.epoch)
            return
        used = any(map(_is_on, await self._having(wanted.uid)))
        await driver.shut_out(wanted.uid, self._host, wanted.epoch, used=used)
        await driver.claim_volume(wanted.uid, self._host, wanted.epoch)
        await driver.shut_out(wanted.uid, self._host, wanted.epoch, used=used)

    async def _adopt(
        self, order: WorkOrder, wanted: VolumeOrder, file: ExistingFile, driver: StorageDriver
    ) -> StoredVolume:
        """What nobody on this host owns becomes the volume."""
        pool = order.spec.disk.pool if order.spec.disk is not None else None
        if pool is None or pool.shared or not isinstance(driver, Adopting):
            raise not_offered(pool.name if pool is not None else "")
        return await driver.adopt_volume(
            wanted.uid,
            file.id,
            owned(self._orders.store),
            order.spec.for_.namespace,
            foreign=file.foreign,
            passphrase=await self._passphrases.read(wanted.secret) if wanted.secret is not None else None,
            beside=file.domain is not None,
        )

    async def _forget(self, wanted: VolumeOrder, driver: StorageDriver) -> None:
        """Snapshots whose orders went while this host was silent are wanted no more. What is linked to one keeps it."""
        for snapshot in wanted.forget:
            if snapshot in self._forgotten:
                continue
            with (
                self._reservations.hold((wanted.uid,), "a snapshot of it is being removed"),
                _tolerating("SnapshotInUse"),
            ):
                await self._tidying.adopt(driver, wanted.uid)
                await driver.forget_snapshot(wanted.uid, snapshot)
                log.info("a snapshot that was given up is forgotten", volume=wanted.uid, snapshot=snapshot)
            self._forgotten.add(snapshot)

    async def _set_right(self, wanted: VolumeOrder, driver: StorageDriver, progress: ProgressListener) -> None:
        """What an agent that died left: what a machine writes to is the volume, and what nobody needs goes.

        Somebody is at it just now: then that is seen to there.
        """
        at_it = self._reservations.hold((wanted.uid,), "its layers are being merged")
        with _tolerating("VolumeBusy", "VolumeInUse"), at_it:
            await self._tidying.tidy(driver, wanted.uid, wanted.secret, progress)

    async def _revert(self, wanted: VolumeOrder, asked: Revert, driver: StorageDriver) -> StoredVolume:
        """Nobody has it meanwhile: a machine that is on would go on with what it read before."""
        volume = wanted.uid
        with self._reservations.hold((volume,), "it is being reverted to a snapshot"):
            if (user := await self._tidying.user(volume)) is not None:
                raise StorageError(
                    f"Machine {user.marks.name} is on and has the volume. Stop it: it is reverted then.",
                    reason="VolumeInUse",
                )
            if wanted.secret is None:
                reverted = await driver.revert_volume(volume, asked.snapshot, asked.request)
            else:
                passphrase = await self._passphrases.read(wanted.secret)
                reverted = await encrypting(driver).revert_encrypted_volume(
                    volume, asked.snapshot, asked.request, passphrase
                )
            await self._tidying.tidy(driver, volume, wanted.secret)
            log.info("volume reverted", volume=volume, snapshot=asked.snapshot, request=asked.request)
            return await driver.volume(volume) or reverted

    def _wake_deleted(self, volume: str) -> None:
        """A copy of the volume, or of a snapshot of it, has ended: they may be removed."""
        for order in (*self._orders.keepers(volume), *self._orders.snapshots_of(volume)):
            self._work.wake_waiting(order.name)
            if order.deleting:
                self._wake(order.name)

    async def _ensure_volume(
        self, wanted: VolumeOrder, driver: StorageDriver, progress: ProgressListener
    ) -> StoredVolume:
        if wanted.secret is None:
            return await driver.ensure_volume(wanted.uid, wanted.size, wanted.origin, wanted.thick, progress)
        passphrase, origin_passphrase = await self._passphrases.read(wanted.secret), None
        # What a volume that is there was made from may be gone, and its passphrase with it.
        if wanted.origin is not None and wanted.origin.secret and await driver.volume(wanted.uid) is None:
            origin_passphrase = await self._passphrases.read(wanted.origin.secret)
        return await encrypting(driver).ensure_encrypted_volume(
            wanted.uid,
            wanted.size,
            wanted.origin,
            wanted.thick,
            passphrase,
            progress,
            origin_passphrase=origin_passphrase,
        )

    async def _grow(self, wanted: VolumeOrder, size: int, driver: StorageDriver) -> StoredVolume:
        volume = wanted.uid
        domains = await self._having(volume)
        if kept := next((domain for domain in domains if domain.saved is not None), None):
            raise suspended(kept.marks.name)
        machine = next((domain.marks.uid for domain in domains if _is_on(domain)), None)

        async def live(size: int) -> None:
            assert machine is not None
            await self._hypervisor.resize_disk(machine, volume, size)

        resize = live if machine is not None else None
        with self._reservations.hold((volume,), "it is being grown"):
            if wanted.secret is None:
                return await driver.grow_volume(volume, size, resize)
            passphrase = await self._passphrases.read(wanted.secret)
            return await encrypting(driver).grow_encrypted_volume(volume, size, passphrase, resize)

    async def _remove(self, order: WorkOrder, wanted: VolumeOrder, known: DiskFacts) -> Result:
        await self._work.cancel(order.name)
        here = await self._moves.alone(order, wanted)
        driver = self._pools.driver(here)
        if (user := await self._user(wanted.uid, given_up=wanted.retain)) is not None:
            message = f"machine {user} has the volume: delete the machine, or take the disk out of its spec.disks"
            return await self._work.report_hold(order, self._work.in_use(order, "VolumeInUse", message), known)
        made = wanted.existing or known.virtual_size is not None
        if not wanted.retain:
            await self._forget(wanted, driver)
        # A snapshot that is being taken, or layers that are being merged, come to their end first: whoever has the volume
        # next may begin at once, and from now on nothing is begun here any more (`sees_to`).
        doing = "it is being given up" if wanted.retain else "it is being removed"
        with self._reservations.hold((wanted.uid,), doing, along=wanted.retain):
            if not wanted.retain or (not made and await driver.volume(wanted.uid) is None):
                await driver.remove_volume(wanted.uid)
            elif isinstance(driver, Adopting) and not here.shared:
                await driver.retain_volume(wanted.uid, order.spec.for_.namespace, order.spec.for_.name)
            elif isinstance(driver, Locking) and here.shared:
                with suppress(
                    StorageError
                ):  # this host may have lost its way to the pool; the next one makes sure then
                    await driver.release_volume(wanted.uid, self._host, wanted.epoch)
        if wanted.origin is not None and wanted.origin.linked and wanted.origin.snapshot is not None:
            self._unlinked(wanted.origin.snapshot.volume)
        await self._orders.release(order)
        self._seen.pop(order.name, None)  # one of the same name may come at once
        log.info("volume is gone", order=order.name, volume=order.spec.for_.name, retained=wanted.retain)
        self._removed()
        return Done()

    def _unlinked(self, volume: str) -> None:
        """A volume that stood on a snapshot of this one is gone: what was kept for it is looked through again."""
        for order in self._orders.keepers(volume):
            self._seen.pop(order.name, None)
            self._wake(order.name)
        self._wake_deleted(volume)

    async def _user(self, volume: str, *, given_up: bool = False) -> str | None:
        """Name of a machine that wants the volume or has it, of whatever namespace. `given_up`: to another host, where a
        machine may have taken it already."""
        for order in self._orders.of_volume(volume):
            if not (given_up and departed(order)):
                return order.spec.for_.name
        for domain in await self._having(volume):
            if not (given_up and domain.marks.departed is not None):
                return domain.marks.name
        return None

    async def _having(self, volume: str) -> list[Domain]:
        return [domain for domain in await self._hypervisor.domains() if volume in domain.volumes]


def _leaves(order: WorkOrder) -> bool:
    """Whether the volume is to be given up, and its data stays."""
    wanted = order.spec.disk.volume if order.spec.disk is not None else None
    return order.deleting and wanted is not None and wanted.retain


def _begins_with(origin: VolumeOrigin) -> tuple[str | None, ...]:
    """Uids of what the volume waits for."""
    snapshot = origin.snapshot
    parts = (snapshot.snapshot, snapshot.volume) if snapshot is not None else ()
    return (origin.volume, origin.image.uid if origin.image else None, *parts)


@contextmanager
def _tolerating(*reasons: str) -> Iterator[None]:
    """Go on after a `StorageError` with one of these reasons."""
    try:
        yield
    except StorageError as error:
        if error.reason not in reasons:
            raise


def _is_on(domain: Domain) -> bool:
    return domain.state is not DomainState.STOPPED


def _ready(
    order: WorkOrder, wanted: VolumeOrder, volume: StoredVolume, known: DiskFacts, pool: str | None
) -> WorkOrderStatus:
    reason, message = None, None
    if wanted.size is not None and volume.virtual_size > whole_sectors(wanted.size):
        reason = "ShrinkRefused"
        message = f"the volume has {volume.virtual_size} bytes and is never made smaller, to {wanted.size} bytes"
    return WorkOrderStatus(
        observed_generation=order.metadata.generation,
        state=WorkState.READY,
        reason=reason,
        message=message,
        disk=DiskFacts(
            format=volume.format,
            virtual_size=volume.virtual_size,
            size=steady(volume.used, known.size),
            reverted=volume.reverted,
            pool=pool,
        ),
    )
