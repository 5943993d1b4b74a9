"""The driver `nfs`: the driver `dir` on an export that is mounted, in a thread of its own because servers stall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from kumulus.api.pool_order import PoolRef
from kumulus.api.pools import PoolDriver, PoolParameters
from kumulus_agents.storage.apart import apart
from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.dir.pool import uid_of
from kumulus_agents.storage.faults import told_as
from kumulus_agents.storage.nfs.mount import Mount
from kumulus_agents.storage.protocol import StorageDriver, StorageError, Usage
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings


class NfsStorage(DirStorage):
    """`StorageDriver` for an export. Made by `apart` only: its verbs may wait for the server for ever."""

    def __init__(self, mount: Mount, pool: PoolRef, settings: StorageSettings) -> None:
        super().__init__(pool, settings, mounted=True)
        self._mount = mount

    async def prepare(self) -> Usage:
        """See `StorageDriver.prepare`. Mounts it again when its client died. MountFailed is its own reason."""
        with told_as("mount the pool"):
            found = await in_thread(self._mount.ensure)
        return replace(await super().prepare(), access=self._mount.access(found))


def make(pool: PoolRef, settings: StorageSettings, _: Secrets) -> StorageDriver:
    """The driver for a pool; what the entry point names."""
    export = pool.parameters.nfs
    if export is None:
        raise StorageError("The pool names no export (parameters.nfs).", reason="BadParameters", retryable=False)
    # A directory of the export, so that nothing is ever made below a mountpoint on which nothing is mounted.
    target = Path(settings.mounts) / uid_of(pool.uid)
    here = pool.model_copy(
        update={"driver": PoolDriver.DIR, "parameters": PoolParameters(path=str(target / "kumulus"), shared=True)}
    )
    mount = Mount(export, target, pool.name)

    def made() -> StorageDriver:
        mount.ensure()
        return NfsStorage(mount, here, settings.model_copy(update={"roots": (PurePosixPath(target),)}))

    return apart(NfsStorage, made, str(target), pool.name, mount.release)
