"""Whether a loop still turns: it beats in the loop, and may be asked from any other thread.

A beat is a callback, not a task: it costs nothing, and nothing that cancels a loop's tasks ends it.
"""

from __future__ import annotations

import asyncio
import time

PATIENCE = 60.0
"""Seconds without a beat after which a loop is stuck: longer than any garbage collection or burst."""


class Pulse:
    """The pulse of the loop that it is started in."""

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._last: float | None = None
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat, in the running loop."""
        self._beat(asyncio.get_running_loop())

    def stop(self) -> None:
        """Beat no more. Call it in the loop."""
        if self._next is not None:
            self._next.cancel()

    def why(self) -> str | None:
        """Why the loop is thought to be stuck; None while it turns, and before it was started."""
        if self._last is None:
            return None
        age = time.monotonic() - self._last
        return f"stuck: nothing has run in its loop for {age:.0f} s" if age > self._patience else None

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._last = time.monotonic()
        self._next = loop.call_later(self._patience / 12, self._beat, loop)
