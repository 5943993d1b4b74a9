"""A host whose deeds a test writes itself, and controllers that run pass by pass and may die between any two writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

from kumulus.api.base import FINALIZER, Kind, Resource
from kumulus.api.fabric import Host, host_namespace
from kumulus.api.host import WorkOrder
from kumulus.api.storage import StoragePool
from kumulus.kube import errors
from kumulus.kube.builtin import NAMESPACE
from kumulus.kube.client import KubeClient
from kumulus.kube.reflector import fill
from kumulus.runtime.reconciler import Caches, Reconciler

Raw = dict[str, Any]
NOW = "2026-01-01T00:00:00Z"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


class Brain:
    """A controller process that has just started."""

    def __init__(self, client: KubeClient, caches: Caches, reconcilers: Sequence[Reconciler]) -> None:
        self.client, self.caches, self.reconcilers = client, caches, reconcilers
        for reconciler in reconcilers:
            reconciler.attach(lambda key, *, urgent=False: None)

    async def passes(self, namespace: str) -> None:
        """Look, and one pass over everything in the namespace."""
        for store in self.caches:
            await fill(store, self.client, store.model.KIND, None)
        for reconciler in self.reconcilers:
            for key in sorted(reconciler.everything(), key=str):
                if key.namespace == namespace:
                    with suppress(errors.Conflict):
                        await reconciler.reconcile(key)


class Stage:
    """A host, and what there is in a namespace and for it. What its agent does is its subclass's to say."""

    made: ClassVar[tuple[type[Resource], ...]] = ()
    """Kinds whose objects are rid of their finalizers in the end."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.client, self.namespace, self.host = client, namespace, f"h-{namespace}"
        self.home = host_namespace(self.host)

    async def put(self, kind: Kind, name: str, spec: Raw, status: Raw, namespace: str | None, **meta: Any) -> Raw:
        """An object with its status."""
        made = await self.client.create(kind, {"metadata": {"name": name, **meta}, "spec": spec}, namespace)
        if status:
            made = await self.client.patch(kind, name, {"status": status}, namespace, subresource="status")
        return made

    async def put_host(self, status: Raw) -> None:
        """The host and its namespace."""
        await self.put(Host.KIND, self.host, {"zone": "z"}, status, None)
        await self.client.create(NAMESPACE, {"metadata": {"name": self.home}})

    async def put_order(self, name: str, spec: Raw, of: Raw, status: Raw) -> None:
        """A work order of the host for an object."""
        meta = of["metadata"]
        for_ = {"kind": of["kind"], **{key: meta[key] for key in ("namespace", "name", "uid") if key in meta}}
        await self.put(WorkOrder.KIND, name, {**spec, "for": for_}, status, self.home, finalizers=[FINALIZER])

    async def orders(self) -> list[Raw]:
        """The host's work orders."""
        return [order async for page, _ in self.client.list_pages(WorkOrder.KIND, self.home) for order in page]

    async def let_go(self, order: Raw) -> None:
        """The agent has done what the order's end asks for."""
        with suppress(errors.NotFound):
            body = {"metadata": {"finalizers": []}}
            await self.client.patch(WorkOrder.KIND, order["metadata"]["name"], body, self.home)

    async def agent(self) -> None:
        """What the host does."""
        raise NotImplementedError

    async def clear(self, *pools: str) -> None:
        """Nothing of it stays, nor of these pools."""
        for order in await self.orders():
            await self.let_go(order)
        for model in self.made:
            async for page, _ in self.client.list_pages(model.KIND, self.namespace):
                for item in page:
                    body = {"metadata": {"finalizers": []}}
                    await self.client.patch(model.KIND, item["metadata"]["name"], body, self.namespace)
        await self.client.delete(NAMESPACE, self.home)
        await self.client.delete(Host.KIND, self.host)
        for pool in pools:
            await self.client.delete(StoragePool.KIND, pool)


async def settle(brain: Brain, stage: Stage, passes: int) -> None:
    """Controllers and host take turns."""
    for _ in range(passes):
        await brain.passes(stage.namespace)
        await stage.agent()
