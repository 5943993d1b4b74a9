"""A simulated pool that keeps instants by itself, as one in Ceph does, beside the usual one of a host."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

from kumulus.api.snapshots import Indication
from kumulus_agents.storage.protocol import StorageDriver, StorageError, StoredSnapshot, StoredVolume
from kumulus_agents.storage.simulated import SimulatedStorage
from tests.unit.agent.host import TestHost

FAR = {
    "uid": str(uuid.uuid5(uuid.NAMESPACE_DNS, "far")),
    "name": "far",
    "driver": "dir",
    "parameters": {"path": "/var/lib/kumulus/pools/far"},
}


async def _nothing() -> None:
    """Nothing happens while it is kept."""


@dataclass
class Kept:
    """What is in that pool; outlives its drivers."""

    snapshots: dict[tuple[str, str], tuple[str, tuple[Indication, ...]] | None] = field(default_factory=dict)
    """By volume and snapshot: when it was taken and how, None when it was only begun."""
    instants: list[str] = field(default_factory=list)
    """Volumes, each time when one was kept while a guest was halted."""
    meanwhile: Callable[[], Awaitable[None]] = _nothing
    """Happens while one is being kept."""


class Keeping:
    """The driver: that of a simulated pool, but for snapshots."""

    instant_seconds = 20.0

    def __init__(self, inner: SimulatedStorage, kept: Kept) -> None:
        self._inner = inner
        self._kept = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def begin_snapshot(self, volume: str, snapshot: str, *, live: bool = False) -> StoredVolume:
        stored = await self._present(volume)
        if self._kept.snapshots.get((volume, snapshot)) is None:
            self._kept.snapshots.pop((volume, snapshot), None)
            if not live:
                self._kept.snapshots[volume, snapshot] = None
        return stored

    async def keep_instant(self, volume: str, snapshot: str) -> None:
        await self._present(volume)
        await self._kept.meanwhile()
        self._kept.instants.append(volume)
        self._kept.snapshots.setdefault((volume, snapshot), None)

    async def snapshot(self, volume: str, snapshot: str) -> StoredSnapshot | None:
        if (volume, snapshot) not in self._kept.snapshots:
            return None
        taken = self._kept.snapshots[volume, snapshot]
        return StoredSnapshot(1 << 30, 0, taken[0], taken[1]) if taken is not None else StoredSnapshot(1 << 30, 0, None)

    async def confirm_snapshot(
        self, volume: str, snapshot: str, taken_at: str, indications: tuple[Indication, ...]
    ) -> StoredSnapshot:
        if (volume, snapshot) not in self._kept.snapshots:
            raise StorageError("The snapshot was not begun.", reason="SnapshotLost", retryable=False)
        if self._kept.snapshots[volume, snapshot] is None:
            self._kept.snapshots[volume, snapshot] = taken_at, indications
        found = await self.snapshot(volume, snapshot)
        assert found is not None
        return found

    async def forget_snapshot(self, volume: str, snapshot: str) -> None:
        self._kept.snapshots.pop((volume, snapshot), None)

    async def _present(self, volume: str) -> StoredVolume:
        if (stored := await self._inner.volume(volume)) is None:
            raise StorageError("The volume is not in the pool.", reason="VolumeNotReady")
        return stored


def far(host: TestHost, kept: Kept, driver: StorageDriver) -> StorageDriver:
    """What a host's agents get in place of a pool's driver: that of the far one keeps instants by itself."""
    simulated = cast("SimulatedStorage", driver)
    if simulated.state is not host.pools.get(str(FAR["uid"])):
        return driver
    return cast("StorageDriver", Keeping(simulated, kept))
