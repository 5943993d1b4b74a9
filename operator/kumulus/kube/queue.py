"""A work queue of keys: a key is never worked on twice at once, adds coalesce, failures wait.

After client-go's `workqueue`. Two lanes: what finishes started work goes before what starts new
work, so that under load the first ones are done early instead of all at the end.
Used from one event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
from collections import OrderedDict, deque
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
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._alarm: asyncio.TimerHandle | None = None

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
        if key in self._urgent or (not urgent and key in self._ready):
            return
        if urgent and self._ready.pop(key, self) is None:
            self._urgent[key] = None
            return
        (self._urgent if urgent else self._ready)[key] = None
        self._wake_one()

    def add_after(self, key: K, delay: float) -> None:
        """Have a pass in `delay` seconds at the latest; an earlier one that is planned stays."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(delay, 0.0)
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, key))
        if self._heap[0][2] == key:
            self._set_alarm()

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
        while not (lane := self._urgent or self._ready):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except BaseException:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(waiter)
                if self._urgent or self._ready:  # it may have been woken already, and another must do what it will not
                    self._wake_one()
                raise
        key, _ = lane.popitem(last=False)
        self._running[key] = None
        return key

    def done(self, key: K) -> None:
        """The pass over `key` has ended, however."""
        again = self._running.pop(key)
        if again is not None:
            self.add(key, urgent=again)

    def _wake_one(self) -> None:
        """One key, one worker: waking them all for each key cost more than the passes."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_at(self._heap[0][0], self._release_due) if self._heap else None

    def _release_due(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) == due:
                if due > now:
                    break
                del self._due[key]
                self.add(key)
            heapq.heappop(self._heap)
        self._set_alarm()
