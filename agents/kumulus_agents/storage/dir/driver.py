"""The driver `dir`: one pool that is a directory on this host."""

from __future__ import annotations

import asyncio
from collections import Counter
from weakref import WeakValueDictionary

from kumulus.api.host import HttpFetch, ImageRef, PoolRef
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.dir import disks, images
from kumulus_agents.storage.dir.pool import PoolDirectory, uid_of
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import (
    ProgressListener,
    StorageDriver,
    StorageError,
    StoredDisk,
    StoredImage,
    Usage,
)
from kumulus_agents.storage.settings import StorageSettings


class DirStorage:
    """`StorageDriver` for a directory. Belongs to one event loop."""

    def __init__(self, pool: PoolRef, settings: StorageSettings, *, fetcher: Fetcher | None = None) -> None:
        self._pool = PoolDirectory(pool, settings)
        self._settings = settings
        self._claims = Claims(pool.name)
        self._fetcher = fetcher or Fetcher(settings.fetch)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._making: Counter[str] = Counter()
        self._removing: set[str] = set()

    async def prepare(self) -> Usage:
        """See `StorageDriver.prepare`. PathNotAllowed, PoolUnsafe and PoolReadOnly are its own reasons."""
        with told_as("prepare the pool"):
            return await in_thread(self._pool.prepare)

    async def image(self, uid: str) -> StoredImage | None:
        """See `StorageDriver.image`."""
        with told_as("look for the image"):
            return await in_thread(self._stored, uid_of(uid))

    async def import_image(self, image: ImageRef, source: HttpFetch, progress: ProgressListener) -> StoredImage:
        """See `StorageDriver.import_image`. Requests at the same time import once."""
        uid = uid_of(image.uid)
        async with self._lock(f"image {uid}"):
            with told_as("import the image"):
                found = await in_thread(self._stored, uid)
                if found is None:
                    with self._pool.images() as directories:
                        await images.take_in(
                            self._pool,
                            directories,
                            image,
                            source,
                            Pace(progress),
                            self._fetcher,
                            self._settings,
                            self._claims,
                        )
                    found = await in_thread(self._stored, uid)
        if found is None:
            raise StorageError("The image was removed while it was imported.", reason="ImageNotReady")
        if found.sha256 != image.sha256:
            raise StorageError(
                "The pool has this image with another checksum. Remove the image and make a new one.",
                reason="ImageConflict",
                retryable=False,
            )
        return found

    async def remove_image(self, uid: str) -> None:
        """See `StorageDriver.remove_image`."""
        async with self._lock(f"image {uid_of(uid)}"):
            # No disk is begun on an image that is being removed, and none removed while a disk is begun.
            users = self._making[uid]
            self._removing.add(uid)
            try:
                with told_as("remove the image"):
                    users = users or await in_thread(disks.users, self._pool, uid)
                    if not users:
                        await in_thread(self._remove_image, uid)
            finally:
                self._removing.discard(uid)
        if users:
            raise StorageError(
                f"The image is in use: disks made from it ({users}) are in the pool. Delete their machines first.",
                reason="ImageInUse",
            )

    async def ensure_disk(self, owner: str, name: str, image_uid: str, size: int | None) -> StoredDisk:
        """See `StorageDriver.ensure_disk`."""
        uid_of(image_uid)
        async with self._lock(f"disks {uid_of(owner)}"):
            if image_uid in self._removing:
                raise StorageError("The disk's image is being removed.", reason="ImageNotReady")
            self._making[image_uid] += 1
            try:
                with told_as("make the disk"):
                    return await in_thread(disks.ensure, self._pool, self._settings, owner, name, image_uid, size)
            finally:
                self._making[image_uid] -= 1
                self._making += Counter()  # forget zeros

    async def remove_disks(self, owner: str) -> None:
        """See `StorageDriver.remove_disks`."""
        async with self._lock(f"disks {uid_of(owner)}"):
            with told_as("remove the machine's disks"):
                await in_thread(disks.remove, self._pool, owner)

    def _stored(self, uid: str) -> StoredImage | None:
        with self._pool.images() as directories:
            return images.stored(self._pool, directories.whole, uid)

    def _remove_image(self, uid: str) -> None:
        with self._pool.images() as directories:
            images.remove(directories, uid)

    def _lock(self, what: str) -> asyncio.Lock:
        return self._locks.setdefault(what, asyncio.Lock())


def make(pool: PoolRef, settings: StorageSettings) -> StorageDriver:
    """The driver for a pool; what the entry point names."""
    return DirStorage(pool, settings)
