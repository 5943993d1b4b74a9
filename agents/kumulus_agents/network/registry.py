"""Finds a network driver by name: entry points of the group `kumulus.network`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from kumulus_agents import plugins
from kumulus_agents.network.protocol import NetworkDriver

GROUP = "kumulus.network"


def names() -> list[str]:
    """The drivers there are."""
    return plugins.names(GROUP)


def load(name: str, settings: Mapping[str, object]) -> NetworkDriver:
    """The driver of that name, made with its settings; `prepare` touches the host. Raises `plugins.DriverError`."""
    return cast(NetworkDriver, plugins.load(GROUP, "network", name, settings))
