"""The store of work orders with the indexes that the subsystems share."""

from __future__ import annotations

from collections.abc import Iterable

from kumulus.api.fabric import HOST_NAMESPACE_PREFIX
from kumulus.api.host import WorkOrder
from kumulus.kube.store import Store
from kumulus.runtime.reconciler import Caches

FOR_UID = "for-uid"
FOR_NAME = "for-name"
NAMESPACE = "namespace"


def _for_uid(order: WorkOrder) -> Iterable[str]:
    return (f"{order.spec.type}/{order.spec.for_.uid}",)


def _for_name(order: WorkOrder) -> Iterable[str]:
    return (f"{order.spec.for_.kind}/{order.spec.for_.namespace or ''}/{order.spec.for_.name}",)


def _namespace(order: WorkOrder) -> Iterable[str]:
    return (order.namespace or "",)


def work_orders(caches: Caches) -> Store[WorkOrder]:
    """The store, indexed by what an order is for and by its namespace."""
    store = caches.store(WorkOrder)
    store.add_index(FOR_UID, _for_uid)
    store.add_index(FOR_NAME, _for_name)
    store.add_index(NAMESPACE, _namespace)
    return store


def host_of(order: WorkOrder) -> str:
    """Name of the host whose namespace the order is in."""
    return (order.namespace or "").removeprefix(HOST_NAMESPACE_PREFIX)
