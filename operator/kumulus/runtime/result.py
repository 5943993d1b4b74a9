"""What a pass over an object comes to. Values, not exceptions: exceptions are for the unexpected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more to do until something changes."""


@dataclass(frozen=True, slots=True)
class Gone:
    """There is no such object, or not any more: it needs no further pass, not even now and then."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Look again in so many seconds, whatever happens meanwhile."""

    after: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Waiting for something that will most likely announce itself; look again in so many seconds at the latest."""

    reason: str
    after: float = 60.0


@dataclass(frozen=True, slots=True)
class Failed:
    """It went wrong in a way that is known and may pass: try again with growing pauses."""

    reason: str


Result = Done | Gone | Requeue | Wait | Failed
