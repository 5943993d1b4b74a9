"""Finding drivers."""

from __future__ import annotations

import pytest

from kumulus_agents.network import registry
from kumulus_agents.network.linux.driver import LinuxNetwork
from kumulus_agents.plugins import DriverError


def test_the_driver_comes_by_its_name() -> None:
    assert "linux" in registry.names()
    assert isinstance(registry.load("linux", {"underlay": "10.0.0.1"}), LinuxNetwork)


def test_one_that_is_not_there_and_settings_that_do_not_fit() -> None:
    with pytest.raises(DriverError, match="There is no network driver 'carrier'"):
        registry.load("carrier", {})
    with pytest.raises(DriverError, match="do not fit"):
        registry.load("linux", {"underlay": "here"})
