"""What is left in a pool that is to be emptied, and why: the condition `Emptied`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kumulus.api.base import ConditionStatus
from kumulus.api.host import WorkOrder
from kumulus.api.storage import StoragePool, Volume
from kumulus.runtime.conditions import Fact
from kumulus_controllers.orders import host_of
from kumulus_controllers.storage.move_plan import MOVING, PINNED, WAITING_FOR_TURN

EMPTIED = "Emptied"
"""Type of the condition."""

IN_POOL = "in-pool"
"""Index of volumes by the pool that they are in."""

NAMED = 5
"""So many things are named for each reason."""

_TODO = {
    PINNED: "spec.pool names this pool: leave it out, or name another",
    "HasSnapshots": "delete their snapshots, as their conditions say",
    "NoPoolFits": "no other pool of their hosts takes them: make room, or give the hosts another pool",
    "HostUnknown": "their hosts do not answer",
    "VolumeFailed": "they cannot be used: see their conditions",
}
"""What to do about volumes that stay, by the reason that their condition Moving gives."""


def in_pool(volume: Volume) -> Iterable[str]:
    """The pool that a volume is in, for the index."""
    return (volume.status.pool,) if volume.status.pool is not None else ()


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a pool, as far as it is known."""

    volumes: Sequence[Volume] = ()
    """Those whose record says that they are in it."""
    orders: Sequence[WorkOrder] = ()
    """Orders of machines, volumes and snapshots that have data in it, or will have."""
    images: Mapping[str, str | None] = field(default_factory=dict)
    """By name and host: why they stay, None when they are about to go."""
    unowned: int = 0
    """Files that nobody owns."""
    silent: tuple[str, ...] = ()
    """Hosts on which the pool cannot be looked at."""


def emptied(pool: StoragePool, contents: Contents) -> Fact | None:
    """Whether nothing of Kumulus is left in a pool that is to be emptied; None for one that is not."""
    if not pool.spec.maintenance:
        return None
    blocked: list[str] = []
    going: list[str] = []
    _volumes(pool, contents, blocked, going)
    _machines(pool, contents.orders, blocked)
    _images(contents.images, blocked, going)
    left = blocked + going
    if left:
        return Fact(EMPTIED, False, "Blocked" if blocked else "Emptying", f"Left in it: {'; '.join(left)}.")
    if contents.silent:
        names = ", ".join(contents.silent[:NAMED])
        return Fact(
            EMPTIED, False, "HostsSilent", f"What is left on {names} is not known: the pool is not ready there."
        )
    if contents.unowned:
        return Fact(
            EMPTIED,
            False,
            "UnownedData",
            f"Left in it: {contents.unowned} files that nobody owns, which are never touched. kumulusctl pool unowned"
            f" {pool.name} lists them: make volumes of what is needed, or copy it away.",
        )
    return Fact(EMPTIED, True, "Empty", "Nothing of Kumulus is left in it.")


def _volumes(pool: StoragePool, contents: Contents, blocked: list[str], going: list[str]) -> None:
    by_reason: dict[str, list[str]] = {}
    moving = waiting = deleting = 0
    for volume in contents.volumes:
        condition = volume.status.condition(MOVING)
        if volume.deleting:
            deleting += 1
        elif condition is not None and condition.status is ConditionStatus.TRUE:
            moving += 1
        elif condition is None or condition.reason in (WAITING_FOR_TURN, "VolumeBusy"):
            waiting += 1
        else:
            by_reason.setdefault(condition.reason, []).append(f"{volume.namespace}/{volume.name}")
    for reason, names in sorted(by_reason.items()):
        todo = _TODO.get(reason, "see their condition Moving")
        blocked.append(f"{_count(len(names), 'volume')} ({reason}: {_some(names)}: {todo})")
    known = {volume.uid for volume in contents.volumes}
    for count, what in ((moving, "being moved"), (waiting, "waiting to be moved"), (deleting, "being deleted")):
        if count:
            going.append(f"{_count(count, 'volume')} {what}")
    others = [order for order in contents.orders if order.spec.disk is not None and order.spec.for_.uid not in known]
    coming = [order for order in others if order.spec.disk is not None and order.spec.disk.pool.uid != pool.uid]
    if coming:
        going.append(f"{_count(len(coming), 'volume')} that had begun to come here ({_some(map(_whose, coming))})")
    if len(others) > len(coming):
        going.append(f"{_count(len(others) - len(coming), 'volume')} that hosts have not let go of")
    snapshots = [order for order in contents.orders if order.spec.snapshot is not None]
    if snapshots:
        blocked.append(f"{_count(len(snapshots), 'snapshot')} ({_some(map(_whose, snapshots))})")


def _machines(pool: StoragePool, orders: Iterable[WorkOrder], blocked: list[str]) -> None:
    disks, discs = [], []
    for order in orders:
        instance = order.spec.instance
        if instance is None:
            continue
        if any(disk.volume is None and disk.pool.uid == pool.uid for disk in instance.disks):
            disks.append(_whose(order))
        if any(drive.pool is not None and drive.pool.uid == pool.uid for drive in instance.drives):
            discs.append(_whose(order))
    if disks:
        blocked.append(
            f"ephemeral disks of {_count(len(disks), 'machine')} ({_some(disks)}), which go with their machines: delete"
            " those, and make them anew"
        )
    if discs:
        blocked.append(f"discs in drives of {_count(len(discs), 'machine')} ({_some(discs)}): take them out")


def _images(images: Mapping[str, str | None], blocked: list[str], going: list[str]) -> None:
    kept = {name: why for name, why in images.items() if why not in (None, "in use")}
    if kept:
        named = _some(f"{name}: {why}" for name, why in kept.items())
        blocked.append(f"{_count(len(kept), 'image')} ({named}): delete them, or bring them into another pool first")
    if len(images) > len(kept):
        going.append(f"{_count(len(images) - len(kept), 'image')} that go when no disk here is made of them")


def _whose(order: WorkOrder) -> str:
    return f"{order.spec.for_.namespace}/{order.spec.for_.name}"


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:NAMED]) + (", ..." if len(listed) > NAMED else "")


def image_name(order: WorkOrder) -> str:
    """Of an image's order, for people: an image can be there on several hosts."""
    ref = order.spec.for_
    return f"{ref.namespace}/{ref.name} on {host_of(order)}" if ref.namespace else f"{ref.name} on {host_of(order)}"
