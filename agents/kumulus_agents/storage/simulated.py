"""A pool in memory, for simulated hosts: believable times, failures on demand, no files."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from kumulus.api.image_order import ImageRef, OciFetch
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshots import Indication
from kumulus.api.volume_order import VolumeOrigin
from kumulus_agents.storage.dir.pool import disk_of, uid_of
from kumulus_agents.storage.keepers import refuse_older
from kumulus_agents.storage.layers import Layers, Taken
from kumulus_agents.storage.moving import Arrival, Content, Imagined, Traits, Use, disk_conflict, unsupported
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import (
    ImageSource,
    Merge,
    ProgressListener,
    RegistrySource,
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
from kumulus_agents.storage.refusals import linked_thick, no_snapshot, no_volume
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.sizes import at_least, grown, of_blank
from kumulus_agents.storage.source import FileSource, LayerFile
from kumulus_agents.storage.tracking import Extent

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
    """Volume -> uid of the image it stands on, and the volume as if it had one layer."""
    layers: dict[str, Layers] = field(default_factory=dict)
    """Volume -> its layers."""
    bases: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Volume that is linked to a snapshot -> volume and layer it stands on."""
    reverted: dict[str, str] = field(default_factory=dict)
    """Volume -> the last request to revert it."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Layer that is written no more -> bytes of the disk then."""
    arriving: dict[str, Traits] = field(default_factory=dict)
    """Volume that is on its way here -> what was made for it."""
    moves: dict[str, str] = field(default_factory=dict)
    """Volume that was brought here, or is on its way by a move that says so -> that move."""
    thick: set[str] = field(default_factory=set)
    keepers: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Volume -> epoch and host of its mark."""


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
                virtual_size = self._settings.virtual_size
                if isinstance(source, VolumeContent):
                    if source.volume not in self.state.volumes:
                        raise StorageError(
                            "The volume that the image is made of is not in the pool.", reason="VolumeNotReady"
                        )
                    virtual_size = self.state.volumes[source.volume][1].virtual_size
                await self._download(progress)
                self._perhaps_fail("import_image.end")
                made = StoredImage(
                    uid=uid,
                    source=FileSource(f"{self._path}/images/{uid}.qcow2"),
                    format="qcow2",
                    source_format=image.format,
                    sha256=image.sha256 or hashlib.sha256(uid.encode()).hexdigest(),
                    virtual_size=virtual_size,
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
        made = StoredDisk(
            FileSource(f"{self._path}/disks/{owner}/{disk}.qcow2"),
            "qcow2",
            at_least(size, image.virtual_size, "disk", "image"),
            (LayerFile(image.path, image.format),),
        )
        return self.state.disks.setdefault(owner, {}).setdefault(name, (image_uid, made))[1]

    async def disk(self, owner: str, name: str) -> StoredDisk | None:
        """See `ReceivingDisks.disk`."""
        found = self.state.disks.get(uid_of(owner), {}).get(name)
        return found[1] if found is not None else None

    async def receive_disk(self, owner: str, name: str, size: int, migration: str) -> StoredDisk:
        """See `ReceivingDisks.receive_disk`."""
        disk, came = disk_of(owner, name), f"by {uid_of(migration)}"
        self._perhaps_fail("receive_disk")
        made = StoredDisk(FileSource(f"{self._path}/disks/{owner}/{disk}.qcow2"), "qcow2", size)
        found = self.state.disks.setdefault(owner, {}).setdefault(name, (came, made))
        if found != (came, made):
            raise disk_conflict(name)
        return made

    async def remove_disks(self, owner: str) -> None:
        """See `StorageDriver.remove_disks`."""
        self._perhaps_fail("remove_disks")
        if self.state.disks.pop(uid_of(owner), None):
            await self._sleep(self._settings.disk_seconds)

    async def claim_volume(self, uid: str, host: str, epoch: int) -> None:
        """See `StorageDriver.claim_volume`."""
        self._perhaps_fail("claim_volume")
        refuse_older(self.state.keepers.get(uid_of(uid)), host, epoch)
        self.state.keepers[uid] = (epoch, host)

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`."""
        self._perhaps_fail("volume")
        found = self.state.volumes.get(uid_of(uid))
        return self._seen(uid, *found) if found is not None else None

    async def open_volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.open_volume`."""
        return await self.volume(uid)

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
        snapshot = origin.snapshot if origin is not None else None
        if snapshot is not None:
            source = uid_of(snapshot.volume)
            uid_of(snapshot.snapshot)
        async with self._locks[uid]:
            if (found := await self.volume(uid)) is not None:
                return found
            self._perhaps_fail("ensure_volume")
            await self._sleep(self._settings.disk_seconds)
            least, used = self._origin(image, source, snapshot.snapshot if snapshot is not None else None)
            whole = at_least(size, least, "volume", "origin") if least is not None else of_blank(size)
            if source is not None and progress is not None:
                Pace(progress).stage("Copying", used, used)
            if thick and origin is not None and origin.linked:
                raise linked_thick()
            made = StoredVolume(
                FileSource(f"{self._path}/volumes/{uid}.qcow2"), "qcow2", whole, whole if thick else used
            )
            self.state.volumes[uid] = (None if thick else image, made)
            if thick:
                self.state.thick.add(uid)
            self.state.layers[uid] = Layers.first(uid)
            if snapshot is not None and origin is not None and origin.linked:
                kept = self.state.layers[snapshot.volume].snapshots[snapshot.snapshot]
                self.state.bases[uid] = (snapshot.volume, kept.layer)
            return self._seen(uid, *self.state.volumes[uid])

    async def grow_volume(self, uid: str, size: int, live: Resize | None = None) -> StoredVolume:
        """See `StorageDriver.grow_volume`."""
        async with self._locks[uid_of(uid)]:
            self._perhaps_fail("grow_volume")
            if (found := await self.volume(uid)) is None:
                raise no_volume()
            if (wanted := grown(found.virtual_size, size)) is None:
                return found
            if any(kept.taken is None for kept in self.state.layers[uid].snapshots.values()):
                raise StorageError("A snapshot of the volume is being taken.", reason="VolumeBusy")
            if live is not None:
                await live(wanted)
            image, volume = self.state.volumes[uid]
            self.state.volumes[uid] = (image, replace(volume, virtual_size=wanted))
            return self._seen(uid, *self.state.volumes[uid])

    async def remove_volume(self, uid: str) -> None:
        """See `StorageDriver.remove_volume`."""
        self._perhaps_fail("remove_volume")
        if uid_of(uid) in self.state.layers and self.state.layers[uid].snapshots:
            raise StorageError("The volume has snapshots. Delete them first.", reason="VolumeInUse")
        state = self.state
        for kept in (state.layers, state.bases, state.reverted, state.keepers, state.arriving, state.moves):
            kept.pop(uid, None)
        state.thick.discard(uid)
        if self.state.volumes.pop(uid, None):
            await self._sleep(self._settings.disk_seconds)
        if (lock := self._locks.get(uid)) is not None and not lock.locked():
            del self._locks[uid]

    async def traits(self, uid: str) -> Traits:
        """See `MovableVolumes.traits`."""
        self._perhaps_fail("traits")
        layers = self._layers(uid_of(uid))
        pinned = bool(layers.snapshots) or any(base == uid for base, _ in self.state.bases.values())
        size = self.state.volumes[uid][1].virtual_size
        return Traits(size, uid in self.state.thick, self.state.reverted.get(uid), pinned=pinned)

    async def send_volume(self, uid: str, use: Use) -> None:
        """See `MovableVolumes.send_volume`."""
        async with self._locks[uid_of(uid)]:
            self._perhaps_fail("send_volume")
            self._layers(uid)
            await use(Imagined())

    async def arrival(self, uid: str) -> Arrival | None:
        """See `MovableVolumes.arrival`."""
        self._perhaps_fail("arrival")
        if (found := await self.volume(uid)) is not None:
            return Arrival(found.source, found.format, whole=True, move=self.state.moves.get(uid))
        if uid in self.state.arriving:
            return self._arriving(uid)
        return None

    def _arriving(self, uid: str) -> Arrival:
        source, size = FileSource(f"{self._path}/volumes/{uid}.qcow2"), self.state.arriving[uid].virtual_size
        return Arrival(source, "qcow2", whole=False, move=self.state.moves.get(uid), size=size)

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
        async with self._locks[uid_of(uid)]:
            self._perhaps_fail("begin_arrival")
            await self._sleep(self._settings.disk_seconds)
            self.state.arriving[uid] = traits
            if move is not None:
                self.state.moves[uid] = move
            return self._arriving(uid)

    async def fill_arrival(
        self,
        uid: str,
        traits: Traits,
        content: Content,
        progress: ProgressListener,
        passphrase: Passphrase | None = None,
    ) -> None:
        """See `MovableVolumes.fill_arrival`."""
        async with self._locks[uid_of(uid)]:
            self._perhaps_fail("fill_arrival")
            if not isinstance(content, Imagined):
                raise unsupported("Simulated pools take nothing that is real")
            size = self.state.arriving[uid].virtual_size
            Pace(progress).stage("Copying", 0, size)
            await self._sleep(self._settings.disk_seconds)
            self._perhaps_fail("fill_arrival.end")

    async def reserve_arrival(self, uid: str, traits: Traits) -> None:
        """See `MovableVolumes.reserve_arrival`."""
        uid_of(uid)
        self._perhaps_fail("reserve_arrival")

    async def settle_arrival(self, uid: str, traits: Traits, move: str) -> None:
        """See `MovableVolumes.settle_arrival`."""
        async with self._locks[uid_of(uid)]:
            self._perhaps_fail("settle_arrival")
            state = self.state
            if uid in state.volumes:
                return
            if state.arriving.pop(uid, None) is None:
                raise StorageError("Nothing of the volume has come to the pool.", reason="VolumeNotReady")
            source, size = FileSource(f"{self._path}/volumes/{uid}.qcow2"), traits.virtual_size
            state.volumes[uid] = (None, StoredVolume(source, "qcow2", size, size if traits.thick else _THIN))
            state.layers[uid], state.moves[uid] = Layers.first(uid), move
            if traits.thick:
                state.thick.add(uid)
            if traits.reverted is not None:
                state.reverted[uid] = traits.reverted

    async def abandon_arrival(self, uid: str) -> None:
        """See `MovableVolumes.abandon_arrival`."""
        async with self._locks[uid_of(uid)]:
            self._perhaps_fail("abandon_arrival")
            self.state.arriving.pop(uid, None)
            if uid not in self.state.volumes:
                self.state.keepers.pop(uid, None)
                self.state.moves.pop(uid, None)

    async def snapshot(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        self._perhaps_fail("snapshot")
        layers = self.state.layers.get(uid_of(volume))
        kept = layers.snapshots.get(uid_of(snapshot)) if layers is not None else None
        if kept is None or volume not in self.state.volumes:
            return None
        size = self.state.sizes.get(kept.layer, self.state.volumes[volume][1].virtual_size)
        if kept.taken is None:
            return StoredSnapshot(size, _THIN, None)
        return StoredSnapshot(size, _THIN, kept.taken.at, tuple(Indication(one) for one in kept.taken.indications))

    async def begin_snapshot(self, volume: str, snapshot: str, *, live: bool = False) -> StoredVolume:
        """See `StorageDriver.begin_snapshot`."""
        uid_of(snapshot)
        async with self._locks[uid_of(volume)]:
            self._perhaps_fail("begin_snapshot")
            layers = self._layers(volume)
            if (kept := layers.snapshots.get(snapshot)) is None or kept.taken is None:
                await self._sleep(self._settings.disk_seconds)
                self.state.sizes[layers.active] = self.state.volumes[volume][1].virtual_size
                self.state.layers[volume] = layers.forgotten(snapshot).frozen(snapshot, str(uuid.uuid4()))
            return self._seen(volume, *self.state.volumes[volume])

    async def confirm_snapshot(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """See `StorageDriver.confirm_snapshot`."""
        uid_of(snapshot)
        async with self._locks[uid_of(volume)]:
            self._perhaps_fail("confirm_snapshot")
            layers = self.state.layers.get(volume)
            if layers is None or (kept := layers.snapshots.get(snapshot)) is None:
                raise StorageError("The snapshot was not begun.", reason="SnapshotLost", retryable=False)
            if kept.taken is None:
                self.state.layers[volume] = layers.confirmed(snapshot, Taken(taken_at, indications))
        found = await self.snapshot(volume, snapshot)
        if found is None:
            raise StorageError("The snapshot is gone.", reason="SnapshotLost", retryable=False)
        return found

    async def forget_snapshot(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.forget_snapshot`."""
        uid_of(snapshot)
        async with self._locks[uid_of(volume)]:
            self._perhaps_fail("forget_snapshot")
            if (layers := self.state.layers.get(volume)) is not None:
                kept = layers.snapshots.get(snapshot)
                if kept is not None and (volume, kept.layer) in self.state.bases.values():
                    raise StorageError("Volumes are linked to the snapshot.", reason="SnapshotInUse")
                self.state.layers[volume] = layers.forgotten(snapshot)

    async def changes(self, volume: str, since: str | None = None, until: str | None = None) -> list[Extent]:
        """See `StorageDriver.changes`. Nothing is ever written here, so all of it may have been."""
        layers = self._layers(uid_of(volume))
        for snapshot in (since, until):
            if snapshot is not None and uid_of(snapshot) not in layers.snapshots:
                raise no_snapshot()
        return [Extent(0, self.state.volumes[volume][1].virtual_size)]

    async def revert_volume(self, volume: str, snapshot: str, request: str) -> StoredVolume:
        """See `StorageDriver.revert_volume`."""
        uid_of(snapshot)
        uid_of(request)
        async with self._locks[uid_of(volume)]:
            self._perhaps_fail("revert_volume")
            layers = self._layers(volume)
            if any(kept.taken is None for kept in layers.snapshots.values()):
                raise StorageError("A snapshot of the volume is being taken.", reason="VolumeBusy")
            if self.state.reverted.get(volume) != request:
                if snapshot not in layers.snapshots:
                    raise no_snapshot()
                self.state.layers[volume] = layers.reverted(snapshot, str(uuid.uuid4()))
                self.state.reverted[volume] = request
            return self._seen(volume, *self.state.volumes[volume])

    async def adopt(self, volume: str, path: str) -> None:
        """See `StorageDriver.adopt`."""
        async with self._locks[uid_of(volume)]:
            self._perhaps_fail("adopt")
            layers = self._layers(volume)
            found = [layer for layer in layers.parents if self._file(volume, layer) == path]
            try:
                self.state.layers[volume] = layers.adopted(found[0])
            except (IndexError, ValueError) as error:
                raise StorageError(
                    "A machine writes to a file of the volume that it must not write.",
                    reason="ChainMismatch",
                    retryable=False,
                ) from error

    async def next_merge(self, volume: str) -> Merge | None:
        """See `StorageDriver.next_merge`."""
        async with self._locks[uid_of(volume)]:
            self._perhaps_fail("next_merge")
            if (layers := self.state.layers.get(volume)) is None:
                return None
            held = {layer for base, layer in self.state.bases.values() if base == volume}
            while useless := layers.useless(held):
                layers = self.state.layers[volume] = layers.without(useless[0])
            if (found := layers.next_merge(held)) is None:
                return None
            self.state.layers[volume] = replace(layers, merging=found)
            upper, lower = found
            return Merge(self._file(volume, upper), self._file(volume, lower), upper == layers.active)

    async def merge(self, volume: str, merge: Merge, progress: ProgressListener | None = None) -> None:
        """See `StorageDriver.merge`."""
        self._perhaps_fail("merge")
        if progress is not None:
            Pace(progress).stage("Merging", 0, self.state.volumes[uid_of(volume)][1].virtual_size)
        await self._sleep(self._settings.disk_seconds)
        await self.merged(volume, merge)

    async def merged(self, volume: str, merge: Merge) -> None:
        """See `StorageDriver.merged`."""
        async with self._locks[uid_of(volume)]:
            self._perhaps_fail("merged")
            layers = self._layers(volume)
            by_path = {self._file(volume, layer): layer for layer in layers.parents}
            upper, lower = by_path.get(merge.upper), by_path.get(merge.lower)
            if upper is not None and lower is not None:
                self.state.layers[volume] = layers.merged(upper, lower)
                if upper in self.state.sizes:
                    self.state.sizes[lower] = self.state.sizes[upper]

    def _layers(self, volume: str) -> Layers:
        if (layers := self.state.layers.get(volume)) is None or volume not in self.state.volumes:
            raise no_volume()
        return layers

    def _file(self, volume: str, layer: str) -> str:
        first = self.state.volumes[volume][1].path
        return first if layer == volume else f"{first.removesuffix('.qcow2')}.{layer}.qcow2"

    def _seen(self, uid: str, image: str | None, volume: StoredVolume) -> StoredVolume:
        layers = self.state.layers.setdefault(uid, Layers.first(uid))
        path, *below = (self._file(uid, layer) for layer in layers.chain(layers.active))
        files = [LayerFile(each, "qcow2") for each in below]
        below_it = uid
        while (base := self.state.bases.get(below_it)) is not None:
            below_it, layer = base
            image = self.state.volumes[below_it][0]
            files += [LayerFile(self._file(below_it, one), "qcow2") for one in self.state.layers[below_it].chain(layer)]
        if image is not None:
            files.append(LayerFile(f"{self._path}/images/{image}.qcow2", "qcow2"))
        used = volume.used + (len(layers.parents) - 1) * _THIN
        return replace(
            volume, source=FileSource(path), used=used, below=tuple(files), reverted=self.state.reverted.get(uid)
        )

    def _origin(self, image: str | None, source: str | None, snapshot: str | None) -> tuple[int | None, int]:
        """Bytes of the disk that a volume begins as (None: of no disk), and bytes the volume takes."""
        if image is not None:
            if (found := self.state.images.get(image)) is None:
                raise StorageError("The volume's image is not in the pool yet.", reason="ImageNotReady")
            return found.virtual_size, _THIN
        if source is not None:
            copied = self.state.volumes.get(source)
            if snapshot is not None:
                kept = self.state.layers[source].snapshots.get(snapshot) if copied is not None else None
                if copied is None or kept is None or kept.taken is None:
                    raise StorageError("The snapshot is not in the pool yet.", reason="SnapshotNotReady")
                return self.state.sizes[kept.layer], copied[1].used
            if copied is None:
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


def make(pool: PoolRef, settings: StorageSettings, _: Secrets) -> StorageDriver:
    """The driver for a pool; what the entry point names."""
    return SimulatedStorage(pool, settings)
