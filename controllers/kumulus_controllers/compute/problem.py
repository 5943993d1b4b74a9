"""Why a machine is not what it shall be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the machine cannot be placed yet. `aspect` is the condition it belongs to."""

    reason: str
    message: str
    aspect: str = "Scheduled"
    stalled: bool = True
    """Somebody has to do something; False when it will pass by itself."""
    hinders: bool = True
    """The machine cannot be ready; False when it runs all the same."""
