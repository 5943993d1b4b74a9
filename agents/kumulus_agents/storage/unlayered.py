"""For drivers whose volume is one thing of the pool, whatever snapshots it has: nothing is ever put on top of it."""

from __future__ import annotations

from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.protocol import Merge, ProgressListener, StorageError, StoredVolume
from kumulus_agents.storage.refusals import no_volume


class Unlayered:
    """Inherit it: a machine writes to the volume itself, and there is never anything to merge."""

    async def volume(self, uid: str) -> StoredVolume | None:
        """See `StorageDriver.volume`. The driver's own."""
        raise NotImplementedError

    async def adopt(self, volume: str, path: str) -> None:
        """See `StorageDriver.adopt`. There is one thing that it can be."""
        if (await self._present(volume)).path != path:
            raise StorageError("A machine writes to what is not the volume's.", reason="ChainMismatch", retryable=False)

    async def next_merge(self, volume: str) -> Merge | None:
        """See `StorageDriver.next_merge`. Never any."""
        uid_of(volume)
        return None

    async def merge(self, volume: str, merge: Merge, progress: ProgressListener | None = None) -> None:
        """See `StorageDriver.merge`."""

    async def merged(self, volume: str, merge: Merge) -> None:
        """See `StorageDriver.merged`."""

    async def _present(self, uid: str) -> StoredVolume:
        """The volume as it is. Raises `StorageError`: VolumeNotReady."""
        found = await self.volume(uid)
        if found is None:
            raise no_volume()
        return found
