"""A volume's layers: which stands on which, which is written, which keeps a snapshot. Pure.

A snapshot is a layer that is written no more; what is written after it is in a layer above. A layer that
nobody needs any more is removed when nothing stands on it, and merged with the one layer that does:
what is above goes down into it, so that whatever stands below never changes its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Taken:
    """That a snapshot was taken."""

    at: str
    """The instant (RFC 3339)."""
    indications: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot of a volume."""

    layer: str
    taken: Taken | None = None
    """None: it was begun. Whoever finds it so begins anew, for a machine may still write to the layer."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of one volume, by id. The first one's id is the volume's uid, another's is a uid of its own."""

    active: str
    """The one that is written."""
    parents: Mapping[str, str | None]
    """Every layer, and the one it stands on; None for the first."""
    snapshots: Mapping[str, Kept] = field(default_factory=dict)
    """By uid of the VolumeSnapshot."""
    merging: tuple[str, str] | None = None
    """A merge that was begun: an emulator may be at it, or done with it."""

    @classmethod
    def first(cls, volume: str) -> Layers:
        """A volume that has one layer."""
        return cls(volume, {volume: None})

    def chain(self, layer: str) -> tuple[str, ...]:
        """The layer and all below it, from the top."""
        found = [layer]
        while (below := self.parents[found[-1]]) is not None and below not in found:
            found.append(below)
        return tuple(found)

    def children(self, layer: str) -> tuple[str, ...]:
        """What stands on the layer."""
        return tuple(sorted(one for one, below in self.parents.items() if below == layer))

    def frozen(self, snapshot: str, layer: str) -> Layers:
        """A snapshot is begun: what is active stays as it is, `layer` is written from now on."""
        return replace(
            self,
            active=layer,
            parents={**self.parents, layer: self.active},
            snapshots={**self.snapshots, snapshot: Kept(self.active)},
        )

    def reverted(self, snapshot: str, layer: str) -> Layers:
        """What is active is given up: `layer`, which stands on the snapshot, is written from now on."""
        return replace(self, active=layer, parents={**self.parents, layer: self.snapshots[snapshot].layer})

    def confirmed(self, snapshot: str, taken: Taken) -> Layers:
        """The snapshot was taken."""
        kept = replace(self.snapshots[snapshot], taken=taken)
        return replace(self, snapshots={**self.snapshots, snapshot: kept})

    def forgotten(self, snapshot: str) -> Layers:
        """The snapshot is wanted no more. Its layer stays until it is collected."""
        return replace(self, snapshots={uid: kept for uid, kept in self.snapshots.items() if uid != snapshot})

    def adopted(self, layer: str) -> Layers:
        """An emulator writes to `layer`, whatever was noted: a snapshot that was begun did not come to be, or two layers
        were merged. What stands on it is given up. Raises `ValueError` when that is needed: `layer` is a snapshot's."""
        if layer == self.active:
            return self
        above = self.chain(self.active)
        if layer not in above:
            raise ValueError("not a layer that the active one stands on")
        gone = set(above[: above.index(layer)])
        if gone & self._kept() or set(self.children(layer)) - gone or layer in self._kept():
            raise ValueError("a layer that must not be written")
        return replace(
            self,
            active=layer,
            merging=None if gone & set(self.merging or ()) else self.merging,
            parents={one: below for one, below in self.parents.items() if one not in gone},
            snapshots={uid: kept for uid, kept in self.snapshots.items() if kept.layer not in {layer, *gone}},
        )

    def useless(self, held: Set[str]) -> tuple[str, ...]:
        """Layers that can be removed at once: neither written nor a snapshot's nor stood on; `held` are stood on by clones."""
        needed = {self.active, *held, *(kept.layer for kept in self.snapshots.values())}
        return tuple(one for one in sorted(self.parents) if one not in needed and not self.children(one))

    def without(self, layer: str) -> Layers:
        """A layer that nothing stands on is gone."""
        return replace(self, parents={one: below for one, below in self.parents.items() if one != layer})

    def next_merge(self, held: Set[str]) -> tuple[str, str] | None:
        """Two layers to merge: the upper one, which goes, and the lower one, which nobody needs as it is.

        What a layer of `held` stands on stays as it is: the emulator of a clone may have it open. One that was begun comes
        first, the active one last.
        """
        if self.merging is not None and self.parents.get(self.merging[0]) == self.merging[1]:
            return self.merging
        still = {below for one in held if one in self.parents for below in self.chain(one)}
        needed = {self.active, *still, *(kept.layer for kept in self.snapshots.values())}
        found = []
        for lower in sorted(self.parents):
            above = self.children(lower)
            if lower not in needed and len(above) == 1:
                found.append((above[0] == self.active, above[0], lower))
        if not found:
            return None
        _, upper, lower = min(found)
        return upper, lower

    def merged(self, upper: str, lower: str) -> Layers:
        """All that the upper layer had is in the lower one, which takes its place."""
        if upper not in self.parents:
            return self
        return Layers(
            active=lower if self.active == upper else self.active,
            parents={one: lower if below == upper else below for one, below in self.parents.items() if one != upper},
            snapshots={
                uid: replace(kept, layer=lower) if kept.layer == upper else kept for uid, kept in self.snapshots.items()
            },
        )

    def _kept(self) -> set[str]:
        return {kept.layer for kept in self.snapshots.values() if kept.taken is not None}


def to_record(layers: Layers) -> dict[str, object]:
    """As a record has it."""
    return {
        "active": layers.active,
        **({"merging": list(layers.merging)} if layers.merging is not None else {}),
        "layers": {one: {"parent": below} for one, below in layers.parents.items()},
        "snapshots": {
            uid: {
                "layer": kept.layer,
                **(
                    {"takenAt": kept.taken.at, "indications": list(kept.taken.indications)}
                    if kept.taken is not None
                    else {}
                ),
            }
            for uid, kept in layers.snapshots.items()
        },
    }


def from_record(volume: str, record: Mapping[str, object]) -> Layers:
    """What a record says; one that is older than snapshots has the first layer alone. Raises `ValueError` for nonsense."""
    match record:
        case {"active": str(active), "layers": dict(layers), "snapshots": dict(snapshots)}:
            parents = {str(one): _parent(entry) for one, entry in layers.items()}
            kept = {str(uid): _kept(entry) for uid, entry in snapshots.items()}
        case {"layers": _} | {"active": _} | {"snapshots": _}:
            raise ValueError("the record is cut short")
        case _:
            return Layers.first(volume)
    known = {active, *(one.layer for one in kept.values()), *(below for below in parents.values() if below is not None)}
    if known - set(parents):
        raise ValueError("the record names a layer that it has not got")
    match record.get("merging"):
        case [str(upper), str(lower)]:
            return Layers(active, parents, kept, (upper, lower))
        case _:
            return Layers(active, parents, kept)


def _parent(entry: object) -> str | None:
    match entry:
        case {"parent": str(below)}:
            return below
        case {"parent": None}:
            return None
    raise ValueError("the record has a layer without a parent")


def _kept(entry: object) -> Kept:
    match entry:
        case {"layer": str(layer), "takenAt": str(at), "indications": list(indications)}:
            return Kept(layer, Taken(at, tuple(str(one) for one in indications)))
        case {"layer": str(layer)}:
            return Kept(layer)
    raise ValueError("the record has a snapshot without a layer")
