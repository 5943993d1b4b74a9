"""Waiting for a condition until a deadline, and never longer than it takes.

The only place of the lab that sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from kumulus_lab.errors import LabError

T = TypeVar("T")

patience = 1.0
"""How many times the seconds that are named may pass before anybody gives up. Tests raise it: a deadline of theirs says that
something does not happen, not that a machine that does much else is slow."""


def until(
    probe: Callable[[], T | None],
    what: str,
    *,
    seconds: float,
    every: float = 0.05,
    alive: Callable[[], str | None] | None = None,
) -> T:
    """The first truthy answer of `probe`.

    `alive` may say, in a sentence, why waiting on has no point. Raises LabError then, or after `seconds`.
    """
    seconds *= patience
    end = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if alive is not None and (why := alive()) is not None:
            raise LabError(why)
        if time.monotonic() >= end:
            raise LabError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(every)
