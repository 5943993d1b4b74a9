"""A driver in a thread and an event loop of its own, so that storage that does not answer holds up nobody else.

A file system over the network answers when its server does: a call that waits for it cannot be ended, not even by
killing what made it. So the agent never waits for such a call itself. A watch asks the file system for its size every
few seconds; while that takes too long every verb ends in `PoolNotAnswering`, also those under way. What they had begun
goes on when the server does, under the driver's own locks, and is found by whoever tries again.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, cast

from kumulus_agents.storage.blocking import in_thread
from kumulus_agents.storage.presence import Expecting
from kumulus_agents.storage.protocol import StorageDriver, StorageError

PATIENCE = 3.0
"""Seconds that a file system may take to answer."""
LOOK_EVERY = 0.25
_ASK_EVERY = 1.0
_IDLE = 120.0
"""A pool that nobody used for so long, in seconds, is not asked."""


_WHOLE_IMAGES = frozenset({"measure_image", "open_image", "copy_image"})
"""What passes files and positions in them between host and driver, which cannot be made apart: such pools fetch images
from their source, once for all of their hosts."""


class Watch:
    """Asks a file system, in a thread of its own, whether it is there."""

    def __init__(self, ask: Callable[[], object]) -> None:
        """`ask` may take for ever; an `OSError` is an answer."""
        self._ask = ask
        self._asked: float | None = None
        self._used = float("-inf")
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._over = False

    @property
    def silent(self) -> bool:
        """Whether it has been asked and has not answered in time, or is asked no more."""
        asked = self._asked
        return self._over or (asked is not None and time.monotonic() - asked > PATIENCE)

    def use(self) -> None:
        """Somebody uses it: keep asking."""
        self._used = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pool watch", daemon=True)
            self._thread.start()
        self._wake.set()

    def end(self) -> None:
        """Ask no more."""
        self._over = True
        self._wake.set()

    def _run(self) -> None:
        while not self._over:
            if time.monotonic() - self._used > _IDLE:
                self._wake.clear()
                if not self._over:
                    self._wake.wait()
                continue
            self._asked = time.monotonic()
            with suppress(OSError):
                self._ask()
            self._asked = None
            time.sleep(_ASK_EVERY)


class Apart:
    """Has all that drivers of a class have; each call is made in the driver's thread."""

    def __init__(
        self,
        kind: type,
        make: Callable[[], StorageDriver],
        ask: Callable[[], object],
        name: str,
        release: Callable[[], None] | None = None,
    ) -> None:
        """`make` makes the driver, of that class; it is called in its thread. `name` is the pool's, for people. `release` lets go of what
        the host holds for the pool, if it holds anything; it blocks, but never for the pool's server."""
        self._kind = kind
        self._make = make
        self._release = release
        self._watch = Watch(ask)
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._driver: StorageDriver | None = None
        self._expected = False

    def expect(self) -> None:
        """See `Expecting.expect`. Told before the driver is used."""
        self._expected = True

    async def release(self) -> None:
        """See `Releasing.release`. The driver is not used afterwards."""
        self._watch.end()
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
        if self._release is not None:
            await in_thread(self._release)

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        if verb.startswith("_") or verb in _WHOLE_IMAGES or not hasattr(self._kind, verb):
            raise AttributeError(verb)

        async def call(*arguments: Any, **named: Any) -> Any:
            here = asyncio.get_running_loop()

            def relayed(argument: Any) -> Any:
                return _relay(here, argument) if callable(argument) else argument

            async def there() -> Any:
                if self._driver is None:
                    self._driver = self._make()
                    if self._expected and isinstance(self._driver, Expecting):
                        self._driver.expect()
                plain = {name: relayed(value) for name, value in named.items()}
                return await getattr(self._driver, verb)(*map(relayed, arguments), **plain)

            return await self._run(there())

        return call

    async def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        self._watch.use()
        if self._watch.silent:
            work.close()
            raise self._silence()
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        answer = asyncio.wrap_future(future)
        while True:
            try:
                done, _ = await asyncio.wait([answer], timeout=LOOK_EVERY)
            except asyncio.CancelledError:
                future.cancel()
                raise
            if done:
                return answer.result()
            if self._watch.silent:
                future.add_done_callback(_heard_of)
                raise self._silence()

    def _silence(self) -> StorageError:
        return StorageError(
            f"The pool {self._name} does not answer. Its server or the network to it is down or very slow;"
            " what was begun goes on when it answers again.",
            reason="PoolNotAnswering",
        )

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            # Not uvloop: that watches its children from the main thread only.
            self._loop = asyncio.SelectorEventLoop()
            threading.Thread(target=_serve, args=[self._loop], name=f"pool {self._name}", daemon=True).start()
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Until the loop is stopped."""
    try:
        loop.run_forever()
    finally:
        loop.close()


def _relay(home: asyncio.AbstractEventLoop, call: Callable[..., Any]) -> Callable[..., Any]:
    """A callback that is made where the caller's loop runs; its answer can be awaited where it is called."""

    async def made(*arguments: Any) -> Any:
        answer = call(*arguments)
        return await answer if inspect.isawaitable(answer) else answer

    def relay(*arguments: Any) -> Awaitable[Any]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(made(*arguments), home))

    return relay


def _heard_of(future: Future[Any]) -> None:
    """Nobody waits for it any more: how it ended is looked at, so that nobody complains that it is not."""
    if not future.cancelled():
        future.exception()


def apart(
    kind: type, make: Callable[[], StorageDriver], path: str, name: str, release: Callable[[], None] | None = None
) -> StorageDriver:
    """The driver of the class `kind` that `make` makes, for a pool on the file system that `path` is on, until `release`
    lets go of it. It is found to offer what that class does, before it is made."""
    return cast(StorageDriver, Apart(kind, make, lambda: os.statvfs(path), name, release))
