"""Pools on this host: performs work orders of type Pool."""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.api.pool_order import PoolFacts, PoolRef, UnownedFile
from kumulus.runtime.result import Done, Requeue, Result
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.ownership import owned
from kumulus_agents.agent.pools import Pools
from kumulus_agents.storage.adoption import Adopting, Unclaimed, Unowned
from kumulus_agents.storage.protocol import StorageDriver, StorageError

log = structlog.get_logger(__name__)

REFRESH = 60.0
REFRESH_SHARED = 10.0
"""Of a pool that is reached over the network: its server may stall."""
AGAIN = 5.0
"""A pool that is away is looked for so often, in seconds."""
STEP = 64 * 1024 * 1024
"""What is in use is reported in steps of so many bytes, so that it changes seldom."""


def steady(used: int, before: int | None, capacity: int | None = None) -> int:
    """What to report as in use: what was reported as long as that is nearly so, else rounded up to a whole step. Pure.

    A step is at most a hundredth of `capacity`, so that percents of small pools are right.
    """
    step = STEP if capacity is None else min(STEP, max(capacity // 100, 4096))
    if before is not None and abs(used - before) < step:
        return before
    return -(-used // step) * step


def steady_capacity(capacity: int, before: int | None) -> int:
    """What to report as capacity: a cluster's moves with what is in it, by its own bookkeeping. Pure."""
    return before if before is not None and abs(capacity - before) < min(STEP, max(capacity // 100, 1)) else capacity


class PoolPresences:
    """The pools this host can use."""

    def __init__(
        self, orders: Orders, pools: Pools, *, complete: Callable[[], bool], returned: Callable[[], None]
    ) -> None:
        """`complete` says whether all orders of this host are known; `returned` is told when a pool can be used again."""
        self._orders = orders
        self._pools = pools
        self._complete = complete
        self._returned = returned

    def forget(self, name: str) -> None:
        """The order of that name is gone."""

    async def perform(self, order: WorkOrder) -> Result:
        """One pass over a pool. Raises `KubeError`."""
        if order.spec.pool is None:
            return Done()
        pool = order.spec.pool.pool
        if order.deleting:
            await self._pools.release(pool)
            await self._orders.release(order)
            return Done()
        if not self._complete():
            return Requeue(1.0)
        try:
            driver = self._pools.driver(pool)
            usage = await driver.prepare()
            unclaimed = await self._unclaimed(driver, pool)
        except StorageError as error:
            if order.status.reason != error.reason:
                log.warning("pool not usable", pool=pool.name, reason=error.reason, error=str(error))
            met = order.status.pool is not None and order.status.pool.met
            status = WorkOrderStatus(
                observed_generation=order.metadata.generation,
                state=WorkState.FAILED,
                reason=error.reason,
                message=str(error)[:4000],
                pool=PoolFacts(met=True) if met else None,
            )
            await self._orders.report(order, status)
            return Requeue(AGAIN)
        else:
            before = order.status.pool.used if order.status.pool is not None else None
            capacity = steady_capacity(usage.capacity, order.status.pool.capacity if order.status.pool else None)
            status = WorkOrderStatus(
                observed_generation=order.metadata.generation,
                state=WorkState.READY,
                pool=PoolFacts(
                    met=True,
                    capacity=capacity,
                    used=min(steady(usage.used, before, capacity), capacity),
                    unowned=tuple(map(_told, unclaimed.files)),
                    unowned_count=unclaimed.count,
                    unowned_bytes=unclaimed.size,
                    access=usage.access,
                ),
            )
        returned = order.status.state is WorkState.FAILED
        await self._orders.report(order, status)
        if returned:
            self._returned()
        every = REFRESH_SHARED if pool.shared else REFRESH
        return Requeue(every * random.uniform(0.9, 1.1))  # noqa: S311 - spread, not secret

    async def _unclaimed(self, driver: StorageDriver, pool: PoolRef) -> Unclaimed:
        """What nobody owns. Of a pool that other hosts use as well, this host cannot say that."""
        if pool.shared or not isinstance(driver, Adopting):
            return Unclaimed((), 0, 0)
        return await driver.unowned(owned(self._orders.store))


def _told(item: Unowned) -> UnownedFile:
    return UnownedFile(
        id=item.id,
        kind=item.kind,
        name=item.name,
        size=item.size,
        virtual_size=item.virtual_size,
        namespace=item.namespace,
        volume=item.volume,
        encrypted=item.encrypted,
    )
