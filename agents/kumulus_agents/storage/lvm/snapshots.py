"""Snapshots of volumes in a thin pool: thin snapshots, with their record in their own tags.

Nothing is put on top of a volume and nothing is merged: a snapshot comes and goes without its machine. It is taken of
a volume that nobody has open; to bring a machine to rest for it is not done yet.
"""

from __future__ import annotations

from kumulus.api.snapshots import Indication
from kumulus_agents.storage.lvm import names
from kumulus_agents.storage.lvm.group import VolumeGroup
from kumulus_agents.storage.lvm.report import Listing, Logical
from kumulus_agents.storage.lvm.tags import Tag, tag
from kumulus_agents.storage.lvm.volumes import ThinVolumes
from kumulus_agents.storage.protocol import StorageError, StoredSnapshot


class ThinSnapshots:
    """The snapshots of one pool's volumes. Who calls has the volume's lock."""

    def __init__(self, group: VolumeGroup, volumes: ThinVolumes) -> None:
        self._group = group
        self._volumes = volumes

    async def find(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        return _stored((await self._group.listing()).get(names.snapshot(volume, snapshot)))

    async def begin(self, found: Logical, volume: str, snapshot: str) -> None:
        """See `StorageDriver.begin_snapshot`; the volume is there."""
        name = names.snapshot(volume, snapshot)
        if (await self._group.listing()).whole(name) is not None:
            return
        if found.open:
            raise StorageError(
                "A snapshot of a volume in a pool of the driver lvm is taken while no machine that is on has the volume."
                " Stop the machine or detach the volume.",
                reason="SnapshotUnsupported",
                retryable=False,
            )
        await self._volumes.freeze(found, name)

    async def confirm(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """See `StorageDriver.confirm_snapshot`."""
        name = names.snapshot(volume, snapshot)
        found = _stored((await self._group.listing()).get(name))
        if found is None:
            raise StorageError("The snapshot was not begun.", reason="SnapshotLost", retryable=False)
        if found.taken_at is not None:
            return found
        marks = (tag(Tag.WHOLE), tag(Tag.AT, taken_at), tag(Tag.INDICATIONS, "+".join(indications)))
        await self._volumes.mark(name, marks)
        return StoredSnapshot(found.virtual_size, found.used, taken_at, indications)

    async def forget(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.forget_snapshot`."""
        name = names.snapshot(volume, snapshot)
        listing = await self._group.listing()
        if listing.standing_on(name, but_volume=volume):
            raise StorageError("Volumes are linked to the snapshot. Delete them first.", reason="SnapshotInUse")
        if listing.get(name) is not None:
            await self._volumes.drop(name)


def begun(listing: Listing, volume: str) -> bool:
    """Whether a snapshot of the volume was begun and not confirmed."""
    return any(not one.record.whole for one in listing.snapshots(volume))


def _stored(found: Logical | None) -> StoredSnapshot | None:
    if found is None:
        return None
    record = found.record
    told = (record.one(Tag.INDICATIONS) or "").split("+")
    return StoredSnapshot(
        found.disk_size,
        record.number(Tag.USED) or 0,
        record.one(Tag.AT) if record.whole else None,
        tuple(Indication(one) for one in told if one in set(Indication)),
    )
