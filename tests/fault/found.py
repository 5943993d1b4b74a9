"""Schedules that went wrong once, as short as they can be, with the seed that matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.fault.schedules import Schedule

Story = Callable[[Schedule], None]


def back_before_it_was_taken_over(state: Schedule) -> None:
    """A host came back and had started its machine again when controllers, which knew it as fenced, ended it there."""
    state.begin(seed=184, seconds=3.0, moving=0.0)
    state.host("two", "dead")
    state.delete_machine("a")
    state.make_machine("n", None, False, "Running", "LiveMigrateIfPossible")
    state.make_machine("b", None, True, "Stopped", "LiveMigrate")
    state.host("one", "dead")


def restarted_once_more_where_it_came(state: Schedule) -> None:
    """What was to be made ready on the other host was of before the restart: when it had come, it was restarted again."""
    state.begin(seed=37940, seconds=25.0, moving=0.0)
    state.host("one", "switch")
    state.restart("m", "256Mi")
    state.move("m", None)
    state.make_volume("r")
    state.keep_or_forget("m")
    state.move("m", "two")


def wrote_into_a_snapshot_where_it_came(state: Schedule) -> None:
    """A snapshot was taken after the other host had got ready: there the guest had the file that was to be written no more."""
    state.begin(seed=17271, seconds=0.05, moving=0.0)
    state.keep_or_forget("a")
    state.trouble("two leaders", "two", 1.0)
    state.trouble("deafen", "controllers", 1.0)
    state.make_machine("b", None, False, "Running", "Stop")
    state.move("m", None)
    state.move("m", None)
    state.trouble("outage", "controllers", 0.001)
    state.move("m", "two")
    state.keep_or_forget("m")


def a_network_that_went_as_a_machine_came(state: Schedule) -> None:
    """The order of the network was being deleted on the host that the machine came back to: it stayed so for as long as that ran."""
    state.begin(seed=53198, seconds=0.005, moving=5.0)
    state.trouble("blind", "one", 12.0)
    state.time_passes(1.0)
    state.time_passes(3.0)
    state.maintain("one", {})
    state.grow("m", "256Mi", 2)
    state.host("two", "cordon")
    state.time_passes(0.005)
    state.delete_machine("a")
    state.move("m", None)
    state.trouble("blind", "one", 0.3)
    state.move("m", None)


_ALL = (
    back_before_it_was_taken_over,
    restarted_once_more_where_it_came,
    wrote_into_a_snapshot_where_it_came,
    a_network_that_went_as_a_machine_came,
)
STORIES: Mapping[str, Story] = {story.__name__.replace("_", " "): story for story in _ALL}


def told(story: Story) -> None:
    """The story, and whether all is well in the end. Raises AssertionError."""
    state = Schedule()
    try:
        story(state)
        state.nothing_forbidden()
    finally:
        state.teardown()
