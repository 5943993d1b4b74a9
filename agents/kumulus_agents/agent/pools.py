"""The storage drivers of this host: one object a pool, made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable

from kumulus.api.host import PoolRef
from kumulus_agents.storage.presence import Expecting
from kumulus_agents.storage.protocol import StorageDriver
from kumulus_agents.storage.secrets import Secrets

PoolFactory = Callable[[PoolRef, Secrets], StorageDriver]
"""Makes the driver of a pool. Raises `StorageError` when it cannot exist on this host."""


class Pools:
    """Drivers by pool. Driver and parameters of a pool never change."""

    def __init__(self, factory: PoolFactory, secrets: Secrets, *, met: Callable[[str], bool] = lambda _: False) -> None:
        """`met` says of a pool's uid whether this host had it before."""
        self._factory = factory
        self._secrets = secrets
        self._met = met
        self._drivers: dict[str, StorageDriver] = {}

    def driver(self, pool: PoolRef) -> StorageDriver:
        """The driver of that pool. Raises `StorageError`."""
        driver = self._drivers.get(pool.uid)
        if driver is None:
            driver = self._factory(pool, self._secrets)
            if self._met(pool.uid) and isinstance(driver, Expecting):
                driver.expect()
            self._drivers[pool.uid] = driver
        return driver

    def forget(self, uid: str) -> None:
        """The pool is no longer this host's business; its files stay."""
        self._drivers.pop(uid, None)
