"""The host's certificate: performs work orders of type Certificate."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.runtime.result import Done, Result
from kumulus_agents.agent.orders import Orders
from kumulus_agents.transfer.transfer import Transfer

log = structlog.get_logger(__name__)


class Certificates:
    """What this host shows other hosts."""

    def __init__(
        self, orders: Orders, transfer: Transfer | None, *, adopted: Callable[[], None] = lambda: None
    ) -> None:
        """`adopted` is told that another certificate is shown from now on."""
        self._told = adopted
        self._orders = orders
        self._transfer = transfer
        self._adopted: str | None = None

    def forget(self, name: str) -> None:
        """The order of that name is gone. Its certificate ends by itself."""

    async def perform(self, order: WorkOrder) -> Result:
        """Use the certificate. One for another key is of an earlier process and will be replaced. Raises `KubeError`."""
        given = order.spec.certificate
        if order.deleting:
            await self._orders.release(order)
            return Done()
        if given is None or self._transfer is None:
            return Done()
        if self._adopted != given.certificate:
            if not await self._transfer.adopt(given):
                return Done()
            self._adopted = given.certificate
            self._told()
            log.info("certificate for other hosts is in use", order=order.name)
        await self._orders.report(
            order, WorkOrderStatus(observed_generation=order.metadata.generation, state=WorkState.READY)
        )
        return Done()
