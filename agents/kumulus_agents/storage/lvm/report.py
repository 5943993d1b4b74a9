"""What `lvs` reports about a volume group, read into facts. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from kumulus_agents.storage.lvm import names
from kumulus_agents.storage.lvm.tags import Record, Tag

_SEVERE = Decimal(95)
"""Percent of a thin pool's metadata from which on nothing is made in it: a pool without room there stops for all."""


@dataclass(frozen=True, slots=True)
class Logical:
    """A thin volume of the pool."""

    name: str
    size: int
    """Bytes; whole extents."""
    origin: str
    """Name of what it is a snapshot of, while that is there; else empty."""
    mapped: int
    """Bytes that it takes, shared ones included; 0 when it is not active."""
    active: bool
    writable: bool
    open: bool
    """Somebody has its device open."""
    record: Record

    @property
    def disk_size(self) -> int:
        """Bytes of the disk that was asked for."""
        return min(self.record.number(Tag.SIZE) or self.size, self.size)

    @property
    def used(self) -> int:
        """Bytes that it takes, as far as that is known."""
        return self.mapped or self.record.number(Tag.USED) or 0


@dataclass(frozen=True, slots=True)
class ThinPool:
    """The thin pool."""

    size: int
    used: int
    metadata_percent: Decimal
    zeroes: bool
    """Blocks are zeroed before somebody else has them."""
    active: bool
    health: str
    """Empty, or what is wrong in LVM's words: failed, out_of_data, metadata_read_only."""

    @property
    def free(self) -> int:
        """Bytes."""
        return max(self.size - self.used, 0)

    @property
    def short_of_metadata(self) -> bool:
        """Whether nothing more should be made in it."""
        return self.metadata_percent >= _SEVERE


@dataclass(frozen=True, slots=True)
class Listing:
    """What there is in a thin pool, read at once."""

    pool: ThinPool | None
    """None: the volume group has no thin pool of that name."""
    extent: int
    volumes: Mapping[str, Logical]

    def __iter__(self) -> Iterator[Logical]:
        return iter(self.volumes.values())

    def get(self, name: str) -> Logical | None:
        """The one of that name, whole or not."""
        return self.volumes.get(name)

    def whole(self, name: str) -> Logical | None:
        """The one of that name, if it is what its name says."""
        found = self.volumes.get(name)
        return found if found is not None and found.record.whole else None

    def volume(self, uid: str) -> Logical | None:
        """What is the volume of that uid: of those that are whole, the one that no other one replaces."""
        found = [one for one in self.of_volume(uid) if one.record.whole]
        replaced = {one.record.one(Tag.REPLACES) for one in found}
        current = [one for one in found if one.name not in replaced]
        return current[0] if len(current) == 1 else None

    def of_volume(self, uid: str) -> list[Logical]:
        """All that is, was or was to become the volume of that uid."""
        return [one for one in self if names.is_of_volume(one.name, uid)]

    def snapshots(self, volume: str) -> list[Logical]:
        """Snapshots of that volume, taken or begun."""
        return [one for one in self if one.name.startswith(names.snapshots(volume))]

    def standing_on(self, name: str, *, but_volume: str | None = None) -> int:
        """How many were made of it and share its blocks, without the volume of that uid."""
        found = [one for one in self if one.origin == name and not one.name.startswith("copy.")]
        return sum(but_volume is None or not names.is_of_volume(one.name, but_volume) for one in found)

    def extents(self, size: int) -> int:
        """Bytes, rounded up to what a logical volume can have."""
        return -(-size // self.extent) * self.extent


def read(output: bytes, thin_pool: str) -> Listing:
    """From the output of `commands.report`. Raises `ValueError` when that is not what it should be."""
    try:
        rows = json.loads(output)["report"][0]["lv"]
        extent = int(rows[0]["vg_extent_size"]) if rows else 1
        pool: ThinPool | None = None
        volumes = {}
        for row in rows:
            if row["segtype"] == "thin-pool" and row["lv_name"] == thin_pool:
                pool = _pool(row)
            elif row["segtype"] == "thin" and row["pool_lv"] == thin_pool:
                volumes[row["lv_name"]] = _logical(row)
    except (KeyError, IndexError, TypeError, InvalidOperation) as error:
        raise ValueError("not a report of lvs") from error
    return Listing(pool, extent, volumes)


def _pool(row: Mapping[str, str]) -> ThinPool:
    size = int(row["lv_size"])
    return ThinPool(
        size=size,
        used=_share(size, row["data_percent"]),
        metadata_percent=Decimal(row["metadata_percent"] or 0),
        zeroes=row["zero"] == "zero",
        active=row["lv_active"] == "active",
        health=row["lv_health_status"],
    )


def _logical(row: Mapping[str, str]) -> Logical:
    size = int(row["lv_size"])
    return Logical(
        name=row["lv_name"],
        size=size,
        origin=row["origin"],
        mapped=_share(size, row["data_percent"]),
        active=row["lv_active"] == "active",
        writable=row["lv_permissions"].startswith("writ"),
        open=row["lv_device_open"] == "open",
        record=Record.of(row["lv_tags"].split(",")),
    )


def _share(size: int, percent: str) -> int:
    """Of an LV that is not active LVM does not know it, and says nothing."""
    return int(size * Decimal(percent or 0) / 100)
