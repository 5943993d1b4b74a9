"""Performs work orders of type Disk: each is about an image or about a volume."""

from __future__ import annotations

from kumulus.api.host import WorkOrder
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.disk_work import DiskWork
from kumulus_agents.agent.image import Images
from kumulus_agents.agent.orders import Orders, unfit
from kumulus_agents.agent.volume import Volumes


class Disks:
    """What is in this host's pools."""

    def __init__(self, orders: Orders, work: DiskWork, images: Images, volumes: Volumes) -> None:
        self._orders = orders
        self._work = work
        self._images = images
        self._volumes = volumes

    def forget(self, name: str) -> None:
        """The order of that name is gone."""
        for part in (self._work, self._images, self._volumes):
            part.forget(name)

    async def perform(self, order: WorkOrder) -> Result:
        """One pass over an image or a volume. Raises `KubeError`."""
        disk = order.spec.disk
        if disk is None:
            return Done()
        if (refusal := unfit(order)) is not None:
            await self._orders.report(order, refusal)
            return Done()
        if disk.import_image is not None:
            return await self._images.perform(order, disk.pool, disk.import_image)
        if disk.volume is not None:
            return await self._volumes.perform(order, disk.pool, disk.volume)
        return Done()
