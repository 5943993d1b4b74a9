"""The hours of a machine: by what moment it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kumulus.api.base import ConditionStatus
from kumulus.api.compute import PowerState
from kumulus.api.schedule import Schedule
from kumulus_controllers.compute.phase import derive_status
from kumulus_controllers.compute.schedule import Hours, Unreadable, hours, in_force, read
from kumulus_controllers.compute.scope import Scope
from tests.unit.compute.test_machine_status import NOW, PLACED, WHERE, host, machine, order

OFFICE = {"start": "0 8 * * 1-5", "stop": "0 18 * * 1-5", "timeZone": "Europe/Berlin"}


def at(text: str, **changes: Any) -> Hours | Unreadable:
    return read(Schedule.model_validate({**OFFICE, **changes}), datetime.fromisoformat(text))


@pytest.mark.parametrize(
    ("moment", "runs", "then"),
    [
        ("2026-11-30T07:59:59+01:00", False, "2026-11-30T07:00:00Z"),
        ("2026-11-30T08:00:00+01:00", True, "2026-11-30T17:00:00Z"),
        ("2026-11-30T16:59:59Z", True, "2026-11-30T17:00:00Z"),
        ("2026-11-30T17:00:00Z", False, "2026-12-01T07:00:00Z"),
        ("2026-12-05T12:00:00Z", False, "2026-12-07T07:00:00Z"),
        ("2026-07-01T06:00:00Z", True, "2026-07-01T16:00:00Z"),  # summer time
        ("2026-07-01T05:59:00Z", False, "2026-07-01T06:00:00Z"),
    ],
)
def test_a_machine_runs_within_its_hours(moment: str, runs: bool, then: str) -> None:
    found = at(moment)
    assert isinstance(found, Hours) and (found.runs, found.told.at) == (runs, then)


def test_a_day_has_its_hours_whatever_summer_time_does() -> None:
    """The night in which 2 o'clock comes not at all, and the one in which it comes twice: looked at each minute, it starts
    once and stops once, and is never asked to look earlier than that."""
    for day in ("2026-03-29", "2026-10-25"):
        begin, seen = datetime.fromisoformat(f"{day}T00:00:00+00:00") - timedelta(hours=2), []
        for minute in range(6 * 60):
            found = at((begin + timedelta(minutes=minute)).isoformat(), start="30 1 * * *", stop="30 3 * * *")
            assert isinstance(found, Hours)
            if not seen or seen[-1] != found.runs:
                seen.append(found.runs)
        assert seen == [False, True, False], day


def test_the_stop_counts_at_the_same_moment() -> None:
    found = at("2026-11-30T12:00:00Z", start="0 8 * * *", stop="0 8 * * *")
    assert isinstance(found, Hours) and not found.runs


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"timeZone": "Europe/Atlantis"}, "there is no time zone Europe/Atlantis"),
        ({"start": "61 8 * * *"}, "start `61 8 * * *` is nothing that cron understands"),
        ({"stop": "0 0 30 2 *"}, "stop `0 0 30 2 *`"),
    ],
)
def test_what_cannot_be_followed_is_said(changes: dict[str, str], why: str) -> None:
    found = at("2026-11-30T12:00:00Z", **changes)
    assert isinstance(found, Unreadable) and why in found.message


def test_only_a_machine_that_is_to_run_has_hours() -> None:
    night = datetime.fromisoformat("2026-11-30T22:00:00+00:00")
    for spec in ({}, {"powerState": "Stopped", "schedule": OFFICE}, {"schedule": {**OFFICE, "suspend": True}}):
        assert hours(machine(**spec), night) is None
    vm = machine(schedule=OFFICE)
    assert in_force(vm, hours(vm, night)).spec.power_state is PowerState.STOPPED
    assert in_force(vm, hours(vm, night + timedelta(hours=12))).spec.power_state is PowerState.RUNNING


def test_a_machine_that_is_off_by_its_schedule_is_as_it_shall_be() -> None:
    vm, night = machine(status=PLACED, schedule=OFFICE), datetime.fromisoformat("2026-11-30T22:00:00+00:00")
    said = hours(vm, night)
    scope = Scope(in_force(vm, said), order("Stopped"), host(), None, {}, hours=said)
    after = derive_status(scope, WHERE, None, None, NOW)
    ready, followed = after.condition("Ready"), after.condition("OnSchedule")
    assert ready is not None and ready.status is ConditionStatus.TRUE
    assert followed is not None and (followed.status, followed.reason) == (ConditionStatus.TRUE, "OutsideHours")
    assert after.scheduled is not None and after.scheduled.at == "2026-12-01T07:00:00Z"


@pytest.mark.parametrize(
    ("zone", "night", "start", "stop"),
    [
        ("Europe/Berlin", datetime(2026, 10, 24, 20, tzinfo=UTC), "30 2 * * *", "0 20 * * *"),
        ("Europe/Berlin", datetime(2026, 10, 24, 20, tzinfo=UTC), "0 20 * * *", "30 2 * * *"),
        ("America/New_York", datetime(2026, 11, 1, 2, tzinfo=UTC), "30 1 * * *", "0 20 * * *"),
        ("Europe/Berlin", datetime(2027, 3, 27, 20, tzinfo=UTC), "30 2 * * *", "0 20 * * *"),
    ],
)
def test_in_a_night_in_which_clocks_change_it_is_switched_once(
    zone: str, night: datetime, start: str, stop: str
) -> None:
    schedule, before, switched = Schedule(start=start, stop=stop, time_zone=zone), None, 0
    for minute in range(14 * 60):
        now = night + timedelta(minutes=minute)
        found = read(schedule, now)
        assert isinstance(found, Hours) and found.at > now
        switched += before is not None and before != found.runs
        before = found.runs
    assert switched == 1
