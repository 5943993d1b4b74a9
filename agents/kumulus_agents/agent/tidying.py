"""Gives the space of volumes' layers back that nobody needs: removes them, and merges two where one would do."""

from __future__ import annotations

import structlog

from kumulus_agents.hypervisor.protocol import Domain, DomainState, Hypervisor
from kumulus_agents.storage.protocol import ProgressListener, StorageDriver

log = structlog.get_logger(__name__)


class Tidying:
    """Of this host's volumes. Who calls has the volume reserved."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor

    async def tidy(self, driver: StorageDriver, volume: str, progress: ProgressListener | None = None) -> None:
        """Merge what can be merged. May be repeated, and ended at any moment. Raises `StorageError`, `HypervisorError`."""
        await self.adopt(driver, volume)
        while (merge := await driver.next_merge(volume)) is not None:
            if await self.user(volume) is not None:
                return
            await driver.merge(volume, merge, progress)
            log.info("layers merged", volume=volume, upper=merge.upper, lower=merge.lower)

    async def adopt(self, driver: StorageDriver, volume: str) -> str | None:
        """What a machine that is on writes to is what the volume is: tell the pool. Returns that machine's uid."""
        domain = await self.user(volume)
        if domain is None:
            return None
        for disk in domain.disks:
            if disk.volume == volume:
                await driver.adopt(volume, disk.path)
        return domain.marks.uid

    async def user(self, volume: str) -> Domain | None:
        """The machine that is on and has the volume."""
        for domain in await self._hypervisor.domains():
            if domain.state is not DomainState.STOPPED and volume in domain.volumes:
                return domain
        return None
