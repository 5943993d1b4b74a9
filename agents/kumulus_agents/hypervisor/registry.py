"""Finds a hypervisor driver by name: entry points of the group `kumulus.hypervisors`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from kumulus_agents import plugins
from kumulus_agents.hypervisor.protocol import Hypervisor

GROUP = "kumulus.hypervisors"


def names() -> list[str]:
    """The drivers there are."""
    return plugins.names(GROUP)


def load(name: str, settings: Mapping[str, object]) -> Hypervisor:
    """The driver of that name, made with its settings. It connects when it is told to. Raises `plugins.DriverError`."""
    return cast(Hypervisor, plugins.load(GROUP, "hypervisor", name, settings))
