"""What the verbs for a pool in Ceph work with, and that no two of them are in each other's way."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from kumulus.api.pool_order import PoolRef
from kumulus_agents.storage.fetch import Fetcher
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.rbd.arrivals import RbdArrivals
from kumulus_agents.storage.rbd.cluster import Cluster
from kumulus_agents.storage.rbd.contents import RbdContents, being_copied
from kumulus_agents.storage.rbd.images import RbdImages
from kumulus_agents.storage.rbd.intake import RbdIntake
from kumulus_agents.storage.rbd.keepers import RbdKeepers
from kumulus_agents.storage.rbd.snapshots import RbdSnapshots
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings


class RbdParts:
    """A pool with its locks, and what does the work in it. Belongs to one event loop."""

    def __init__(
        self, pool: PoolRef, settings: StorageSettings, secrets: Secrets, *, fetcher: Fetcher | None = None
    ) -> None:
        if pool.parameters.rbd is None:
            raise StorageError("The pool's order has no parameters for rbd.", reason="BadParameters", retryable=False)
        self._name = pool.name
        self._namespace = pool.parameters.rbd.namespace
        self._settings = settings
        self._cluster = Cluster(pool, pool.parameters.rbd, settings, secrets)
        self._images = RbdImages(self._cluster)
        self._keepers = RbdKeepers(self._images)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._snapshots = RbdSnapshots(self._images)
        self._contents = RbdContents(self._cluster, self._images, self._snapshots)
        self._intake = RbdIntake(pool, settings, self._cluster, self._images, self._contents, fetcher)
        self._arrivals = RbdArrivals(self._cluster, self._images, settings, settings.scratch / pool.uid)

    def _refuse_copied(self, uid: str) -> None:
        if self._contents.is_read(uid):
            raise being_copied()

    def _lock(self, what: str) -> asyncio.Lock:
        return self._locks.setdefault(what, asyncio.Lock())
