"""Sizes of disks, in bytes: whole sectors, never less than what is in them, never smaller than before. Pure."""

from __future__ import annotations

from kumulus_agents.storage.protocol import StorageError

SECTOR = 512


def whole_sectors(size: int) -> int:
    """Bytes, rounded up to what a disk can have."""
    return -(-size // SECTOR) * SECTOR


def at_least(size: int | None, least: int, what: str, origin: str) -> int:
    """The size that is asked for, in whole sectors; that of its origin when none is. Raises DiskTooSmall."""
    if size is not None and size < least:
        raise StorageError(
            f"The {what}'s size of {size} bytes is less than the {least} bytes of its {origin}. Ask for a larger {what}.",
            reason="DiskTooSmall",
            retryable=False,
        )
    return whole_sectors(size if size is not None else least)


def of_blank(size: int | None) -> int:
    """The size of a volume that begins with nothing, in whole sectors. Raises SizeMissing."""
    if size is None:
        raise StorageError("A blank volume needs a size.", reason="SizeMissing", retryable=False)
    return whole_sectors(size)


def grown(now: int, size: int) -> int | None:
    """What a volume of `now` bytes is to grow to, in whole sectors; None when it has that. Raises ShrinkRefused."""
    wanted = whole_sectors(size)
    if now > wanted:
        raise StorageError(
            f"The volume has {now} bytes; it cannot be made smaller, to {size} bytes."
            " Copy what it has to a smaller one.",
            reason="ShrinkRefused",
            retryable=False,
        )
    return wanted if now < wanted else None


def check_grown(now: int, wanted: int) -> None:
    """A volume that was to grow has grown. Raises VolumeNotGrown."""
    if now < wanted:
        raise StorageError("The volume did not grow, although nothing failed.", reason="VolumeNotGrown")
