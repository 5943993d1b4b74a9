"""The simulated hypervisor lets guests leave and come as the contract says."""

from __future__ import annotations

import pytest

from kumulus_agents.hypervisor.simulated_host import SimulatedSettings
from tests.contract.hypervisor import World
from tests.contract.migrations import MigrationContract
from tests.unit.hypervisor.test_simulated_contract import SimulatedWorld


class TestSimulatedMoving(MigrationContract):
    @pytest.fixture(params=(0, 0.01), ids=["at-once", "with-delays"])
    def settings(self, request: pytest.FixtureRequest) -> SimulatedSettings:
        return SimulatedSettings(migrate_seconds=request.param)

    @pytest.fixture
    def here(self, settings: SimulatedSettings) -> World:
        return SimulatedWorld(settings)

    @pytest.fixture
    def there(self, settings: SimulatedSettings) -> World:
        return SimulatedWorld(settings)
