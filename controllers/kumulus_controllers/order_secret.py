"""Secrets that go with work orders: what a host has to know to carry one out, and nobody else may.

Each belongs to its order, which it goes with, and is never changed. Contents are read live and never cached, logged or
put into a status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kumulus.api.host import WorkOrder
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient, Raw
from kumulus.kube.errors import AlreadyExists


def belonging(name: str, order: WorkOrder, content: Mapping[str, Any], **metadata: Any) -> Raw:
    """The Secret of that name that goes with an order. `content` is its `data` or `stringData`. Pure."""
    owner = {
        "apiVersion": WorkOrder.KIND.api_version,
        "kind": WorkOrder.KIND.kind,
        "name": order.name,
        "uid": order.uid,
    }
    return {"metadata": {"name": name, "ownerReferences": [owner], **metadata}, "immutable": True, **content}


def belongs(secret: Raw, order_uid: str) -> bool:
    """Whether a Secret goes with the order of that uid. Pure."""
    return order_uid in {owner["uid"] for owner in secret["metadata"].get("ownerReferences", ())}


async def give(
    client: KubeClient, body: Raw, order: WorkOrder, *, same: Callable[[Raw], bool] = lambda found: True
) -> bool:
    """Have it beside its order. One that is there and belongs to another order, or is not the `same`, is replaced; True
    when something was written. Raises `errors.AlreadyExists` when somebody else writes it at the same time."""
    name = body["metadata"]["name"]
    try:
        await client.create(SECRET, body, order.namespace)
    except AlreadyExists:
        found = await client.find(SECRET, name, order.namespace)
        if found is not None:
            if belongs(found, order.uid) and same(found):
                return False
            # One of an earlier order goes with that, whenever the garbage collector comes by.
            await client.delete(SECRET, name, order.namespace, uid=found["metadata"]["uid"])
        await client.create(SECRET, body, order.namespace)
    return True


async def take_back_seed(client: KubeClient, order: WorkOrder) -> None:
    """Remove the Secret with the first-boot data of an order that ends: the garbage collector may take half a minute."""
    seed = order.spec.instance.seed if order.spec.instance is not None else None
    if seed is not None and seed.secret is not None:
        await take_back(client, seed.secret, order)


async def take_back(client: KubeClient, name: str, order: WorkOrder) -> None:
    """Remove it, after a live look: one that belongs to another order by now stays. Gone already: nothing."""
    found = await client.find(SECRET, name, order.namespace)
    if found is not None and belongs(found, order.uid):
        await client.delete(SECRET, name, order.namespace, uid=found["metadata"]["uid"])
