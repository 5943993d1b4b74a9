"""What images in a Ceph pool are called. Pure; all names derive from uids, or are digests.

image-<image uid>               an image, with its record and the protected snapshot `base`
volume-<volume uid>             a volume
disk-<machine uid>-<disk id>    a disk of a machine
new-<any of these>              what is being made; it becomes the above when it is whole, by a rename
<volume>@copy-<uid>             what the volume or the image of that uid is being copied from
<volume>@snap-<snapshot uid>    a snapshot of it, protected when volumes are linked to it

kumulus-host.<digest>           no image but an object: the heartbeat of a host
"""

from __future__ import annotations

import hashlib
import re

BASE = "base"
"""Snapshot of an image that disks and volumes stand on."""

_UID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SNAPSHOT = re.compile(f"snap-{_UID}")
_OURS = re.compile(rf"(new-)?((image|volume)-{_UID}|disk-{_UID}-{_UID})")


def image(uid: str) -> str:
    """Of an image."""
    return f"image-{uid}"


def volume(uid: str) -> str:
    """Of a volume."""
    return f"volume-{uid}"


def disk(owner: str, disk_id: str) -> str:
    """Of a machine's disk."""
    return f"{disks(owner)}{disk_id}"


def disks(owner: str) -> str:
    """What the names of a machine's disks begin with."""
    return f"disk-{owner}-"


def making(name: str) -> str:
    """While it is not whole."""
    return f"new-{name}"


def settled(name: str) -> str:
    """What that is called which is being made under this name; a name of what is whole is that."""
    return name.removeprefix("new-")


def copied(target: str) -> str:
    """The snapshot of a volume from which the volume or the image of that uid is copied."""
    return f"copy-{target}"


def snapshot(uid: str) -> str:
    """Of a snapshot."""
    return f"snap-{uid}"


def heartbeat(host: str) -> str:
    """Of the object with a host's heartbeat."""
    return f"kumulus-host.{hashlib.sha256(host.encode()).hexdigest()[:32]}"


def target_of(snapshot: str) -> str | None:
    """Uid of the volume or image that is copied from this snapshot; None for snapshots of another kind."""
    return snapshot.removeprefix("copy-") if snapshot.startswith("copy-") else None


def is_snapshot(name: str) -> bool:
    """Whether this is what a snapshot of a volume is called."""
    return _SNAPSHOT.fullmatch(name) is not None


def is_ours(name: str) -> bool:
    """Whether a driver like this one made it."""
    return _OURS.fullmatch(name) is not None
