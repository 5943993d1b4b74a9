"""The condition Maintenance of a Host, from how far its maintenance is. Pure."""

from __future__ import annotations

from kumulus.api.fabric import HostCondition
from kumulus.api.maintenance import MaintenancePhase, MaintenanceStatus
from kumulus.runtime.conditions import Fact

TOLD = 3
"""So many of those that wait are named."""
KIND = HostCondition.MAINTENANCE


def under_work(found: MaintenanceStatus, *, guarded: bool = False) -> Fact:
    """True: whoever works on it may begin. `guarded`: its watchdog may be armed."""
    stay = f" {_machines(found.staying)} {_verb(found.staying, 'stays', 'stay')}: off, or of the evictionPolicy None."
    match found.phase:
        case MaintenancePhase.IN_PLACE if guarded:
            return Fact(
                KIND,
                False,
                "WatchdogArmed",
                "Its watchdog is not disarmed yet: without its agent its machines would end.",
            )
        case MaintenancePhase.IN_PLACE:
            return Fact(KIND, True, "InPlace", "It takes no new machines; those on it stay as they are.")
        case MaintenancePhase.EMPTIED:
            return Fact(KIND, True, "Emptied", f"Nothing that is to leave runs on it.{stay if found.staying else ''}")
        case MaintenancePhase.RETURNING:
            return Fact(KIND, False, "Returning", f"It is over; {_machines(found.left)} come back.{_waiting(found)}")
    moving = f", {found.moving} on their way" if found.moving else ", and none can go now"
    return Fact(KIND, False, str(found.phase), f"{_machines(found.left)} still to leave{moving}.{_waiting(found)}")


def _machines(number: int) -> str:
    return "1 machine" if number == 1 else f"{number} machines"


def _verb(number: int, one: str, many: str) -> str:
    return one if number == 1 else many


def _waiting(found: MaintenanceStatus) -> str:
    named = found.waiting[:TOLD]
    return "".join(f" {guest.namespace}/{guest.name}: {guest.reason}: {guest.message}" for guest in named)
