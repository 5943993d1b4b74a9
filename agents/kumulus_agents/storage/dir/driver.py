"""The driver `dir`: one pool that is a directory on this host."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

from kumulus.api.host import ImageRef, PoolRef, VolumeOrigin
from kumulus.api.snapshots import Indication
from kumulus.api.storage import OPTICAL, ImageContent, ImageFormat
from kumulus_agents.storage import chain
from kumulus_agents.storage.adoption import Unclaimed
from kumulus_agents.storage.apart import apart
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.claims import Claims
from kumulus_agents.storage.dir import adopted, arrivals, disks, images, keepers, snapshots, unowned, uses, volumes
from kumulus_agents.storage.dir.pool import PoolDirectory, uid_of
from kumulus_agents.storage.dir.volumes import Source
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.moving import Arrival, Content, Traits, Use
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.part import Part
from kumulus_agents.storage.passphrase import Passphrase
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
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.sectors import whole_sectors
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.tracking import Extent
from kumulus_agents.storage.whole import Receive


class DirStorage:
    """`StorageDriver` for a directory. Belongs to one event loop."""

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

    def expect(self) -> None:
        """See `Expecting.expect`."""
        self._pool.expect()

    async def prepare(self) -> Usage:
        """See `StorageDriver.prepare`. PathNotAllowed, PoolUnsafe and PoolReadOnly are its own reasons."""
        with told_as("prepare the pool"):
            usage = await in_thread(self._pool.prepare)
            if self._pool.shared and not self._prepared and not self._making:
                await in_thread(uses.forget_mine, self._pool)
        self._prepared = True
        return usage

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

    async def remove_disks(self, owner: str) -> None:
        """See `StorageDriver.remove_disks`."""
        async with self._lock(f"disks {uid_of(owner)}"):
            with told_as("remove the machine's disks"):
                await in_thread(disks.remove, self._pool, owner)

    async def claim_volume(self, uid: str, host: str, epoch: int) -> None:
        """See `StorageDriver.claim_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("mark the volume"):
                await in_thread(keepers.claim, self._pool, uid, host, epoch)

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`."""
        with told_as("look for the volume"):
            return await in_thread(volumes.stored, self._pool, uid_of(uid))

    async def open_volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.open_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            if await self.volume(uid) is not None:
                with told_as("put the volume in order"):
                    await volumes.mend(self._pool, self._settings, uid)
            return await self.volume(uid)

    async def ensure_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        progress: ProgressListener | None = None,
    ) -> StoredVolume:
        """See `StorageDriver.ensure_volume`. A thick volume is a copy of its image, not an overlay."""
        return await self._ensure_volume(uid, size, origin, thick, progress, None)

    async def ensure_encrypted_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        passphrase: Passphrase,
        progress: ProgressListener | None = None,
        *,
        origin_passphrase: Passphrase | None = None,
    ) -> StoredVolume:
        """See `EncryptedVolumes.ensure_encrypted_volume`. The image it stands on is as it was."""
        return await self._ensure_volume(uid, size, origin, thick, progress, passphrase, origin_passphrase)

    async def _ensure_volume(
        self,
        uid: str,
        size: int | None,
        origin: VolumeOrigin | None,
        thick: bool,
        progress: ProgressListener | None,
        passphrase: Passphrase | None,
        origin_passphrase: Passphrase | None = None,
    ) -> StoredVolume:
        image = uid_of(origin.image.uid) if origin is not None and origin.image is not None else None
        source = _copied(origin)
        async with self._lock(f"volume {uid_of(uid)}"):
            if (found := await self.volume(uid)) is not None:
                await self._take_back(uid)
                return found
            pace = Pace(progress or _ignore)
            with told_as("make the volume"):
                if image is not None:
                    async with self._made_of(image):
                        await self._make_on_image(uid, image, size, thick, pace, passphrase)
                elif source is not None and origin is not None and origin.linked:
                    if passphrase != origin_passphrase:
                        raise _linked_otherwise()
                    await self._make_linked(uid, source, size, thick, pace, passphrase)
                elif source is not None:
                    await self._make_copy(uid, source, size, thick, pace, passphrase, origin_passphrase)
                else:
                    plan = volumes.plan_blank(size, thick)
                    await volumes.make(self._pool, self._settings, uid, plan, None, pace, passphrase)
            return await self._present(uid)

    async def grow_volume(self, uid: str, size: int, live: Resize | None = None) -> StoredVolume:
        """See `StorageDriver.grow_volume`. An emulator grows a qcow2 file all by itself."""
        return await self._grow_volume(uid, size, live, None)

    async def grow_encrypted_volume(
        self, uid: str, size: int, passphrase: Passphrase, live: Resize | None = None
    ) -> StoredVolume:
        """See `EncryptedVolumes.grow_encrypted_volume`."""
        return await self._grow_volume(uid, size, live, passphrase)

    async def _grow_volume(
        self, uid: str, size: int, live: Resize | None, passphrase: Passphrase | None
    ) -> StoredVolume:
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
                await self._take_back(uid)
                return volume
            self._refuse_copied(uid)
            with told_as("look for the volume"):
                await in_thread(snapshots.refuse_begun, self._pool, uid)
            if live is not None:
                await live(wanted)
            else:
                with told_as("grow the volume"):
                    await volumes.grow(self._pool, self._settings, uid, wanted, passphrase)
            grown = await self._present(uid)
        if grown.virtual_size < wanted:
            raise StorageError("The volume did not grow, although nothing failed.", reason="VolumeNotGrown")
        return grown

    async def remove_volume(self, uid: str) -> None:
        """See `StorageDriver.remove_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            self._refuse_copied(uid)
            with told_as("remove the volume"):
                await in_thread(volumes.remove, self._pool, uid)
                if self._pool.shared:
                    await in_thread(keepers.remove, self._pool, uid)

    async def unowned(self, owned: Collection[str]) -> Unclaimed:
        """See `Adopting.unowned`."""
        with told_as("look for files that nobody owns"):
            return await in_thread(unowned.summary, self._pool, owned)

    async def adopt_volume(
        self,
        uid: str,
        id: str,
        owned: Collection[str],
        namespace: str | None,
        *,
        foreign: bool,
        passphrase: Passphrase | None = None,
    ) -> StoredVolume:
        """See `Adopting.adopt_volume`."""
        async with self._lock("adoption"), self._lock(f"volume {uid_of(uid)}"):
            if (found := await self.volume(uid)) is not None:
                return found
            with told_as("adopt the data"):
                adopt = partial(adopted.adopt, foreign=foreign, passphrase=passphrase)
                await adopt(self._pool, self._settings, uid, uid_of(id), owned, namespace)
            return await self._present(uid)

    async def retain_volume(self, uid: str, namespace: str | None, name: str) -> None:
        """See `Adopting.retain_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("note whose the volume was"):
                await in_thread(adopted.retain, self._pool, uid, namespace, name)

    async def traits(self, uid: str) -> Traits:
        """See `MovableVolumes.traits`."""
        with told_as("look for the volume"):
            return await in_thread(arrivals.traits, self._pool, uid_of(uid))

    async def send_volume(self, uid: str, use: Use) -> None:
        """See `MovableVolumes.send_volume`."""
        async with self._copied(uid_of(uid)):
            await self._present(uid)
            with told_as("copy the volume"), volumes.open_chain(self._pool, uid) as copied, chain.lending(copied):
                await use(replace(copied, lent=True))

    async def arrival(self, uid: str) -> Arrival | None:
        """See `MovableVolumes.arrival`."""
        with told_as("look for the volume"):
            return await in_thread(arrivals.find, self._pool, uid_of(uid))

    async def begin_arrival(
        self, uid: str, traits: Traits, passphrase: Passphrase | None = None, *, live: bool = False
    ) -> Arrival:
        """See `MovableVolumes.begin_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("make room for the volume"):
                work = partial(arrivals.begin, self._pool, self._settings, uid, traits, passphrase, live=live)
                return await in_thread(work)

    async def fill_arrival(
        self,
        uid: str,
        traits: Traits,
        content: Content,
        progress: ProgressListener,
        passphrase: Passphrase | None = None,
    ) -> None:
        """See `MovableVolumes.fill_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("copy the volume"):
                await arrivals.fill(self._pool, self._settings, uid, traits, content, Pace(progress), passphrase)

    async def reserve_arrival(self, uid: str, traits: Traits) -> None:
        """See `MovableVolumes.reserve_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            if traits.thick:
                with told_as("reserve the volume's space"):
                    await in_thread(arrivals.reserve, self._pool, uid, traits)

    async def settle_arrival(self, uid: str, traits: Traits, move: str) -> None:
        """See `MovableVolumes.settle_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("note that the volume has come"):
                await in_thread(arrivals.settle, self._pool, uid, traits, move)

    async def abandon_arrival(self, uid: str) -> None:
        """See `MovableVolumes.abandon_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with told_as("remove what has come of the volume"):
                await in_thread(arrivals.abandon, self._pool, uid)
                if self._pool.shared and await self.volume(uid) is None:
                    await in_thread(keepers.remove, self._pool, uid)

    async def snapshot(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        with told_as("look for the snapshot"):
            return await in_thread(snapshots.stored, self._pool, uid_of(volume), uid_of(snapshot))

    async def begin_snapshot(self, volume: str, snapshot: str, *, live: bool = False) -> StoredVolume:
        """See `StorageDriver.begin_snapshot`."""
        return await self._begin_snapshot(volume, snapshot, None, live=live)

    async def begin_encrypted_snapshot(
        self, volume: str, snapshot: str, passphrase: Passphrase, *, live: bool = False
    ) -> StoredVolume:
        """See `EncryptedVolumes.begin_encrypted_snapshot`."""
        return await self._begin_snapshot(volume, snapshot, passphrase, live=live)

    async def _begin_snapshot(
        self, volume: str, snapshot: str, passphrase: Passphrase | None, *, live: bool
    ) -> StoredVolume:
        async with self._lock(f"volume {uid_of(volume)}"):
            with told_as("take the snapshot"):
                await self._unlock(await self._present(volume), volume, passphrase)
                # An emulator that is on could not merge into what another left so.
                await volumes.mend(self._pool, self._settings, volume)
                begin = partial(snapshots.begin, live=live, passphrase=passphrase)
                await in_thread(begin, self._pool, self._settings, volume, uid_of(snapshot))
            return await self._present(volume)

    async def confirm_snapshot(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """See `StorageDriver.confirm_snapshot`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            with told_as("take the snapshot"):
                await in_thread(snapshots.confirm, self._pool, volume, uid_of(snapshot), taken_at, indications)
            found = await self.snapshot(volume, snapshot)
        if found is None:
            raise StorageError("The snapshot's file is gone.", reason="SnapshotLost", retryable=False)
        return found

    async def forget_snapshot(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.forget_snapshot`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            if self._copying[volume]:
                raise StorageError("The snapshot is being copied. Wait until that is done.", reason="SnapshotInUse")
            with told_as("remove the snapshot"):
                await in_thread(snapshots.forget, self._pool, volume, uid_of(snapshot))

    async def changes(self, volume: str, since: str | None = None, until: str | None = None) -> list[Extent]:
        """See `StorageDriver.changes`."""
        for snapshot in (since, until):
            if snapshot is not None:
                uid_of(snapshot)
        async with self._lock(f"volume {uid_of(volume)}"):
            if volume in self._merging:
                raise StorageError("Layers of the volume are being merged. Wait.", reason="VolumeInUse")
            await self._present(volume)
            with told_as("read what changed"):
                return await in_thread(snapshots.changes, self._pool, volume, since, until)

    async def revert_volume(self, volume: str, snapshot: str, request: str) -> StoredVolume:
        """See `StorageDriver.revert_volume`."""
        return await self._revert_volume(volume, snapshot, request, None)

    async def revert_encrypted_volume(
        self, volume: str, snapshot: str, request: str, passphrase: Passphrase
    ) -> StoredVolume:
        """See `EncryptedVolumes.revert_encrypted_volume`."""
        return await self._revert_volume(volume, snapshot, request, passphrase)

    async def _revert_volume(
        self, volume: str, snapshot: str, request: str, passphrase: Passphrase | None
    ) -> StoredVolume:
        wanted = (volume, uid_of(snapshot), uid_of(request))
        async with self._lock(f"volume {uid_of(volume)}"):
            found = await self._present(volume)
            self._refuse_copied(volume)
            with told_as("revert the volume"):
                await in_thread(snapshots.refuse_begun, self._pool, volume)
                await self._unlock(found, volume, passphrase)
                await in_thread(snapshots.revert, self._pool, self._settings, *wanted, passphrase)
            return await self._present(volume)

    async def adopt(self, volume: str, path: str) -> None:
        """See `StorageDriver.adopt`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            with told_as("look for the volume"):
                await in_thread(snapshots.adopt, self._pool, volume, path)

    async def next_merge(self, volume: str) -> Merge | None:
        """See `StorageDriver.next_merge`. Copies begin when the merge is done, and merges when copies are."""
        async with self._lock(f"volume {uid_of(volume)}"):
            self._merging.discard(volume)
            self._refuse_copied(volume)
            with told_as("merge the volume's layers"):
                found = await in_thread(snapshots.next_merge, self._pool, volume)
            if found is not None:
                self._merging.add(volume)
            return found

    async def merge(self, volume: str, merge: Merge, progress: ProgressListener | None = None) -> None:
        """See `StorageDriver.merge`."""
        await self._merge(volume, merge, None, progress)

    async def merge_encrypted(
        self, volume: str, merge: Merge, passphrase: Passphrase, progress: ProgressListener | None = None
    ) -> None:
        """See `EncryptedVolumes.merge_encrypted`."""
        await self._merge(volume, merge, passphrase, progress)

    async def _merge(
        self, volume: str, merge: Merge, passphrase: Passphrase | None, progress: ProgressListener | None
    ) -> None:
        pace = Pace(progress or _ignore)
        async with self._lock(f"volume {uid_of(volume)}"):
            self._refuse_copied(volume)
            self._merging.add(volume)
            try:
                with told_as("merge the volume's layers"):
                    await snapshots.merge(self._pool, self._settings, volume, merge, pace, passphrase)
            finally:
                self._merging.discard(volume)

    async def merged(self, volume: str, merge: Merge) -> None:
        """See `StorageDriver.merged`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            with told_as("merge the volume's layers"):
                await in_thread(snapshots.merged_by_emulator, self._pool, volume, merge)
            self._merging.discard(volume)

    async def _present(self, uid: str) -> StoredVolume:
        found = await self.volume(uid)
        if found is None:
            raise StorageError("The volume is not in the pool.", reason="VolumeNotReady")
        return found

    async def _take_back(self, uid: str) -> None:
        """An agent that died may have lent the volume's file to the cage. Under the volume's lock."""
        if not self._copying[uid]:
            with told_as("look for the volume"):
                await in_thread(volumes.take_back, self._pool, uid)

    async def _make_on_image(
        self, uid: str, image: str, size: int | None, thick: bool, pace: Pace, passphrase: Passphrase | None
    ) -> None:
        plan = await in_thread(volumes.plan_on_image, self._pool, image, size, thick)
        with ExitStack() as stack:
            copied = stack.enter_context(volumes.open_image(self._pool, image)) if plan.copied else None
            await volumes.make(self._pool, self._settings, uid, plan, copied, pace, passphrase)

    async def _make_copy(
        self,
        uid: str,
        source: Source,
        size: int | None,
        thick: bool,
        pace: Pace,
        passphrase: Passphrase | None,
        origin_passphrase: Passphrase | None,
    ) -> None:
        """What is encrypted is copied to what is encrypted, with whatever passphrase, and never to what is not."""
        async with self._copied(source.volume) as found:
            if found is not None and found.encrypted and passphrase is None:
                raise _in_clear("copy of it would not be. Have a class that encrypts make the copy.")
            if found is not None and found.encrypted != (origin_passphrase is not None):
                raise volumes.mismatch()
            plan, layer = await in_thread(volumes.plan_copy, self._pool, source, size, thick)
            if origin_passphrase is not None:  # before anything is made
                await volumes.unlock(self._pool, self._settings, source.volume, origin_passphrase, layer)
            with volumes.open_chain(self._pool, source.volume, layer, passphrase=origin_passphrase) as copied:
                await volumes.make(self._pool, self._settings, uid, plan, copied, pace, passphrase)

    async def _take_in(self, image: ImageRef, source: images.Fetched, pace: Pace) -> None:
        with self._pool.images() as directories:
            await images.take_in(
                self._pool, directories, image, source, pace, self._fetcher, self._settings, self._claims
            )

    async def _take_volume(self, image: ImageRef, source: Source, pace: Pace) -> None:
        """Make an image of the volume, or of a snapshot of it."""
        async with self._copied(source.volume) as found:
            if found is not None and found.encrypted:
                raise _in_clear("image of it would not be. Make the image of a volume that is not encrypted.")
            plan, layer = await in_thread(volumes.plan_copy, self._pool, source, None, False)
            with (
                volumes.open_chain(self._pool, source.volume, layer) as copied,
                self._pool.images() as directories,
            ):
                await images.take_volume(self._pool, directories, image, copied, plan.copied, pace, self._settings)

    async def _make_linked(
        self, uid: str, source: Source, size: int | None, thick: bool, pace: Pace, passphrase: Passphrase | None
    ) -> None:
        """The snapshot stays meanwhile: who removes it, or merges its layer, takes the lock of its volume."""
        async with self._lock(f"volume {source.volume}"):
            link = partial(volumes.plan_link, encrypted=passphrase is not None)
            plan = await in_thread(link, self._pool, source, size, thick)
            if passphrase is not None and plan.linked_to is not None:
                await volumes.unlock(self._pool, self._settings, source.volume, passphrase, plan.linked_to[1])
            await volumes.make(self._pool, self._settings, uid, plan, None, pace, passphrase)

    async def _unlock(self, found: StoredVolume, volume: str, passphrase: Passphrase | None) -> None:
        """Before a layer is put on it: all that it stands on must open with the same passphrase."""
        if found.encrypted != (passphrase is not None):
            raise volumes.mismatch()
        if passphrase is not None:
            await volumes.unlock(self._pool, self._settings, volume, passphrase)

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

    def _lock(self, what: str) -> asyncio.Lock:
        return self._locks.setdefault(what, asyncio.Lock())


def _copied(origin: VolumeOrigin | None) -> Source | None:
    """What a volume is copied from. Raises `StorageError` for what is no uid."""
    if origin is not None and origin.snapshot is not None:
        return Source(uid_of(origin.snapshot.volume), uid_of(origin.snapshot.snapshot))
    if origin is not None and origin.volume is not None:
        return Source(uid_of(origin.volume))
    return None


def _linked_otherwise() -> StorageError:
    return StorageError(
        "A volume that is linked to a snapshot is encrypted with the same passphrase as that, or not at all. Copy the"
        " snapshot in full.",
        reason="LinkedPassphrase",
        retryable=False,
    )


def _in_clear(why: str) -> StorageError:
    return StorageError(f"The volume is encrypted, and a {why}", reason="EncryptedCopy", retryable=False)


def _ignore(_: ImportProgress) -> None:
    """Nobody listens."""


def make(pool: PoolRef, settings: StorageSettings, _: Secrets) -> StorageDriver:
    """The driver for a pool; what the entry point names. A file system that hosts share may stall."""
    if not pool.shared:
        return DirStorage(pool, settings)
    return apart(DirStorage, lambda: DirStorage(pool, settings), pool.parameters.path or "/", pool.name)
