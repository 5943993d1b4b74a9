"""Pools that keep by themselves what a volume has at one instant, and put nothing on top of it.

A driver of such a pool offers this beside `StorageDriver`: a guest does not go over to a layer of such a volume,
but is halted while the pool keeps what it has. One whose snapshots are layers has no use for it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Instants(Protocol):
    """A pool whose volumes stay what they are when a snapshot is taken of them."""

    @property
    def instant_seconds(self) -> float:
        """A guest may be halted for so long until its volumes are kept; whatever takes longer will fail."""

    async def keep_instant(self, volume: str, snapshot: str) -> None:
        """Keep what the volume has now as the snapshot, which was begun `live`; nobody writes to it meanwhile. It is as
        far as after `begin_snapshot` for a volume that nobody uses: `confirm_snapshot` is next. May be repeated: what was
        kept before and not confirmed is given up.

        Raises `StorageError` within the time a question has; then nobody knows what is kept.
        """
