"""The driver `rbd`: one pool of a Ceph cluster, which all its hosts share."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from kumulus.api.image import OPTICAL
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshots import Indication
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.moving import Arrival, Content, Traits, Use, unsupported
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import (
    ProgressListener,
    Resize,
    StorageDriver,
    StorageError,
    StoredSnapshot,
    StoredVolume,
    Usage,
    VolumeContent,
)
from kumulus_agents.storage.pulse import BEAT_MAX
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.arrivals import ARRIVING, REVERTED, THICK
from kumulus_agents.storage.rbd.contents import share
from kumulus_agents.storage.rbd.faults import NotThere
from kumulus_agents.storage.rbd.image_verbs import ImageVerbs, in_use
from kumulus_agents.storage.rbd.images import OWN
from kumulus_agents.storage.rbd.intake import RAW
from kumulus_agents.storage.refusals import a_disc, linked_thick, no_snapshot, no_volume
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.sizes import at_least, check_grown, grown, of_blank
from kumulus_agents.storage.tracking import Extent, union
from kumulus_agents.storage.unlayered import Unlayered

_REVERTED, _REVERTING = REVERTED, f"{OWN}reverting"
"""Metadata keys of a volume: the last request to revert it that was carried out, and the size that
it had when one was begun."""
SWEEP = 10.0
"""Seconds that looking at the pool may take for clearing away what was removed."""


class RbdStorage(ImageVerbs, Unlayered):
    """`StorageDriver` for a Ceph pool. Belongs to one event loop."""

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

    async def beat(self, host: str, beat: str) -> None:
        """See `Pulsed.beat`."""
        await self._cluster.leave_note(names.heartbeat(host), beat[:BEAT_MAX])

    async def last_beat(self, host: str) -> str | None:
        """See `Pulsed.last_beat`."""
        beat = await self._cluster.note(names.heartbeat(host))
        return beat[:BEAT_MAX] if beat else None

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`."""
        name = names.volume(uid_of(uid))
        found, records = await asyncio.gather(self._images.usage(name), self._images.records(name))
        if found is None or ARRIVING in records:
            return None
        record = records.get(_REVERTED)
        reverted = str(record["request"]) if record is not None and "request" in record else None
        return StoredVolume(
            await self._cluster.source(name), RAW, virtual_size=found[0], used=found[1], reverted=reverted
        )

    async def open_volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.open_volume`. The cluster keeps it in order."""
        return await self.volume(uid)

    async def claim_volume(self, uid: str, host: str, epoch: int) -> None:
        """See `StorageDriver.claim_volume`. What is not made yet is marked when it is."""
        async with self._lock(f"volume {uid_of(uid)}"):
            await self._keepers.claim(uid, host, epoch)

    async def release_volume(self, uid: str, host: str, epoch: int) -> None:
        """See `Locking.release_volume`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            await self._keepers.release(uid, host, epoch)

    async def shut_out(self, uid: str, host: str, epoch: int, *, used: bool) -> None:
        """See `Locking.shut_out`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            with in_use("volume"):
                await self._keepers.shut_out(uid, host, epoch, used=used)

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
        source = _source(origin) if origin is not None else None
        async with self._lock(f"volume {uid_of(uid)}"):
            if (found := await self.volume(uid)) is not None:
                return found
            pace = Pace(progress)
            if image is not None:
                await self._make_on_image(uid, image, size, thick, pace)
            elif source is not None and origin is not None and origin.linked:
                await self._make_linked(uid, source, size, thick)
            elif source is not None:
                await self._make_copy(uid, source, size, thick, pace)
            else:
                await self._images.create(names.making(names.volume(uid)), of_blank(size), thick=thick)
            if thick:
                await self._images.keep_record(names.making(names.volume(uid)), {}, key=THICK)
            await self._keepers.made(uid, names.making(names.volume(uid)))
            await self._images.settle(names.volume(uid))
            return await self._present(uid)

    async def grow_volume(self, uid: str, size: int, live: Resize | None = None) -> StoredVolume:
        """See `StorageDriver.grow_volume`. An emulator has the cluster grow the image."""
        async with self._lock(f"volume {uid_of(uid)}"):
            volume = await self._present(uid)
            if (wanted := grown(volume.virtual_size, size)) is None:
                return volume
            self._refuse_copied(uid)
            if live is not None:
                await live(wanted)
            else:
                await self._contents.refuse_written(uid, "grow")
                await self._images.resize(names.volume(uid), wanted)
            volume = await self._present(uid)
        check_grown(volume.virtual_size, wanted)
        return volume

    async def remove_volume(self, uid: str) -> None:
        """See `StorageDriver.remove_volume`."""
        name = names.volume(uid_of(uid))
        async with self._lock(f"volume {uid}"):
            self._refuse_copied(uid)
            with in_use("volume"):
                with suppress(NotThere):
                    await self._contents.free(uid)
                await self._images.drop(names.making(name))
                await self._images.drop(name)

    async def traits(self, uid: str) -> Traits:
        """See `MovableVolumes.traits`. Thick ones that were made before this was recorded are thin."""
        return await self._arrivals.traits(uid_of(uid))

    async def send_volume(self, uid: str, use: Use) -> None:
        """See `MovableVolumes.send_volume`."""
        with self._contents.reading(VolumeContent(uid_of(uid))):
            await self._present(uid)
            await self._contents.refuse_written(uid, "copy")
            await use(self._arrivals.content(uid))

    async def arrival(self, uid: str) -> Arrival | None:
        """See `MovableVolumes.arrival`."""
        return await self._arrivals.find(uid_of(uid))

    async def begin_arrival(
        self,
        uid: str,
        traits: Traits,
        passphrase: Passphrase | None = None,
        *,
        live: bool = False,
        move: str | None = None,
    ) -> Arrival:
        """See `MovableVolumes.begin_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            return await self._arrivals.begin(uid, traits)

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
            await self._intake.staging.prepare()
            await self._arrivals.fill(uid, traits, content, Pace(progress))

    async def reserve_arrival(self, uid: str, traits: Traits) -> None:
        """See `MovableVolumes.reserve_arrival`."""
        if traits.thick:
            raise unsupported("Pools in Ceph cannot reserve space for a thick volume that a machine uses")

    async def settle_arrival(self, uid: str, traits: Traits, move: str) -> None:
        """See `MovableVolumes.settle_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            await self._arrivals.settle(uid, traits, move)

    async def abandon_arrival(self, uid: str) -> None:
        """See `MovableVolumes.abandon_arrival`."""
        async with self._lock(f"volume {uid_of(uid)}"):
            await self._arrivals.abandon(uid)

    async def snapshot(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        return await self._snapshots.find(volume, snapshot)

    async def begin_snapshot(self, volume: str, snapshot: str, *, live: bool = False) -> StoredVolume:
        """See `StorageDriver.begin_snapshot`. The volume stays the image that it is."""
        uid_of(snapshot)
        async with self._lock(f"volume {uid_of(volume)}"):
            found = await self._present(volume)
            await self._snapshots.begin(volume, snapshot, live=live)
            return found

    @property
    def instant_seconds(self) -> float:
        """See `Instants.instant_seconds`."""
        return 2 * self._cluster.answer_seconds

    async def keep_instant(self, volume: str, snapshot: str) -> None:
        """See `Instants.keep_instant`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            try:
                await self._snapshots.keep(volume, snapshot)
            except NotThere:
                raise no_volume() from None

    async def confirm_snapshot(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """See `StorageDriver.confirm_snapshot`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            return await self._snapshots.confirm(volume, snapshot, taken_at, indications)

    async def forget_snapshot(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.forget_snapshot`."""
        async with self._lock(f"volume {uid_of(volume)}"):
            if self._contents.is_read(uid_of(snapshot)):
                raise StorageError("The snapshot is being copied. Wait until the copy is done.", reason="SnapshotInUse")
            await self._snapshots.forget(volume, snapshot)

    async def changes(self, volume: str, since: str | None = None, until: str | None = None) -> list[Extent]:
        """See `StorageDriver.changes`. What differs is looked for in the order in which the cluster knows the two."""
        size = (await self._present(uid_of(volume))).virtual_size
        for snapshot in (since, until):
            if snapshot is None:
                continue
            found = await self._snapshots.find(volume, snapshot)
            if found is None or found.taken_at is None:
                raise no_snapshot()
            if snapshot == until:
                size = found.virtual_size
        if until is None:
            await self._contents.refuse_written(volume, "read what was written to")
        name, (began, ended) = names.volume(volume), (one and names.snapshot(one) for one in (since, until))
        if began is not None and ended is not None:
            order = list(await self._images.snapshots(name))
            began, ended = sorted((began, ended), key=order.index)
        return union([Extent(*one) for one in await self._images.changes(name, began, ended)], size)

    async def revert_volume(self, volume: str, snapshot: str, request: str) -> StoredVolume:
        """See `StorageDriver.revert_volume`. Cut short, it is done again from its beginning."""
        uid_of(request)
        async with self._lock(f"volume {uid_of(volume)}"):
            found = await self._present(volume)
            if found.reverted == request:
                return found
            kept = await self._snapshots.find(volume, snapshot)
            if kept is None or kept.taken_at is None:
                raise no_snapshot()
            self._refuse_copied(volume)
            await self._contents.refuse_written(volume, "revert")
            name = names.volume(volume)
            size = await self._size_to_keep(name, found.virtual_size)
            await self._images.roll_back(name, names.snapshot(snapshot))
            if kept.virtual_size != size:
                await self._images.resize(name, size)
            await self._images.keep_record(name, {"request": request}, key=_REVERTED)
            return await self._present(volume)

    async def _make_on_image(self, uid: str, image_uid: str, size: int | None, thick: bool, pace: Pace) -> None:
        image = await self._present_image(image_uid, "volume")
        if image.source_format in OPTICAL:
            raise a_disc(image.source_format)
        wanted, making = at_least(size, image.virtual_size, "volume", "image"), names.making(names.volume(uid))
        if not thick:
            await self._images.clone(names.image(image_uid), names.BASE, making, wanted)
            return
        await self._images.create(making, wanted, thick=True)
        pace.stage("Copying", 0, image.virtual_size)
        base = f"{names.image(image_uid)}@{names.BASE}"
        await self._cluster.copy(base, making, share(pace, image.virtual_size))

    async def _make_copy(self, uid: str, source: VolumeContent, size: int | None, thick: bool, pace: Pace) -> None:
        making = names.making(names.volume(uid))
        with self._contents.reading(source):
            found = await self._contents.size(source)
            wanted = at_least(size, found, "volume", "source")
            await self._images.create(making, wanted, thick=thick)
            await self._contents.copy(source, uid, making, found, pace)

    async def _make_linked(self, uid: str, source: VolumeContent, size: int | None, thick: bool) -> None:
        """The volume stands on the snapshot, which the cluster keeps for it."""
        if source.snapshot is None:
            raise StorageError("Only snapshots can be linked to.", reason="SnapshotNotReady")
        with self._contents.reading(source):
            found = await self._contents.size(source)
            if thick:
                raise linked_thick()
            wanted, making = at_least(size, found, "volume", "source"), names.making(names.volume(uid))
            try:
                await self._images.clone(names.volume(source.volume), names.snapshot(source.snapshot), making, wanted)
            except NotThere:
                raise StorageError("The snapshot is not in the pool any more.", reason="SnapshotNotReady") from None

    async def _size_to_keep(self, name: str, size: int) -> int:
        """Bytes that the volume is to have when it is reverted; an attempt that was cut short may have made it smaller."""
        before = await self._images.record(name, key=_REVERTING) or {}
        if int(before.get("size", 0)) < size:
            await self._images.keep_record(name, {"size": size}, key=_REVERTING)
            return size
        return int(before["size"])


def _source(origin: VolumeOrigin) -> VolumeContent | None:
    """The volume or the snapshot that is to be copied or linked to."""
    if origin.snapshot is not None:
        return VolumeContent(uid_of(origin.snapshot.volume), uid_of(origin.snapshot.snapshot))
    return VolumeContent(uid_of(origin.volume)) if origin.volume is not None else None


def make(pool: PoolRef, settings: StorageSettings, secrets: Secrets) -> StorageDriver:
    """The driver for a pool; what the entry point names."""
    return RbdStorage(pool, settings, secrets)
