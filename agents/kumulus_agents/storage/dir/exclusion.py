"""What is going on in a pool that is a directory: work that would be in each other's way waits, or is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from kumulus.api.pool_order import PoolRef
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.dir import uses, volumes
from kumulus_agents.storage.dir.pool import PoolDirectory, uid_of
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.protocol import StorageError, StoredVolume
from kumulus_agents.storage.refusals import no_volume
from kumulus_agents.storage.settings import StorageSettings


class Exclusion:
    """A pool with its locks, and what is being made, copied, merged and removed in it. Belongs to one event loop."""

    def __init__(
        self, pool: PoolRef, settings: StorageSettings, *, fetcher: Fetcher | None = None, mounted: bool = False
    ) -> None:
        """`mounted`: the pool's root must be a mount."""
        self._pool = PoolDirectory(pool, settings, mounted=mounted)
        self._prepared = False
        self._settings = settings
        self._claims = Claims(pool.name)
        self._fetcher = fetcher or Fetcher(settings.fetch)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._making: Counter[str] = Counter()
        """Images by how many disks and volumes are being made of them."""
        self._removing: set[str] = set()
        self._copying: Counter[str] = Counter()
        """Volumes by how many copies of them, or of their snapshots, are being made."""
        self._merging: set[str] = set()
        """Volumes whose layers are being merged, here or by an emulator."""

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`."""
        with told_as("look for the volume"):
            return await in_thread(volumes.stored, self._pool, uid_of(uid))

    async def _present(self, uid: str) -> StoredVolume:
        found = await self.volume(uid)
        if found is None:
            raise no_volume()
        return found

    @asynccontextmanager
    async def _copied(self, volume: str) -> AsyncIterator[StoredVolume | None]:
        """One copy of the same volume at a time. Its files stay as they are meanwhile."""
        found = await self.volume(volume)
        if volume in self._merging:
            raise StorageError(
                "Layers of the volume that is to be copied are being merged. Wait until that is done.",
                reason="VolumeInUse",
            )
        self._copying[volume] += 1
        try:
            async with self._lock(f"copy of {volume}"):
                yield found
        finally:
            self._copying[volume] -= 1
            self._copying += Counter()  # forget zeros

    def _refuse_copied(self, uid: str) -> None:
        if self._copying[uid]:
            raise StorageError("The volume is being copied. Wait until the copy is done.", reason="VolumeInUse")

    @asynccontextmanager
    async def _made_of(self, image_uid: str) -> AsyncIterator[None]:
        """Something is being made of that image, which is not removed meanwhile."""
        if image_uid in self._removing:
            raise StorageError("The disk's image is being removed.", reason="ImageNotReady")
        self._making[image_uid] += 1
        try:
            if self._pool.shared:
                async with self._lock(f"mark of {image_uid}"):
                    await in_thread(uses.begin, self._pool, image_uid)
            yield
        finally:
            self._making[image_uid] -= 1
            self._making += Counter()  # forget zeros
            if self._pool.shared:
                async with self._lock(f"mark of {image_uid}"):
                    if not self._making[image_uid]:
                        await in_thread(uses.end, self._pool, image_uid)

    def _lock(self, what: str) -> asyncio.Lock:
        return self._locks.setdefault(what, asyncio.Lock())
