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


STORIES: Mapping[str, Story] = {
    story.__name__.replace("_", " "): story for story in (back_before_it_was_taken_over,)
}


def told(story: Story) -> None:
    """The story, and whether all is well in the end. Raises AssertionError."""
    state = Schedule()
    try:
        story(state)
        state.nothing_forbidden()
    finally:
        state.teardown()
