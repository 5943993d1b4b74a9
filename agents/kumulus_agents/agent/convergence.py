"""Whether the copy of a guest gets closer to its end. Pure.

How many bytes are left says little: within a pass over its memory they become fewer, whatever the guest writes, and with
the next pass there is all again that it has written meanwhile. So passes are held against each other: the copy gets closer
when a pass has less before it than any earlier one, and for as long as what is left of such a pass becomes less. Passes
that are over before one can look are taken together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from kumulus_agents.hypervisor.migration import Progress

LOOKS = 5
"""So often at least what is held against each other was looked at."""
LESS = 0.95
"""What is less is so by chance, unless it is less by so much: one never looks at the very beginning of a pass."""


@dataclass(frozen=True, slots=True)
class Convergence:
    """What was seen of one copy. Seconds on a clock that only goes forward; bytes."""

    since: float
    """When it last got closer."""
    iteration: int = 0
    looks: int = 0
    """How often this pass was looked at, or these."""
    whole: bool = True
    """It is one pass."""
    most: int = 0
    """The most that was left of it."""
    left: int = 0
    """The fewest that were left of it."""
    best: int | None = None
    """The least that one has had before it."""

    def seen(self, progress: Progress, now: float) -> Convergence:
        """With what was seen now."""
        remaining, next_one = progress.remaining, progress.iteration != self.iteration
        if self.looks == 0 or (next_one and self.looks >= LOOKS):
            closer = self.looks > 0 and self._less(self.most)
            best = self.most if closer else self.best
            since = now if closer or self.looks == 0 else self.since
            return Convergence(since, progress.iteration, 1, True, remaining, remaining, best)
        whole = self.whole and not next_one
        most, left = max(self.most, remaining), min(self.left, remaining)
        closer = whole and self.looks >= LOOKS and left < self.left and self._less(most)
        looks = self.looks + 1
        since = now if closer else self.since
        return replace(self, since=since, iteration=progress.iteration, looks=looks, whole=whole, most=most, left=left)

    def _less(self, most: int) -> bool:
        return self.best is None or most < self.best * LESS

    def stalled(self, now: float) -> float:
        """For how many seconds it has not got closer."""
        return max(now - self.since, 0.0)
