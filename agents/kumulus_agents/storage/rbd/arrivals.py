"""Volumes on their way into a Ceph pool, and out of it: an image that has its name already and says that it is none yet.

It has its name from the first, for the emulator that copies into it goes on using it by that name. What it
says is recorded under another name, before it gets that one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import PurePosixPath

from kumulus_agents.storage import chain
from kumulus_agents.storage.beneath import Directory
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.chain import Chain
from kumulus_agents.storage.convert import percent_done
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.moving import Arrival, Content, Outside, Traits, unsupported
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.cluster import Cluster
from kumulus_agents.storage.rbd.faults import Busy
from kumulus_agents.storage.rbd.images import RbdImages
from kumulus_agents.storage.refusals import no_volume
from kumulus_agents.storage.settings import StorageSettings

RAW = "raw"
ARRIVING, MOVED, THICK, REVERTED = "kumulus.arriving", "kumulus.moved", "kumulus.thick", "kumulus.reverted"
"""Metadata keys of a volume: it is none yet; the move that brought it; that it took all of its space; the last request to
revert it."""


class RbdArrivals:
    """Of one pool. Whoever calls has the volume's lock."""

    def __init__(self, cluster: Cluster, images: RbdImages, settings: StorageSettings, scratch: PurePosixPath) -> None:
        self._cluster = cluster
        self._images = images
        self._settings = settings
        self._scratch = scratch

    async def traits(self, uid: str) -> Traits:
        """What the volume takes along. Raises `StorageError`."""
        name = names.volume(uid)
        size, records = await self._images.size(name), await self._images.records(name)
        if size is None or ARRIVING in records:
            raise no_volume()
        pinned = any(names.target_of(one) is None for one in await self._images.snapshots(name))
        request = records.get(REVERTED, {}).get("request")
        return Traits(size, THICK in records, str(request) if request else None, pinned=pinned)

    async def find(self, uid: str) -> Arrival | None:
        """What is here of the volume."""
        name = names.volume(uid)
        if await self._images.size(name) is None:
            return None
        records, source = await self._images.records(name), await self._cluster.source(name)
        if ARRIVING in records:
            return Arrival(source, RAW, whole=False)
        move = records.get(MOVED, {}).get("move")
        return Arrival(source, RAW, whole=True, move=str(move) if move else None)

    async def begin(self, uid: str, wanted: Traits) -> Arrival:
        """Make the empty image. Raises `StorageError`."""
        if wanted.encrypted:
            raise StorageError(
                "Pools of this kind cannot encrypt volumes. Choose a pool of the driver dir or nfs.",
                reason="EncryptionUnsupported",
                retryable=False,
            )
        await self.abandon(uid)
        name = names.volume(uid)
        making = names.making(name)
        await self._images.create(making, wanted.virtual_size, thick=wanted.thick)
        await self._images.keep_record(making, {}, key=ARRIVING)
        await self._images.settle(name)
        return Arrival(await self._cluster.source(name), RAW, whole=False)

    async def fill(self, uid: str, wanted: Traits, content: Content, pace: Pace) -> None:
        """Copy the content into the image, by way of the scratch directory: the cage has no network, and what is in it is
        nobody that the cluster should hear. Raises `StorageError`."""
        if not isinstance(content, Chain):
            raise unsupported("Pools in Ceph do not take what such a pool has")
        size = wanted.virtual_size
        with told_as("copy the volume in the scratch directory"), Directory.trusted(self._scratch) as scratch:
            raw = await in_thread(scratch.open, f"{uid}.moving", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                pace.stage("Copying", 0, size * 2)
                await chain.expand(content, size, raw, self._settings, lambda done, _: pace.at(done, size * 2))

                def told(data: bytes) -> None:
                    if (percent := percent_done(data)) is not None:
                        pace.at(size + min(size, size * percent // 100), size * 2)

                await self._cluster.copy("", names.volume(uid), told, fd=raw)
            finally:
                os.close(raw)
                scratch.remove(f"{uid}.moving")

    async def settle(self, uid: str, wanted: Traits, move: str) -> None:
        """All is here: it is a volume when the last mark goes. Raises `StorageError`."""
        name = names.volume(uid)
        found = await self.find(uid)
        if found is None:
            raise StorageError("Nothing of the volume has come to the pool.", reason="VolumeNotReady")
        if found.whole:
            return
        if wanted.thick:
            await self._images.keep_record(name, {}, key=THICK)
        if wanted.reverted is not None:
            await self._images.keep_record(name, {"request": wanted.reverted}, key=REVERTED)
        await self._images.keep_record(name, {"move": move}, key=MOVED)
        await self._images.drop_record(name, ARRIVING)

    async def abandon(self, uid: str) -> None:
        """Remove the image, unless it is a volume. Raises `StorageError(reason="VolumeInUse")` while it is open."""
        found = await self.find(uid)
        try:
            if found is not None and not found.whole:
                await self._images.drop(names.volume(uid))
            await self._images.drop(names.making(names.volume(uid)))
        except Busy as error:
            raise StorageError(
                "What has come of the volume is open somewhere, or was a moment ago. It is tried again.",
                reason="VolumeInUse",
            ) from error

    def content(self, uid: str) -> Outside:
        """How the volume can be read."""
        source = names.volume(uid)

        async def fill(target: int, progress: Callable[[int, int], None]) -> None:
            size = await self._images.size(source) or 0

            def told(data: bytes) -> None:
                if (percent := percent_done(data)) is not None:
                    progress(min(size, size * percent // 100), size)

            await self._cluster.copy_out(source, target, told)

        return Outside(fill)
