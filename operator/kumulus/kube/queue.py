"""A work queue of keys: a key is never worked on twice at once, adds coalesce, failures wait.

After client-go's `workqueue`. Two lanes: what finishes started work goes before what starts new
work, so that under load the first ones are done early instead of all at the end.
Used from one event loop only.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BACK_OFF_FIRST = 1.0
BACK_OFF_MOST = 60.0


class WorkQueue(Generic[K]):
    """Keys that need a pass."""

    def __init__(self) -> None:
        self._urgent: OrderedDict[K, None] = OrderedDict()
        self._ready: OrderedDict[K, None] = OrderedDict()
        self._running: dict[K, bool | None] = {}
        """Key in work -> None, or the lane (urgent?) in which it was added again meanwhile."""
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._ready)

    @property
    def delayed(self) -> int:
        """Keys that wait for their time."""
        return len(self._due)

    @property
    def running(self) -> int:
        """Keys in work."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Nothing to do now and nothing in work."""
        return not self._urgent and not self._ready and not self._running

    def add(self, key: K, *, urgent: bool = False) -> None:
        """Have a pass soon. In work already: once more afterwards."""
        if key in self._running:
            self._running[key] = bool(self._running[key]) or urgent
            return
        if urgent:
            self._ready.pop(key, None)
            self._urgent[key] = None
        elif key not in self._urgent:
            self._ready[key] = None
        self._wake.set()

    def add_after(self, key: K, delay: float) -> None:
        """Have a pass in `delay` seconds at the latest; an earlier one that is planned stays."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(delay, 0.0)
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
        self._wake.set()

    def retry(self, key: K) -> float:
        """Have another pass after a failure: 1 s, doubling to 60 s, with jitter. Returns the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay: float = min(BACK_OFF_FIRST * 2.0**failures, BACK_OFF_MOST) * random.uniform(0.8, 1.2)  # noqa: S311
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The last pass went well: the next failure waits briefly again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key; call `done` with it afterwards."""
        while True:
            wait = self._release_due()
            lane = self._urgent or self._ready
            if lane:
                key, _ = lane.popitem(last=False)
                self._running[key] = None
                return key
            self._wake.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The pass over `key` has ended, however."""
        again = self._running.pop(key)
        if again is not None:
            self.add(key, urgent=again)
        elif self._urgent or self._ready:
            self._wake.set()

    def _release_due(self) -> float | None:
        now = asyncio.get_running_loop().time()
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:
                heapq.heappop(self._heap)
                continue
            if due > now:
                return due - now
            heapq.heappop(self._heap)
            del self._due[key]
            self.add(key)
        return None
