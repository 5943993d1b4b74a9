"""How many machines move at once: from one host, to one host, and in all. Pure.

What counts is on record: a migration with a target that has not ended, whoever asked for it. One that has none yet waits for its turn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from kumulus.api.maintenance import DIRECTION, FOR_MAINTENANCE, FOR_REBALANCE
from kumulus.api.migration import FINISHED, MigrationPhase, VirtualMachineMigration
from kumulus.runtime.modules import Registry
from kumulus_controllers.compute.migration_plan import SOURCE_FENCED, TARGET_CLEARS_UP
from kumulus_controllers.compute.migration_preflight import ALREADY_MOVING
from kumulus_controllers.storage.volume_plan import Lack

QUEUED = "Queued"
"""Reason of a migration that waits for its turn."""
LEAVES, RETURNS = "Leaves", "Returns"
"""Which way a migration moves a machine that was made for the maintenance of a host."""
NOT_THERE = "NotThere"
"""Reason of one that was to empty a host, on which its machine is not any more."""
NOTHING_SENT = (TARGET_CLEARS_UP, SOURCE_FENCED)
"""Reasons of a migration that is being given up: its target's order ends already, or its source is off."""


class MigrationSettings(BaseModel):
    """Settings of the module."""

    model_config = ConfigDict(extra="forbid")

    at_once: int = Field(default=5, ge=1, le=1024, description="So many machines move at once in all.")
    leaving: int = Field(default=2, ge=1, le=64, description="So many leave one host at once.")
    coming: int = Field(default=2, ge=1, le=64, description="So many come to one host at once.")


LIMITS = "kumulus.migration.limits"
"""What the modules below share."""


def limits_of(registry: Registry) -> MigrationSettings:
    """The limits that the module `controllers.compute.migration` was given."""
    found: MigrationSettings = registry.plugged(LIMITS)["limits"]
    return found


@dataclass(frozen=True, slots=True)
class Way:
    """A machine that is on its way."""

    source: str
    target: str
    machine: str = ""
    """Its uid."""


def given_up(migration: VirtualMachineMigration) -> bool:
    """Whether nothing is sent any more, and only a host has to clear up, which may be silent for long. It has not ended."""
    said = migration.status.condition("Ready")
    return migration.status.phase is MigrationPhase.CANCELLING and said is not None and said.reason in NOTHING_SENT


def moving(migration: VirtualMachineMigration) -> bool:
    """Whether it moves a machine now. One whose guest has arrived burdens nobody any more, nor one that is given up."""
    return (
        migration.status.target_host is not None
        and migration.status.phase not in FINISHED
        and migration.status.phase is not MigrationPhase.FINISHING
        and not given_up(migration)
    )


def under_way(migrations: Iterable[VirtualMachineMigration]) -> dict[str, Way]:
    """What moves now, by uid of the migration."""
    return {
        item.uid: Way(item.status.source_host or "", item.status.target_host, item.status.vm_uid or "")
        for item in migrations
        if item.status.target_host is not None and moving(item)
    }


def full(ways: Mapping[str, Way], source: str, limits: MigrationSettings) -> Lack | None:
    """Why a machine of that host has to wait, wherever it goes."""
    if len(ways) >= limits.at_once:
        return _queued(f"{len(ways)} machines move already, as many as may at once (at_once)")
    if (leaving := sum(way.source == source for way in ways.values())) >= limits.leaving:
        return _queued(f"{leaving} machines leave host {source} already, as many as may at once (leaving)")
    return None


def twice(ways: Mapping[str, Way], machine: str) -> Lack | None:
    """Why a machine with that uid has to wait: it moves already. Two migrations of it may both have been the first to see to it."""
    if all(way.machine != machine for way in ways.values()):
        return None
    return Lack(ALREADY_MOVING, "Another migration moves the machine: this one waits.", stalled=False)


def busy(ways: Mapping[str, Way], limits: MigrationSettings) -> Mapping[str, str]:
    """Hosts to which none may go just now, and why, in words that come after a number of hosts."""
    coming = Counter(way.target for way in ways.values())
    return {host: f"to which {limits.coming} move already" for host, count in coming.items() if count >= limits.coming}


def astray(migration: VirtualMachineMigration, host: str | None) -> Lack | None:
    """Why a migration that was made to empty a host does not begin: the machine is on `host`, which is another one."""
    emptied, direction = (migration.metadata.labels.get(label) for label in (FOR_MAINTENANCE, DIRECTION))
    if direction != LEAVES or emptied in (None, host):
        return None
    return Lack(NOT_THERE, f"It was to leave host {emptied}, and is not there any more.")


def before(migration: VirtualMachineMigration) -> tuple[int, str, str]:
    """Which of those that wait goes first: what a person asked for, then what empties hosts, then what evens them out."""
    labels = migration.metadata.labels
    rank = 2 if FOR_REBALANCE in labels else 1 if FOR_MAINTENANCE in labels else 0
    return (rank, migration.metadata.creation_timestamp or "", migration.uid)


def _queued(why: str) -> Lack:
    return Lack(QUEUED, f"{why[0].upper()}{why[1:]}: it goes on by itself when one has moved.", stalled=False)
