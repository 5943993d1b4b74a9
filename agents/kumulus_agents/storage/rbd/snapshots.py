"""Snapshots of volumes in a Ceph pool: the cluster's own, with a record in the metadata of the volume's image.

Nothing is put on top of a volume and nothing is merged: a snapshot comes and goes without its machine. It is
taken while nobody writes: a guest that is on is halted for it. One that has no record was begun, and nobody
knows of which moment it is.
"""

from __future__ import annotations

import asyncio
import json

from kumulus.api.snapshots import Indication
from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.protocol import StorageError, StoredSnapshot
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.faults import Busy
from kumulus_agents.storage.rbd.images import RbdImages


class RbdSnapshots:
    """The snapshots of one pool's volumes. Who calls has the volume's lock."""

    def __init__(self, images: RbdImages) -> None:
        self._images = images

    async def find(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        image, name = names.volume(uid_of(volume)), names.snapshot(uid_of(snapshot))
        found, kept = await asyncio.gather(
            self._images.snapshot_usage(image, name), self._images.record(image, key=name)
        )
        if found is None:
            return None
        record = kept or {}
        try:
            indications = tuple(Indication(one) for one in json.loads(str(record.get("indications", "[]"))))
        except ValueError:
            indications = ()
        at = record.get("at")
        size, used = found
        return StoredSnapshot(size, used, str(at) if at is not None else None, indications)

    async def begin(self, volume: str, snapshot: str, *, live: bool) -> None:
        """See `StorageDriver.begin_snapshot`; the volume is there. With `live` nothing is kept yet."""
        image, name = names.volume(volume), names.snapshot(snapshot)
        found = await self.find(volume, snapshot)
        if found is not None and found.taken_at is not None:
            return
        if live:
            await self._images.thaw(image, name)
            return
        if await self._images.in_use(image):
            raise StorageError(
                "The volume is open somewhere, and no machine of this host has it. Look who has it (`rbd status`); what"
                " lost its host keeps it for half a minute. It is tried again.",
                reason="VolumeInUse",
            )
        await self._images.freeze(image, name)

    async def keep(self, volume: str, snapshot: str) -> None:
        """See `Instants.keep_instant`."""
        await self._images.freeze(names.volume(uid_of(volume)), names.snapshot(uid_of(snapshot)), soon=True)

    async def confirm(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """See `StorageDriver.confirm_snapshot`."""
        found = await self.find(volume, snapshot)
        if found is None:
            raise StorageError("The snapshot was not begun.", reason="SnapshotLost", retryable=False)
        if found.taken_at is not None:
            return found
        record = {"at": taken_at, "indications": json.dumps([str(one) for one in indications])}
        await self._images.keep_record(names.volume(volume), record, key=names.snapshot(snapshot))
        return StoredSnapshot(found.virtual_size, found.used, taken_at, indications)

    async def forget(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.forget_snapshot`. The cluster itself keeps a snapshot that something stands on."""
        image, name = names.volume(uid_of(volume)), names.snapshot(uid_of(snapshot))
        try:
            await self._images.thaw(image, name)
        except Busy:
            users = ", ".join(name.removeprefix("volume-") for name in await self._images.users(image, name))
            raise StorageError(
                f"Volumes are linked to the snapshot: {users or 'just now'}. Delete them first, or copy them in full.",
                reason="SnapshotInUse",
            ) from None
        await self._images.drop_record(image, key=name)
