"""Guests that were asked to bring their file systems to rest and are not known to have gone on.

Each is told to go on until it says that it does: an agent in a guest may be at something for hours and freeze
after that, when nobody waits for it any more. `snapshots` knows how; here is only when.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from kumulus_agents.hypervisor.protocol import HypervisorError

AGAIN_FIRST = 1.0
AGAIN_MOST = 30.0
"""Seconds between two attempts."""

log = structlog.get_logger(__name__)


class Resting:
    """Of one host's domains, by uid."""

    def __init__(self, thaw: Callable[[str], Awaitable[bool]]) -> None:
        """`thaw` has the guest of that domain go on; whether it does, or there is nothing to do."""
        self._thaw = thaw
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @asynccontextmanager
    async def asking(self, uid: str) -> AsyncIterator[None]:
        """Ask the guest to rest within this: nobody has it go on meanwhile, and afterwards it is seen to that it does."""
        async with self._lock(uid):
            try:
                yield
            finally:
                self.see_to(uid)

    def see_to(self, uid: str) -> None:
        """Have the guest go on, in the background. It does already: nothing."""
        if uid not in self._tasks:
            self._tasks[uid] = asyncio.get_running_loop().create_task(self._see_to(uid), name=f"thaw {uid}")

    async def close(self) -> None:
        """Leave what is open to the next process."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _see_to(self, uid: str) -> None:
        pause = AGAIN_FIRST
        try:
            while not await self._thawed(uid):
                if pause == AGAIN_FIRST:
                    log.warning("a guest that was asked to rest does not say that it goes on", uid=uid)
                await asyncio.sleep(pause)
                pause = min(pause * 2, AGAIN_MOST)
        finally:
            del self._tasks[uid]

    async def _thawed(self, uid: str) -> bool:
        async with self._lock(uid):
            try:
                return await self._thaw(uid)
            except HypervisorError:
                return False

    def _lock(self, uid: str) -> asyncio.Lock:
        return self._locks.setdefault(uid, asyncio.Lock())
