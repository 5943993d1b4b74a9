"""What drivers of every kind refuse, in the same words. Pure."""

from __future__ import annotations

from kumulus_agents.storage.protocol import StorageError


def no_volume() -> StorageError:
    """There is none of that uid."""
    return StorageError("The volume is not in the pool.", reason="VolumeNotReady")


def no_snapshot() -> StorageError:
    """The volume is not known to have it, or it was not confirmed."""
    return StorageError("The volume has no such snapshot.", reason="SnapshotNotReady")


def a_disc(source_format: str) -> StorageError:
    """Of an image of that format no volume is made."""
    return StorageError(
        f"The volume's image is a disc ({source_format}), of which no volume is made. Name an image of a disk.",
        reason="ImageNotADisk",
        retryable=False,
    )


def linked_thick() -> StorageError:
    """What stands on a snapshot cannot have all of its space at once."""
    return StorageError(
        "A volume of a thick class cannot be linked to a snapshot. Copy the snapshot in full, or take a thin class.",
        reason="LinkedThick",
        retryable=False,
    )
