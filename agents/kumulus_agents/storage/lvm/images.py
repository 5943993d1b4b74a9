"""Images of a thin pool: logical volumes that nobody writes to, on which disks and volumes stand.

They come in by way of a scratch directory of this host, where they are fetched, inspected and converted like those of
any pool of files; what is written to the pool is bytes.
"""

from __future__ import annotations

import os

from kumulus.api.image_order import ImageRef
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.expand import expand
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.lvm import names
from kumulus_agents.storage.lvm.faults import Busy
from kumulus_agents.storage.lvm.group import VolumeGroup
from kumulus_agents.storage.lvm.progress import share
from kumulus_agents.storage.lvm.report import Listing, Logical
from kumulus_agents.storage.lvm.tags import Tag
from kumulus_agents.storage.lvm.volumes import ThinVolumes
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import ImageSource, ProgressListener, StorageError, StoredImage, VolumeContent
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import BlockSource

RAW = "raw"


class ThinImages:
    """The images of one pool. Who calls has the image's lock."""

    def __init__(
        self,
        pool: PoolRef,
        settings: StorageSettings,
        group: VolumeGroup,
        volumes: ThinVolumes,
        *,
        fetcher: Fetcher | None = None,
    ) -> None:
        self._settings = settings
        self._group = group
        self._volumes = volumes
        self._scratch = settings.scratch / pool.uid
        parameters = PoolParameters(path=str(self._scratch))
        self._staging = DirStorage(
            PoolRef(uid=pool.uid, name=pool.name, driver=PoolDriver.DIR, parameters=parameters),
            settings.model_copy(update={"roots": (settings.scratch,), "readers": ()}),
            fetcher=fetcher,
        )

    async def find(self, uid: str) -> StoredImage | None:
        """See `StorageDriver.image`. It has a device afterwards: a machine may have it in a drive."""
        found = (await self._group.listing()).whole(names.image(uid))
        if found is None:
            return None
        await self._volumes.wake(found)
        return self._stored(uid, found)

    async def bring(self, image: ImageRef, source: ImageSource, progress: ProgressListener) -> None:
        """See `StorageDriver.import_image`; it is not there. SourceUnsupported (not retryable) when it is to be made of a
        volume."""
        if isinstance(source, VolumeContent):
            raise StorageError(
                "Pools of the driver lvm have no images that are made of volumes. Copy the volume or its snapshot instead:"
                " make a Volume with source.volume or source.snapshot.",
                reason="SourceUnsupported",
                retryable=False,
            )
        self._group.usable(await self._group.listing())  # nothing is fetched for a pool that cannot be used
        staged = await self._staging.import_image(image, source, progress)
        await self._take_in(staged, Pace(progress))
        await self._staging.remove_image(image.uid)

    async def remove(self, uid: str) -> None:
        """See `StorageDriver.remove_image`. What stands on it would go on without it; it is kept for who asks for more."""
        name = names.image(uid)
        listing = await self._group.listing()
        users: int | str = listing.standing_on(name)
        if not users:
            try:
                if listing.get(name) is not None:
                    await self._volumes.drop(name)
            except Busy:
                users = "a machine has it in a drive"
        if users:
            raise StorageError(
                f"The image is in use: disks and volumes made from it ({users}) are in the pool."
                " Delete their machines and the volumes first; of retained volumes, the logical volumes.",
                reason="ImageInUse",
            )
        await self._staging.remove_image(uid)
        with told_as("remove the image from the scratch directory"), Directory.trusted(self._scratch) as scratch:
            scratch.remove(f"{uid}.raw")

    def _stored(self, uid: str, found: Logical) -> StoredImage | None:
        record = found.record
        source_format, sha256 = record.one(Tag.SOURCE_FORMAT), record.one(Tag.SHA256)
        if source_format is None or sha256 is None:
            return None
        return StoredImage(
            uid=uid,
            source=BlockSource(self._group.device(found.name)),
            format=RAW,
            source_format=source_format,
            sha256=sha256,
            virtual_size=found.disk_size,
            size=record.number(Tag.USED) or found.used,
            digest=record.one(Tag.DIGEST),
        )

    async def _take_in(self, staged: StoredImage, pace: Pace) -> None:
        """Make an image of the pool of the one in the scratch directory."""
        size = staged.virtual_size
        record: dict[Tag, str | int] = {Tag.SHA256: staged.sha256, Tag.SOURCE_FORMAT: staged.source_format}
        if staged.digest is not None:
            record[Tag.DIGEST] = staged.digest
        with told_as("read the image in the scratch directory"), Directory.trusted(self._scratch) as scratch:
            raw = scratch.open(f"{staged.uid}.raw", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                staged_fd = await in_thread(os.open, staged.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    pace.stage("Converting", 0, size)
                    if staged.format != RAW:
                        await expand(staged_fd, size, raw, self._settings, pace.at)
                        pace.stage("Converting", 0, size)
                    copied = staged_fd if staged.format == RAW else raw
                    await self._volumes.take_in(names.image(staged.uid), copied, size, record, share(pace, size))
                finally:
                    os.close(staged_fd)
            finally:
                os.close(raw)
                scratch.remove(f"{staged.uid}.raw")


def present(listing: Listing, uid: str, what: str) -> Logical:
    """The image of that uid, for a disk or a volume. Raises `StorageError(reason="ImageNotReady")`."""
    found = listing.whole(names.image(uid))
    if found is None:
        raise StorageError(f"The {what}'s image is not in the pool yet.", reason="ImageNotReady")
    return found
