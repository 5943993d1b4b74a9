"""Commands of LVM, as lists of arguments. Pure.

Each names its volume group and what in it, asks nothing, and reads nothing but the host's own lvm.conf. Names are
made by `names`, or were bounded by admission; sizes are whole extents.
"""

from __future__ import annotations

from collections.abc import Iterable

FIELDS = (
    "lv_name",
    "lv_size",
    "lv_tags",
    "segtype",
    "pool_lv",
    "origin",
    "data_percent",
    "metadata_percent",
    "zero",
    "lv_active",
    "lv_permissions",
    "lv_device_open",
    "lv_health_status",
    "vg_extent_size",
)
"""What is asked about each logical volume; `report` reads it."""


def report(group: str) -> list[str]:
    """All there is in the volume group, as JSON, in bytes."""
    return ["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", ",".join(FIELDS), group]


def create(group: str, pool: str, name: str, size: int, tags: Iterable[str]) -> list[str]:
    """A thin volume of zeros, active. What earlier users of its blocks wrote is not there: the pool zeroes."""
    return [
        *("lvcreate", "--yes", "--type", "thin", "--thinpool", pool, "--virtualsize", f"{size}b", "--name", name),
        *("--wipesignatures", "n", "--setactivationskip", "n", *_tags("--addtag", tags), group),
    ]


def snapshot(group: str, origin: str, name: str, tags: Iterable[str], *, kept: bool = False) -> list[str]:
    """A thin snapshot: active and to be written, or `kept`: read-only and not active."""
    return [
        *("lvcreate", "--yes", "--snapshot", "--name", name, "--permission", "r" if kept else "rw"),
        *("--setactivationskip", "y" if kept else "n", *_tags("--addtag", tags), f"{group}/{origin}"),
    ]


def extend(group: str, name: str, size: int) -> list[str]:
    """Make it so large; it is smaller."""
    return ["lvextend", "--yes", "--size", f"{size}b", f"{group}/{name}"]


def activate(group: str, name: str) -> list[str]:
    """Have a device of it."""
    return ["lvchange", "--yes", "--activate", "y", "--ignoreactivationskip", f"{group}/{name}"]


def deactivate(group: str, name: str) -> list[str]:
    """Have no device of it."""
    return ["lvchange", "--yes", "--activate", "n", f"{group}/{name}"]


def mark(group: str, name: str, add: Iterable[str], remove: Iterable[str] = ()) -> list[str]:
    """Change its tags, all at once."""
    return ["lvchange", "--yes", *_tags("--deltag", remove), *_tags("--addtag", add), f"{group}/{name}"]


def seal(group: str, name: str) -> list[str]:
    """Nobody writes to it any more."""
    return ["lvchange", "--yes", "--permission", "r", f"{group}/{name}"]


def remove(group: str, name: str) -> list[str]:
    """Remove it, unless somebody has it open; its blocks are the pool's again."""
    return ["lvremove", "--yes", f"{group}/{name}"]


def device(group: str, name: str) -> str:
    """Path of its device, while it is active."""
    return f"/dev/{group}/{name}"


def _tags(option: str, tags: Iterable[str]) -> list[str]:
    return [part for tag in tags for part in (option, tag)]
