"""Finds a hypervisor driver by name: entry points of the group `kumulus.hypervisors`.

The built-in drivers come through the same door as anybody's. An entry point is a function that takes
the driver's settings and returns a `Hypervisor`; it is imported when that driver is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from pydantic import ValidationError

from kumulus_agents.hypervisor.protocol import Hypervisor

GROUP = "kumulus.hypervisors"

Factory = Callable[[Mapping[str, object]], Hypervisor]


class DriverError(Exception):
    """The driver cannot be had. The text says what to do."""


def names() -> list[str]:
    """The drivers there are."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(name: str, settings: Mapping[str, object]) -> Hypervisor:
    """The driver of that name, made with its settings. It connects when it is told to.

    Raises `DriverError` when there is no such driver, when what it needs is not installed, and when its
    settings do not fit.
    """
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if not points:
        known = ", ".join(names()) or "none; is Kumulus installed with its entry points?"
        raise DriverError(f"There is no hypervisor driver {name!r}. Drivers here: {known}.")
    if len({point.value for point in points}) > 1:
        claims = ", ".join(sorted(point.value for point in points))
        raise DriverError(f"Several packages offer a hypervisor driver {name!r}: {claims}. Remove all but one.")
    try:
        factory: Factory = points[0].load()
    except ImportError as error:
        raise DriverError(f"The hypervisor driver {name!r} cannot be loaded: {error}.") from error
    try:
        return factory(settings)
    except ValidationError as error:
        raise DriverError(f"Settings of the hypervisor driver {name!r} do not fit: {error}") from error
