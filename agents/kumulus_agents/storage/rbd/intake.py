"""How something becomes an image of a Ceph pool: by way of a scratch directory of this host, where it is fetched, inspected
and converted like those of any pool of files; or as a copy of a volume of the pool. What is written to the cluster is bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from kumulus.api.image_order import ImageRef
from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.expand import expand
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import StorageError, StoredImage, VolumeContent
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.cluster import Cluster
from kumulus_agents.storage.rbd.contents import RbdContents, share
from kumulus_agents.storage.rbd.images import RbdImages
from kumulus_agents.storage.settings import StorageSettings

RAW = "raw"


class RbdIntake:
    """Of one pool. Who calls has the image's lock."""

    def __init__(
        self,
        pool: PoolRef,
        settings: StorageSettings,
        cluster: Cluster,
        images: RbdImages,
        contents: RbdContents,
        fetcher: Fetcher | None,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._images = images
        self._contents = contents
        self._scratch = settings.scratch / pool.uid
        self.staging = DirStorage(
            PoolRef(
                uid=pool.uid,
                name=pool.name,
                driver=PoolDriver.DIR,
                parameters=PoolParameters(path=str(self._scratch)),
            ),
            settings.model_copy(update={"roots": (settings.scratch,), "readers": ()}),
            fetcher=fetcher,
        )
        """What is in the scratch directory."""

    async def take_in(self, staged: StoredImage, pace: Pace) -> None:
        """Make an image of the pool of the one in the scratch directory, which goes."""
        name, size = names.image(staged.uid), staged.virtual_size
        making = names.making(name)
        with told_as("read the image in the scratch directory"), Directory.trusted(self._scratch) as scratch:
            raw = scratch.open(f"{staged.uid}.raw", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                staged_fd = await in_thread(os.open, staged.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if staged.format != RAW:
                        pace.stage("Converting", 0, size)
                        await expand(staged_fd, size, raw, self._settings, pace.at)
                    await self._images.create(making, size)
                    pace.stage("Converting", 0, size)
                    copied = staged_fd if staged.format == RAW else raw
                    await self._cluster.copy("", making, share(pace, size), fd=copied)
                finally:
                    os.close(staged_fd)
            finally:
                os.close(raw)
                scratch.remove(f"{staged.uid}.raw")
        await self._images.keep_base(making)
        known = {"sha256": staged.sha256, "sourceFormat": staged.source_format, "digest": staged.digest}
        await self._settle(name, known, size)
        await self.staging.remove_image(staged.uid)

    async def take_volume(self, image: ImageRef, source: VolumeContent, pace: Pace) -> None:
        """Make an image a full copy of a volume, or of a snapshot of one. It is raw, and nothing ever looks for a format
        in it: what a guest wrote there is bytes."""
        name = names.image(image.uid)
        making = names.making(name)
        with self._contents.reading(source):
            size = await self._contents.size(source)
            await self._images.create(making, size)
            await self._contents.copy(source, image.uid, making, size, pace)
        await self._images.keep_base(making)
        pace.stage("Inspecting", 0, size)
        digest = await self._cluster.digest(f"{making}@{names.BASE}", lambda done: pace.at(done, size))
        if image.sha256 not in (None, digest):
            await self._images.drop(making)
            raise StorageError(
                "The volume has other content than when the image was made of it. Make a new image.",
                reason="ChecksumMismatch",
                retryable=False,
            )
        await self._settle(name, {"sha256": digest, "sourceFormat": RAW, "digest": None}, size)

    async def _settle(self, name: str, known: Mapping[str, object], size: int) -> None:
        """What was made is an image, of which that is known."""
        taken = await self._images.usage(names.making(name))
        record = {**known, "virtualSize": size, "size": taken[1] if taken is not None else size}
        await self._images.keep_record(names.making(name), record)
        await self._images.settle(name)

    async def unstage(self, uid: str) -> None:
        """Remove what is left of the image in the scratch directory."""
        await self.staging.remove_image(uid)
        with told_as("remove the image from the scratch directory"), Directory.trusted(self._scratch) as scratch:
            scratch.remove(f"{uid}.raw")
