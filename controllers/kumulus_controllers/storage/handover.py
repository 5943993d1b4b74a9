"""Which hosts keep the parts of a snapshot, and what changes when their volumes go to other hosts. Pure.

In a pool that hosts share a part is kept by the host that sees to its volume. When that host is to give the volume up, it
gives up what is kept of it as well: the part is taken out of the order there, or the whole order goes and says `retain`.
No host takes the volume before that is done; whoever has it then gets an order for its part, of what was taken.

That a part was let go is on record before anybody is asked to let it go: an order that is gone removed what it kept if its
host is on record, and left it in the pool if none is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kumulus.api.host import WorkOrder, WorkOrderSpec
from kumulus.api.pool_order import PoolRef
from kumulus.api.snapshot_order import SnapshotItem
from kumulus_controllers.orders import host_of
from kumulus_controllers.storage.volume_keeper import HANDING_OVER
from kumulus_controllers.storage.volume_plan import Lack


@dataclass(frozen=True, slots=True)
class Part:
    """What is kept of one volume."""

    snapshot: str
    """Uid of the VolumeSnapshot."""
    volume: str
    """Uid of the volume."""
    name: str
    """Name of the volume."""
    pool: PoolRef | None
    secret: str | None = None
    """Name of the Secret with the volume's passphrase, on the host that has the volume."""
    there: bool = True
    """The volume exists."""
    home: str | None = None
    """The host that sees to the volume, and is not asked to give it up."""
    host: str | None = None
    """The host that has the part, as recorded; None: it was let go, or never ordered."""
    host_there: bool = True
    """That host exists, and is not about to leave what it has to others."""

    @property
    def shared(self) -> bool:
        """Whether it may be kept by one host as well as by another."""
        return self.pool is not None and self.pool.shared

    @property
    def let_go(self) -> bool:
        """Whether it is in the pool, and no host was asked to remove it."""
        return self.shared and self.there and (self.host is None or not self.host_there)


@dataclass(frozen=True, slots=True)
class LetGo:
    """A host gives parts up."""

    order: WorkOrder
    stays: tuple[SnapshotItem, ...]
    """What it goes on keeping. Nothing: the order goes."""


@dataclass(frozen=True, slots=True)
class TakeUp:
    """A host gets parts."""

    host: str
    order: WorkOrder | None
    """That of the same snapshot which the host has already."""
    items: tuple[SnapshotItem, ...]


@dataclass(frozen=True, slots=True)
class Moves:
    """What is to be done, and what is said meanwhile."""

    let_go: tuple[LetGo, ...] = ()
    take_up: tuple[TakeUp, ...] = ()
    lack: Lack | None = None


def moves(parts: Sequence[Part], orders: Sequence[WorkOrder], *, taken: bool) -> Moves:
    """What is to change, so that every part is where its volume is. Nothing of parts in pools of one host.

    A snapshot that was not taken is let go as a whole: what is of one instant is taken by one host.
    """
    leaving = tuple(
        LetGo(order, tuple(item for item in items_of(order) if _stays(item, order, parts)) if taken else ())
        for order in orders
        if any(not _stays(item, order, parts) for item in items_of(order))
    )
    return Moves(leaving, _coming(parts, orders) if taken else (), _under_way(parts, orders, taken=taken))


def kept_by(part: Part, orders: Sequence[WorkOrder], plan: Moves) -> str | None:
    """The host that has the part, for the record; None when it is to be let go."""
    order = order_of(part, orders)
    if order is None:
        return part.host
    leaving = next((move for move in plan.let_go if move.order is order), None)
    stays = leaving is None or any(item.snapshot == part.snapshot for item in leaving.stays)
    return host_of(order) if stays else None


def order_of(part: Part, orders: Sequence[WorkOrder]) -> WorkOrder | None:
    """The order that the part is in."""
    return next((order for order in orders if any(i.snapshot == part.snapshot for i in items_of(order))), None)


def items_of(order: WorkOrder) -> tuple[SnapshotItem, ...]:
    """What it keeps."""
    return order.spec.snapshot.items if order.spec.snapshot is not None else ()


def _stays(item: SnapshotItem, order: WorkOrder, parts: Sequence[Part]) -> bool:
    """Whether a part stays in an order that it is in."""
    part = next((one for one in parts if one.snapshot == item.snapshot), None)
    if part is None or not part.shared:
        return True
    return part.home == host_of(order) and not left(order)


def left(order: WorkOrder) -> bool:
    """Whether its end leaves what it keeps where it is."""
    return order.spec.snapshot is not None and order.spec.snapshot.retain


def _coming(parts: Sequence[Part], orders: Sequence[WorkOrder]) -> tuple[TakeUp, ...]:
    """Parts that no host has, and whose volumes are there."""
    waiting: dict[str, list[SnapshotItem]] = {}
    for part in parts:
        if (
            part.shared
            and part.there
            and part.home is not None
            and part.pool is not None
            and order_of(part, orders) is None
        ):
            waiting.setdefault(part.home, []).append(
                SnapshotItem(snapshot=part.snapshot, volume=part.volume, pool=part.pool, secret=part.secret)
            )
    found = []
    for host, items in sorted(waiting.items()):
        order = next((one for one in orders if host_of(one) == host), None)
        if order is None or not (order.deleting or left(order)):
            found.append(TakeUp(host, order, tuple(items)))
    return tuple(found)


def _under_way(parts: Sequence[Part], orders: Sequence[WorkOrder], *, taken: bool) -> Lack | None:
    names, givers = [], set()
    for part in parts:
        order = order_of(part, orders)
        if not part.shared or not part.there or (order is None and not taken):
            continue
        if order is None:
            names.append(part.name)
        elif part.home != host_of(order) or left(order):
            names.append(part.name)
            givers.add(host_of(order))
    if not names:
        return None
    gives = f" Host {', '.join(sorted(givers))} gives it up first." if givers else ""
    return Lack(
        HANDING_OVER,
        f"Volume {', '.join(names)} goes from one host to another, and what is kept of it follows.{gives}"
        " The volume's conditions say how far that is.",
        stalled=False,
    )


def keeping(spec: WorkOrderSpec, items: Sequence[SnapshotItem], term: int) -> WorkOrderSpec:
    """The order with these parts, which were taken; with none it is to end, and leaves what it has."""
    assert spec.snapshot is not None
    changed = {"items": tuple(items), "taken": True} if items else {"retain": True}
    after = spec.snapshot.model_copy(update=changed)
    return spec if after == spec.snapshot else spec.model_copy(update={"snapshot": after, "term": max(term, spec.term)})
