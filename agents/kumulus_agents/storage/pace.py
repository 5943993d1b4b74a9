"""How far and how fast an import is, told at most twice a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from kumulus_agents.storage.protocol import ImportProgress, ProgressListener

INTERVAL = 0.5
"""Seconds between two reports of a stage."""

_LATELY = 10


class Pace:
    """Turns positions into reports. One an import."""

    def __init__(self, listener: ProgressListener | None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._listener = listener or _ignore
        self._monotonic = monotonic
        self._stage = "Downloading"
        self._told = -INTERVAL
        self._past: deque[tuple[float, int]] = deque(maxlen=_LATELY)

    def stage(self, stage: str, position: int, total: int | None) -> None:
        """A new stage begins; told at once."""
        self._stage = stage
        self._past.clear()
        self._told = self._monotonic() - INTERVAL
        self.at(position, total)

    def at(self, position: int, total: int | None) -> None:
        """So many bytes of the stage are done; told when the last report is old enough."""
        now = self._monotonic()
        if self._past and now - self._told < INTERVAL:
            return
        if self._past and position < self._past[-1][1]:
            self._past.clear()
        rate = None
        if self._past and now > self._past[0][0]:
            rate = round((position - self._past[0][1]) / (now - self._past[0][0]))
        self._past.append((now, position))
        self._told = now
        self._listener(ImportProgress(stage=self._stage, bytes=position, total=total, rate=rate))


def _ignore(_: ImportProgress) -> None:
    """Nobody listens."""
