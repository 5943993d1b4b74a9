"""The part of the driver `rbd` that is about images, and disks that are made of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from kumulus.api.image import ImageContent
from kumulus.api.image_order import ImageRef
from kumulus_agents.storage.dir.pool import disk_of, uid_of
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
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.faults import Busy
from kumulus_agents.storage.rbd.intake import RAW
from kumulus_agents.storage.rbd.parts import RbdParts
from kumulus_agents.storage.sizes import at_least
from kumulus_agents.storage.whole import Receive


class ImageVerbs(RbdParts):
    """Images, uploads of images, and the disks of machines."""

    async def image(self, uid: str) -> StoredImage | None:
        """See `StorageDriver.image`."""
        record = await self._images.record(names.image(uid_of(uid)))
        if record is None:
            return None
        try:
            return StoredImage(
                uid=uid,
                source=await self._cluster.source(names.image(uid)),
                format=RAW,
                source_format=str(record["sourceFormat"]),
                sha256=str(record["sha256"]),
                virtual_size=int(record["virtualSize"]),
                size=int(record["size"]),
                digest=None if record.get("digest") is None else str(record["digest"]),
            )
        except (KeyError, ValueError, TypeError):
            return None

    async def import_image(self, image: ImageRef, source: ImageSource, progress: ProgressListener) -> StoredImage:
        """See `StorageDriver.import_image`. Requests at the same time import once. The SHA-256 of an image that is made of a
        volume is that of the bytes of its disk."""
        uid = uid_of(image.uid)
        if isinstance(source, VolumeContent):
            uid_of(source.volume)
            uid_of(source.snapshot or source.volume)

        async def make() -> None:
            if isinstance(source, VolumeContent):
                await self._intake.take_volume(image, source, Pace(progress))
            else:
                await self._intake.take_in(
                    await self._intake.staging.import_image(image, source, progress), Pace(progress)
                )

        return same(await self._image(uid, make), image, source)

    async def copy_image(
        self, image: ImageRef, content: ImageContent, receive: Receive, progress: ProgressListener
    ) -> StoredImage:
        """See `TakesImages.copy_image`. Requests at the same time copy once."""

        async def make() -> None:
            await self._intake.take_in(
                await self._intake.staging.copy_image(image, content, receive, progress), Pace(progress)
            )

        return await self._image(uid_of(image.uid), make)

    @property
    def upload_max(self) -> int:
        """See `TakesUploads.upload_max`."""
        return self._intake.staging.upload_max

    @asynccontextmanager
    async def upload(self, uid: str) -> AsyncIterator[Part]:
        """See `TakesUploads.upload`. It arrives in the scratch directory of this host."""
        async with self._intake.staging.upload(uid) as part:
            yield part

    async def uploaded(self, uid: str, idle_seconds: float) -> bool:
        """See `TakesUploads.uploaded`. An import that was cut short may have made an image of it there already."""
        return await self._intake.staging.image(uid) is not None or await self._intake.staging.uploaded(
            uid, idle_seconds
        )

    async def _image(self, uid: str, make: Callable[[], Awaitable[None]]) -> StoredImage:
        """The image, made if it is not there."""
        async with self._lock(f"image {uid}"):
            found = await self.image(uid)
            if found is None:
                await self._cluster.check()  # nothing is fetched for a pool that cannot be used
                await make()
                found = await self.image(uid)
        if found is None:
            raise StorageError("The image was removed while it was imported.", reason="ImageNotReady")
        return found

    async def remove_image(self, uid: str) -> None:
        """See `StorageDriver.remove_image`. The cluster itself keeps an image that something stands on."""
        name = names.image(uid_of(uid))
        async with self._lock(f"image {uid}"):
            users = len(await self._images.users(name, names.BASE))
            if not users:
                with suppress(Busy):
                    await self._images.retire(name)
                    await self._images.drop(names.making(name))
                    await self._intake.unstage(uid)
                    return
        raise StorageError(
            f"The image is in use: disks and volumes made from it ({users or 'just now'}) are in the pool."
            " Delete their machines and the volumes first; of retained volumes, the Ceph images.",
            reason="ImageInUse",
        )

    async def ensure_disk(self, owner: str, name: str, image_uid: str, size: int | None) -> StoredDisk:
        """See `StorageDriver.ensure_disk`."""
        disk = names.disk(uid_of(owner), disk_of(owner, name))
        uid_of(image_uid)
        async with self._lock(f"disks {owner}"):
            made = await self._images.size(disk)
            if made is None:
                image = await self._present_image(image_uid, "disk")
                made = at_least(size, image.virtual_size, "disk", "image")
                await self._images.clone(names.image(image_uid), names.BASE, names.making(disk), made)
                await self._images.settle(disk)
            return StoredDisk(await self._cluster.source(disk), RAW, made)

    async def remove_disks(self, owner: str) -> None:
        """See `StorageDriver.remove_disks`."""
        prefix = names.disks(uid_of(owner))
        async with self._lock(f"disks {owner}"):
            for name in await self._images.listed():
                if name.startswith((prefix, names.making(prefix))):
                    with in_use("disk"):
                        await self._images.drop(name)

    async def _present_image(self, uid: str, what: str) -> StoredImage:
        found = await self.image(uid)
        if found is None:
            raise StorageError(f"The {what}'s image is not in the pool yet.", reason="ImageNotReady")
        return found


@contextmanager
def in_use(what: str) -> Iterator[None]:
    """What the cluster holds because somebody has it open is in use."""
    try:
        yield
    except Busy as error:
        raise StorageError(
            f"The {what} is open somewhere, or was a moment ago. It is tried again; look who has it (`rbd status`).",
            reason="VolumeInUse",
        ) from error
