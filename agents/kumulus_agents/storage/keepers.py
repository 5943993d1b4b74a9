"""Which host sees to a volume of a pool that hosts share: marks that are compared. Pure."""

from __future__ import annotations

from kumulus_agents.storage.protocol import StorageError


def refuse_older(marked: tuple[int, str] | None, host: str, epoch: int) -> None:
    """Raise `StorageError(reason="VolumeElsewhere")` unless the volume may be marked as this host's, of that epoch.

    `marked` is the epoch and the host of the mark that is there.
    """
    if marked is None or marked[0] < epoch or marked == (epoch, host):
        return
    raise StorageError(
        f"Host {marked[1]} sees to the volume now, by a newer order than this one. The controllers will take this order"
        " back; if it stays, ask your operator to look at their log.",
        reason="VolumeElsewhere",
    )
