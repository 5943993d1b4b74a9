"""The storage drivers of this host: one object a pool, made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from kumulus.api.pool_order import PoolRef
from kumulus_agents.storage.presence import Expecting, Releasing
from kumulus_agents.storage.protocol import StorageDriver, StorageError
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

    async def release(self, pool: PoolRef) -> None:
        """The pool is no longer this host's business: nothing of it is mounted here, its files stay."""
        with suppress(StorageError):  # a driver that this host has not got holds nothing
            driver = self.driver(pool)
            if isinstance(driver, Releasing):
                await driver.release()
        self._drivers.pop(pool.uid, None)
