"""Writing status: once a pass, only what differs, and into the cache at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from kumulus.api.base import FINALIZER, Resource, Status
from kumulus.kube.client import KubeClient, Raw
from kumulus.kube.errors import Conflict, NotFound
from kumulus.kube.patching import merge_patch
from kumulus.kube.store import Key, Store

R = TypeVar("R", bound=Resource)

AMENDED = 4
"""How often a change is made anew of what somebody else has written."""


async def write_status(client: KubeClient, store: Store[Any], item: Resource, before: Status, after: Status) -> bool:
    """Bring `status` from `before` to `after`; False when nothing differed.

    Raises `errors.Conflict` when anybody changed the object since `item` was read: a pass that began with what is no
    longer so must not have the last word, and least of all on a successor of the same name. (The API server does not
    look at the uid in a patch of the status; the version tells both.)
    """
    patch = merge_patch(before.to_json(), after.to_json())
    if not patch:
        return False
    body = {"metadata": {"resourceVersion": item.metadata.resource_version}, "status": patch}
    raw = await client.patch(item.KIND, item.name, body, item.namespace, subresource="status")
    store.apply(raw)
    return True


async def write_report(client: KubeClient, store: Store[Any], item: Any, after: Status) -> None:
    """Bring the status of `item`, or what the cache has of it by now, to `after`. It is gone, or of its name there is
    another one: nothing. Raises `errors.Conflict`."""
    current = store.get(item.name, item.namespace) or item
    if current.uid != item.uid:
        return
    with suppress(NotFound):
        await write_status(client, store, current, current.status, after)


async def amend(client: KubeClient, store: Store[R], item: R, change: Callable[[R], Raw]) -> None:
    """Write a change that goes with whatever else was written meanwhile: `change` makes it of the object as it is by now.
    The object is gone, or another one has its name: nothing. Raises `errors.Conflict` when others do not stop writing."""
    current: R | None = store.get(item.name, item.namespace) or item
    for last in (False,) * AMENDED + (True,):
        if current is None or current.uid != item.uid:
            return
        metadata, body = {"resourceVersion": current.metadata.resource_version}, change(current)
        try:
            body = {**body, "metadata": {**body.get("metadata", {}), **metadata}}
            store.apply(await client.patch(item.KIND, item.name, body, item.namespace))
        except NotFound:
            return
        except Conflict:
            if last:
                raise
            live = await client.find(item.KIND, item.name, item.namespace)
            current = store.model.parse(live) if live is not None else None
        else:
            return


async def ensure_finalizer(client: KubeClient, store: Store[Any], item: Resource) -> bool:
    """Put our finalizer on it; True when it had to be written."""
    if FINALIZER in item.metadata.finalizers:
        return False
    body: Mapping[str, Any] = {
        "metadata": {
            "resourceVersion": item.metadata.resource_version,
            "finalizers": [*item.metadata.finalizers, FINALIZER],
        }
    }
    store.apply(await client.patch(item.KIND, item.name, body, item.namespace))
    return True


async def drop_finalizer(client: KubeClient, store: Store[Any], item: Resource) -> None:
    """Take our finalizer off, which lets a deleted object go. Gone or off already: nothing."""
    if FINALIZER not in item.metadata.finalizers:
        return
    rest = [finalizer for finalizer in item.metadata.finalizers if finalizer != FINALIZER]
    body = {"metadata": {"resourceVersion": item.metadata.resource_version, "finalizers": rest}}
    try:
        raw = await client.patch(item.KIND, item.name, body, item.namespace)
    except NotFound:
        store.remove(Key(item.namespace, item.name), item.uid)
        return
    if item.deleting and not rest:
        store.remove(Key(item.namespace, item.name), item.uid)
    else:
        store.apply(raw)
