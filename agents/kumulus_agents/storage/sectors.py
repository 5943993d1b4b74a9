"""Sizes of disks: whole sectors. Pure."""

from __future__ import annotations

SECTOR = 512


def whole_sectors(size: int) -> int:
    """Bytes, rounded up to what a disk can have."""
    return -(-size // SECTOR) * SECTOR
