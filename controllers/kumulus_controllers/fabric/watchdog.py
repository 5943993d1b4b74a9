"""The watchdog that a host has of its own: it is armed while the Host asks for it, and its word is taken (ADR 44).

The promise is the work order `watchdog`: it is there, nobody has asked for its end, and the agent says of it as it is now that it is
Ready. From then on the host's machines end `seconds` after the beginning of the last renewal of its Lease that succeeded. A renewal
begins before anybody can see it, so whoever waits for as long, and a margin, from when it *saw* the last one, waits for longer.
"""

from __future__ import annotations

from kumulus.api.base import ObjectRef
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.host import WatchdogOrder, WorkOrder, WorkOrderSpec, WorkState, WorkType
from kumulus.api.order_names import WATCHDOG_ORDER
from kumulus.kube.lease import Lease
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Enqueue, Services
from kumulus.runtime.result import Done, Gone, Result, Wait
from kumulus_controllers.fabric.liveness import DEFAULT_DURATION
from kumulus_controllers.ordering import Ordering
from kumulus_controllers.orders import host_of, work_orders

MARGIN_SECONDS = 5.0
"""In which the watchdog ends what runs, and clocks may go apart."""


def promised(order: WorkOrder | None) -> int | None:
    """After how many seconds of silence the host has ended its machines; None: nobody says so. Pure."""
    if order is None or order.deleting or order.spec.watchdog is None:
        return None
    said = order.status
    current = (said.observed_generation or 0) >= order.metadata.generation
    return order.spec.watchdog.seconds if current and said.state is WorkState.READY else None


def left(seconds: int, silent: float) -> float:
    """For how many seconds the host must be silent still, before its machines have ended for certain; 0: they have. `silent` is
    counted from when its last renewal was seen, on the clock of who has seen it. Pure."""
    return max(0.0, seconds + MARGIN_SECONDS - silent)


class WatchdogReconciler:
    """Orders hosts that ask for it to arm their watchdogs."""

    name = "watchdog"

    def __init__(self, services: Services) -> None:
        self._services = services
        self._hosts = services.caches.store(Host)
        self._orders = work_orders(services.caches)
        self._ordering = Ordering(services, self._orders)
        self._leases = services.caches.reflected(Lease, fields=f"metadata.name={LEASE_NAME}")

    def attach(self, enqueue: Enqueue) -> None:
        """Hosts that change; orders that were taken away."""

        def host_changed(before: Host | None, after: Host | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(None, item.name))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if after is None and before is not None and before.spec.type is WorkType.WATCHDOG:
                enqueue(Key(None, host_of(before)))

        self._hosts.listen(host_changed)
        self._orders.listen(order_changed)

    def everything(self) -> list[Key]:
        """All hosts."""
        return self._hosts.keys()

    async def reconcile(self, key: Key) -> Result:
        """One pass over a host."""
        host = self._hosts.get(key.name)
        if host is None:
            return Gone()
        namespace = host_namespace(host.name)
        order = self._orders.get(WATCHDOG_ORDER, namespace)
        if host.paused or host.status.namespace is None or host.deleting:
            return Done()
        if not host.spec.fencing.watchdog:
            if order is not None:
                await self._ordering.end(order)
            return Done()
        if order is not None:
            return Wait("Ending", 2.0) if order.deleting else Done()
        lease = self._leases.get(LEASE_NAME, namespace)
        if lease is None:
            return Wait("NeverHeardOf", 10.0)
        spec = WorkOrderSpec(
            type=WorkType.WATCHDOG,
            for_=ObjectRef(kind=Host.KIND.kind, name=host.name, uid=host.uid),
            term=self._services.term(),
            watchdog=WatchdogOrder(seconds=int(lease.spec.lease_duration_seconds or DEFAULT_DURATION)),
        )
        await self._ordering.make(WATCHDOG_ORDER, host.name, spec)
        return Done()
