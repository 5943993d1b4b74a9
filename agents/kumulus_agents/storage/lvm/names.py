"""What logical volumes are called. Pure; all names derive from uids, without their hyphens, which LVM doubles.

image.<image uid>                   an image, read-only
volume.<volume uid>                 a volume
volume.<volume uid>.<request uid>   the same volume, since that request to revert it
disk.<machine uid>.<disk id>        a disk of a machine
snap.<volume uid>.<snapshot uid>    a snapshot of a volume
copy.<what it is of>.<volume uid>   what the volume of that uid is being copied from

What a name says is so only for logical volumes that bear the mark of what is whole (`tags`).
"""

from __future__ import annotations


def image(uid: str) -> str:
    """Of an image."""
    return f"image.{_short(uid)}"


def volume(uid: str, request: str | None = None) -> str:
    """Of a volume; since `request`, when it was reverted."""
    return f"volume.{_short(uid)}" + (f".{_short(request)}" if request is not None else "")


def is_of_volume(name: str, uid: str) -> bool:
    """Whether it is the volume of that uid, before or after it was reverted."""
    return name == volume(uid) or name.startswith(f"{volume(uid)}.")


def disk(owner: str, disk_id: str) -> str:
    """Of a machine's disk."""
    return f"{disks(owner)}{_short(disk_id)}"


def disks(owner: str) -> str:
    """What the names of a machine's disks begin with."""
    return f"disk.{_short(owner)}."


def snapshot(of: str, uid: str) -> str:
    """Of a volume's snapshot."""
    return f"{snapshots(of)}{_short(uid)}"


def snapshots(of: str) -> str:
    """What the names of a volume's snapshots begin with."""
    return f"snap.{_short(of)}."


def copied(of: str, target: str) -> str:
    """What the volume `target` is being copied from: `of` is a uid, too."""
    return f"copy.{_short(of)}.{_short(target)}"


def is_copied(name: str, target: str) -> bool:
    """Whether the volume of that uid was being copied from it."""
    return name.startswith("copy.") and name.endswith(f".{_short(target)}")


def _short(uid: str) -> str:
    return uid.replace("-", "")
