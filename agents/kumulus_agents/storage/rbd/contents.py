"""What volumes of a Ceph pool have, to be read from beginning to end by who makes something else of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from kumulus_agents.storage.convert import percent_done
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import StorageError, VolumeContent
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.arrivals import ARRIVING
from kumulus_agents.storage.rbd.cluster import Cluster
from kumulus_agents.storage.rbd.images import RbdImages
from kumulus_agents.storage.rbd.snapshots import RbdSnapshots


class RbdContents:
    """The volumes and snapshots of one pool as sources. Belongs to one event loop."""

    def __init__(self, cluster: Cluster, images: RbdImages, snapshots: RbdSnapshots) -> None:
        self._cluster = cluster
        self._images = images
        self._snapshots = snapshots
        self._read: Counter[str] = Counter()
        """Volumes and snapshots by how many are reading them here."""

    def is_read(self, uid: str) -> bool:
        """Whether this host reads the volume or the snapshot of that uid just now."""
        return self._read[uid] > 0

    @contextmanager
    def reading(self, source: VolumeContent) -> Iterator[None]:
        """It is being read inside the block, and stays."""
        uid = source.snapshot or source.volume
        self._read[uid] += 1
        try:
            yield
        finally:
            self._read[uid] -= 1
            self._read += Counter()  # forget zeros

    async def size(self, source: VolumeContent) -> int:
        """Bytes of the disk. Raises `StorageError`: VolumeNotReady or SnapshotNotReady when it is missing, VolumeInUse
        when somebody writes to it."""
        if source.snapshot is not None:
            found = await self._snapshots.find(source.volume, source.snapshot)
            if found is None or found.taken_at is None:
                raise StorageError("The snapshot is not in the pool yet.", reason="SnapshotNotReady")
            return found.virtual_size
        name = names.volume(source.volume)
        size = await self._images.size(name)
        if size is None or ARRIVING in await self._images.records(name):
            raise StorageError("The volume that is to be copied is not in the pool yet.", reason="VolumeNotReady")
        await self.refuse_written(source.volume, "copy")
        return size

    async def copy(self, source: VolumeContent, target: str, image: str, size: int, pace: Pace) -> None:
        """Fill the image, which is blank, with it; `target` is the uid of what that will be, `size` the source's."""
        async with self._kept(source, target) as kept:
            pace.stage("Copying", 0, size)
            await self._cluster.copy(kept, image, share(pace, size))

    @asynccontextmanager
    async def _kept(self, source: VolumeContent, target: str) -> AsyncIterator[str]:
        """A snapshot of the cluster's: whoever writes to the volume meanwhile changes nothing of it."""
        volume = names.volume(source.volume)
        if source.snapshot is not None:
            yield f"{volume}@{names.snapshot(source.snapshot)}"
            return
        snapshot = names.copied(target)
        await self._images.freeze(volume, snapshot)
        try:
            yield f"{volume}@{snapshot}"
        finally:
            await self._images.thaw(volume, snapshot)

    async def free(self, volume: str) -> None:
        """Remove what is left in the volume of copies that were cut short, and of snapshots that were begun and not taken.

        Raises `StorageError(reason="VolumeInUse")` when it has other snapshots, or is being copied.
        """
        image = names.volume(volume)
        for snapshot in await self._images.snapshots(image):
            if await self._holds(image, snapshot):
                raise StorageError("The volume has snapshots. Delete them first.", reason="VolumeInUse")
            await self._images.thaw(image, snapshot)

    async def _holds(self, image: str, snapshot: str) -> bool:
        target = names.target_of(snapshot)
        if target is None:
            return await self._images.record(image, key=snapshot) is not None or not names.is_snapshot(snapshot)
        for making in (names.making(names.volume(target)), names.making(names.image(target))):
            if await self._images.in_use(making):
                raise being_copied()
        return False

    async def refuse_written(self, volume: str, doing: str) -> None:
        """Raises `StorageError(reason="VolumeInUse")` when somebody has the volume open to write."""
        if await self._images.in_use(names.volume(volume)):
            raise StorageError(
                f"Could not {doing} the volume: a machine that is on uses it. Stop the machine or detach the volume.",
                reason="VolumeInUse",
            )


def being_copied() -> StorageError:
    """Somebody reads the volume."""
    return StorageError("The volume is being copied. Wait until the copy is done.", reason="VolumeInUse")


def share(pace: Pace, size: int) -> Callable[[bytes], None]:
    """Turns what qemu-img says into positions."""

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            pace.at(min(size, size * percent // 100), size)

    return on_output
