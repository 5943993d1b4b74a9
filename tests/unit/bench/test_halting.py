"""What a move's time without its guest is made of, from what libvirtds say."""

from __future__ import annotations

from tests.bench.halting import GOES_ON, HALTED, LEFT, STEPS, WHOLE, Event, steps

SEEN = [Event(at, "one", what) for at, what in ((1.0, HALTED), (1.05, WHOLE), (1.3, LEFT), (1.35, GOES_ON))]


def test_each_step_lasts_until_the_next_and_the_last_one_until_an_answer() -> None:
    other = [Event(at, "other", HALTED) for at in (0.9, 1.2)]
    found = steps([*SEEN, *other], "one", [0.99, 1.34, 1.38, 1.4])
    assert [round(took) for took in found.values()] == [50, 250, 50, 30] and tuple(found) == STEPS


def test_of_a_move_that_was_not_seen_nothing_is_said() -> None:
    assert steps(SEEN[:-1], "one", [2.0]) == {}
    assert steps(SEEN, "one", [1.2]) == {}
