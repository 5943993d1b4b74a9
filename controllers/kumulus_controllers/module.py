"""The module `controllers`: what the subsystems share, which is the fleet that placement works on."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from kumulus.runtime.modules import Context, Module, Registry
from kumulus_controllers.fleet_feed import FleetFeed
from kumulus_controllers.planning import filters, scorers
from kumulus_controllers.planning.fleet import Fleet

log = structlog.get_logger(__name__)

FILTERS = "kumulus.placement.filters"
SCORERS = "kumulus.placement.scorers"
"""Extension points, and entry point groups, of placement."""

_FLEET = "kumulus.placement.fleet"


class Faults:
    """Logs filters and scorers that fail, each way of failing once: they are asked for every host."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __call__(self, name: str, fault: str) -> None:
        """One has failed."""
        if (name, fault) not in self._told:
            self._told.add((name, fault))
            log.error("a filter or scorer of placement fails", name=name, fault=fault)


async def _setup(context: Context) -> None:
    registry = context.registry
    registry.offer(_FLEET)
    fleet = new_fleet(registry, Faults())
    FleetFeed(context.services.caches, fleet)
    registry.plug(_FLEET, "fleet", fleet)


def new_fleet(registry: Registry, on_fault: Callable[[str, str], None]) -> Fleet:
    """A fleet that asks the filters and scorers of this installation, those of third parties too."""
    registry.offer(FILTERS, FILTERS)
    registry.offer(SCORERS, SCORERS)
    return Fleet(
        filters={**filters.BUILT_IN, **registry.plugged(FILTERS)},
        scorers={**scorers.BUILT_IN, **registry.plugged(SCORERS)},
        on_fault=on_fault,
    )


def fleet_of(registry: Registry) -> Fleet:
    """The fleet that the modules below `controllers` share."""
    fleet: Fleet = registry.plugged(_FLEET)["fleet"]
    return fleet


controllers = Module(description="Orchestration: intent into work orders, facts into status.", setup=_setup)
