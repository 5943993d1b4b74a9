"""Disks that come with a guest from another host (docs/adr/0037), in the pools of this one.

A disk of the machine's own goes when the machine's order goes, whole or not. A volume is none, as in a move between pools
(ADR 16), until its record is made: when the guest is this host's, and not before.
"""

from __future__ import annotations

from collections.abc import Sequence

from kumulus.api.instance_order import Incoming, InstanceDisk, InstanceOrder
from kumulus.api.pool_order import PoolRef
from kumulus.api.qos import UNLIMITED
from kumulus.api.volumes import CacheMode
from kumulus_agents.agent.pools import Pools
from kumulus_agents.hypervisor.domain import DomainDisk
from kumulus_agents.storage.moving import Arrival, MovableVolumes, ReceivingDisks, Traits, unsupported
from kumulus_agents.storage.protocol import StorageError


class CopiedDisks:
    """Of one host."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    async def make(self, order: InstanceOrder, incoming: Incoming) -> dict[str, DomainDisk]:
        """The disks that the guest brings along, by name: made empty, or found as an attempt of the same migration left them.

        Raises `StorageError`: DiskConflict or VolumeConflict (not retryable) for what is here of the machine, and is not that
        migration's; NoSpace.
        """
        sizes = {copied.name: copied.size for copied in incoming.disks}
        found = {}
        for disk in order.disks:
            if disk.name in sizes:
                found[disk.name] = await self._make(order.uid, disk, sizes[disk.name], incoming.migration)
        return found

    async def written_elsewhere(self, order: InstanceOrder, disks: Sequence[DomainDisk]) -> str | None:
        """The first of these disks whose volume is written to another file by now, or stands on others, than when they were looked
        up: a snapshot was taken since, or let go of. Raises `StorageError`."""
        pools = {disk.name: disk.pool for disk in order.disks}
        for disk in disks:
            if disk.volume is None or disk.copied:
                continue
            pool = pools.get(disk.name)
            now = await self._pools.driver(pool).volume(disk.volume) if pool is not None else None
            if now is None or (now.source, now.below) != (disk.source, disk.below):
                return disk.name
        return None

    async def _make(self, owner: str, disk: InstanceDisk, size: int, migration: str) -> DomainDisk:
        if disk.volume is None:
            driver = self._pools.driver(disk.pool)
            if not isinstance(driver, ReceivingDisks):
                raise unsupported(f"Disks do not come into pools like {disk.pool.name} with a guest")
            stored = await driver.receive_disk(owner, disk.name, size, migration)
            return DomainDisk(disk.name, stored.source, stored.format, boot_order=disk.boot_order, copied=True)
        movable = self._movable(disk.pool)
        arrival = await movable.arrival(disk.volume)
        if arrival is not None and arrival.whole and arrival.move != migration:
            raise StorageError(
                f"The pool {disk.pool.name} has a file with the uid of the volume of disk {disk.name} that did not come with"
                " this guest. Look at it, and take it away.",
                reason="VolumeConflict",
                retryable=False,
            )
        if arrival is None or (not arrival.whole and not _of(arrival, migration, size)):
            # Without a bitmap: that of the source comes with the guest's memory, and takes no other of its name.
            traits = Traits(size, tracked=True)
            arrival = await movable.begin_arrival(disk.volume, traits, live=True, move=migration)
        return DomainDisk(
            disk.name,
            arrival.source,
            arrival.format,
            boot_order=disk.boot_order,
            volume=disk.volume,
            qos=disk.qos or UNLIMITED,
            cache=disk.cache or CacheMode.NONE,
            copied=True,
        )

    async def settle(self, order: InstanceOrder, migration: str) -> None:
        """The guest is this host's: what it brought along is its volumes from now on, durably. They are that already, or
        nothing was brought: nothing. Raises `StorageError`."""
        for disk in order.disks:
            if disk.volume is None or disk.pool.shared:
                continue
            await self.settle_volume(disk.pool, disk.volume, migration)

    async def settle_volume(self, pool: PoolRef, volume: str, migration: str) -> None:
        """The same of one volume."""
        driver = self._pools.driver(pool)
        if not isinstance(driver, MovableVolumes):
            return
        arrival = await driver.arrival(volume)
        if arrival is None or arrival.whole:
            return
        if arrival.move not in (None, migration):
            raise StorageError(
                f"The pool {pool.name} has a file with the volume's uid that another migration left, and nothing of this one."
                " Look at it, and take it away.",
                reason="VolumeConflict",
                retryable=False,
            )
        await driver.settle_arrival(volume, Traits(0), migration)

    async def abandon(self, order: InstanceOrder) -> None:
        """The guest does not come: remove what is here of the volumes that it would have brought, unless they are volumes
        by now. Raises `StorageError`."""
        names = {copied.name for copied in order.incoming.disks} if order.incoming is not None else set()
        for disk in order.disks:
            if disk.name in names and disk.volume is not None:
                await self._movable(disk.pool).abandon_arrival(disk.volume)

    def _movable(self, pool: PoolRef) -> MovableVolumes:
        driver = self._pools.driver(pool)
        if not isinstance(driver, MovableVolumes):
            raise unsupported(f"Volumes do not come into pools like {pool.name} with a guest")
        return driver


def _of(arrival: Arrival, migration: str, size: int) -> bool:
    """Whether it is that migration's, and may have what was written last; else it is of an attempt that nobody cleared away.
    What says nothing of that was begun by an agent that did not note it, and goes by its size. Pure."""
    return arrival.size in (None, size) and arrival.move in (None, migration)
