"""How often everything that is in a network is looked at."""

from __future__ import annotations

from kumulus.runtime.clock import Clock

SECONDS_EACH = 0.0002
MOST_SECONDS = 0.5


class Pace:
    """A look at a network takes the longer the more is in it; between two of one network is a pause of about ten times
    that. What changes meanwhile is seen by the next one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}

    def left(self, uid: str) -> float:
        """Seconds until the network may be looked at again; 0 or less: now."""
        return self._next.get(uid, float("-inf")) - self._clock.monotonic()

    def looked(self, uid: str, size: int) -> None:
        """It is looked at just now, and has so many interfaces."""
        self._next[uid] = self._clock.monotonic() + min(size * SECONDS_EACH, MOST_SECONDS)

    def forget(self, uid: str) -> None:
        """The network is gone."""
        self._next.pop(uid, None)
