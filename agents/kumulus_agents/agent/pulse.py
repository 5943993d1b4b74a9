"""Leaves this host's heartbeat in the pools that it shares with others, so that these can say that it is alive (ADR 39).

Whatever a pool does, nothing here follows from it: one that is slow, or away, has no heartbeat.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterable

import structlog

from kumulus.api.host import WorkOrder, WorkState
from kumulus.api.pool_order import PoolRef
from kumulus_agents.agent.pools import Pools
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.pulse import Pulsed

log = structlog.get_logger(__name__)


def beating(orders: Iterable[WorkOrder]) -> list[PoolRef]:
    """The pools in which the host leaves its heartbeat: those it shares, and can use. Pure."""
    return [
        order.spec.pool.pool
        for order in orders
        if order.spec.pool is not None
        and order.spec.pool.pool.shared
        and not order.deleting
        and order.status.state is WorkState.READY
    ]


class Pulse:
    """One host's."""

    def __init__(self, host: str, orders: Callable[[], Iterable[WorkOrder]], pools: Pools, *, every: float) -> None:
        """`every` in seconds."""
        self._host = host
        self._every = every
        self._orders = orders
        self._pools = pools
        self._life = secrets.token_hex(6)
        self._count = itertools.count(1)
        self._busy: set[str] = set()
        """Uids of pools that have not answered the last beat yet."""

    async def run(self) -> None:
        """Beat until cancelled. A pool that does not answer holds up no other, and is not asked again before it has."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                for pool in beating(self._orders()):
                    if pool.uid not in self._busy:
                        self._busy.add(pool.uid)
                        tasks.create_task(self._beat(pool))
                await asyncio.sleep(self._every)

    async def _beat(self, pool: PoolRef) -> None:
        try:
            driver = self._pools.driver(pool)
            if isinstance(driver, Pulsed):
                await driver.beat(self._host, f"{self._life}-{next(self._count)}")
        except StorageError as error:
            log.debug("no heartbeat in a pool", pool=pool.name, reason=error.reason)
        except Exception:
            log.exception("no heartbeat in a pool", pool=pool.name)
        finally:
            self._busy.discard(pool.uid)
