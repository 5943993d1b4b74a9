"""In which pool a volume is whose order says that it is to be moved.

The record of the pool that it is brought to decides, and the emulator of a machine that is on: should that
use what has come to the pool, and an agent have died before the record said so, the record is made first.
"""

from __future__ import annotations

from collections.abc import Callable

from kumulus.api.host import WorkOrder
from kumulus.api.pool_order import PoolRef
from kumulus.api.volume_order import Move, VolumeOrder
from kumulus_agents.agent.missing import Missing
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.pools import Pools
from kumulus_agents.hypervisor.domain import DomainState
from kumulus_agents.hypervisor.protocol import Hypervisor
from kumulus_agents.storage.moving import MovableVolumes, unsupported
from kumulus_agents.storage.protocol import StorageError


class Whereabouts:
    """Of this host's volumes."""

    def __init__(
        self, orders: Orders, pools: Pools, hypervisor: Hypervisor, *, complete: Callable[[], bool] = lambda: True
    ) -> None:
        """`complete` says whether all orders of this host are known."""
        self._orders = orders
        self._pools = pools
        self._hypervisor = hypervisor
        self._complete = complete

    async def of(self, order: WorkOrder) -> PoolRef:
        """The pool that the volume of this Disk order is in. Raises `StorageError`, `HypervisorError`."""
        pool, wanted = _spec(order)
        if (move := move_of(order)) is None:
            return pool
        target = self._pools.driver(move.pool)
        if not isinstance(target, MovableVolumes) or (arrival := await target.arrival(wanted.uid)) is None:
            return pool
        if not arrival.whole:
            if not await self._uses(wanted.uid, arrival.source.path):
                return pool
            await target.settle_arrival(wanted.uid, await self.movable(pool).traits(wanted.uid), name_of_move(order))
        elif arrival.move != name_of_move(order):
            raise StorageError(
                f"The pool {move.pool.name} has a file with this volume's uid that this move did not bring there. Look at"
                " it, and take it away.",
                reason="VolumeConflict",
                retryable=False,
            )
        return move.pool

    async def demand(self, volume: str, pool: PoolRef) -> None:
        """A machine is to open the volume in that pool. Raises `Missing` unless that is where it is."""
        self._demand_all()
        for order in self._orders.keepers(volume):
            if move_of(order) is not None and (await self.of(order)).uid != pool.uid:
                raise Missing("VolumeNotReady", f"the volume is not in pool {pool.name}, it was moved")

    async def adopt(self, volume: str, pool: PoolRef, path: str) -> None:
        """A machine that is on writes to this file of the volume, and is about to go on; its order names that pool.

        Raises `StorageError`, `HypervisorError`, `Missing`.
        """
        self._demand_all()
        for order in self._orders.keepers(volume):
            if order.spec.disk is not None:
                pool = await self.of(order)
        await self._pools.driver(pool).adopt(volume, path)

    def moving(self, volume: str) -> bool:
        """Whether an order says that the volume is to be moved."""
        return any(move_of(order) is not None for order in self._orders.keepers(volume))

    def movable(self, pool: PoolRef) -> MovableVolumes:
        """The pool's driver. Raises `StorageError(reason="MoveUnsupported")`."""
        driver = self._pools.driver(pool)
        if not isinstance(driver, MovableVolumes):
            raise unsupported(f"Volumes are not moved into or out of pools like {pool.name} yet")
        return driver

    def _demand_all(self) -> None:
        if not self._complete():
            raise Missing("VolumeNotReady", "not all orders of this host are known yet")

    async def _uses(self, volume: str, path: str) -> bool:
        """Whether a machine that is on writes to the file."""
        for domain in await self._hypervisor.domains():
            if domain.state is not DomainState.STOPPED and any(
                (disk.volume, disk.path) == (volume, path) for disk in domain.disks
            ):
                return True
        return False


def move_of(order: WorkOrder) -> Move | None:
    """Where a Disk order wants its volume, unless that is where it was all along. Pure."""
    disk = order.spec.disk
    move = disk.volume.move if disk is not None and disk.volume is not None else None
    return move if disk is not None and move is not None and move.pool.uid != disk.pool.uid else None


def name_of_move(order: WorkOrder) -> str:
    """What a pool's record calls the move: from which pool, and how often the volume was handed over before. Pure."""
    pool, wanted = _spec(order)
    return f"{pool.uid} {wanted.epoch}"


def _spec(order: WorkOrder) -> tuple[PoolRef, VolumeOrder]:
    disk = order.spec.disk
    if disk is None or disk.volume is None:
        raise ValueError(f"work order {order.name} is about no volume")
    return disk.pool, disk.volume
