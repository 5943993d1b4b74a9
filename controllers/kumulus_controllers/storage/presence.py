"""A pool on hosts: which ones have it, and what they have to know of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kumulus.api.fabric import Host
from kumulus.api.pool_order import PoolRef
from kumulus.api.storage import StoragePool


def pool_ref(pool: StoragePool) -> PoolRef:
    """What a driver has to know of a pool."""
    return PoolRef(uid=pool.uid, name=pool.name, driver=pool.spec.driver, parameters=pool.spec.parameters)


def belongs(pool: StoragePool, host: Host) -> bool:
    """Whether the pool is on that host."""
    return (
        not host.deleting
        and host.status.namespace is not None
        and (pool.spec.zone is None or pool.spec.zone == host.spec.zone)
        and all(host.metadata.labels.get(key) == value for key, value in pool.spec.host_selector.items())
    )


def together(pool: StoragePool, on_hosts: Sequence[int]) -> int:
    """What hosts say of a pool, as one number: of one that they share they all speak of the same bytes."""
    return max(on_hosts, default=0) if pool.spec.shared else sum(on_hosts)
