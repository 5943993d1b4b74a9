"""The part of the driver `dir` that is about snapshots of volumes, and layers that are merged."""

from __future__ import annotations

from functools import partial

from kumulus.api.snapshots import Indication
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir import snapshots, volumes
from kumulus_agents.storage.dir.exclusion import Exclusion
from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.pace import Pace
from kumulus_agents.storage.passphrase import Passphrase
from kumulus_agents.storage.protocol import Merge, ProgressListener, StorageError, StoredSnapshot, StoredVolume
from kumulus_agents.storage.tracking import Extent


class SnapshotVerbs(Exclusion):
    """Snapshots of volumes."""

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
        pace = Pace(progress)
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

    async def _unlock(self, found: StoredVolume, volume: str, passphrase: Passphrase | None) -> None:
        """Before a layer is put on it: all that it stands on must open with the same passphrase."""
        if found.encrypted != (passphrase is not None):
            raise volumes.mismatch()
        if passphrase is not None:
            await volumes.unlock(self._pool, self._settings, volume, passphrase)
