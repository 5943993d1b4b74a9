"""Maintenance of hosts: what is asked of a host, what becomes of the machines on it, and how far that is.

The labels say of a VirtualMachineMigration for whom Kumulus made it.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from kumulus.api.base import DOMAIN, Model, Rule

FOR_MAINTENANCE = f"{DOMAIN}/maintenance"
"""Label of a migration: the host for whose maintenance a machine leaves it, or comes back to it."""
DIRECTION = f"{DOMAIN}/maintenance-direction"
"""Label beside it: `Leaves` or `Returns`."""
ATTEMPT = f"{DOMAIN}/maintenance-attempt"
"""Annotation beside it: how often it was tried, from 1."""
FOR_REBALANCE = f"{DOMAIN}/rebalance"
"""Label of a migration that `kumulusctl host rebalance --apply` made: which plan it belongs to."""


class EvictionPolicy(StrEnum):
    """What becomes of a machine that runs when its host is to be emptied."""

    LIVE_MIGRATE = "LiveMigrate"
    LIVE_MIGRATE_IF_POSSIBLE = "LiveMigrateIfPossible"
    RESTART = "Restart"
    STOP = "Stop"
    NONE = "None"


class EvictionAction(StrEnum):
    """What is done to a machine because of its host's maintenance."""

    LIVE_MIGRATE = "LiveMigrate"
    RESTART = "Restart"
    STOP = "Stop"


class Eviction(Model):
    """What is done to a machine because of its host's maintenance. Written by the controllers alone."""

    host: str = Field(description="Name of the host that is emptied, or was.")
    action: EvictionAction = Field(
        description="LiveMigrate: it goes to another host while it runs. Restart: it is shut down, and started on another host."
        " Stop: it is shut down, and started again when the maintenance is over."
    )
    returns: bool = Field(default=False, description="It is brought back when the maintenance is over.")


class MaintenanceMode(StrEnum):
    """How a host is maintained."""

    EVACUATE = "Evacuate"
    IN_PLACE = "InPlace"


class Maintenance(Model):
    """Somebody works on the host: no machine comes to it, and those on it leave, if that is wanted. Ends when it is taken away."""

    rules = (
        Rule(
            "!self.returnGuests || self.mode == 'Evacuate'",
            "only a host that is emptied (mode Evacuate) has guests to bring back",
            field=".returnGuests",
        ),
    )

    mode: MaintenanceMode = Field(
        default=MaintenanceMode.EVACUATE,
        description="Evacuate: each machine leaves as its evictionPolicy says. InPlace: all stay as they are, such as while the"
        " agent or libvirt is upgraded.",
    )
    return_guests: bool = Field(
        default=False,
        description="When it is over, machines that left come back, those that can be moved while they run.",
    )


class MaintenancePhase(StrEnum):
    """How far a maintenance is."""

    IN_PLACE = "InPlace"
    EVACUATING = "Evacuating"
    BLOCKED = "Blocked"
    """Nothing moves: what is left waits for what `waiting` says."""
    EMPTIED = "Emptied"
    """Nothing runs there any more but what is to stay."""
    RETURNING = "Returning"
    """It is over, and machines come back."""


WAITING_TOLD = 8
"""So many machines that wait are named."""


class WaitingGuest(Model):
    """A machine that does not leave, or does not come back, and why."""

    namespace: str = Field(description="Its namespace.")
    name: str = Field(description="Its name.")
    reason: str = Field(description="Why, in one word.", max_length=64)
    message: str = Field(default="", description="Why, in a sentence.", max_length=512)


class MaintenanceStatus(Model):
    """How far the maintenance of a host is."""

    observed_generation: int | None = Field(default=None, description="The generation of the spec that this answers.")
    phase: MaintenancePhase = Field(description="In one word.")
    began_at: str | None = Field(default=None, description="When it began (RFC 3339).")
    left: int = Field(default=0, description="Machines that are still to leave, or to be shut down; or to come back.")
    moving: int = Field(default=0, description="How many of them are on their way.")
    staying: int = Field(default=0, description="Machines that stay: they are off, or their evictionPolicy is None.")
    waiting: tuple[WaitingGuest, ...] = Field(
        default=(), description="The first few that cannot go now, and why.", max_length=WAITING_TOLD
    )
