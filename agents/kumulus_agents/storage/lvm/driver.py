"""The driver `lvm`: one thin pool of a volume group, on this host alone."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from kumulus.api.image import OPTICAL
from kumulus.api.image_order import ImageRef
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshots import Indication
from kumulus.api.volume_order import SnapshotRef, VolumeOrigin
from kumulus_agents.storage.dir.pool import disk_of, uid_of
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.keepers import refuse_older
from kumulus_agents.storage.lvm import commands, faults, images, names, snapshots
from kumulus_agents.storage.lvm.faults import Busy
from kumulus_agents.storage.lvm.group import VolumeGroup
from kumulus_agents.storage.lvm.images import ThinImages
from kumulus_agents.storage.lvm.progress import share
from kumulus_agents.storage.lvm.report import Listing, Logical
from kumulus_agents.storage.lvm.snapshots import ThinSnapshots
from kumulus_agents.storage.lvm.tags import Tag, tag
from kumulus_agents.storage.lvm.volumes import ThinVolumes
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import (
    ImageSource,
    ProgressListener,
    Resize,
    StorageDriver,
    StorageError,
    StoredDisk,
    StoredImage,
    StoredSnapshot,
    StoredVolume,
    Usage,
    same,
)
from kumulus_agents.storage.refusals import a_disc, linked_thick, no_snapshot, no_volume
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.sizes import at_least, grown, of_blank
from kumulus_agents.storage.source import BlockSource
from kumulus_agents.storage.tracking import Extent
from kumulus_agents.storage.unlayered import Unlayered

RAW = "raw"


class LvmStorage(Unlayered):
    """`StorageDriver` for a thin pool. Belongs to one event loop."""

    def __init__(self, pool: PoolRef, settings: StorageSettings, *, fetcher: Fetcher | None = None) -> None:
        if pool.parameters.lvm is None:
            raise StorageError("The pool's order has no parameters for lvm.", reason="BadParameters", retryable=False)
        self._group = VolumeGroup(pool, pool.parameters.lvm, settings)
        self._volumes = ThinVolumes(self._group)
        self._images = ThinImages(pool, settings, self._group, self._volumes, fetcher=fetcher)
        self._snapshots = ThinSnapshots(self._group, self._volumes)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def prepare(self) -> Usage:
        """See `StorageDriver.prepare`. ToolsMissing, DriverUnsupported, VolumeGroupMissing, ThinPoolMissing,
        ThinPoolNotZeroing, ThinPoolFailed and PoolStalled are its own reasons."""
        found = self._group.usable(await self._group.listing())
        if not found.active:
            await self._group.do(commands.activate(self._group.name, self._group.thin_pool))
            found = self._group.usable(await self._group.listing())
        return Usage(capacity=found.size, used=found.used, access=faults.warning(found, self._group.pool))

    async def image(self, uid: str) -> StoredImage | None:
        """See `StorageDriver.image`."""
        return await self._images.find(uid_of(uid))

    async def import_image(self, image: ImageRef, source: ImageSource, progress: ProgressListener) -> StoredImage:
        """See `StorageDriver.import_image`. Requests at the same time import once. SourceUnsupported (not retryable) when
        it is to be made of a volume."""
        async with self._lock(f"image {uid_of(image.uid)}"):
            found = await self._images.find(image.uid)
            if found is None:
                await self._images.bring(image, source, progress)
                found = await self._images.find(image.uid)
        if found is None:
            raise StorageError("The image was removed while it was imported.", reason="ImageNotReady")
        return same(found, image, source)

    async def remove_image(self, uid: str) -> None:
        """See `StorageDriver.remove_image`."""
        async with self._lock(f"image {uid_of(uid)}"):
            await self._images.remove(uid)

    async def ensure_disk(self, owner: str, name: str, image_uid: str, size: int | None) -> StoredDisk:
        """See `StorageDriver.ensure_disk`."""
        disk = names.disk(uid_of(owner), disk_of(owner, name))
        uid_of(image_uid)
        async with self._lock(f"disks {owner}"):
            listing = await self._group.listing()
            if (found := listing.whole(disk)) is None:
                image = images.present(listing, image_uid, "disk")
                wanted = at_least(size, image.disk_size, "disk", "image")
                await self._volumes.stand_on(image, disk, listing.extents(wanted), (tag(Tag.SIZE, wanted),))
                return StoredDisk(self._source(disk), RAW, wanted)
            await self._volumes.wake(found)
            return StoredDisk(self._source(disk), RAW, found.disk_size)

    async def remove_disks(self, owner: str) -> None:
        """See `StorageDriver.remove_disks`."""
        prefix = names.disks(uid_of(owner))
        async with self._lock(f"disks {owner}"):
            for one in await self._group.listing():
                if one.name.startswith(prefix):
                    await self._drop(one.name, "disk")

    async def claim_volume(self, uid: str, host: str, epoch: int) -> None:
        """See `StorageDriver.claim_volume`. What is not made yet cannot be marked; no other host sees the pool anyway."""
        async with self._lock(f"volume {uid_of(uid)}"):
            found = (await self._group.listing()).volume(uid)
            if found is None:
                return
            marked, _, by = (found.record.one(Tag.KEEPER) or "").partition("/")
            keeper = (int(marked), by) if marked.isdecimal() else None
            refuse_older(keeper, host, epoch)
            if keeper != (epoch, host):
                await self._volumes.remember(found, Tag.KEEPER, f"{epoch}/{host}")

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`."""
        found = (await self._group.listing()).volume(uid_of(uid))
        return self._stored(found) if found is not None else None

    async def open_volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.open_volume`. It has a device afterwards, also when the host was started anew."""
        async with self._lock(f"volume {uid_of(uid)}"):
            found = (await self._group.listing()).volume(uid)
            if found is None:
                return None
            await self._volumes.wake(found)
            return self._stored(found)

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
            listing = await self._group.listing()
            if (found := listing.volume(uid)) is not None:
                return self._stored(found)
            pace = Pace(progress)
            if image is not None:
                await self._make_on_image(uid, image, size, thick, pace, listing)
            elif snapshot is not None:
                linked = origin is not None and origin.linked
                await self._make_of_snapshot(uid, snapshot, size, thick, linked, pace, listing)
            elif source is not None:
                await self._make_copy(uid, source, size, thick, pace, listing)
            else:
                await self._make_blank(uid, of_blank(size), thick, listing)
            return await self._present(uid)

    async def grow_volume(self, uid: str, size: int, live: Resize | None = None) -> StoredVolume:
        """See `StorageDriver.grow_volume`. The device grows first; an emulator that has it is told then. Until it knows,
        the volume has its old size."""
        async with self._lock(f"volume {uid_of(uid)}"):
            found, listing = await self._known(uid)
            if (wanted := grown(found.disk_size, size)) is None:
                return self._stored(found)
            _refuse_begun(listing, uid)
            if live is None:
                _refuse_open(found, "grow")
            device = listing.extents(wanted)
            await self._volumes.grow(found, device)
            if live is not None:
                await live(max(device, found.size))
            await self._volumes.remember(found, Tag.SIZE, wanted)
            return await self._present(uid)

    async def remove_volume(self, uid: str) -> None:
        """See `StorageDriver.remove_volume`. What others make of it is theirs already."""
        async with self._lock(f"volume {uid_of(uid)}"):
            listing = await self._group.listing()
            if listing.snapshots(uid):
                raise StorageError("The volume has snapshots. Delete them first.", reason="VolumeInUse")
            now = listing.volume(uid)
            for one in listing:
                if names.is_copied(one.name, uid) or (names.is_of_volume(one.name, uid) and one != now):
                    await self._drop(one.name, "volume")
            if now is not None:  # last, or it would be what it was before it was reverted
                await self._drop(now.name, "volume")

    async def snapshot(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        return await self._snapshots.find(uid_of(volume), uid_of(snapshot))

    async def begin_snapshot(self, volume: str, snapshot: str, *, live: bool = False) -> StoredVolume:
        """See `StorageDriver.begin_snapshot`. The volume stays what it is. SnapshotUnsupported (not retryable) when a
        machine that is on has it."""
        uid_of(snapshot)
        async with self._lock(f"volume {uid_of(volume)}"):
            found, _ = await self._known(volume)
            await self._snapshots.begin(found, volume, snapshot)
            return self._stored(found)

    async def confirm_snapshot(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """See `StorageDriver.confirm_snapshot`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            return await self._snapshots.confirm(volume, uid_of(snapshot), taken_at, indications)

    async def forget_snapshot(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.forget_snapshot`. Its space is free at once."""
        async with self._lock(f"volume {uid_of(volume)}"):
            await self._snapshots.forget(volume, uid_of(snapshot))

    async def changes(self, volume: str, since: str | None = None, until: str | None = None) -> list[Extent]:
        """See `StorageDriver.changes`. Nothing remembers them yet."""
        raise StorageError(
            "What changed in volumes of this kind of pool is not known.", reason="ChangesUnsupported", retryable=False
        )

    async def revert_volume(self, volume: str, snapshot: str, request: str) -> StoredVolume:
        """See `StorageDriver.revert_volume`. The volume is another logical volume afterwards."""
        uid_of(request)
        async with self._lock(f"volume {uid_of(volume)}"):
            found, listing = await self._known(volume)
            if found.record.one(Tag.REVERTED) != request:
                kept = listing.whole(names.snapshot(volume, uid_of(snapshot)))
                _refuse_begun(listing, volume)
                if kept is None:
                    raise no_snapshot()
                _refuse_open(found, "revert")
                await self._volumes.revert(volume, found, kept, request)
            await self._volumes.clear(volume)
            return await self._present(volume)

    async def _make_blank(self, uid: str, size: int, thick: bool, listing: Listing) -> None:
        name, device = names.volume(uid), listing.extents(size)
        if not thick:
            await self._volumes.blank(name, device, size)
            return
        self._room(listing, device)
        await self._volumes.begin(name, device)
        await self._volumes.fill_with_zeros(name, size)

    async def _make_on_image(
        self, uid: str, image_uid: str, size: int | None, thick: bool, pace: Pace, listing: Listing
    ) -> None:
        image = images.present(listing, image_uid, "volume")
        source_format = image.record.one(Tag.SOURCE_FORMAT)
        if source_format in OPTICAL:
            raise a_disc(source_format)
        wanted = at_least(size, image.disk_size, "volume", "image")
        if thick:
            await self._copy(uid, image_uid, image, wanted, thick, pace, listing)
        else:
            await self._link(uid, image, wanted, listing)

    async def _make_of_snapshot(
        self, uid: str, ref: SnapshotRef, size: int | None, thick: bool, linked: bool, pace: Pace, listing: Listing
    ) -> None:
        if thick and linked:
            raise linked_thick()
        kept = listing.whole(names.snapshot(ref.volume, ref.snapshot))
        if kept is None:
            raise StorageError("The snapshot is not in the pool yet.", reason="SnapshotNotReady")
        wanted = at_least(size, kept.disk_size, "volume", "snapshot")
        if linked:
            await self._link(uid, kept, wanted, listing)
        else:
            await self._copy(uid, ref.snapshot, kept, wanted, thick, pace, listing)

    async def _make_copy(
        self, uid: str, source_uid: str, size: int | None, thick: bool, pace: Pace, listing: Listing
    ) -> None:
        source = listing.volume(source_uid)
        if source is None:
            raise StorageError("The volume that is to be copied is not in the pool yet.", reason="VolumeNotReady")
        wanted = at_least(size, source.disk_size, "volume", "volume it is copied from")
        _refuse_open(source, "copy")
        await self._copy(uid, source_uid, source, wanted, thick, pace, listing)

    async def _link(self, uid: str, origin: Logical, wanted: int, listing: Listing) -> None:
        device = max(listing.extents(wanted), origin.size)
        await self._volumes.stand_on(origin, names.volume(uid), device, (tag(Tag.SIZE, wanted),))

    async def _copy(
        self, uid: str, origin_uid: str, origin: Logical, wanted: int, thick: bool, pace: Pace, listing: Listing
    ) -> None:
        device = max(listing.extents(wanted), origin.size)
        self._room(listing, device if thick else origin.used)
        await self._volumes.begin(names.volume(uid), device)
        pace.stage("Copying", 0, origin.disk_size)
        via, listener = names.copied(origin_uid, uid), share(pace, origin.disk_size)
        await self._volumes.fill(names.volume(uid), origin, via, wanted, listener, thick=thick)

    def _room(self, listing: Listing, needed: int) -> None:
        faults.room(self._group.usable(listing), needed, self._group.pool)

    async def _drop(self, name: str, what: str) -> None:
        try:
            await self._volumes.drop(name)
        except Busy as error:
            raise StorageError(
                f"The {what} is open on this host. It is tried again; look who has it (`fuser -v {self._group.device(name)}`).",
                reason="VolumeInUse",
            ) from error

    def _source(self, name: str) -> BlockSource:
        return BlockSource(self._group.device(name))

    def _stored(self, found: Logical) -> StoredVolume:
        return StoredVolume(
            self._source(found.name),
            RAW,
            virtual_size=found.disk_size,
            used=found.used,
            reverted=found.record.one(Tag.REVERTED),
        )

    async def _known(self, uid: str) -> tuple[Logical, Listing]:
        listing = await self._group.listing()
        found = listing.volume(uid)
        if found is None:
            raise no_volume()
        return found, listing

    def _lock(self, what: str) -> asyncio.Lock:
        return self._locks.setdefault(what, asyncio.Lock())


def _refuse_open(found: Logical, doing: str) -> None:
    if found.open:
        raise StorageError(
            f"Could not {doing} the volume: a machine that is on uses it. Stop the machine or detach the volume.",
            reason="VolumeInUse",
        )


def _refuse_begun(listing: Listing, volume: str) -> None:
    if snapshots.begun(listing, volume):
        raise StorageError("A snapshot of the volume is being taken. Wait until it is.", reason="VolumeBusy")


def make(pool: PoolRef, settings: StorageSettings, _: Secrets) -> StorageDriver:
    """The driver for a pool; what the entry point names."""
    return LvmStorage(pool, settings)
