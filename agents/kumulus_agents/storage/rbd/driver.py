"""The driver `rbd`: one pool of a Ceph cluster, which all its hosts share.

Images come in by way of a scratch directory of this host, where they are fetched, inspected and converted
like those of any pool of files; what is written to the cluster is bytes.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from weakref import WeakValueDictionary

from kumulus.api.host import ImageRef, PoolRef, SnapshotRef, VolumeOrigin
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus.api.snapshots import Indication
from kumulus.api.storage import OPTICAL
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.convert import percent_done
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.dir.pool import disk_of, uid_of
from kumulus_agents.storage.expand import expand
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.keepers import refuse_older
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import (
    ImageSource,
    ImportProgress,
    Merge,
    ProgressListener,
    Resize,
    StorageDriver,
    StorageError,
    StoredDisk,
    StoredImage,
    StoredSnapshot,
    StoredVolume,
    Usage,
    VolumeContent,
    same,
)
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.cluster import Cluster
from kumulus_agents.storage.rbd.faults import Busy, NotThere
from kumulus_agents.storage.rbd.images import RbdImages
from kumulus_agents.storage.rbd.snapshots import RbdSnapshots
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.sectors import whole_sectors
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.tracking import Extent

RAW = "raw"
_KEEPER, _REVERTED = "kumulus.keeper", "kumulus.reverted"
"""Metadata keys of a volume: which host sees to it, and the last request to revert it that was carried out."""
SWEEP = 10.0
"""Seconds that looking at the pool may take for clearing away what was removed."""


class RbdStorage:
    """`StorageDriver` for a Ceph pool. Belongs to one event loop."""

    def __init__(
        self, pool: PoolRef, settings: StorageSettings, secrets: Secrets, *, fetcher: Fetcher | None = None
    ) -> None:
        if pool.parameters.rbd is None:
            raise StorageError("The pool's order has no parameters for rbd.", reason="BadParameters", retryable=False)
        self._name = pool.name
        self._namespace = pool.parameters.rbd.namespace
        self._settings = settings
        self._cluster = Cluster(pool, pool.parameters.rbd, settings, secrets)
        self._images = RbdImages(self._cluster)
        self._scratch = settings.scratch / pool.uid
        self._staging = DirStorage(
            PoolRef(
                uid=pool.uid,
                name=pool.name,
                driver=PoolDriver.DIR,
                parameters=PoolParameters(path=str(self._scratch)),
            ),
            settings.model_copy(update={"roots": (settings.scratch,), "readers": ()}),
            fetcher=fetcher,
        )
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._snapshots = RbdSnapshots(self._images)
        self._copying: Counter[str] = Counter()
        """Volumes and snapshots by how many copies of them are being made here."""

    async def prepare(self) -> Usage:
        """See `StorageDriver.prepare`. PoolStalled, PoolForbidden, PoolMissing, SecretNotFound, SecretUnreadable and
        DriverUnsupported are its own reasons."""
        if self._namespace is not None:
            raise StorageError(
                f"The pool {self._name} names a namespace in its Ceph pool, which libvirt has no words for. Give it a"
                " Ceph pool of its own.",
                reason="DriverUnsupported",
                retryable=False,
            )
        usage = await self._cluster.usage()
        with suppress(TimeoutError):
            async with asyncio.timeout(SWEEP):
                await self._images.sweep()
        return usage

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
        """See `StorageDriver.import_image`. Requests at the same time import once. SourceUnsupported (not retryable) when
        it is to be made of a volume."""
        uid = uid_of(image.uid)
        if isinstance(source, VolumeContent):
            raise StorageError(
                "Pools in Ceph have no images that are made of volumes. Copy the volume or its snapshot instead: make a"
                " Volume with source.volume or source.snapshot.",
                reason="SourceUnsupported",
                retryable=False,
            )
        async with self._lock(f"image {uid}"):
            found = await self.image(uid)
            if found is None:
                await self._cluster.check()  # nothing is fetched for a pool that cannot be used
                staged = await self._staging.import_image(image, source, progress)
                await self._take_in(staged, Pace(progress))
                await self._staging.remove_image(uid)
                found = await self.image(uid)
        if found is None:
            raise StorageError("The image was removed while it was imported.", reason="ImageNotReady")
        return same(found, image, source)

    async def remove_image(self, uid: str) -> None:
        """See `StorageDriver.remove_image`. The cluster itself keeps an image that something stands on."""
        name = names.image(uid_of(uid))
        async with self._lock(f"image {uid}"):
            users = await self._images.users(name)
            if not users:
                with suppress(Busy):
                    await self._images.retire(name)
                    await self._images.drop(names.making(name))
                    await self._unstage(uid)
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
                made = _at_least(size, image.virtual_size, "disk", "image")
                await self._images.clone(names.image(image_uid), names.making(disk), made)
                await self._images.settle(disk)
            return StoredDisk(await self._cluster.source(disk), RAW, made)

    async def remove_disks(self, owner: str) -> None:
        """See `StorageDriver.remove_disks`."""
        prefix = names.disks(uid_of(owner))
        async with self._lock(f"disks {owner}"):
            for name in await self._images.listed():
                if name.startswith((prefix, names.making(prefix))):
                    with _in_use("disk"):
                        await self._images.drop(name)

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`."""
        name = names.volume(uid_of(uid))
        found, record = await asyncio.gather(self._images.usage(name), self._images.record(name, key=_REVERTED))
        if found is None:
            return None
        reverted = str(record["request"]) if record is not None and "request" in record else None
        return StoredVolume(
            await self._cluster.source(name), RAW, virtual_size=found[0], used=found[1], reverted=reverted
        )

    async def open_volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.open_volume`. The cluster keeps it in order."""
        return await self.volume(uid)

    async def claim_volume(self, uid: str, host: str, epoch: int) -> None:
        """See `StorageDriver.claim_volume`. What is not made yet cannot be marked."""
        name = names.volume(uid_of(uid))
        async with self._lock(f"volume {uid}"):
            found = await self._images.record(name, key=_KEEPER)
            keeper = (int(found["epoch"]), str(found["host"])) if found is not None else None
            refuse_older(keeper, host, epoch)
            if keeper != (epoch, host):
                with suppress(NotThere):
                    await self._images.keep_record(name, {"epoch": epoch, "host": host}, key=_KEEPER)

    async def ensure_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        progress: ProgressListener | None = None,
    ) -> StoredVolume:
        """See `StorageDriver.ensure_volume`. A thick volume is a copy of its image; what it grows by later is thin."""
        image = uid_of(origin.image.uid) if origin is not None and origin.image is not None else None
        source = uid_of(origin.volume) if origin is not None and origin.volume is not None else None
        snapshot = origin.snapshot if origin is not None else None
        if snapshot is not None:
            uid_of(snapshot.volume)
            uid_of(snapshot.snapshot)
        async with self._lock(f"volume {uid_of(uid)}"):
            if (found := await self.volume(uid)) is not None:
                return found
            pace = Pace(progress or _ignore)
            if image is not None:
                await self._make_on_image(uid, image, size, thick, pace)
            elif snapshot is not None:
                await self._make_of_snapshot(uid, snapshot, size, thick, pace)
            elif source is not None:
                await self._make_copy(uid, source, size, thick, pace)
            elif size is None:
                raise StorageError("A blank volume needs a size.", reason="SizeMissing", retryable=False)
            else:
                await self._images.create(names.making(names.volume(uid)), whole_sectors(size), thick=thick)
            await self._images.settle(names.volume(uid))
            return await self._present(uid)

    async def grow_volume(self, uid: str, size: int, live: Resize | None = None) -> StoredVolume:
        """See `StorageDriver.grow_volume`. An emulator has the cluster grow the image."""
        wanted = whole_sectors(size)
        async with self._lock(f"volume {uid_of(uid)}"):
            volume = await self._present(uid)
            if volume.virtual_size > wanted:
                raise StorageError(
                    f"The volume has {volume.virtual_size} bytes; it cannot be made smaller, to {size} bytes."
                    " Copy what it has to a smaller one.",
                    reason="ShrinkRefused",
                    retryable=False,
                )
            if volume.virtual_size == wanted:
                return volume
            self._refuse_copied(uid)
            if live is not None:
                await live(wanted)
            else:
                await self._refuse_used(uid, "grow")
                await self._images.resize(names.volume(uid), wanted)
            grown = await self._present(uid)
        if grown.virtual_size < wanted:
            raise StorageError("The volume did not grow, although nothing failed.", reason="VolumeNotGrown")
        return grown

    async def remove_volume(self, uid: str) -> None:
        """See `StorageDriver.remove_volume`."""
        name = names.volume(uid_of(uid))
        async with self._lock(f"volume {uid}"):
            self._refuse_copied(uid)
            with _in_use("volume"):
                await self._free(name)
                await self._images.drop(names.making(name))
                await self._images.drop(name)

    async def snapshot(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        return await self._snapshots.find(volume, snapshot)

    async def begin_snapshot(self, volume: str, snapshot: str, *, live: bool = False) -> StoredVolume:
        """See `StorageDriver.begin_snapshot`. The volume stays the image that it is. SnapshotUnsupported (not
        retryable) when a machine that is on has it."""
        uid_of(snapshot)
        async with self._lock(f"volume {uid_of(volume)}"):
            found = await self._present(volume)
            await self._snapshots.begin(volume, snapshot)
            return found

    async def confirm_snapshot(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """See `StorageDriver.confirm_snapshot`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            return await self._snapshots.confirm(volume, snapshot, taken_at, indications)

    async def forget_snapshot(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.forget_snapshot`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            if self._copying[uid_of(snapshot)]:
                raise StorageError("The snapshot is being copied. Wait until the copy is done.", reason="SnapshotInUse")
            await self._snapshots.forget(volume, snapshot)

    async def changes(self, volume: str, since: str | None = None, until: str | None = None) -> list[Extent]:
        """See `StorageDriver.changes`."""
        uid_of(volume)
        for snapshot in (since, until):
            found = await self._snapshots.find(volume, snapshot) if snapshot is not None else None
            if snapshot is not None and (found is None or found.taken_at is None):
                raise StorageError("The volume has no such snapshot.", reason="SnapshotNotReady")
        await self._present(volume)
        if until is None:
            await self._refuse_used(volume, "read what was written to")
        began, ended = (names.snapshot(one) if one is not None else None for one in (since, until))
        found_extents = await self._images.changes(names.volume(volume), began, ended)
        return [Extent(start, length) for start, length in found_extents]

    async def revert_volume(self, volume: str, snapshot: str, request: str) -> StoredVolume:
        """See `StorageDriver.revert_volume`. Cut short, it is done again from its beginning."""
        uid_of(request)
        async with self._lock(f"volume {uid_of(volume)}"):
            found = await self._present(volume)
            if found.reverted == request:
                return found
            kept = await self._snapshots.find(volume, snapshot)
            if kept is None or kept.taken_at is None:
                raise StorageError("The volume has no such snapshot.", reason="SnapshotNotReady")
            self._refuse_copied(volume)
            await self._refuse_used(volume, "revert")
            name = names.volume(volume)
            await self._images.roll_back(name, names.snapshot(snapshot))
            if kept.virtual_size != found.virtual_size:
                await self._images.resize(name, found.virtual_size)
            await self._images.keep_record(name, {"request": request}, key=_REVERTED)
            return await self._present(volume)

    async def adopt(self, volume: str, path: str) -> None:
        """See `StorageDriver.adopt`. A volume is one image, always the same."""
        if (await self._present(volume)).path != path:
            raise StorageError(
                "A machine writes to an image that is not the volume's.", reason="ChainMismatch", retryable=False
            )

    async def next_merge(self, volume: str) -> Merge | None:
        """See `StorageDriver.next_merge`. Never any."""
        uid_of(volume)
        return None

    async def merge(self, volume: str, merge: Merge, progress: ProgressListener | None = None) -> None:
        """See `StorageDriver.merge`."""

    async def merged(self, volume: str, merge: Merge) -> None:
        """See `StorageDriver.merged`."""

    async def _take_in(self, staged: StoredImage, pace: Pace) -> None:
        """Make an image of the pool of the one in the scratch directory."""
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
                    await self._cluster.copy("", making, _share(pace, size), fd=copied)
                finally:
                    os.close(staged_fd)
            finally:
                os.close(raw)
                scratch.remove(f"{staged.uid}.raw")
        taken = await self._images.usage(making)
        record = {
            "sha256": staged.sha256,
            "sourceFormat": staged.source_format,
            "virtualSize": size,
            "digest": staged.digest,
        }
        await self._images.keep_record(making, {**record, "size": taken[1] if taken is not None else size})
        await self._images.keep_base(making)
        await self._images.settle(name)

    async def _unstage(self, uid: str) -> None:
        await self._staging.remove_image(uid)
        with told_as("remove the image from the scratch directory"), Directory.trusted(self._scratch) as scratch:
            scratch.remove(f"{uid}.raw")

    async def _make_on_image(self, uid: str, image_uid: str, size: int | None, thick: bool, pace: Pace) -> None:
        image = await self._present_image(image_uid, "volume")
        if image.source_format in OPTICAL:
            raise StorageError(
                f"The volume's image is a disc ({image.source_format}), of which no volume is made."
                " Name an image of a disk.",
                reason="ImageNotADisk",
                retryable=False,
            )
        wanted, making = _at_least(size, image.virtual_size, "volume", "image"), names.making(names.volume(uid))
        if not thick:
            await self._images.clone(names.image(image_uid), making, wanted)
            return
        await self._images.create(making, wanted, thick=True)
        pace.stage("Copying", 0, image.virtual_size)
        base = f"{names.image(image_uid)}@{names.BASE}"
        await self._cluster.copy(base, making, _share(pace, image.virtual_size))

    async def _make_copy(self, uid: str, source_uid: str, size: int | None, thick: bool, pace: Pace) -> None:
        """From a snapshot: whoever writes to the source meanwhile changes nothing of the copy."""
        source, snapshot = names.volume(source_uid), names.copied(uid)
        making = names.making(names.volume(uid))
        self._copying[source_uid] += 1
        try:
            found = await self._images.size(source)
            if found is None:
                raise StorageError("The volume that is to be copied is not in the pool yet.", reason="VolumeNotReady")
            wanted = _at_least(size, found, "volume", "volume it is copied from")
            await self._refuse_used(source_uid, "copy")
            await self._images.create(making, wanted, thick=thick)
            await self._images.freeze(source, snapshot)
            try:
                pace.stage("Copying", 0, found)
                await self._cluster.copy(f"{source}@{snapshot}", making, _share(pace, found))
            finally:
                await self._images.thaw(source, snapshot)
        finally:
            self._copying[source_uid] -= 1
            self._copying += Counter()  # forget zeros

    async def _make_of_snapshot(self, uid: str, ref: SnapshotRef, size: int | None, thick: bool, pace: Pace) -> None:
        self._copying[ref.snapshot] += 1
        try:
            found = await self._snapshots.find(ref.volume, ref.snapshot)
            if found is None or found.taken_at is None:
                raise StorageError("The snapshot is not in the pool yet.", reason="SnapshotNotReady")
            making = names.making(names.volume(uid))
            wanted = _at_least(size, found.virtual_size, "volume", "snapshot")
            await self._images.create(making, wanted, thick=thick)
            pace.stage("Copying", 0, found.virtual_size)
            source = f"{names.volume(ref.volume)}@{names.snapshot(ref.snapshot)}"
            await self._cluster.copy(source, making, _share(pace, found.virtual_size))
        finally:
            self._copying[ref.snapshot] -= 1
            self._copying += Counter()  # forget zeros

    async def _free(self, volume: str) -> None:
        """Remove what copies that were cut short left of themselves in their source. Raises `StorageError` when it has
        snapshots of another kind, or is being copied."""
        try:
            snapshots = await self._images.snapshots(volume)
        except StorageError as error:
            if error.reason == "NotThere":
                return
            raise
        for snapshot in snapshots:
            target = names.target_of(snapshot)
            if target is None:
                raise StorageError("The volume has snapshots. Delete them first.", reason="VolumeInUse")
            if await self._images.in_use(names.making(names.volume(target))):
                raise _being_copied()
            await self._images.thaw(volume, snapshot)

    async def _present(self, uid: str) -> StoredVolume:
        found = await self.volume(uid)
        if found is None:
            raise StorageError("The volume is not in the pool.", reason="VolumeNotReady")
        return found

    async def _present_image(self, uid: str, what: str) -> StoredImage:
        found = await self.image(uid)
        if found is None:
            raise StorageError(f"The {what}'s image is not in the pool yet.", reason="ImageNotReady")
        return found

    async def _refuse_used(self, uid: str, doing: str) -> None:
        if await self._images.in_use(names.volume(uid)):
            raise StorageError(
                f"Could not {doing} the volume: a machine that is on uses it. Stop the machine or detach the volume.",
                reason="VolumeInUse",
            )

    def _refuse_copied(self, uid: str) -> None:
        if self._copying[uid]:
            raise _being_copied()

    def _lock(self, what: str) -> asyncio.Lock:
        return self._locks.setdefault(what, asyncio.Lock())


