"""The watchdog that a host has of its own: it is armed while the Host asks for it, and its word is taken (ADR 44).

The promise is the work order `watchdog`: it is there, nobody has asked for its end, and the agent says of it as it is now that it is
Ready. From then on the host's machines end `seconds` after the beginning of the last renewal of its Lease that succeeded. A renewal
begins before anybody can see it, so whoever waits for as long, and a margin, from when it *saw* the last one, waits for longer.
"""

from __future__ import annotations

from kumulus.api.base import ConditionStatus, ObjectRef
from kumulus.api.fabric import HOST_NAMESPACE_PREFIX, NOT_ORDERED, Host, HostCondition, host_namespace
from kumulus.api.host import LEASE as LEASE_NAME
from kumulus.api.host import (
    NOT_DISARMED,
    WATCHDOG_LEAST,
    WATCHDOG_MOST,
    WatchdogOrder,
    WorkOrder,
    WorkOrderSpec,
    WorkState,
    WorkType,
)
from kumulus.api.order_names import WATCHDOG_ORDER
from kumulus.kube.lease import Lease
from kumulus.kube.store import Key
from kumulus.runtime.conditions import Fact
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


def wanted(host: Host, order: WorkOrder | None) -> bool:
    """Whether the host's watchdog is to be armed. Not while somebody works on it, who may stop the agent; but of a host that is silent
    the promise stays, for it holds. Pure."""
    if not host.spec.fencing.watchdog:
        return False
    ready = host.status.condition(HostCondition.READY)
    silent = ready is not None and ready.status is ConditionStatus.UNKNOWN
    return host.spec.maintenance is None or (order is not None and silent)


def lasting(lease: Lease | None) -> int | None:
    """For how many seconds it lasts; None: there is none, or no watchdog can be armed for so long. Pure."""
    if lease is None:
        return None
    seconds = int(lease.spec.lease_duration_seconds or DEFAULT_DURATION)
    return seconds if WATCHDOG_LEAST <= seconds <= WATCHDOG_MOST else None


def armed(host: Host, order: WorkOrder | None, lease: Lease | None) -> Fact:
    """The condition WatchdogArmed; without a status when there is no watchdog to speak of. Pure."""
    kind = HostCondition.WATCHDOG_ARMED
    if order is None:
        if host.deleting or not wanted(host, None):
            return Fact(kind, None)
        why = "It is about to be armed."
        if lease is None:
            why = "The agent has not been heard of yet."
        elif lasting(lease) is None:
            why = (
                f"The host's Lease lasts {lease.spec.lease_duration_seconds} s: set lease_seconds of its agent to"
                f" {WATCHDOG_LEAST} to {WATCHDOG_MOST}."
            )
        return Fact(kind, False, NOT_ORDERED, why)
    if order.deleting and order.status.reason != NOT_DISARMED:
        return Fact(kind, True, "Disarming", "It is being disarmed.")
    if (seconds := promised(order)) is not None:
        return Fact(kind, True, "Armed", f"Its machines end {seconds} s after the last renewal of its Lease.")
    why = order.status.message or "Its agent has not said so yet."
    return Fact(kind, False, order.status.reason or "Arming", f"Nothing is started on the host: {why}")


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
        """Hosts that change; orders that were taken away; Leases that come, or last for another time than before."""

        def host_changed(before: Host | None, after: Host | None) -> None:
            item = after or before
            if item is not None:
                enqueue(Key(None, item.name))

        def order_changed(before: WorkOrder | None, after: WorkOrder | None) -> None:
            if after is None and before is not None and before.spec.type is WorkType.WATCHDOG:
                enqueue(Key(None, host_of(before)))

        def lease_changed(before: Lease | None, after: Lease | None) -> None:
            if after is not None and (before is None or lasting(before) != lasting(after)):
                enqueue(Key(None, (after.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX)))

        self._hosts.listen(host_changed)
        self._orders.listen(order_changed)
        self._leases.listen(lease_changed)

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
        if not wanted(host, order):
            if order is not None:
                await self._ordering.end(order)
            return Done()
        lease = self._leases.get(LEASE_NAME, namespace)
        seconds = lasting(lease)
        if order is not None:
            asked = order.spec.watchdog
            if not order.deleting and lease is not None and (asked is None or asked.seconds != seconds):
                await self._ordering.end(order)  # what was promised is not changed: it is taken back, and made anew
                return Wait("LeaseChanged", 2.0)
            return Wait("Ending", 2.0) if order.deleting else Done()
        if seconds is None:
            return Wait("NeverHeardOf" if lease is None else "LeaseUnfit", 10.0)
        spec = WorkOrderSpec(
            type=WorkType.WATCHDOG,
            for_=ObjectRef(kind=Host.KIND.kind, name=host.name, uid=host.uid),
            term=self._services.term(),
            watchdog=WatchdogOrder(seconds=seconds),
        )
        await self._ordering.make(WATCHDOG_ORDER, host.name, spec)
        return Done()
