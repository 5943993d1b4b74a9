"""What is wrong with a thin pool, and how LVM's programs end, in the words of this boundary. Pure."""

from __future__ import annotations

import re

from kumulus_agents.storage.lvm.report import Listing, ThinPool
from kumulus_agents.storage.protocol import StorageError

_TOLD = 200
_WARN = 80
"""Percent."""


class Busy(StorageError):
    """Somebody has it open."""

    def __init__(self) -> None:
        super().__init__("It is open on this host.", reason="Busy")


def no_device_mapper(pool: str) -> StorageError:
    """The kernel cannot have thin pools."""
    return StorageError(
        f"The kernel of this host has no device-mapper with thin pools (dm-thin-pool), which the pool {pool} needs."
        " Boot a kernel that has them, or keep the pool off this host (spec.hostSelector) and use one of the driver dir"
        " here.",
        reason="DriverUnsupported",
        retryable=False,
    )


def no_tool(pool: str, program: str, package: str) -> StorageError:
    """A program is not there."""
    return StorageError(
        f"This host lacks the program {program}, which the pool {pool} needs. Install the package {package}.",
        reason="ToolsMissing",
    )


def no_group(pool: str, group: str) -> StorageError:
    """LVM does not know the volume group."""
    return StorageError(
        f"This host has no volume group {group}, which the pool {pool} is in. Create it there (`vgcreate`), or look whether"
        " its disks are there and LVM may use them (`vgs`, `lvmdevices`).",
        reason="VolumeGroupMissing",
    )


def no_thin_pool(pool: str, group: str, thin_pool: str) -> StorageError:
    """The volume group has none of that name."""
    return StorageError(
        f"The volume group {group} has no thin pool {thin_pool}, which the pool {pool} is in. Create it on this host:"
        f" `lvcreate --type thin-pool --zero y --extents 90%FREE --name {thin_pool} {group}`.",
        reason="ThinPoolMissing",
    )


def stalled(pool: str, seconds: float) -> StorageError:
    """LVM does not end."""
    return StorageError(
        f"LVM did not answer for the pool {pool} within {seconds:.0f} s. Look whether the disks of its volume group answer,"
        " and whether another LVM command hangs. It is tried again.",
        reason="PoolStalled",
    )


def usable(listing: Listing, pool: str, group: str, thin_pool: str) -> ThinPool:
    """The thin pool, when volumes may be in it. Raises `StorageError`."""
    found = listing.pool
    if found is None:
        raise no_thin_pool(pool, group, thin_pool)
    if not found.zeroes:
        raise StorageError(
            f"The thin pool {group}/{thin_pool} does not zero the blocks it gives out, so a machine could read what another"
            f" one wrote. Have it do so: `lvchange --zero y {group}/{thin_pool}`.",
            reason="ThinPoolNotZeroing",
        )
    if found.health in ("failed", "metadata_read_only", "unknown"):
        raise StorageError(
            f"The thin pool {group}/{thin_pool} is broken: LVM says {found.health}. Repair it (`lvconvert --repair`,"
            " lvmthin(7)).",
            reason="ThinPoolFailed",
        )
    return found


def room(found: ThinPool, needed: int, pool: str) -> None:
    """Nothing, when so many bytes can be written to the thin pool. Raises `StorageError(reason="NoSpace")`."""
    if found.short_of_metadata:
        raise StorageError(
            f"The pool {pool} has no room for metadata ({found.metadata_percent} % of it in use). Extend that of its thin"
            " pool (`lvextend --poolmetadatasize`).",
            reason="NoSpace",
        )
    if needed > found.free:
        raise StorageError(
            f"The pool {pool} is full: {needed} bytes are needed, {found.free} are free. Free space in it, extend its thin"
            " pool (`lvextend`) or choose another pool.",
            reason="NoSpace",
        )


def warning(found: ThinPool, pool: str) -> str | None:
    """What should be said of a thin pool that is usable, in a sentence; None when all is well."""
    if found.health:
        return f"The thin pool says {found.health}. Free space in the pool {pool} or extend it (`lvextend`)."
    if found.metadata_percent >= _WARN:
        return (
            f"{found.metadata_percent} % of the metadata of the pool {pool} is in use. Extend it"
            " (`lvextend --poolmetadatasize`) before it is full."
        )
    return None


def judged(status: int, errors: str, pool: str, group: str) -> StorageError | None:
    """The error for a command of LVM that ended with that status; None when it was done."""
    if status == 0:
        return None
    if f'Volume group "{group}" not found' in errors or f"Cannot process volume group {group}" in errors:
        return no_group(pool, group)
    if "device-mapper kernel driver" in errors or "kernel device-mapper driver" in errors:
        return no_device_mapper(pool)
    if re.search(r"reached threshold|Insufficient (free|suitable) |No space left on device|out of data space", errors):
        return StorageError(
            f"The pool {pool} is full. Free space in it, extend its thin pool (`lvextend`, `--poolmetadatasize` for its"
            " metadata) or choose another pool.",
            reason="NoSpace",
        )
    if re.search(r"\bin use\b|is used by another device|Device or resource busy", errors):
        return Busy()
    return StorageError(
        f"LVM could not do it in the pool {pool} (status {status}): {_said(errors)}", reason="PoolFailed"
    )


def judged_copy(status: int, errors: str, pool: str) -> StorageError | None:
    """The same for qemu-img."""
    if status == 0:
        return None
    if "No space left on device" in errors:
        return StorageError(
            f"The pool {pool} is full. Free space in it, extend its thin pool (`lvextend`) or choose another pool.",
            reason="NoSpace",
        )
    return StorageError(
        f"Could not copy data in the pool {pool}: qemu-img ended with status {status}. {_said(errors)}",
        reason="PoolFailed",
    )


def _said(errors: str) -> str:
    """What it said, without warnings, in one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip() and "WARNING" not in line]
    return "; ".join(lines)[:_TOLD] or "it did not say why."
