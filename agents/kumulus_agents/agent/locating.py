"""In which of the host's pools the disk of a domain is that is not Kumulus' own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from kumulus.api.pool_order import UnownedKind
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.pools import Pools
from kumulus_agents.hypervisor.foreign import ForeignDisk
from kumulus_agents.storage.adoption import Adopting
from kumulus_agents.storage.moving import ReceivingDisks
from kumulus_agents.storage.protocol import StorageDriver, StorageError, StoredDisk


class Locating:
    """Looks through the pools that this host has for itself."""

    def __init__(self, orders: Orders, pools: Pools) -> None:
        self._orders = orders
        self._pools = pools

    async def locate(self, disk: ForeignDisk) -> ForeignDisk:
        """The disk, with its pool and the id of its data where a volume could be made of it. A pool that fails has none."""
        if disk.kind != "file" or disk.source is None or disk.device not in (None, "disk"):
            return disk
        for order in self._orders.store:
            pool = order.spec.pool.pool if order.spec.pool is not None else None
            if pool is None or pool.shared or order.deleting:
                continue
            try:
                driver = self._pools.driver(pool)
                found = await driver.identify(disk.source) if isinstance(driver, Adopting) else None
                own = await _own(driver, disk.source, disk.name) if found is None else None
            except StorageError:
                continue
            if found is not None:
                # What a volume of ours stands on is known by its record.
                layered = disk.layered and found.kind is not UnownedKind.VOLUME
                return replace(disk, pool=pool.name, data=found.id, size=found.virtual_size, layered=layered)
            if own is not None:
                return replace(disk, pool=pool.name, size=own.virtual_size)
        return disk


async def _own(driver: StorageDriver, path: str, name: str | None) -> StoredDisk | None:
    """What the disk is when it is a machine's own there: such lie in a directory of the machine's uid. Raises `StorageError`."""
    if name is None or not isinstance(driver, ReceivingDisks):
        return None
    found = await driver.disk(PurePosixPath(path).parent.name, name)
    return found if found is not None and found.source.path == path else None


async def nowhere(disk: ForeignDisk) -> ForeignDisk:
    """The disk, when no pools are known."""
    return disk
