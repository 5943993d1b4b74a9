"""Secrets of pools: operators keep one a pool, and each host of the pool gets a copy in its own namespace.

Read by name and copied; never listed, watched, logged or put into a status. A copy belongs to the pool's work order on
that host and goes with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kumulus.api.host import WorkOrder
from kumulus.api.order_names import pool_secret_name
from kumulus.api.pools import OPERATORS_NAMESPACE, secret_of
from kumulus.api.storage import StoragePool
from kumulus.kube.builtin import SECRET
from kumulus.kube.client import KubeClient
from kumulus_controllers import order_secret

COPY_OF = "kumulus.io/copy-of"
"""Annotation of a copy: uid and version of what it is a copy of."""


class PoolSecrets:
    """Keeps the copies up to date. What it remembers only saves looking."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._copied: dict[str, str] = {}
        """By uid of work order: what its copy is a copy of."""

    def forget(self, order_uid: str) -> None:
        """The work order is gone, and its copy with it."""
        self._copied.pop(order_uid, None)

    async def copy(self, pool: StoragePool, orders: Iterable[WorkOrder]) -> str | None:
        """Have every host of the pool have its Secret as it is now; or what is missing, in a sentence. Raises `KubeError`."""
        name = secret_of(pool.spec.parameters)
        if name is None:
            return None
        source = await self._client.find(SECRET, name, OPERATORS_NAMESPACE)
        if source is None:
            return f"There is no Secret {name} in namespace {OPERATORS_NAMESPACE}: make it, with the key in it."
        version = f"{source['metadata']['uid']}/{source['metadata']['resourceVersion']}"
        for order in orders:
            if not order.deleting and self._copied.get(order.uid) != version:
                await self._put(pool, order, source, version)
                self._copied[order.uid] = version
        return None

    async def _put(self, pool: StoragePool, order: WorkOrder, source: dict[str, Any], version: str) -> None:
        """Replace the copy, unless it is of that version and belongs to that order."""
        content = {"data": source.get("data") or {}}
        body = order_secret.belonging(pool_secret_name(pool.uid), order, content, annotations={COPY_OF: version})

        def same(found: dict[str, Any]) -> bool:
            return bool(found["metadata"].get("annotations", {}).get(COPY_OF) == version)

        await order_secret.give(self._client, body, order, same=same)
