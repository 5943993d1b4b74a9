"""Which guests are held just now, and that none stays held by nobody: an agent may have died, libvirt may not answer.

What holding a guest means is in `holding`; how long it may last is for who holds it to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import structlog

from kumulus_agents.hypervisor.protocol import HypervisorError
from kumulus_agents.storage.blocking import to_the_end

log = structlog.get_logger(__name__)

AGAIN_FIRST, AGAIN_MOST = 1.0, 60.0
"""Seconds between attempts to let a guest go on."""


class Holds:
    """The guests of one host. `open` and `close` once each."""

    def __init__(
        self,
        held: Callable[[], Awaitable[Collection[str]]],
        let_go: Callable[[str], Awaitable[None]],
        halt: Callable[[str], asyncio.Lock],
    ) -> None:
        """`held` lists the guests that are held, by uid; `let_go` lets one go on. Both raise `HypervisorError`. `halt` is
        what everybody has who halts that guest, whatever for: who comes second would find it halted, and be left with it.
        """
        self._held = held
        self._let_go = let_go
        self._halt = halt
        self._mine: set[str] = set()
        self._perhaps_left = asyncio.Event()
        self._releaser: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to see to those that are held by nobody."""
        self._releaser = asyncio.get_running_loop().create_task(self._release(), name="libvirt-holds")

    async def close(self) -> None:
        """No more of that."""
        if self._releaser is not None:
            self._releaser.cancel()
            await asyncio.wait([self._releaser])
            self._releaser = None

    def look(self) -> None:
        """Some may be held by nobody: the connection stands (again)."""
        self._perhaps_left.set()

    @asynccontextmanager
    async def holding(self, uid: str) -> AsyncIterator[None]:
        """The guest is held inside the block, from somewhere in it. At its end it goes on, or as soon as that can be."""
        async with self._halt(uid):
            self._mine.add(uid)
            try:
                yield
            finally:
                await to_the_end(asyncio.ensure_future(self._end(uid)))

    async def _end(self, uid: str) -> None:
        if not await self._released(uid):
            self._perhaps_left.set()
        self._mine.discard(uid)

    async def _released(self, uid: str) -> bool:
        """Whether the guest goes on."""
        try:
            await self._let_go(uid)
        except HypervisorError as error:
            log.warning("guest is held and cannot be let go on", vm=uid, reason=error.reason, error=str(error))
            return False
        return True

    async def _released_alone(self, uid: str) -> bool:
        async with self._halt(uid):
            return await self._released(uid)

    async def _release(self) -> None:
        """Let those go on that are held by nobody, whenever there may be some."""
        pause = AGAIN_FIRST
        while True:
            await self._perhaps_left.wait()
            self._perhaps_left.clear()
            try:
                left = [uid for uid in await self._held() if uid not in self._mine]
                done = all(await asyncio.gather(*map(self._released_alone, left)))
            except HypervisorError:
                done = False
            if done:
                pause = AGAIN_FIRST
                continue
            await asyncio.sleep(pause)
            pause = min(pause * 2, AGAIN_MOST)
            self._perhaps_left.set()
