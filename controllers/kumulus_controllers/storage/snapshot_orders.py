"""The work orders of snapshots, be they of one volume or of all of a machine's: made, handed from host to host, ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from kumulus.api.base import FORCE_DETACH, Kind
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder, WorkOrderSpec
from kumulus.api.machine_snapshot import VirtualMachineSnapshot
from kumulus.api.order_names import snapshot_order_name, volume_order_name
from kumulus.api.snapshot_order import SnapshotItem
from kumulus.api.volume_order import FORGET_MOST
from kumulus.api.volume_snapshot import VolumeSnapshot
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Services
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import SNAPSHOT_OF, host_of
from kumulus_controllers.storage.handover import LetGo, TakeUp, items_of, keeping, left, moves
from kumulus_controllers.storage.snapshots import Snapshots

log = structlog.get_logger(__name__)

Spec = Callable[[Sequence[SnapshotItem]], WorkOrderSpec]
"""The order of a snapshot for these parts of it."""


def forced(item: VolumeSnapshot | VirtualMachineSnapshot) -> bool:
    """Whether a host that does not answer is not waited for."""
    return item.metadata.annotations.get(FORCE_DETACH) == "true"


class SnapshotOrders:
    """All of them. An order has the name of its snapshot, in the namespace of each host that keeps parts of it."""

    def __init__(self, services: Services, snapshots: Snapshots) -> None:
        self._term = services.term
        self._snapshots = snapshots
        self._orders = snapshots.orders
        self._ordering = Ordering(services, snapshots.orders)

    async def make(self, uid: str, host: str, spec: WorkOrderSpec) -> bool:
        """Have the host take a snapshot, or keep it; True when that was asked just now."""
        return await self._ordering.make(snapshot_order_name(uid), host, spec)

    async def live(self, uid: str, host: str) -> WorkOrder | None:
        """The order on that host, by a look that no cache stands between."""
        return await self._ordering.live(snapshot_order_name(uid), host)

    async def let_go(self, leaving: Sequence[LetGo], *, force: bool = False) -> None:
        """Ask hosts to give parts up. That none of them has the parts is on record."""
        for move in leaving:
            order = await self._ordering.change(move.order, keeping(move.order.spec, move.stays, self._term()))
            if move.stays:
                continue
            if not order.deleting:
                await self._ordering.end(order)
            elif force:
                log.warning("a snapshot is taken from a host that is not waited for", order=order.name)
                await self._ordering.abandon(order)

    async def take_up(self, coming: Sequence[TakeUp], uid: str, spec: Spec) -> None:
        """Have hosts keep parts that nobody has."""
        for move in coming:
            if move.order is None:
                await self.make(uid, move.host, spec(move.items))
            else:
                items = (*items_of(move.order), *move.items)
                await self._ordering.change(move.order, keeping(move.order.spec, items, self._term()))

    async def end(self, order: WorkOrder, item: VolumeSnapshot | VirtualMachineSnapshot) -> None:
        """Ask for the end of what an order keeps; when its host is given up, do not wait for that host."""
        if not order.deleting:
            await self._ordering.end(order)
        elif forced(item):
            await self._note(order)
            await self._ordering.abandon(order)

    async def _note(self, order: WorkOrder) -> None:
        """Should the host come back, the orders of its volumes say that nobody wants the snapshot any more."""
        for part in items_of(order):
            keeper = self._orders.get(volume_order_name(part.volume), order.namespace)
            disk = keeper.spec.disk if keeper is not None else None
            if keeper is None or disk is None or disk.volume is None:
                continue
            forget = tuple(dict.fromkeys((*disk.volume.forget, part.snapshot)))[-FORGET_MOST:]
            volume = disk.volume.model_copy(update={"forget": forget})
            await self._ordering.change(
                keeper,
                keeper.spec.model_copy(
                    update={
                        "disk": disk.model_copy(update={"volume": volume}),
                        "term": max(self._term(), keeper.spec.term),
                    }
                ),
            )

    async def remove_orphans(self, kind: Kind, key: Key, uid: str | None) -> None:
        """End the orders of a snapshot of that name that is no more. Hosts that give the volumes up leave what they have."""
        for order in await self._ordering.orphans(kind, key, uid):
            parts = [self._snapshots.stray(item) for item in items_of(order)]
            await self.let_go(moves(parts, (order,), taken=True).let_go)
            live = self._orders.get(order.name, order.namespace)
            if live is not None and live.uid == order.uid:
                await self._ordering.end(live)

    async def abandoned(self, volume: str, host: str) -> bool:
        """Whether a host that is given up has no order for snapshots of the volume any more. Those that it was asked to
        leave where they are go now."""
        for order in self._kept(volume, host):
            if order.deleting and left(order):
                await self._ordering.abandon(order)
        return not self._kept(volume, host)

    def _kept(self, volume: str, host: str) -> list[WorkOrder]:
        namespace = host_namespace(host)
        return [order for order in self._orders.by(SNAPSHOT_OF, volume) if order.namespace == namespace]

    def elsewhere(self, volume: str, host: str) -> list[str]:
        """Other hosts than this one that have orders for snapshots of the volume."""
        return sorted({host_of(order) for order in self._orders.by(SNAPSHOT_OF, volume)} - {host})
