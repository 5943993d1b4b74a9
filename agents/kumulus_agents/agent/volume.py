"""Volumes in pools: what Disk orders with `volume` ask for. They are made, grown and removed beside other work.

A volume that was made once is never made anew: an empty disk in place of a lost one is worse than none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import structlog

from kumulus.api.host import (
    DiskFacts,
    ExistingFile,
    PoolRef,
    Revert,
    VolumeOrder,
    VolumeOrigin,
    WorkOrder,
    WorkOrderStatus,
    WorkState,
)
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.ownership import owned
from kumulus_agents.agent.passphrases import Passphrases
from kumulus_agents.agent.pool import steady
from kumulus_agents.agent.pools import Pools
from kumulus_agents.agent.reservations import Reservations
from kumulus_agents.agent.tidying import Tidying
from kumulus_agents.hypervisor.protocol import Domain, DomainState, Hypervisor, HypervisorError
from kumulus_agents.storage.adoption import Adopting, not_offered
from kumulus_agents.storage.passphrase import EncryptedVolumes
from kumulus_agents.storage.protocol import ProgressListener, StorageDriver, StorageError, StoredVolume
from kumulus_agents.storage.sectors import whole_sectors

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
        self._seen: set[str] = set()
        """Orders whose volume was whole, as this process has made sure of."""

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        self._seen.discard(name)

    def has(self, volume: str) -> bool:
        """Whether this host sees to the volume, as it has made sure of: an order for it is carried out and stays."""
        return any(order.name in self._seen and not order.deleting for order in self._orders.keepers(volume))

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
        known = known.model_copy(update={"progress": None})
        try:
            driver = self._pools.driver(pool)
            if order.deleting:
                return await self._remove(order, wanted, driver, known)
            return await self._ensure(order, wanted, driver, known)
        except (StorageError, HypervisorError) as error:
            if order.deleting and error.reason in ("VolumeInUse", "VolumeBusy"):
                held = self._work.in_use(order, error.reason, str(error))
            else:
                held = self._work.hold(order, error)
            return await self._work.report_hold(order, held, known)

    async def _ensure(self, order: WorkOrder, wanted: VolumeOrder, driver: StorageDriver, known: DiskFacts) -> Result:
        if (result := await self._work.under_way(order, known)) is not None:
            return result
        volume = await driver.volume(wanted.uid)
        if volume is None and (wanted.existing or known.virtual_size is not None):
            raise StorageError(
                "The volume was made and its file is not in the pool any more. Bring the file or the pool's file system"
                " back; if the data is lost, delete the volume and restore it from a backup.",
                reason="VolumeLost",
                retryable=False,
            )
        asked = wanted.revert is not None and volume is not None and volume.reverted != wanted.revert.request
        if volume is None or asked or order.name not in self._seen or volume.virtual_size < (wanted.size or 0):
            return self._work.begin(order, lambda progress: self._bring_about(order, wanted, driver, progress))
        self._work.settled(order.name)
        await self._orders.report(order, _ready(order, wanted, volume, known))
        return Done()

    async def _bring_about(
        self, order: WorkOrder, wanted: VolumeOrder, driver: StorageDriver, progress: ProgressListener
    ) -> None:
        """Make the volume and let it grow, whatever of that is left to do."""
        if order.spec.disk is not None and order.spec.disk.pool.shared:
            await driver.claim_volume(wanted.uid, self._host, wanted.epoch)
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
        await self._set_right(wanted.uid, driver, progress)
        if wanted.revert is not None and volume.reverted != wanted.revert.request:
            volume = await self._revert(wanted.uid, wanted.revert, driver)
        if wanted.size is not None and volume.virtual_size < wanted.size:
            volume = await self._grow(wanted, wanted.size, driver)
        log.info("volume is there", order=order.name, volume=order.spec.for_.name, size=volume.virtual_size)
        self._seen.add(order.name)
        self._arrived(wanted.uid)

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
        )

    async def _set_right(self, volume: str, driver: StorageDriver, progress: ProgressListener) -> None:
        """What an agent that died left: what a machine writes to is the volume, and what nobody needs goes.

        Somebody is at it just now: then that is seen to there.
        """
        at_it = self._reservations.hold((volume,), "its layers are being merged")
        with _tolerating("VolumeBusy", "VolumeInUse"), at_it:
            await self._tidying.tidy(driver, volume, progress)

    async def _revert(self, volume: str, wanted: Revert, driver: StorageDriver) -> StoredVolume:
        """Nobody has it meanwhile: a machine that is on would go on with what it read before."""
        with self._reservations.hold((volume,), "it is being reverted to a snapshot"):
            if (user := await self._tidying.user(volume)) is not None:
                raise StorageError(
                    f"Machine {user.marks.name} is on and has the volume. Stop it: it is reverted then.",
                    reason="VolumeInUse",
                )
            reverted = await driver.revert_volume(volume, wanted.snapshot, wanted.request)
            await self._tidying.tidy(driver, volume)
            log.info("volume reverted", volume=volume, snapshot=wanted.snapshot, request=wanted.request)
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
        passphrase = await self._passphrases.read(wanted.secret)
        return await _encrypted(driver).ensure_encrypted_volume(
            wanted.uid, wanted.size, wanted.origin, wanted.thick, passphrase, progress
        )

    async def _grow(self, wanted: VolumeOrder, size: int, driver: StorageDriver) -> StoredVolume:
        volume = wanted.uid
        machine = next((domain.marks.uid for domain in await self._having(volume) if _is_on(domain)), None)

        async def live(size: int) -> None:
            assert machine is not None
            await self._hypervisor.resize_disk(machine, volume, size)

        resize = live if machine is not None else None
        with self._reservations.hold((volume,), "it is being grown"):
            if wanted.secret is None:
                return await driver.grow_volume(volume, size, resize)
            passphrase = await self._passphrases.read(wanted.secret)
            return await _encrypted(driver).grow_encrypted_volume(volume, size, passphrase, resize)

    async def _remove(self, order: WorkOrder, wanted: VolumeOrder, driver: StorageDriver, known: DiskFacts) -> Result:
        await self._work.cancel(order.name)
        if (user := await self._user(wanted.uid)) is not None:
            message = f"machine {user} has the volume: delete the machine, or take the disk out of its spec.disks"
            return await self._work.report_hold(order, self._work.in_use(order, "VolumeInUse", message), known)
        made = wanted.existing or known.virtual_size is not None
        if not wanted.retain or (not made and await driver.volume(wanted.uid) is None):
            with self._reservations.hold((wanted.uid,), "it is being removed"):
                await driver.remove_volume(wanted.uid)
        elif isinstance(driver, Adopting) and order.spec.disk is not None and not order.spec.disk.pool.shared:
            await driver.retain_volume(wanted.uid, order.spec.for_.namespace, order.spec.for_.name)
        if wanted.origin is not None and wanted.origin.linked and wanted.origin.snapshot is not None:
            self._unlinked(wanted.origin.snapshot.volume)
        await self._orders.release(order)
        log.info("volume is gone", order=order.name, volume=order.spec.for_.name, retained=wanted.retain)
        self._removed()
        return Done()

    def _unlinked(self, volume: str) -> None:
        """A volume that stood on a snapshot of this one is gone: what was kept for it is looked through again."""
        for order in self._orders.keepers(volume):
            self._seen.discard(order.name)
            self._wake(order.name)
        self._wake_deleted(volume)

    async def _user(self, volume: str) -> str | None:
        """Name of a machine that wants the volume or has it, of whatever namespace."""
        for order in self._orders.of_volume(volume):
            return order.spec.for_.name
        for domain in await self._having(volume):
            return domain.marks.name
        return None

    async def _having(self, volume: str) -> list[Domain]:
        return [domain for domain in await self._hypervisor.domains() if volume in domain.volumes]


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


def _encrypted(driver: StorageDriver) -> EncryptedVolumes:
    if not isinstance(driver, EncryptedVolumes):
        raise StorageError(
            "Pools of this kind cannot encrypt volumes. Have the class select pools of the driver dir.",
            reason="EncryptionUnsupported",
            retryable=False,
        )
    return driver


def _is_on(domain: Domain) -> bool:
    return domain.state is not DomainState.STOPPED


def _ready(order: WorkOrder, wanted: VolumeOrder, volume: StoredVolume, known: DiskFacts) -> WorkOrderStatus:
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
        ),
    )
