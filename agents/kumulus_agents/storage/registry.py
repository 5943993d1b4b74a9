"""Finds storage drivers: entry points of the group `kumulus.storage`, the built-in ones like any other.

An entry point names a factory `(PoolRef, StorageSettings, Secrets) -> StorageDriver`. It must not touch
the pool; `prepare` does.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from kumulus.api.pool_order import PoolRef
from kumulus_agents.storage.protocol import StorageDriver, StorageError
from kumulus_agents.storage.secrets import Secrets
from kumulus_agents.storage.settings import StorageSettings

GROUP = "kumulus.storage"

Factory = Callable[[PoolRef, StorageSettings, Secrets], StorageDriver]


def load(driver: str, pool: PoolRef, settings: StorageSettings, secrets: Secrets) -> StorageDriver:
    """The driver of that name for the pool. Raises `StorageError(reason="DriverMissing")`.

    `driver` is `pool.driver` but on simulated hosts, where it is "simulated".
    """
    for entry in entry_points(group=GROUP, name=driver):
        try:
            factory: Factory = entry.load()
        except (ImportError, AttributeError) as error:
            raise _missing(driver) from error
        return factory(pool, settings, secrets)
    raise _missing(driver)


def _missing(driver: str) -> StorageError:
    return StorageError(
        f"This host has no storage driver {driver}. Install it there, or use a pool of another driver.",
        reason="DriverMissing",
        retryable=False,
    )
