"""The driver `dir`: one pool that is a directory on this host."""

from __future__ import annotations

from kumulus.api.pool_order import PoolRef
from kumulus_agents.storage.apart import apart
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir import pulses, uses
from kumulus_agents.storage.dir.arrival_verbs import ArrivalVerbs
from kumulus_agents.storage.dir.image_verbs import ImageVerbs
from kumulus_agents.storage.dir.snapshot_verbs import SnapshotVerbs
from kumulus_agents.storage.dir.volume_verbs import VolumeVerbs
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.protocol import StorageDriver, Usage
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings


class DirStorage(ImageVerbs, VolumeVerbs, ArrivalVerbs, SnapshotVerbs):
    """`StorageDriver` for a directory. Belongs to one event loop."""

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

    async def beat(self, host: str, beat: str) -> None:
        """See `Pulsed.beat`."""
        with told_as("leave the heartbeat"):
            await in_thread(pulses.write, self._pool, host, beat)

    async def last_beat(self, host: str) -> str | None:
        """See `Pulsed.last_beat`."""
        with told_as("read a heartbeat"):
            return await in_thread(pulses.read, self._pool, host)


def make(pool: PoolRef, settings: StorageSettings, _: Secrets) -> StorageDriver:
    """The driver for a pool; what the entry point names. A file system that hosts share may stall."""
    if not pool.shared:
        return DirStorage(pool, settings)
    return apart(DirStorage, lambda: DirStorage(pool, settings), pool.parameters.path or "/", pool.name)
