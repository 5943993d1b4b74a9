"""Networks on this host: performs work orders of type Segment."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from kumulus.api.host import WorkOrder, WorkOrderStatus, WorkState
from kumulus.runtime.result import Done, Failed, Requeue, Result
from kumulus_agents.agent.hold import MESSAGE_MAX
from kumulus_agents.agent.networks import Networks
from kumulus_agents.agent.orders import Orders, unfit
from kumulus_agents.network.protocol import NetworkError

log = structlog.get_logger(__name__)

AGAIN = 2.0
"""A network that still has ports is looked at again after so many seconds, should nobody tell."""
IN_USE = "SegmentInUse"


class Segments:
    """The networks of one host."""

    def __init__(self, orders: Orders, networks: Networks, *, arrived: Callable[[str], None]) -> None:
        """`arrived` is told the uid of a network that is here: interfaces may wait for it."""
        self._orders = orders
        self._networks = networks
        self._arrived = arrived

    def forget(self, name: str) -> None:
        """The order of that name is gone."""

    async def perform(self, order: WorkOrder) -> Result:
        """One pass over a network. Raises `KubeError`."""
        segment = order.spec.segment
        if segment is None:
            return Done()
        if (refusal := unfit(order)) is not None:
            await self._orders.report(order, refusal)
            return Done()
        try:
            if order.deleting:
                await self._networks.remove_segment(segment.uid)
                await self._orders.release(order)
                return Done()
            facts = await self._networks.ensure_segment(segment)
        except NetworkError as error:
            if order.deleting and error.reason == IN_USE and self._wanted(segment.uid):
                # A machine came while it went. It stays as it is, and is ordered anew: this order could not be changed any more.
                log.info("network kept for a machine that came", order=order.name)
                await self._orders.release(order)
                return Done()
            return await self._failed(order, error)
        status = WorkOrderStatus(observed_generation=order.metadata.generation, state=WorkState.READY, segment=facts)
        await self._orders.report(order, status)
        self._arrived(segment.uid)
        return Done()

    def _wanted(self, network: str) -> bool:
        """Whether a machine of this host is to have an interface in it, one that is not leaving."""
        machines = (item.spec.instance for item in self._orders.store if not item.deleting)
        return any(nic.network == network for one in machines if one is not None for nic in one.nics)

    async def _failed(self, order: WorkOrder, error: NetworkError) -> Result:
        passing = error.reason == IN_USE
        if not passing and order.status.reason != error.reason:
            log.warning("network not here", order=order.name, reason=error.reason, error=str(error))
        status = WorkOrderStatus(
            observed_generation=order.metadata.generation,
            state=WorkState.WAITING if passing else WorkState.FAILED,
            reason=error.reason,
            message=str(error)[:MESSAGE_MAX],
            segment=order.status.segment,
        )
        await self._orders.report(order, status)
        return Requeue(AGAIN) if passing else Failed(error.reason)
