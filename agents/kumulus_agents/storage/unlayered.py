"""For drivers whose volumes have no layers (yet): every verb about snapshots, honestly."""

from __future__ import annotations

from kumulus.api.snapshots import Indication
from kumulus_agents.storage.protocol import Merge, ProgressListener, StorageError, StoredSnapshot, StoredVolume
from kumulus_agents.storage.tracking import Extent


class Unlayered:
    """Inherit it: taking a snapshot is refused, and there is nothing to find, remove or merge."""

    async def snapshot(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        """See `StorageDriver.snapshot`."""
        return None

    async def begin_snapshot(self, volume: str, snapshot: str, *, live: bool = False) -> StoredVolume:
        """See `StorageDriver.begin_snapshot`."""
        raise StorageError(
            "Volumes of this kind of pool cannot have snapshots yet. Copy the volume, or use a pool of the driver dir.",
            reason="SnapshotsUnsupported",
            retryable=False,
        )

    async def confirm_snapshot(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        """See `StorageDriver.confirm_snapshot`."""
        raise StorageError("The snapshot was not begun.", reason="SnapshotLost", retryable=False)

    async def forget_snapshot(self, volume: str, snapshot: str) -> None:
        """See `StorageDriver.forget_snapshot`."""

    async def changes(self, volume: str, since: str | None = None, until: str | None = None) -> list[Extent]:
        """See `StorageDriver.changes`."""
        raise StorageError(
            "What changed in volumes of this kind of pool is not known.", reason="ChangesUnsupported", retryable=False
        )

    async def open_volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.open_volume`."""
        return await self.volume(uid)

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`. The driver's own."""
        raise NotImplementedError

    async def revert_volume(self, volume: str, snapshot: str, request: str) -> StoredVolume:
        """See `StorageDriver.revert_volume`."""
        raise StorageError("The volume has no snapshot to revert to.", reason="SnapshotNotReady")

    async def adopt(self, volume: str, path: str) -> None:
        """See `StorageDriver.adopt`. There is one thing that it can be."""

    async def next_merge(self, volume: str) -> Merge | None:
        """See `StorageDriver.next_merge`."""
        return None

    async def merge(self, volume: str, merge: Merge, progress: ProgressListener | None = None) -> None:
        """See `StorageDriver.merge`."""

    async def merged(self, volume: str, merge: Merge) -> None:
        """See `StorageDriver.merged`."""
