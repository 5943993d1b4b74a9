"""The orders of volumes: made, renewed, and ended by whoever decided that. Each verb may be repeated."""

from __future__ import annotations

from kumulus.api.base import FINALIZER
from kumulus.api.fabric import host_namespace
from kumulus.api.host import WorkOrder, WorkOrderSpec
from kumulus.api.order_names import volume_order_name
from kumulus.api.storage import Volume
from kumulus.kube.errors import AlreadyExists
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key
from kumulus.runtime.reconciler import Services
from kumulus_controllers import order_secret
from kumulus_controllers.orders import work_orders
from kumulus_controllers.storage.move_plan import Course, directed
from kumulus_controllers.storage.volume_keeper import retaining
from kumulus_controllers.storage.volume_plan import Wanted, renewed, volume_order


class VolumeOrders:
    """Writes the orders of volumes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._orders = work_orders(services.caches)

    def find(self, volume: Volume, host: str) -> WorkOrder | None:
        """The order of a volume on that host, as this process knows it."""
        return self._orders.get(volume_order_name(volume.uid), host_namespace(host))

    async def live(self, volume: Volume, host: str) -> WorkOrder | None:
        """Before acting on the absence of an order that this process has not seen go: is there really none?"""
        namespace = host_namespace(host)
        raw = await self._services.client.find(WorkOrder.KIND, volume_order_name(volume.uid), namespace)
        if raw is None:
            return None
        self._orders.apply(raw)
        return WorkOrder.parse(raw)

    async def ensure(self, volume: Volume, want: Wanted, at: Course) -> bool:
        """Have the host make it, keep it, grow it or move it; True when something was written."""
        client, term = self._services.client, self._services.term()
        order = self.find(volume, at.place.host)
        if order is None:
            name, namespace = volume_order_name(volume.uid), host_namespace(at.place.host)
            body = {
                "metadata": {"name": name, "finalizers": [FINALIZER]},
                "spec": directed(volume_order(volume, want, at.place, term), at, term).to_json(),
            }
            try:
                raw = await client.create(WorkOrder.KIND, body, namespace)
            except AlreadyExists:
                raw = await client.get(WorkOrder.KIND, name, namespace)
            self._orders.apply(raw)
            return True
        if order.deleting:  # a host is letting go of it: whoever is to have it next gets an order of its own
            return False
        size = volume.status.size if at.ask is not None else None
        return await self._change(order, directed(renewed(order.spec, want, term, at=size), at, term))

    async def direct(self, order: WorkOrder, at: Course) -> bool:
        """Tell the host of a move, and of nothing else; True when something was written."""
        return await self._change(order, directed(order.spec, at, self._services.term()))

    async def retain(self, order: WorkOrder, retain: bool) -> WorkOrder:
        """The order, changed so that its end leaves the data where it is, or does not."""
        await self._change(order, retaining(order.spec, retain, self._services.term()))
        return self._orders.get(order.name, order.namespace) or order

    async def _change(self, order: WorkOrder, spec: WorkOrderSpec) -> bool:
        patch = merge_patch(order.spec.to_json(), spec.to_json())
        if not patch:
            return False
        change = {"metadata": {"resourceVersion": order.metadata.resource_version}, "spec": patch}
        self._orders.apply(await self._services.client.patch(WorkOrder.KIND, order.name, change, order.namespace))
        return True

    async def delete(self, order: WorkOrder) -> None:
        """Ask for the end of an order. Its passphrase goes first: the garbage collector may take half a minute."""
        if order.spec.disk is not None and order.spec.disk.volume is not None and order.spec.disk.volume.secret:
            await order_secret.take_back(self._services.client, order.spec.disk.volume.secret, order)
        raw = await self._services.client.delete(WorkOrder.KIND, order.name, order.namespace, uid=order.uid)
        if raw is None or "spec" not in raw:
            self._orders.remove(Key(order.namespace, order.name), order.uid)
        else:
            self._orders.apply(raw)