def _at_least(size: int | None, least: int, what: str, origin: str) -> int:
    if size is not None and size < least:
        raise StorageError(
            f"The {what}'s size of {size} bytes is less than the {least} bytes of its {origin}. Ask for a larger {what}.",
            reason="DiskTooSmall",
            retryable=False,
        )
    return whole_sectors(size if size is not None else least)


def _being_copied() -> StorageError:
    return StorageError("The volume is being copied. Wait until the copy is done.", reason="VolumeInUse")


@contextmanager
def _in_use(what: str) -> Iterator[None]:
    try:
        yield
    except Busy as error:
        raise StorageError(
            f"The {what} is open somewhere, or was a moment ago. It is tried again; look who has it (`rbd status`).",
            reason="VolumeInUse",
        ) from error


def _share(pace: Pace, size: int) -> Callable[[bytes], None]:
    """Turns what qemu-img says into positions."""

    def on_output(data: bytes) -> None:
        if (percent := percent_done(data)) is not None:
            pace.at(min(size, size * percent // 100), size)

    return on_output


def _ignore(_: ImportProgress) -> None:
    """Nobody listens."""


def make(pool: PoolRef, settings: StorageSettings, secrets: Secrets) -> StorageDriver:
    """The driver for a pool; what the entry point names."""
    return RbdStorage(pool, settings, secrets)
