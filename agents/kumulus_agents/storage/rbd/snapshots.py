"""Snapshots of volumes in a Ceph pool: the cluster's own, with a record in the metadata of the volume's image.

Nothing is put on top of a volume and nothing is merged: a snapshot comes and goes without its machine. It is
taken of a volume that nobody has open; to bring a machine to rest for it is not done yet.
"""

from __future__ import annotations

import json

from kumulus.api.snapshots import Indication
from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.protocol import StorageError, StoredSnapshot
from kumulus_agents.storage.rbd import names
from kumulus_agents.storage.rbd.images import RbdImages


class RbdSnapshots:
    """The snapshots of one pool's volumes. Who calls has the volume's lock."""

    def __init__(self, images: RbdImages) -> None:
        self._images = images

    async def find(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        image, name = names.volume(uid_of(volume)), names.snapshot(uid_of(snapshot))
        found = await self._images.snapshot_usage(image, name)
        if found is None:
            return None
        record = await self._images.record(image, key=name) or {}
        try:
            indications = tuple(Indication(one) for one in json.loads(str(record.get("indications", "[]"))))
        except ValueError:
            indications = ()
        at = record.get("at")
        return StoredSnapshot(*found, str(at) if at is not None else None, indications)

    async def begin(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.begin_snapshot`; the volume is there."""
        image, name = names.volume(volume), names.snapshot(snapshot)
        found = await self.find(volume, snapshot)
        if found is not None and found.taken_at is not None:
            return
        if await self._images.in_use(image):
            raise StorageError(
                "A snapshot of a volume in a Ceph pool is taken while no machine that is on has the volume."
                " Stop the machine or detach the volume.",
                reason="SnapshotUnsupported",
                retryable=False,
            )
        await self._images.freeze(image, name)

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
        """See `StorageDriver.forget_snapshot`."""
        image, name = names.volume(uid_of(volume)), names.snapshot(uid_of(snapshot))
        await self._images.thaw(image, name)
        await self._images.drop_record(image, key=name)
