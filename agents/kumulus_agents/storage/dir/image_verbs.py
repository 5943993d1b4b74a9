"""The part of the driver `dir` that is about images, and disks that are made of them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from kumulus.api.image import OPTICAL, ImageContent, ImageFormat
from kumulus.api.image_order import ImageRef
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir import disks, images, uses, volumes
from kumulus_agents.storage.dir.exclusion import Exclusion
from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.dir.volumes import Source
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.protocol import (
    ImageSource,
    ProgressListener,
    StorageError,
    StoredDisk,
    StoredImage,
    VolumeContent,
    same,
)
from kumulus_agents.storage.whole import Receive


class ImageVerbs(Exclusion):
    """Images, uploads of images, and the disks of machines."""

    async def image(self, uid: str) -> StoredImage | None:
        """See `StorageDriver.image`."""
        with told_as("look for the image"):
            return await in_thread(self._stored, uid_of(uid))

    async def import_image(self, image: ImageRef, source: ImageSource, progress: ProgressListener) -> StoredImage:
        """See `StorageDriver.import_image`. Requests at the same time import once."""
        uid = uid_of(image.uid)
        async with self._lock(f"image {uid}"):
            with told_as("import the image"):
                found = await in_thread(self._stored, uid)
                if found is None:
                    if self._pool.shared:
                        await in_thread(uses.keep, self._pool, uid)
                    pace = Pace(progress)
                    if isinstance(source, VolumeContent):
                        await self._take_volume(image, Source(uid_of(source.volume), source.snapshot), pace)
                    else:
                        await self._take_in(image, source, pace)
                    found = await in_thread(self._stored, uid)
        if found is None:
            raise StorageError("The image was removed while it was imported.", reason="ImageNotReady")
        return same(found, image, source)

    async def measure_image(self, uid: str) -> ImageContent | None:
        """See `WholeImages.measure_image`."""
        with told_as("measure the image"), self._pool.images() as directories:
            found = await in_thread(self._stored, uid_of(uid))
            if found is None or found.content is not None:
                return found.content if found is not None else None
            digest = await images.measure(directories, found)
            async with self._lock(f"image {uid}"):
                if await in_thread(self._stored, uid) == found:
                    await in_thread(images.remember, directories, uid, digest)
            now = await in_thread(self._stored, uid)
        return now.content if now is not None else None

    async def open_image(self, uid: str, sha256: str) -> int | None:
        """See `WholeImages.open_image`."""
        with told_as("open the image"):
            return await in_thread(self._open_image, uid_of(uid), sha256)

    async def copy_image(
        self, image: ImageRef, content: ImageContent, receive: Receive, progress: ProgressListener
    ) -> StoredImage:
        """See `WholeImages.copy_image`. Requests at the same time copy once."""
        uid = uid_of(image.uid)
        wanted = ImageFormat.RAW if image.format in OPTICAL else ImageFormat.QCOW2
        if content.format is not wanted:
            raise StorageError(
                f"Another pool has the image as {content.format}, which it cannot be here.", reason="ImageRejected"
            )
        async with self._lock(f"image {uid}"):
            with told_as("copy the image"):
                found = await in_thread(self._stored, uid)
                if found is None:
                    if self._pool.shared:
                        await in_thread(uses.keep, self._pool, uid)
                    with self._pool.images() as directories:
                        await images.copy_in(
                            self._pool,
                            directories,
                            image,
                            content,
                            receive,
                            Pace(progress),
                            self._settings,
                            self._claims,
                        )
                    found = await in_thread(self._stored, uid)
        if found is None:
            raise StorageError("The image was removed while it was copied.", reason="ImageNotReady")
        return found

    @property
    def upload_max(self) -> int:
        """See `TakesUploads.upload_max`."""
        return self._settings.fetch.max_bytes

    @asynccontextmanager
    async def upload(self, uid: str) -> AsyncIterator[Part]:
        """See `TakesUploads.upload`."""
        with told_as("take the upload"), self._pool.images() as directories:
            async with images.uploading(self._pool, directories, uid_of(uid), self._claims) as part:
                yield part

    async def uploaded(self, uid: str, idle_seconds: float) -> bool:
        """See `TakesUploads.uploaded`."""
        with told_as("look for the upload"), self._pool.images() as directories:
            return await in_thread(images.uploaded, self._pool, directories, uid_of(uid), idle_seconds)

    async def remove_image(self, uid: str) -> None:
        """See `StorageDriver.remove_image`."""
        async with self._lock(f"image {uid_of(uid)}"):
            # No disk is begun on an image that is being removed, and none removed while a disk is begun.
            users = self._making[uid]
            self._removing.add(uid)
            try:
                with told_as("remove the image"):
                    users = users or await in_thread(self._image_users, uid)
                    if not users:
                        users = await in_thread(self._remove_image, uid)
            finally:
                self._removing.discard(uid)
        if users:
            raise StorageError(
                f"The image is in use: disks and volumes made from it ({users}) are in the pool."
                " Delete their machines and the volumes first; of retained volumes, the files.",
                reason="ImageInUse",
            )

    async def ensure_disk(self, owner: str, name: str, image_uid: str, size: int | None) -> StoredDisk:
        """See `StorageDriver.ensure_disk`."""
        uid_of(image_uid)
        async with self._lock(f"disks {uid_of(owner)}"):
            with told_as("make the disk"):
                async with self._made_of(image_uid):
                    return await in_thread(disks.ensure, self._pool, self._settings, owner, name, image_uid, size)

    async def disk(self, owner: str, name: str) -> StoredDisk | None:
        """See `ReceivingDisks.disk`."""
        async with self._lock(f"disks {uid_of(owner)}"):
            with told_as("look for the disk"):
                return await in_thread(disks.find, self._pool, owner, name)

    async def receive_disk(self, owner: str, name: str, size: int, migration: str) -> StoredDisk:
        """See `ReceivingDisks.receive_disk`."""
        async with self._lock(f"disks {uid_of(owner)}"):
            with told_as("make room for the disk"):
                work = partial(disks.receive, self._pool, self._settings, owner, name, size, uid_of(migration))
                return await in_thread(work)

    async def remove_disks(self, owner: str) -> None:
        """See `StorageDriver.remove_disks`."""
        async with self._lock(f"disks {uid_of(owner)}"):
            with told_as("remove the machine's disks"):
                await in_thread(disks.remove, self._pool, owner)

    async def _take_in(self, image: ImageRef, source: images.Fetched, pace: Pace) -> None:
        with self._pool.images() as directories:
            await images.take_in(
                self._pool, directories, image, source, pace, self._fetcher, self._settings, self._claims
            )

    async def _take_volume(self, image: ImageRef, source: Source, pace: Pace) -> None:
        """Make an image of the volume, or of a snapshot of it."""
        async with self._copied(source.volume) as found:
            if found is not None and found.encrypted:
                raise volumes.in_clear("image of it would not be. Make the image of a volume that is not encrypted.")
            plan, layer = await in_thread(volumes.plan_copy, self._pool, source, None, False)
            with (
                volumes.open_chain(self._pool, source.volume, layer) as copied,
                self._pool.images() as directories,
            ):
                await images.take_volume(self._pool, directories, image, copied, plan.copied, pace, self._settings)

    def _image_users(self, uid: str) -> int:
        return disks.users(self._pool, uid) + volumes.users(self._pool, uid)

    def _stored(self, uid: str) -> StoredImage | None:
        with self._pool.images() as directories:
            return images.stored(self._pool, directories.whole, uid)

    def _open_image(self, uid: str, sha256: str) -> int | None:
        with self._pool.images() as directories:
            found = images.stored(self._pool, directories.whole, uid)
            if found is None or found.content is None or found.content.sha256 != sha256:
                return None
            try:
                return directories.whole.open(f"{uid}.{found.format}", os.O_RDONLY)
            except FileNotFoundError:
                return None

    def _remove_image(self, uid: str) -> int:
        """How many use it after all, on whichever host; 0: it is removed."""
        users = 0
        if self._pool.shared:
            users = uses.remove(self._pool, uid) + self._image_users(uid)
        if not users:
            with self._pool.images() as directories:
                images.remove(self._pool, directories, uid)
        if self._pool.shared:
            uses.keep(self._pool, uid)
        return users
