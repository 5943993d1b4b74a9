"""A pool in memory, for simulated hosts: believable times, failures on demand, no files."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from kumulus.api.host import ImageRef, OciFetch, PoolRef, VolumeOrigin
from kumulus_agents.storage.dir.pool import disk_of, uid_of
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import (
    ImageSource,
    ProgressListener,
    RegistrySource,
    Resize,
    StorageDriver,
    StorageError,
    StoredDisk,
    StoredImage,
    StoredVolume,
    Usage,
    same,
)
from kumulus_agents.storage.sectors import whole_sectors
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.source import FileSource

_STEPS = 4
_THIN = 200 << 10
"""Bytes an overlay takes in which nothing was written yet."""


@dataclass(slots=True)
class SimulatedPool:
    """What is in a pool. Outlives the driver when it is given to the next one, as a disk outlives an agent."""

    images: dict[str, StoredImage] = field(default_factory=dict)
    disks: dict[str, dict[str, tuple[str, StoredDisk]]] = field(default_factory=dict)
    """Machine -> disk name -> image uid and the disk."""
    volumes: dict[str, tuple[str | None, StoredVolume]] = field(default_factory=dict)
    """Volume -> uid of the image it stands on, and the volume."""


class SimulatedStorage:
    """`StorageDriver` without storage."""

    def __init__(
        self,
        pool: PoolRef,
        settings: StorageSettings,
        *,
        state: SimulatedPool | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.state = state if state is not None else SimulatedPool()
        self._path = f"/simulated/{pool.uid}"
        self._settings = settings.simulated
        self._sleep = sleep
        self._failures: defaultdict[str, deque[StorageError]] = defaultdict(deque)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def fail(self, verb: str, *errors: StorageError) -> None:
        """The next calls of that verb end with these errors, one each, before they change anything."""
        self._failures[verb].extend(errors)

    async def prepare(self) -> Usage:
        """See `StorageDriver.prepare`."""
        self._perhaps_fail("prepare")
        disks = sum(len(mine) for mine in self.state.disks.values())
        used = sum(image.size for image in self.state.images.values()) + disks * _THIN
        used += sum(volume.used for _, volume in self.state.volumes.values())
        return Usage(capacity=self._settings.capacity, used=used)

    async def image(self, uid: str) -> StoredImage | None:
        """See `StorageDriver.image`."""
        self._perhaps_fail("image")
        return self.state.images.get(uid_of(uid))

    async def import_image(self, image: ImageRef, source: ImageSource, progress: ProgressListener) -> StoredImage:
        """See `StorageDriver.import_image`. Nothing is fetched; every source has the image."""
        uid = uid_of(image.uid)
        lock = self._locks[uid]
        try:
            async with lock:
                if (found := self.state.images.get(uid)) is not None:
                    return same(found, image, source)
                self._perhaps_fail("import_image")
                await self._download(progress)
                self._perhaps_fail("import_image.end")
                made = StoredImage(
                    uid=uid,
                    path=f"{self._path}/images/{uid}.qcow2",
                    format="qcow2",
                    source_format=image.format,
                    sha256=image.sha256 or hashlib.sha256(uid.encode()).hexdigest(),
                    virtual_size=self._settings.virtual_size,
                    size=self._settings.image_bytes,
                    digest=_resolved(source.fetch) if isinstance(source, RegistrySource) else None,
                )
                self.state.images[uid] = made
                return made
        finally:
            if not lock.locked():
                self._locks.pop(uid, None)

    async def remove_image(self, uid: str) -> None:
        """See `StorageDriver.remove_image`."""
        self._perhaps_fail("remove_image")
        uid_of(uid)
        on_disks = any(image == uid for mine in self.state.disks.values() for image, _ in mine.values())
        if on_disks or any(image == uid for image, _ in self.state.volumes.values()):
            raise StorageError(
                "The image is in use. Delete the machines and volumes made from it first.", reason="ImageInUse"
            )
        self.state.images.pop(uid, None)

    async def ensure_disk(self, owner: str, name: str, image_uid: str, size: int | None) -> StoredDisk:
        """See `StorageDriver.ensure_disk`."""
        disk, _ = disk_of(owner, name), uid_of(image_uid)
        found = self.state.disks.get(owner, {}).get(name)
        if found is not None:
            return found[1]
        self._perhaps_fail("ensure_disk")
        await self._sleep(self._settings.disk_seconds)
        image = self.state.images.get(image_uid)
        if image is None:
            raise StorageError("The disk's image is not in the pool yet.", reason="ImageNotReady")
        if size is not None and size < image.virtual_size:
            raise StorageError(
                f"The disk's size of {size} bytes is less than the {image.virtual_size} bytes of its image.",
                reason="DiskTooSmall",
                retryable=False,
            )
        made = StoredDisk(
            FileSource(f"{self._path}/disks/{owner}/{disk}.qcow2"), "qcow2", whole_sectors(size or image.virtual_size)
        )
        return self.state.disks.setdefault(owner, {}).setdefault(name, (image_uid, made))[1]

    async def remove_disks(self, owner: str) -> None:
        """See `StorageDriver.remove_disks`."""
        self._perhaps_fail("remove_disks")
        if self.state.disks.pop(uid_of(owner), None):
            await self._sleep(self._settings.disk_seconds)

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`."""
        self._perhaps_fail("volume")
        found = self.state.volumes.get(uid_of(uid))
        return found[1] if found is not None else None

    async def ensure_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        progress: ProgressListener | None = None,
    ) -> StoredVolume:
        """See `StorageDriver.ensure_volume`."""
        uid_of(uid)
        image = uid_of(origin.image.uid) if origin is not None and origin.image is not None else None
        source = uid_of(origin.volume) if origin is not None and origin.volume is not None else None
        async with self._locks[uid]:
            if (found := await self.volume(uid)) is not None:
                return found
            self._perhaps_fail("ensure_volume")
            await self._sleep(self._settings.disk_seconds)
            least, used = self._origin(image, source)
            if (wanted := size if size is not None else least) is None:
                raise StorageError("A blank volume needs a size.", reason="SizeMissing", retryable=False)
            if least is not None and wanted < least:
                raise StorageError(
                    f"The volume's size of {wanted} bytes is less than the {least} bytes of its origin.",
                    reason="DiskTooSmall",
                    retryable=False,
                )
            if source is not None and progress is not None:
                Pace(progress).stage("Copying", used, used)
            whole = whole_sectors(wanted)
            made = StoredVolume(
                FileSource(f"{self._path}/volumes/{uid}.qcow2"), "qcow2", whole, whole if thick else used
            )
            self.state.volumes[uid] = (None if thick else image, made)
            return made

    async def grow_volume(self, uid: str, size: int, live: Resize | None = None) -> StoredVolume:
        """See `StorageDriver.grow_volume`."""
        async with self._locks[uid_of(uid)]:
            self._perhaps_fail("grow_volume")
            found, wanted = await self.volume(uid), whole_sectors(size)
            if found is None:
                raise StorageError("The volume is not in the pool.", reason="VolumeNotReady")
            if found.virtual_size > wanted:
                raise StorageError(
                    f"The volume has {found.virtual_size} bytes; it cannot be made smaller, to {size} bytes.",
                    reason="ShrinkRefused",
                    retryable=False,
                )
            if live is not None and found.virtual_size < wanted:
                await live(wanted)
            grown = replace(found, virtual_size=wanted)
            self.state.volumes[uid] = (self.state.volumes[uid][0], grown)
            return grown

    async def remove_volume(self, uid: str) -> None:
        """See `StorageDriver.remove_volume`."""
        self._perhaps_fail("remove_volume")
        if self.state.volumes.pop(uid_of(uid), None):
            await self._sleep(self._settings.disk_seconds)
        if (lock := self._locks.get(uid)) is not None and not lock.locked():
            del self._locks[uid]

    def _origin(self, image: str | None, source: str | None) -> tuple[int | None, int]:
        """Bytes of the disk that a volume begins as (None: of no disk), and bytes the volume takes."""
        if image is not None:
            if (found := self.state.images.get(image)) is None:
                raise StorageError("The volume's image is not in the pool yet.", reason="ImageNotReady")
            return found.virtual_size, _THIN
        if source is not None:
            if (copied := self.state.volumes.get(source)) is None:
                raise StorageError("The volume that is to be copied is not in the pool yet.", reason="VolumeNotReady")
            return copied[1].virtual_size, copied[1].used
        return None, _THIN

    async def _download(self, progress: ProgressListener) -> None:
        pace = Pace(progress)
        total = self._settings.image_bytes
        for step in range(_STEPS):
            pace.at(total * step // _STEPS, total)
            await self._sleep(self._settings.import_seconds / _STEPS)
        pace.stage("Inspecting", total, total)
        pace.stage("Converting", 0, self._settings.virtual_size)

    def _perhaps_fail(self, verb: str) -> None:
        if self._failures[verb]:
            raise self._failures[verb].popleft()


def _resolved(fetch: OciFetch) -> str:
    return fetch.digest or f"sha256:{hashlib.sha256(fetch.reference.encode()).hexdigest()}"


def make(pool: PoolRef, settings: StorageSettings) -> StorageDriver:
    """The driver for a pool; what the entry point names."""
    return SimulatedStorage(pool, settings)
