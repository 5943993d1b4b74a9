"""The hours of a machine: whether it is to run now, and when that changes. Pure.

By what moment it is, and nothing that was done or missed before: after an outage a machine is what it is to be by then, and a
window that has passed meanwhile has passed. The spec is not written; who asks for `Stopped` has it stopped at any hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from kumulus.api.compute import PowerState, VirtualMachine
from kumulus.api.schedule import NextAction, Schedule, ScheduledAction
from kumulus.runtime.clock import rfc3339

MOMENT = timedelta(minutes=1)
"""cron knows no shorter one."""


@dataclass(frozen=True, slots=True)
class Hours:
    """What a schedule says at a moment."""

    runs: bool
    """Whether it is within its hours."""
    next: ScheduledAction
    at: datetime

    @property
    def told(self) -> NextAction:
        """As the status has it."""
        return NextAction(action=self.next, at=rfc3339(self.at))


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why a schedule cannot be followed."""

    message: str


def hours(vm: VirtualMachine, now: datetime) -> Hours | Unreadable | None:
    """What the machine's schedule says; None when it has none, or it is not in force."""
    schedule = vm.spec.schedule
    if schedule is None or schedule.suspend or vm.spec.power_state is not PowerState.RUNNING:
        return None
    return read(schedule, now)


def read(schedule: Schedule, now: datetime) -> Hours | Unreadable:
    """What a schedule says at that moment."""
    try:
        zone = ZoneInfo(schedule.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return Unreadable(f"there is no time zone {schedule.time_zone}")
    here = _once(now, zone)
    found = {}
    for action, text in ((ScheduledAction.START, schedule.start), (ScheduledAction.STOP, schedule.stop)):
        try:
            last = next(CronSim(text, here + MOMENT, reverse=True))
            found[action] = last if last <= here else next(CronSim(text, here, reverse=True)), next(CronSim(text, here))
        except (CronSimError, StopIteration):
            return Unreadable(f"{action.lower()} `{text}` is nothing that cron understands, or never happens")
    (started, start), (stopped, stop) = found[ScheduledAction.START], found[ScheduledAction.STOP]
    runs = started > stopped
    action, at = (ScheduledAction.STOP, stop) if runs else (ScheduledAction.START, start)
    at = at.astimezone(UTC)
    return Hours(runs, action, at if at > now else now.astimezone(UTC) + MOMENT)


def _once(now: datetime, zone: ZoneInfo) -> datetime:
    """The time there. When clocks are put back an hour comes twice; what is to happen in it has happened the first time."""
    while (here := now.astimezone(zone)).fold:
        now -= MOMENT
    return here


def in_force(vm: VirtualMachine, found: Hours | Unreadable | None) -> VirtualMachine:
    """The machine as it is to be at that hour."""
    if not isinstance(found, Hours) or found.runs:
        return vm
    return vm.model_copy(update={"spec": vm.spec.model_copy(update={"power_state": PowerState.STOPPED})})
