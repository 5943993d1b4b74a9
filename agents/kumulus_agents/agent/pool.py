"""Pools on this host: performs work orders of type Pool."""

from __future__ import annotations

import random

import structlog

from kumulus.api.host import PoolFacts, WorkOrder, WorkOrderStatus, WorkState
from kumulus.runtime.result import Done, Requeue, Result
from kumulus_agents.agent.orders import Orders
from kumulus_agents.agent.pools import Pools
from kumulus_agents.storage.protocol import StorageError

log = structlog.get_logger(__name__)

REFRESH = 60.0
STEP = 64 * 1024 * 1024
"""What is in use is reported in steps of so many bytes, so that it changes seldom."""


def steady(used: int, before: int | None) -> int:
    """What to report as in use: what was reported as long as that is nearly so, else rounded up to a whole step. Pure."""
    if before is not None and abs(used - before) < STEP:
        return before
    return -(-used // STEP) * STEP


class PoolPresences:
    """The pools this host can use."""

    def __init__(self, orders: Orders, pools: Pools) -> None:
        self._orders = orders
        self._pools = pools

    def forget(self, name: str) -> None:
        """The order of that name is gone."""

    async def perform(self, order: WorkOrder) -> Result:
        """One pass over a pool. Raises `KubeError`."""
        if order.spec.pool is None:
            return Done()
        pool = order.spec.pool.pool
        if order.deleting:
            self._pools.forget(pool.uid)
            await self._orders.release(order)
            return Done()
        try:
            usage = await self._pools.driver(pool).prepare()
        except StorageError as error:
            if order.status.reason != error.reason:
                log.warning("pool not usable", pool=pool.name, reason=error.reason, error=str(error))
            status = WorkOrderStatus(
                observed_generation=order.metadata.generation,
                state=WorkState.FAILED,
                reason=error.reason,
                message=str(error)[:4000],
            )
        else:
            before = order.status.pool.used if order.status.pool is not None else None
            status = WorkOrderStatus(
                observed_generation=order.metadata.generation,
                state=WorkState.READY,
                pool=PoolFacts(
                    capacity=usage.capacity, used=min(steady(usage.used, before), usage.capacity), access=usage.access
                ),
            )
        await self._orders.report(order, status)
        return Requeue(REFRESH * random.uniform(0.9, 1.1))  # noqa: S311 - spread, not secret
