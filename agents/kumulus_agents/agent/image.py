"""Images in pools: what Disk orders with `importImage` ask for. Imports run beside other work, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from kumulus.api.host import DiskFacts, ImageImport, PoolRef, WorkOrder, WorkOrderStatus, WorkState
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.pools import Pools
from kumulus_agents.storage.protocol import ProgressListener, StorageDriver, StorageError, StoredImage

log = structlog.get_logger(__name__)

IMPORTS = 2
"""Imports at once."""


class Images:
    """The images in this host's pools."""

    def __init__(
        self,
        orders: Orders,
        pools: Pools,
        work: DiskWork,
        *,
        wake: Callable[[str], None],
        arrived: Callable[[str], None],
    ) -> None:
        """`wake` has an order looked at soon, by name; `arrived` is told the uid of each image that is whole."""
        self._orders = orders
        self._pools = pools
        self._work = work
        self._wake = wake
        self._arrived = arrived
        self._slots = asyncio.Semaphore(IMPORTS)
        self._in_use: set[str] = set()

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        self._in_use.discard(name)

    def disks_removed(self) -> None:
        """Disks or volumes are gone: an image that was in use may be free now."""
        for name in self._in_use:
            self._wake(name)

    async def perform(self, order: WorkOrder, pool: PoolRef, wanted: ImageImport) -> Result:
        """One pass over an image. Raises `KubeError`."""
        try:
            driver = self._pools.driver(pool)
            if order.deleting:
                await self._work.cancel(order.name)
                await driver.remove_image(wanted.image.uid)
                await self._orders.release(order)
                return Done()
            return await self._ensure(order, pool, wanted, driver)
        except StorageError as error:
            if order.deleting and error.reason == "ImageInUse":
                self._in_use.add(order.name)
                held = self._work.in_use(order, error.reason, str(error))
            else:
                held = self._work.hold(order, error)
            return await self._work.report_hold(order, held, DiskFacts())

    async def _ensure(self, order: WorkOrder, pool: PoolRef, wanted: ImageImport, driver: StorageDriver) -> Result:
        if self._work.outdated(order):
            await self._work.cancel(order.name)
        if (result := await self._work.under_way(order, DiskFacts())) is not None:
            return result
        image = await driver.image(wanted.image.uid)
        if image is not None:
            self._work.settled(order.name)
            found = order.status.state is not WorkState.READY
            await self._orders.report(order, _ready(order, image))
            if found:  # another host that shares the pool may have brought it
                self._arrived(wanted.image.uid)
            return Done()
        log.info("import begins", order=order.name, image=order.spec.for_.name, pool=pool.name)
        return self._work.begin(order, lambda progress: self._import(order, wanted, driver, progress))

    async def _import(
        self, order: WorkOrder, wanted: ImageImport, driver: StorageDriver, progress: ProgressListener
    ) -> None:
        async with self._slots:
            await driver.prepare()
            await driver.import_image(wanted.image, wanted.http, progress)
        log.info("import done", order=order.name, image=order.spec.for_.name)
        self._arrived(wanted.image.uid)


def _ready(order: WorkOrder, image: StoredImage) -> WorkOrderStatus:
    return WorkOrderStatus(
        observed_generation=order.metadata.generation,
        state=WorkState.READY,
        disk=DiskFacts(
            sha256=image.sha256, format=image.source_format, virtual_size=image.virtual_size, size=image.size
        ),
    )
