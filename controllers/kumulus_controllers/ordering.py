"""Work orders as reconcilers write them: made once, looked for live, changed, taken back. By kind and name of the order."""

from __future__ import annotations

import structlog

from kumulus.api.base import FINALIZER, Kind
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder, WorkOrderSpec
from kumulus.kube.errors import AlreadyExists
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key, Store
from kumulus.runtime.reconciler import Services
from kumulus_controllers.orders import FOR_NAME
from kumulus_controllers.status import drop_finalizer

log = structlog.get_logger(__name__)


class Ordering:
    """Writes to work orders. Every answer goes into the cache at once."""

    def __init__(self, services: Services, orders: Store[WorkOrder]) -> None:
        self._services = services
        self._orders = orders

    async def make(self, name: str, host: str, spec: WorkOrderSpec) -> bool:
        """Have the order there. Of one of that name that is there already only note is taken. True when the cache did not
        know it."""
        client, namespace = self._services.client, host_namespace(host)
        body = {"metadata": {"name": name, "finalizers": [FINALIZER]}, "spec": spec.to_json()}
        try:
            raw = await client.create(WorkOrder.KIND, body, namespace)
        except AlreadyExists:
            raw = await client.get(WorkOrder.KIND, name, namespace)
        return self._orders.apply(raw)

    async def change(self, order: WorkOrder, spec: WorkOrderSpec) -> WorkOrder:
        """Give it that spec. Raises `errors.Conflict` when anybody changed it meanwhile."""
        patch = merge_patch(order.spec.to_json(), spec.to_json())
        if not patch:
            return order
        change = {"metadata": {"resourceVersion": order.metadata.resource_version}, "spec": patch}
        raw = await self._services.client.patch(WorkOrder.KIND, order.name, change, order.namespace)
        self._orders.apply(raw)
        return WorkOrder.parse(raw)

    async def end(self, order: WorkOrder, *, unchanged: bool = False) -> None:
        """Ask for its end. Asked already: nothing. With `unchanged` only as it is known here (else `errors.Conflict`)."""
        if order.deleting:
            return
        version = order.metadata.resource_version if unchanged else None
        raw = await self._services.client.delete(
            WorkOrder.KIND, order.name, order.namespace, uid=order.uid, version=version
        )
        if raw is None or "spec" not in raw:
            self._orders.remove(Key(order.namespace, order.name), order.uid)
        else:
            self._orders.apply(raw)

    async def abandon(self, order: WorkOrder) -> None:
        """Let an order go that is to end, and wait no longer for its host."""
        await drop_finalizer(self._services.client, self._orders, order)

    async def live(self, name: str, host: str) -> WorkOrder | None:
        """Before acting on the absence of an order that this process has not seen go: is there really none?"""
        raw = await self._services.client.find(WorkOrder.KIND, name, host_namespace(host))
        if raw is None:
            return None
        self._orders.apply(raw)
        return WorkOrder.parse(raw)

    async def orphans(self, kind: Kind, key: Key, uid: str | None) -> list[WorkOrder]:
        """The orders for an object of that name that is no more, by a live look; `uid` is that of the one there is."""
        found = []
        for order in self._orders.by(FOR_NAME, f"{kind.kind}/{key.namespace or ''}/{key.name}"):
            if order.spec.for_.uid == uid:
                continue
            live = await self._services.client.find(kind, key.name, key.namespace)
            if live is None or live["metadata"]["uid"] != order.spec.for_.uid:
                log.info("a work order is for what is gone", kind=kind.kind, namespace=key.namespace, name=key.name)
                found.append(order)
        return found
