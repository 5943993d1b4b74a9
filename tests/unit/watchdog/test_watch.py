"""The watchdog ends a host's machines before anybody else may start them, whatever clocks and messages do (ADR 44, QUALITY F16)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumulus_agents.watchdog.watch import State, Watch
from kumulus_controllers.fabric.liveness import LeaseBook, Liveness
from kumulus_controllers.fabric.watchdog import MARGIN_SECONDS, left
from tests.unit.fabric.test_host import FakeClock, lease

LEASE = 20
DRIFT = 0.02
"""Clocks run by so much faster or slower: two hundred times what a quartz does without any NTP."""
ENDS_WITHIN = 3.0
"""A watchdog is so late at most, with the killing: it runs before everything else on its host."""


@dataclass(frozen=True)
class Renewal:
    """Real seconds: after the one before it begins, is written, its answer comes; and after it was written somebody sees it."""

    pause: float
    to_write: float
    to_answer: float
    to_see: float
    written: bool
    answered: bool


seconds = st.floats(0.0, 8.0)
renewals = st.lists(st.builds(Renewal, seconds, seconds, seconds, seconds, st.booleans(), st.booleans()), max_size=12)
rates = st.floats(1 - DRIFT, 1 + DRIFT)


@settings(max_examples=200)
@given(renewals, rates, rates, st.floats(-1e6, 1e6), st.floats(0.0, ENDS_WITHIN))
def test_the_machines_have_ended_when_they_may_start_elsewhere(
    attempts: list[Renewal], host_rate: float, controller_rate: float, offset: float, late: float
) -> None:
    """The host's clock and the controllers' start anywhere and run apart. Renewals are lost on their way there or back, or are slow."""
    at, events = 0.0, [(0.0, 0, "arm", 0.0), (0.0, 1, "seen", 0.0)]
    for number, one in enumerate(attempts):
        at += one.pause
        if one.written:
            events.append((at + one.to_write + one.to_see, 1, "seen", float(number + 1)))
            if one.answered:
                events.append((at + one.to_write + one.to_answer, 0, "renew", at))
    watch, clock = Watch(), FakeClock()
    book, last = LeaseBook(clock), 0.0
    book.note(lease("before", duration=LEASE))
    for real, _, what, value in sorted(events):
        here = 1e6 + real * host_rate  # CLOCK_BOOTTIME of the host
        last = max(last, real)
        if what == "arm":
            assert watch.arm(LEASE, here, here)
        elif what == "renew":
            watch.renew(1e6 + value * host_rate, here)
        else:
            clock.seconds = offset + real * controller_rate
            book.note(lease(f"t{value}", duration=LEASE))
    if watch.state is State.ARMED:
        assert watch.deadline is not None
        ended = (watch.deadline - 1e6) / host_rate + late
    else:
        assert watch.state is State.FIRED
        ended = (watch.renewed + watch.seconds - 1e6) / host_rate + late
    silent, duration = book.silence("h1")
    taken = (clock.seconds - offset + left(LEASE, silent)) / controller_rate
    assert duration == LEASE and ended < taken
    clock.seconds += left(LEASE, silent)
    assert book.verdict("h1").liveness is Liveness.EXPIRED


def test_without_the_margin_it_would_not_hold() -> None:
    """A host whose clock is slow ends its machines later than the controllers have counted: that is what the margin is for."""
    ended = LEASE / (1 - DRIFT) + ENDS_WITHIN
    taken = (LEASE + MARGIN_SECONDS) / (1 + DRIFT)
    assert LEASE / (1 + DRIFT) < ended < taken


@given(st.lists(st.tuples(st.sampled_from(("renew", "disarm", "look")), st.floats(0, 30)), max_size=20))
def test_what_has_fired_stays_so_until_it_is_armed_anew(happened: list[tuple[str, float]]) -> None:
    watch, now = Watch(), 100.0
    assert watch.arm(LEASE, now, now)
    now += LEASE
    assert watch.look(now) is State.FIRED
    for what, later in happened:
        now += later
        if what == "renew":
            assert not watch.renew(now, now)
        elif what == "disarm":
            assert not watch.disarm(now)
        assert watch.look(now) is State.FIRED
    assert watch.arm(LEASE, now - 1, now) and watch.deadline == now - 1 + LEASE


@pytest.mark.parametrize("age", [LEASE, LEASE + 1000, -1])
def test_who_arms_it_too_late_has_the_machines_ended(age: float) -> None:
    """The watchdog was started anew while its host was cut off."""
    watch = Watch()
    assert not watch.arm(LEASE, 100.0 - age, 100.0)
    assert watch.state is State.FIRED


def test_it_never_goes_back_to_an_earlier_renewal() -> None:
    watch = Watch()
    assert watch.arm(LEASE, 10.0, 10.0) and watch.renew(15.0, 16.0) and watch.renew(12.0, 16.0)
    assert watch.deadline == 15.0 + LEASE
    assert not watch.arm(LEASE, 12.0, 16.0) and watch.deadline == 15.0 + LEASE
    assert watch.disarm(16.0) and watch.deadline is None and watch.look(1000.0) is State.IDLE
