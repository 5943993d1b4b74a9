"""Machines that are off leave a host that is emptied or removed: their order there ends, and they are placed like new ones.

At most one running copy: the order ends only after a live look that it says off and was answered so, and the machine is placed
anew only when no order of it is left (`placing`).
"""

from __future__ import annotations

import structlog

from kumulus.runtime.reconciler import Services
from kumulus.runtime.result import Result, Wait
from kumulus_controllers import order_secret
from kumulus_controllers.compute import eviction
from kumulus_controllers.compute.machines import Machines
from kumulus_controllers.compute.problem import Problem
from kumulus_controllers.compute.resolve import placement_request, resolve
from kumulus_controllers.compute.scope import Scope
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import at_rest, host_of
from kumulus_controllers.planning.fleet import Fleet
from kumulus_controllers.planning.views import Refusal

log = structlog.get_logger(__name__)


class Leaving:
    """Ends the orders of machines that may be placed elsewhere."""

    def __init__(self, services: Services, fleet: Fleet, known: Machines) -> None:
        self._services = services
        self._fleet = fleet
        self._known = known
        self._ordering = Ordering(services, known.orders)

    async def leave(self, scope: Scope) -> Result | None:
        """End the order of a machine that leaves; None: it does not, or no host takes it, and it stays as it is."""
        vm, order = scope.vm, scope.order
        if order is None or order.deleting or not eviction.leaves(scope):
            return None
        resolution = resolve(scope)
        if isinstance(resolution, Problem) or isinstance(
            self._fleet.place(placement_request(scope, resolution)), Refusal
        ):
            return None
        live = await self._ordering.live(order.name, host_of(order))
        if live is None or live.uid != order.uid or not at_rest(live):
            return Wait("CacheBehind", 2.0)
        log.info("a machine that is off leaves", namespace=vm.namespace, name=vm.name, host=host_of(order))
        await order_secret.take_back_seed(self._services.client, live)
        await self._ordering.end(live)
        return Wait("Leaves", 5.0)
