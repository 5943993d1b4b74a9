"""Drivers are found by entry point."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from kumulus_agents.storage import registry
from kumulus_agents.storage.dir.driver import DirStorage
from kumulus_agents.storage.protocol import StorageError
from kumulus_agents.storage.settings import StorageSettings
from kumulus_agents.storage.simulated import SimulatedStorage
from tests.unit.storage.material import pool_ref


class NoSecrets:
    async def read(self, name: str) -> Mapping[str, bytes]:
        raise StorageError("There is none.", reason="SecretNotFound")


NONE = NoSecrets()


@pytest.fixture(autouse=True)
def installed(monkeypatch) -> None:
    found = EntryPoints(
        [
            EntryPoint("dir", "kumulus_agents.storage.dir.driver:make", registry.GROUP),
            EntryPoint("simulated", "kumulus_agents.storage.simulated:make", registry.GROUP),
            EntryPoint("broken", "kumulus_agents.storage.nowhere:make", registry.GROUP),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", found.select)


def test_the_built_in_drivers_use_the_same_door(tmp_path) -> None:
    assert isinstance(registry.load("dir", pool_ref(tmp_path), StorageSettings(), NONE), DirStorage)
    assert isinstance(registry.load("simulated", pool_ref(tmp_path), StorageSettings(), NONE), SimulatedStorage)


@pytest.mark.parametrize("name", ["floppy", "broken"])
def test_a_driver_that_is_not_there_is_said(tmp_path, name) -> None:
    with pytest.raises(StorageError) as error:
        registry.load(name, pool_ref(tmp_path), StorageSettings(), NONE)
    assert (error.value.reason, error.value.retryable) == ("DriverMissing", False)
