"""Finds drivers by name among entry points; the built-in ones come through the same door as anybody's.

An entry point is a function that takes the driver's settings and returns the driver. It is imported when that driver is
asked for, and does not touch the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from pydantic import ValidationError

Factory = Callable[[Mapping[str, object]], object]


class DriverError(Exception):
    """The driver cannot be had. The text says what to do."""


def names(group: str) -> list[str]:
    """The drivers there are."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: str, what: str, name: str, settings: Mapping[str, object]) -> object:
    """The driver of that name, made with its settings. `what` it is, such as "hypervisor", is for people.

    Raises `DriverError` when there is no such driver, when what it needs is not installed, and when its settings do not fit.
    """
    points = [point for point in entry_points(group=group) if point.name == name]
    if not points:
        known = ", ".join(names(group)) or "none; is Kumulus installed with its entry points?"
        raise DriverError(f"There is no {what} driver {name!r}. Drivers here: {known}.")
    if len({point.value for point in points}) > 1:
        claims = ", ".join(sorted(point.value for point in points))
        raise DriverError(f"Several packages offer a {what} driver {name!r}: {claims}. Remove all but one.")
    try:
        factory: Factory = points[0].load()
    except ImportError as error:
        raise DriverError(f"The {what} driver {name!r} cannot be loaded: {error}.") from error
    try:
        return factory(settings)
    except ValidationError as error:
        raise DriverError(f"Settings of the {what} driver {name!r} do not fit: {error}") from error
